/**
 * What VMs of this user that were killed left in the places of groups. What another user's left is that user's next VM's to
 * remove, or root's: here it is not touched, whoever asks.
 */
import { unlinkSync } from 'node:fs';
import { groupRegions, isSameFile, removeDeadRegions } from './dead-regions.ts';
import { Errno } from './errno.ts';
import { lockWhenFree } from './file-lock.ts';
import { closeFd } from './files.ts';
import { type GroupFolder, groupFolders, ownRegionFiles, ownSockets } from './group-folders.ts';
import { findGroupFolder, openGroupFile, pinGroupSocket } from './group-place.ts';
import { connectTo, hangUp } from './wary-socket.ts';

/** Who has the lock of a place lets go of it soon, or does not belong there. */
const LOCK_PATIENCE_MS = 2000;

/** @returns the paths that were removed. */
export async function removeDeadMembers(folders = groupFolders()): Promise<string[]> {
  const removed: string[] = [];
  for (const place of folders) {
    try {
      removed.push(...(await removeFrom(place)));
    } catch {
      // Not this user's to look into, not to be trusted, or kept locked.
    }
  }
  return removed;
}

/** @throws HostError */
async function removeFrom({ folder, groupId }: GroupFolder): Promise<string[]> {
  findGroupFolder(folder, groupId);
  const removed: string[] = [];
  if (ownSockets(folder).length > 0) {
    const path = `${folder}/lock`;
    const lock = openGroupFile(path, groupId, { isMade: false });
    try {
      // A fresh socket of a VM that starts would look dead, too.
      await lockWhenFree(lock, 'exclusive', path, LOCK_PATIENCE_MS);
      if (isSameFile(lock, path)) removed.push(...ownSockets(folder).filter((socket) => removeIfDead(socket, groupId)));
    } finally {
      closeFd(lock);
    }
  }
  const home = { ...groupRegions(folder, groupId), files: () => ownRegionFiles(folder) };
  return [...removed, ...removeDeadRegions(undefined, home)];
}

function removeIfDead(path: string, groupId: number): boolean {
  const socket = pinGroupSocket(path, groupId);
  if (typeof socket === 'string') return false;
  const kind = path.endsWith('.bells') ? 'packets' : 'bytes';
  let fd: number;
  try {
    fd = connectTo(socket.path, kind);
  } finally {
    socket.release();
  }
  if (fd >= 0) hangUp(fd, kind);
  if (fd !== -Errno.ECONNREFUSED) return false;
  unlinkSync(path);
  return true;
}
