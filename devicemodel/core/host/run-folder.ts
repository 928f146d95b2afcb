/** Where a user's VMs find each other and are found. Nothing but paths: clients ask here, too. */
import { tmpdir } from 'node:os';
import { isAbsolute, join } from 'node:path';

/**
 * Below the folder of the user's session; without one, in that for temporary files.
 * @param sessionFolder XDG_RUNTIME_DIR: what is no absolute path does not count (XDG Base Directory Specification).
 */
export function userRunFolder(sessionFolder: string | undefined, uid: number): string {
  return sessionFolder !== undefined && isAbsolute(sessionFolder)
    ? join(sessionFolder, 'acrn')
    : join(tmpdir(), `acrn-${uid}`);
}
