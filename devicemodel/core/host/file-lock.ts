/**
 * Advisory locks on open files. These are open-file-description locks (fcntl(2)): they belong to the descriptor, so
 * closing another descriptor of the same file does not drop them, as it does with the traditional kind.
 */
import { HostError } from '../errors.ts';
import { describeErrno, Errno, lastErrno, native } from './libc.ts';

/** <bits/fcntl-linux.h>, x86-64. */
const F_OFD_SETLK = 37;
const F_WRLCK = 1;

/**
 * Take an exclusive lock on part of a file, until the descriptor is closed.
 * @param sizeBytes 0 = to the end of the file, however far that moves.
 * @returns false if another process, or another descriptor of this one, holds a lock on any of it.
 * @throws HostError for any other failure.
 */
export function tryLockExclusive(fd: number, base: number, sizeBytes: number, what: string): boolean {
  // struct flock: l_type, l_whence (SEEK_SET), l_start, l_len, l_pid (0 for this kind of lock).
  const flock = new DataView(new ArrayBuffer(32));
  flock.setInt16(0, F_WRLCK, true);
  flock.setBigInt64(8, BigInt(base), true);
  flock.setBigInt64(16, BigInt(sizeBytes), true);
  for (;;) {
    if (native('int fcntl(int, int, void *)')(fd, F_OFD_SETLK, new Uint8Array(flock.buffer)) !== -1) return true;
    const errno = lastErrno();
    if (errno === Errno.EAGAIN || errno === Errno.EACCES) return false;
    if (errno !== Errno.EINTR) throw new HostError(`${what}: cannot be locked: ${describeErrno(errno)}`, errno);
  }
}
