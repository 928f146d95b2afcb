/** Where a user's VMs find each other and are found. Nothing but paths: clients ask here, too. */
import { tmpdir } from 'node:os';
import { isAbsolute, join } from 'node:path';

export const ROOT_RUN_FOLDER = '/run/acrn';

/** What a user's VMs have in common is below it. `ACRN_RUN_DIR` stands for `/run/acrn`. */
export function runRoot({ ACRN_RUN_DIR: asked, XDG_RUNTIME_DIR: ofUser }: NodeJS.ProcessEnv, uid: number): string {
  if (asked !== undefined && asked !== '') return asked;
  return uid === 0 ? ROOT_RUN_FOLDER : userRunFolder(ofUser, uid);
}

/**
 * Below the folder of the user's session; without one, in that for temporary files.
 * @param sessionFolder XDG_RUNTIME_DIR: what is no absolute path does not count (XDG Base Directory Specification).
 */
function userRunFolder(sessionFolder: string | undefined, uid: number): string {
  return sessionFolder !== undefined && isAbsolute(sessionFolder)
    ? join(sessionFolder, 'acrn')
    : join(tmpdir(), `acrn-${uid}`);
}
