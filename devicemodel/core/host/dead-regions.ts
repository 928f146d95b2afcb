/**
 * What killed VMs left of the memory of ivshmem regions. Whoever has a file has a lock on it; only under the lock that
 * excludes them all may it go, or a VM that comes at that moment has memory that nobody else will find.
 */
import { fstatSync, rmSync, statSync } from 'node:fs';
import { HostError } from '../errors.ts';
import { Errno } from './errno.ts';
import { tryLock } from './file-lock.ts';
import { closeFd, OpenFlag, openFile } from './files.ts';
import { isOfThisUserAlone, regionFiles } from './region-files.ts';

/** @param isHad a region of this process. @returns the paths of the files that were removed. */
export function removeDeadRegions(isHad: (path: string) => boolean = () => false): string[] {
  return regionFiles().filter((path) => !isHad(path) && removeIfDead(path));
}

function removeIfDead(path: string): boolean {
  try {
    const fd = openFile(path, OpenFlag.ReadWrite | OpenFlag.NoFollow | OpenFlag.NonBlock | OpenFlag.CloseOnExec);
    try {
      checkOurs(fd, path);
      return removeIfUnused(fd, path);
    } finally {
      closeFd(fd);
    }
  } catch {
    // Somebody else was quicker, or it is not ours to take away.
    return false;
  }
}

/** @throws HostError */
export function checkOurs(fd: number, path: string): void {
  if (isOfThisUserAlone(fstatSync(fd))) return;
  throw new HostError(`${path}: it is there, and is not a file of this user alone`, Errno.EPERM, { hint: 'remove it' });
}

/** Whether what was opened is what others will open. */
export function isSameFile(fd: number, path: string): boolean {
  const stat = statSync(path, { throwIfNoEntry: false });
  return stat !== undefined && stat.ino === fstatSync(fd).ino;
}

/**
 * What cannot be removed stays, and the next VM with such a region takes it over.
 * @param fd takes the lock that excludes all others, if nobody else has one. @returns whether it was removed.
 */
export function removeIfUnused(fd: number, path: string): boolean {
  try {
    if (!tryLock(fd, 'exclusive', path) || !isSameFile(fd, path)) return false;
    rmSync(path, { force: true });
    return true;
  } catch {
    // The process may be ending: there is nobody to tell.
    return false;
  }
}
