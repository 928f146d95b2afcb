/** Modes of what the program makes for itself, whatever the umask of whoever started it. */
import { native } from './libc.ts';

/** What only this user may use: files of mode 0600, sockets without the bits that nobody connects by. */
export const OWNER_ONLY = 0o177;
/** The same for the user and a group: 0660. */
export const GROUP_TOO = 0o117;

const CLONE_FS = 0x200;
/** Of this thread, which is not the main one: the umask is that one's to change. */
let isOthers = false;

/**
 * The calling thread, not the main one, has its umask and current folder to itself from now on: two threads in
 * {@link withUmask} at once would leave the process with that of one of them. Where that is not allowed (a container's
 * rules for system calls) this thread leaves the umask as it is: modes are set once more after something was made.
 */
export function haveOwnUmask(): void {
  isOthers = native('int unshare(int)')(CLONE_FS) !== 0;
}

/** Run `work` with this umask; it is the whole process's (see {@link haveOwnUmask}), so for a call or two that do not wait. */
export function withUmask<T>(mask: number, work: () => T): T {
  if (isOthers) return work();
  const umask = native('unsigned int umask(unsigned int)');
  const before = umask(mask);
  try {
    return work();
  } finally {
    umask(before);
  }
}
