/**
 * The folder of a running VM: `/run/acrn/vm/NAME/`, or below `$XDG_RUNTIME_DIR` without root. Its `lock` says that the name
 * is taken, on any hypervisor, and goes with the process however that ends; its `api.sock` is where the API listens.
 */
import {
  closeSync,
  constants,
  fstatSync,
  ftruncateSync,
  lstatSync,
  openSync,
  readFileSync,
  rmdirSync,
  rmSync,
  writeSync,
} from 'node:fs';
import { dirname, join } from 'node:path';
import { ExitCode, HostError } from '../devicemodel/core/errors.ts';
import { Errno } from '../devicemodel/core/host/errno.ts';
import { tryLock } from '../devicemodel/core/host/file-lock.ts';
import { ensureOwnFolder, FolderMode } from '../devicemodel/core/host/folders.ts';
import type { Log } from '../devicemodel/core/log.ts';
import { vmFoldersRoot } from './vm-paths.ts';

/** Made with its parents, which everybody may look into: acrnctl's sockets are in one of them. @throws HostError */
export function ensureVmFolder(name: string): string {
  const root = vmFoldersRoot();
  for (const folder of [dirname(root), root]) ensureOwnFolder(folder, FolderMode.public);
  const folder = join(root, name);
  ensureOwnFolder(folder, FolderMode.public);
  return folder;
}

/**
 * Take the name until the process ends, or `release`. Where the folder cannot be made (no rights, a file system that is
 * read only) the VM runs without: the name is then guarded by ACRN alone.
 * @throws HostError when a VM of this name runs.
 */
export function claimName(name: string, log: Log): () => void {
  let fd = -1;
  let path: string;
  let isFree: boolean;
  try {
    path = join(ensureVmFolder(name), 'lock');
    fd = openSync(path, constants.O_RDWR | constants.O_CREAT | constants.O_NOFOLLOW, 0o644);
    isFree = tryLock(fd, 'exclusive', path);
  } catch (error) {
    if (fd >= 0) closeSync(fd);
    log.debug(`the name "${name}" is not guarded: ${(error as Error).message}`);
    return () => {};
  }
  if (!isFree) {
    const pid = readFileSync(path, 'utf8').trim();
    closeSync(fd);
    throw new HostError(
      `a VM with the name "${name}" runs already${pid === '' ? '' : `, as process ${pid}`}`,
      Errno.EBUSY,
      {
        exitCode: ExitCode.Unavailable,
        hint: 'end it, or give this one another name',
      },
    );
  }
  // Whoever had it took it away when it ended, maybe between our opening and locking it: then it is nobody's lock.
  if (lstatSync(path, { throwIfNoEntry: false })?.ino !== fstatSync(fd).ino) {
    closeSync(fd);
    return claimName(name, log);
  }
  try {
    ftruncateSync(fd);
    writeSync(fd, `${process.pid}\n`);
  } catch (error) {
    // The lock counts; whoever is refused does not hear by whom.
    log.debug(`${path}: ${(error as Error).message}`);
  }
  return () => {
    try {
      rmSync(path, { force: true });
      rmdirSync(dirname(path));
    } catch {
      // Something else is in it, such as a socket that is about to go: the next VM of that name finds it.
    }
    closeSync(fd);
  };
}
