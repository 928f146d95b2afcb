/**
 * A Node stream over any descriptor that can be polled: terminals, pseudo terminal masters, serial lines, eventfds.
 *
 * Node makes streams of pipes and sockets only; its terminal streams block on output, which would stop the guest when
 * the user presses Ctrl-S. So the stream is made over one end of a fresh socket pair, and the real descriptor is then
 * put in its place with dup3, before the event loop has seen it: libuv only ever uses the descriptor's number.
 */
import { fstatSync } from 'node:fs';
import { Socket } from 'node:net';
import { isatty } from 'node:tty';
import { HostError } from '../errors.ts';
import { describeErrno, lastErrno, libc, native, OpenFlag } from './libc.ts';

// <fcntl.h>, <bits/socket.h>, x86-64 Linux.
const F_GETFL = 3;
const F_SETFL = 4;
const F_DUPFD_CLOEXEC = 1030;
const AF_UNIX = 1;
const SOCK_STREAM = 1;

function fail(call: string, what: string): never {
  const errno = lastErrno();
  throw new HostError(`${what}: ${call}: ${describeErrno(errno)}`, errno);
}

/**
 * Whether epoll accepts this descriptor. Regular files and most devices (/dev/null) are always ready and cannot be
 * polled; libuv aborts the process when it is told to try.
 */
export function isPollable(fd: number): boolean {
  const stat = fstatSync(fd);
  return stat.isFIFO() || stat.isSocket() || isatty(fd);
}

/** O_NONBLOCK belongs to the open file, not to the descriptor: whoever shares it sees the change. @returns the old setting. */
export function setNonBlocking(fd: number, on: boolean, what: string): boolean {
  const fcntl = native('int fcntl(int, int, unsigned long)');
  const flags = fcntl(fd, F_GETFL, 0);
  if (flags < 0) return fail('fcntl', what);
  const wanted = on ? flags | OpenFlag.NonBlock : flags & ~OpenFlag.NonBlock;
  if (wanted !== flags && fcntl(fd, F_SETFL, wanted) < 0) return fail('fcntl', what);
  return (flags & OpenFlag.NonBlock) !== 0;
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
  const pair = new Int32Array(2);
  if (native('int socketpair(int, int, int, void *)')(AF_UNIX, SOCK_STREAM | OpenFlag.CloseOnExec, 0, pair) < 0) {
    return fail('socketpair', what);
  }
  const [placeholder, other] = pair as unknown as [number, number];
  libc.close(other);
  const stream = new Socket({ fd: placeholder, allowHalfOpen: true, ...options });
  if (native('int dup3(int, int, int)')(fd, placeholder, OpenFlag.CloseOnExec) < 0) {
    const errno = lastErrno();
    stream.destroy();
    throw new HostError(`${what}: dup3: ${describeErrno(errno)}`, errno);
  }
  libc.close(fd);
  return stream;
}

/** Another descriptor of the same open file. @throws HostError */
export function duplicate(fd: number, what: string): number {
  const copy = native('int fcntl(int, int, unsigned long)')(fd, F_DUPFD_CLOEXEC, 3);
  return copy < 0 ? fail('fcntl', what) : copy;
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
    return { fd: libc.open(`/proc/self/fd/${fd}`, flags), shared: false };
  } catch {
    return { fd: duplicate(fd, `descriptor ${fd}`), shared: true };
  }
}
