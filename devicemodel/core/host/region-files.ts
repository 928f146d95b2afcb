/** Where the memory of ivshmem regions is between the VMs of a host. Nothing but names: clients ask here, too. */
import { readdirSync, type Stats } from 'node:fs';
import { join } from 'node:path';

const SHM_DIR = '/dev/shm';
const OTHERS = 0o077;

const prefix = () => `acrn-soft.${process.getuid?.() ?? 0}.`;

/** What a file name cannot hold is written as its code. */
function fileName(regionName: string): string {
  return regionName.replace(/^hv:\//, '').replace(/[^A-Za-z0-9_-]/g, (c) => `%${c.codePointAt(0)?.toString(16)}`);
}

/** One file name per region and user. */
export function regionPath(regionName: string): string {
  return join(SHM_DIR, prefix() + fileName(regionName));
}

/** The regions of this user that there are, in use or left by VMs that were killed: a lock on the file tells. */
export function regionFiles(): string[] {
  return filesIn(SHM_DIR, prefix());
}

/** In the folder of a group the regions are the group's. */
const GROUP_PREFIX = 'region.';

export function groupRegionPath(folder: string, regionName: string): string {
  return join(folder, GROUP_PREFIX + fileName(regionName));
}

/** As {@link regionFiles}, of the users who meet there. */
export function groupRegionFiles(folder: string): string[] {
  return filesIn(folder, GROUP_PREFIX);
}

function filesIn(folder: string, begin: string): string[] {
  try {
    return readdirSync(folder)
      .filter((name) => name.startsWith(begin))
      .map((name) => join(folder, name));
  } catch {
    return [];
  }
}

/** Everybody may make files there: guests' memory goes into none that others can read. */
export function isOfThisUserAlone(stat: Stats): boolean {
  return stat.isFile() && stat.uid === process.geteuid?.() && (stat.mode & OTHERS) === 0;
}
