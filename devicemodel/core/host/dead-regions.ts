/**
 * What killed VMs left of the memory of ivshmem regions. Whoever has a file has a lock on it; only under the lock that
 * excludes them all may it go, or a VM that comes at that moment has memory that nobody else will find.
 */
import { fstatSync, rmSync, statSync } from 'node:fs';
import { HostError } from '../errors.ts';
import { Errno } from './errno.ts';
import { tryLock } from './file-lock.ts';
import { closeFd, OpenFlag, openFile, setFileSize } from './files.ts';
import { openGroupFile } from './group-place.ts';
import { groupRegionFiles, groupRegionPath, isOfThisUserAlone, regionFiles, regionPath } from './region-files.ts';
import { OWNER_ONLY, withUmask } from './umask.ts';

/** Where the memory of regions is, and which files there may become a guest's. */
export interface RegionHome {
  pathOf(regionName: string): string;
  /** The regions that there are. */
  files(): string[];
  /** @param isMade whether a missing one is made, empty. @returns the descriptor. @throws HostError for what is not to be used */
  open(path: string, options: { readonly isMade: boolean }): number;
}

/** In /dev/shm, this user's alone. */
export const ownRegions: RegionHome = {
  pathOf: regionPath,
  files: regionFiles,
  open: (path, { isMade }) => {
    const making = isMade ? OpenFlag.Create : 0;
    const flags = OpenFlag.ReadWrite | making | OpenFlag.NoFollow | OpenFlag.NonBlock | OpenFlag.CloseOnExec;
    const fd = withUmask(OWNER_ONLY, () => openFile(path, flags, 0o600));
    try {
      checkOurs(fd, path);
      return fd;
    } catch (error) {
      closeFd(fd);
      throw error;
    }
  },
};

/** In the folder where the VMs of a group meet. */
export function groupRegions(folder: string, groupId: number): RegionHome {
  return {
    pathOf: (regionName) => groupRegionPath(folder, regionName),
    files: () => groupRegionFiles(folder),
    open: (path, options) => openGroupFile(path, groupId, options),
  };
}

/** @param isHad a region of this process. @returns the paths of the files that were removed. */
export function removeDeadRegions(isHad: (path: string) => boolean = () => false, home = ownRegions): string[] {
  return home.files().filter((path) => !isHad(path) && removeIfDead(path, home));
}

function removeIfDead(path: string, home: RegionHome): boolean {
  try {
    const fd = home.open(path, { isMade: false });
    try {
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
function checkOurs(fd: number, path: string): void {
  if (isOfThisUserAlone(fstatSync(fd))) return;
  throw new HostError(`${path}: it is there, and is not a file of this user alone`, Errno.EPERM, { hint: 'remove it' });
}

/** Whether what was opened is what others will open. */
export function isSameFile(fd: number, path: string): boolean {
  const stat = statSync(path, { throwIfNoEntry: false });
  return stat !== undefined && stat.ino === fstatSync(fd).ino;
}

/**
 * What cannot be removed, being another user's, gives its memory back; the next VM with such a region takes it over.
 * @param fd takes the lock that excludes all others, if nobody else has one. @returns whether it was removed.
 */
export function removeIfUnused(fd: number, path: string): boolean {
  try {
    if (!tryLock(fd, 'exclusive', path) || !isSameFile(fd, path)) return false;
    return remove(fd, path);
  } catch {
    // The process may be ending: there is nobody to tell.
    return false;
  }
}

/** @throws HostError */
function remove(fd: number, path: string): boolean {
  try {
    rmSync(path, { force: true });
    return true;
  } catch {
    setFileSize(fd, 0, path);
    return false;
  }
}
