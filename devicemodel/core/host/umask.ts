/** Modes of what the program makes for itself, whatever the umask of whoever started it. */
import { native } from './libc.ts';

/** What only this user may use: files of mode 0600, sockets without the bits that nobody connects by. */
export const OWNER_ONLY = 0o177;

const CLONE_FS = 0x200;

/**
 * The calling thread, not the main one, has its umask and current folder to itself from now on: two threads in
 * {@link withUmask} at once would leave the process with that of one of them.
 */
export function haveOwnUmask(): void {
  native('int unshare(int)')(CLONE_FS);
}

/** Run `work` with this umask; it is the whole process's (see {@link haveOwnUmask}), so for a call or two that do not wait. */
export function withUmask<T>(mask: number, work: () => T): T {
  const umask = native('unsigned int umask(unsigned int)');
  const before = umask(mask);
  try {
    return work();
  } finally {
    umask(before);
  }
}
