/** Files there are in memory: nobody waits for them, so that a disk on the device thread answers within the kick. */

import { accessSync, constants } from 'node:fs';
import { tmpdir } from 'node:os';

export const MEMORY_DIR = hasSharedMemory() ? '/dev/shm' : tmpdir();

function hasSharedMemory(): boolean {
  try {
    accessSync('/dev/shm', constants.W_OK);
    return true;
  } catch {
    return false;
  }
}
