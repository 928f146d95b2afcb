/** Where the VMs of groups meet, and the names they have there. Nothing but names: clients ask here, too. */
import { lstatSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { groupRegionFiles } from './region-files.ts';
import { runRoot } from './run-folder.ts';
import { isListenedAt } from './socket-path.ts';

const PREFIX = 'group-';
const FOLDER_NAME = new RegExp(`^${PREFIX}(\\d+)$`);
const SOCKET_NAME = /^vm-\d+\.(sock|bells)$/;

export interface GroupFolder {
  readonly folder: string;
  readonly groupId: number;
}

/** One for all users: below /run/acrn, or what stands for it. */
export function groupFolder(groupId: number, env: NodeJS.ProcessEnv = process.env): string {
  return join(runRoot(env, 0), `${PREFIX}${groupId}`);
}

/** Those that there are, whoever made them. */
export function groupFolders(env: NodeJS.ProcessEnv = process.env): GroupFolder[] {
  const top = runRoot(env, 0);
  return namesIn(top).flatMap((name) => {
    const [, number] = FOLDER_NAME.exec(name) ?? [];
    return number === undefined ? [] : [{ folder: join(top, name), groupId: Number(number) }];
  });
}

/** @returns nothing of a folder that is not there, or not for this user: nor is a VM of it. */
function namesIn(folder: string): string[] {
  try {
    return readdirSync(folder);
  } catch {
    return [];
  }
}

/** The sockets that VMs of this user have, or had, in the place of a group. */
export function ownSockets(folder: string): string[] {
  return namesIn(folder)
    .filter((name) => SOCKET_NAME.test(name))
    .map((name) => join(folder, name))
    .filter((path) => isOfThisUser(path, 'socket'));
}

/** The regions whose files VMs of this user made there. */
export function ownRegionFiles(folder: string): string[] {
  return groupRegionFiles(folder).filter((path) => isOfThisUser(path, 'file'));
}

function isOfThisUser(path: string, kind: 'socket' | 'file'): boolean {
  try {
    const stat = lstatSync(path);
    return stat.uid === process.geteuid?.() && (kind === 'socket' ? stat.isSocket() : stat.isFile());
  } catch {
    return false; // it went, or another member put something here that cannot be looked at
  }
}

/** Whether a VM of this user meets others there now. */
export function hasOwnVm(folder: string): boolean {
  return ownSockets(folder).some((path) => path.endsWith('.sock') && isListenedAt(path));
}
