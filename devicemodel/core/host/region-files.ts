/** Where the memory of ivshmem regions is between the VMs of a host. Nothing but names: clients ask here, too. */
import { readdirSync, type Stats } from 'node:fs';
import { join } from 'node:path';

const SHM_DIR = '/dev/shm';
const OTHERS = 0o077;

const prefix = () => `acrn-soft.${process.getuid?.() ?? 0}.`;

/** One file name per region and user; what a file name cannot hold is written as its code. */
export function regionPath(regionName: string): string {
  const name = regionName.replace(/^hv:\//, '').replace(/[^A-Za-z0-9_-]/g, (c) => `%${c.codePointAt(0)?.toString(16)}`);
  return join(SHM_DIR, prefix() + name);
}

/** The regions of this user that there are, in use or left by VMs that were killed: a lock on the file tells. */
export function regionFiles(): string[] {
  try {
    return readdirSync(SHM_DIR)
      .filter((name) => name.startsWith(prefix()))
      .map((name) => join(SHM_DIR, name));
  } catch {
    return [];
  }
}

/** Everybody may make files there: guests' memory goes into none that others can read. */
export function isOfThisUserAlone(stat: Stats): boolean {
  return stat.isFile() && stat.uid === process.geteuid?.() && (stat.mode & OTHERS) === 0;
}
