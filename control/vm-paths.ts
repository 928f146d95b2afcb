/** Where a running VM has its folder, and its API. Needs nothing but paths: clients ask here, too. */
import { join } from 'node:path';
import { userRunFolder } from '../devicemodel/core/host/run-folder.ts';

/** Where the folders of all VMs of this user are. `ACRN_RUN_DIR` stands for `/run/acrn`. */
export function vmFoldersRoot(env: NodeJS.ProcessEnv = process.env, uid = process.geteuid?.() ?? 0): string {
  const { ACRN_RUN_DIR: asked, XDG_RUNTIME_DIR: ofUser } = env;
  if (asked !== undefined && asked !== '') return join(asked, 'vm');
  if (uid === 0) return '/run/acrn/vm';
  return join(userRunFolder(ofUser, uid), 'vm');
}

export function vmFolder(name: string): string {
  return join(vmFoldersRoot(), name);
}

/** Where the API of a VM listens unless it was told otherwise. */
export function defaultApiSocket(name: string): string {
  return join(vmFolder(name), 'api.sock');
}
