/** Where a running VM has its folder, and its API. Needs nothing but paths: clients ask here, too. */
import { join } from 'node:path';
import { runRoot } from '../devicemodel/core/host/run-folder.ts';

/** Where the folders of all VMs of this user are. */
export function vmFoldersRoot(env: NodeJS.ProcessEnv = process.env, uid = process.geteuid?.() ?? 0): string {
  return join(runRoot(env, uid), 'vm');
}

export function vmFolder(name: string): string {
  return join(vmFoldersRoot(), name);
}

/** Where the API of a VM listens unless it was told otherwise. */
export function defaultApiSocket(name: string): string {
  return join(vmFolder(name), 'api.sock');
}
