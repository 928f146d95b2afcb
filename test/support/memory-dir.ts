/** Files there are in memory: nobody waits for them, so that a disk on the device thread answers within the kick. */
import { accessSync, constants } from 'node:fs';
import { tmpdir } from 'node:os';

/** Where the runner has a folder for them (traces.ts). */
export const MEMORY_VARIABLE = 'ACRN_TEST_MEMORY';

export function isWritable(folder: string): boolean {
  try {
    accessSync(folder, constants.W_OK);
    return true;
  } catch {
    return false;
  }
}

export const MEMORY_DIR = process.env[MEMORY_VARIABLE] ?? (isWritable('/dev/shm') ? '/dev/shm' : tmpdir());
