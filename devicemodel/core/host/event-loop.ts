/** What libuv offers programs that embed its loop: the descriptor it waits on, and how long it would wait. */
import { native } from './libc.ts';

let loop: unknown;

function defaultLoop(): unknown {
  loop ??= (native('uintptr_t uv_default_loop()') as () => unknown)();
  return loop;
}

/** Readable when Node's event loop has something to do that is not a timer. */
export function eventLoopFd(): number {
  return native('int uv_backend_fd(uintptr_t)')(defaultLoop());
}

/** How long the event loop would sleep: milliseconds to its next timer, 0 when it has work, -1 for ever. */
export function eventLoopTimeoutMs(): number {
  return native('int uv_backend_timeout(uintptr_t)')(defaultLoop());
}

/** As {@link eventLoopTimeoutMs}, for a thread that kept the event loop from looking at the clock. */
export function freshEventLoopTimeoutMs(): number {
  native('void uv_update_time(uintptr_t)')(defaultLoop());
  return eventLoopTimeoutMs();
}
