/**
 * A Node stream over any descriptor that can be polled: terminals, pseudo terminal masters, serial lines, eventfds.
 *
 * Node makes streams of pipes and sockets only; its terminal streams block on output, which would stop the guest when
 * the user presses Ctrl-S. So the stream is made over one end of a fresh socket pair, and the real descriptor is then
 * put in its place with dup3, before the event loop has seen it: libuv only ever uses the descriptor's number.
 */
import { fstatSync } from 'node:fs';
import { Socket } from 'node:net';
import { closeFd, duplicate, OpenFlag, openFile, setNonBlocking } from './files.ts';
import { hostCall, must } from './libc.ts';
import { isTerminal } from './tty.ts';
import { socketPair } from './unix-sockets.ts';

const dup3 = hostCall<[from: number, to: number, flags: number]>('int dup3(int, int, int)');

/**
 * Whether epoll accepts this descriptor. Regular files and most devices (/dev/null) are always ready and cannot be
 * polled; libuv aborts the process when it is told to try.
 */
export function isPollable(fd: number): boolean {
  const stat = fstatSync(fd);
  return stat.isFIFO() || stat.isSocket() || isTerminal(fd);
}

export interface FdStreamOptions {
  readonly readable: boolean;
  readonly writable: boolean;
}

/**
 * Make a stream that owns `fd` (closed with it). The descriptor becomes non-blocking.
 * @param what for messages.
 * @throws HostError; `fd` is then still the caller's.
 */
export function streamOverFd(fd: number, what: string, options: FdStreamOptions): Socket {
  setNonBlocking(fd, true, what);
  const [placeholder, other] = socketPair(what);
  closeFd(other);
  const stream = new Socket({ fd: placeholder, allowHalfOpen: true, ...options });
  const moved = dup3(fd, placeholder, OpenFlag.CloseOnExec);
  if (moved < 0) stream.destroy();
  must(moved, 'dup3', what);
  closeFd(fd);
  return stream;
}

/**
 * Open the same terminal, pipe or file again. The result has flags of its own, so that making it non-blocking does
 * not change the descriptor that the shell, or another process of the same session, holds. Where the kernel refuses
 * (sockets, terminals of another user) it is a duplicate that shares the flags.
 */
export function reopen(fd: number, access: 'read' | 'write'): { readonly fd: number; readonly shared: boolean } {
  const mode = access === 'read' ? OpenFlag.ReadOnly : OpenFlag.WriteOnly;
  const flags = mode | OpenFlag.NoCtty | OpenFlag.NonBlock | OpenFlag.CloseOnExec;
  try {
    return { fd: openFile(`/proc/self/fd/${fd}`, flags), shared: false };
  } catch {
    return { fd: duplicate(fd, `descriptor ${fd}`), shared: true };
  }
}
