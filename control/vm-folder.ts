/**
 * The folder of a running VM: `/run/acrn/vm/NAME/`, or below `$XDG_RUNTIME_DIR` without root. Its `lock` says that the name
 * is taken, on any hypervisor, and goes with the process however that ends; its `api.sock` is where the API listens.
 */
import {
  closeSync,
  constants,
  existsSync,
  fchmodSync,
  fstatSync,
  ftruncateSync,
  lstatSync,
  openSync,
  readdirSync,
  rmdirSync,
  rmSync,
  writeSync,
} from 'node:fs';
import { dirname, join } from 'node:path';
import { ExitCode, HostError } from '../devicemodel/core/errors.ts';
import { Errno } from '../devicemodel/core/host/errno.ts';
import { tryLock } from '../devicemodel/core/host/file-lock.ts';
import { ensureOwnFolder, FolderMode, makeParents } from '../devicemodel/core/host/folders.ts';
import { isListenedAt } from '../devicemodel/core/host/socket-path.ts';
import type { Log } from '../devicemodel/core/log.ts';
import { lockTextOf, readLockText } from './vm-lock-file.ts';
import { vmFoldersRoot } from './vm-paths.ts';

/** Made with its parents, which everybody may look into: acrnctl's sockets are in one of them. @throws HostError */
export function ensureVmFolder(name: string): string {
  const root = vmFoldersRoot();
  makeParents(dirname(root));
  for (const folder of [dirname(root), root]) ensureOwnFolder(folder, FolderMode.public);
  const folder = join(root, name);
  ensureOwnFolder(folder, FolderMode.public);
  return folder;
}

/** Nobody else may open it: who can read a file can lock it, and a name would be taken as long as he likes. */
const LOCK_MODE = 0o600;
/** How often somebody who takes the folder of a dead VM away is waited for, and how long. */
const SWEEP_TRIES = 100;
const SWEEP_WAIT_MS = 5;
/** How often where a process has the number that is in the lock: another one may have got it since. */
const ALIVE_TRIES = 3;

/** Whether a process with the number that a lock names is there. No number: whoever has the lock is about to say who it is. */
function isAlive(pidText: string | undefined): boolean {
  if (pidText === undefined || pidText === '') return false;
  if (!/^\d{1,9}$/.test(pidText)) return true;
  try {
    process.kill(Number(pidText), 0);
    return true;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code !== 'ESRCH';
  }
}

function namesIn(folder: string): string[] {
  try {
    return readdirSync(folder);
  } catch {
    return [];
  }
}

/**
 * Take away what VMs that were killed left, whatever their names: as a VM that ends does. Only the lock says that a VM is
 * gone: the number in it may be another process's by now, or not be there yet. @returns their names.
 */
export function sweepDeadFolders(): string[] {
  const root = vmFoldersRoot();
  return namesIn(root).filter((name) => removeIfDead(join(root, name)));
}

function removeIfDead(folder: string): boolean {
  const path = join(folder, 'lock');
  const socket = join(folder, 'api.sock');
  try {
    // A VM that was started without the lock.
    if (!lstatSync(folder).isDirectory() || (!existsSync(path) && isListenedAt(socket))) return false;
    const fd = openSync(path, constants.O_RDWR | constants.O_CREAT | constants.O_NOFOLLOW, LOCK_MODE);
    try {
      if (!tryLock(fd, 'exclusive', path) || lstatSync(path).ino !== fstatSync(fd).ino) return false;
      rmSync(socket, { force: true });
      rmSync(path);
      rmdirSync(folder);
      return true;
    } finally {
      closeSync(fd);
    }
  } catch {
    // Another VM was quicker, or it is not ours to take away.
    return false;
  }
}

/**
 * Take the name until the process ends, or `release`. Where the folder cannot be made (no rights, a file system that is
 * read only) the VM runs without: the name is then guarded by ACRN alone.
 * @param apiSocket where its API is, if not in the folder.
 * @throws HostError when a VM of this name runs.
 */
export function claimName(name: string, log: Log, apiSocket?: string): () => void {
  return claim(name, log, lockTextOf(process.pid, apiSocket), SWEEP_TRIES);
}

function claim(name: string, log: Log, text: string, tries: number): () => void {
  let fd = -1;
  let path: string;
  let isFree: boolean;
  try {
    path = join(ensureVmFolder(name), 'lock');
    fd = openSync(path, constants.O_RDWR | constants.O_CREAT | constants.O_NOFOLLOW, LOCK_MODE);
    isFree = tryLock(fd, 'exclusive', path);
    // Whatever the umask: the next VM of the name has to open it.
    if (isFree) fchmodSync(fd, LOCK_MODE);
  } catch (error) {
    if (fd >= 0) closeSync(fd);
    // Between our making the folder and looking into it, its former owner took it away.
    if ((error as NodeJS.ErrnoException).code === 'ENOENT' && tries > 0) return claim(name, log, text, tries - 1);
    log.debug(`the name "${name}" is not guarded: ${(error as Error).message}`);
    return () => {};
  }
  if (!isFree) {
    closeSync(fd);
    const pid = readLockText(path)?.pid;
    if (tries > (isAlive(pid) ? SWEEP_TRIES - ALIVE_TRIES : 0)) {
      Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, SWEEP_WAIT_MS);
      return claim(name, log, text, tries - 1);
    }
    throw new HostError(
      `a VM with the name "${name}" runs already${pid === undefined || pid === '' ? '' : `, as process ${pid}`}`,
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
    return claim(name, log, text, tries);
  }
  try {
    ftruncateSync(fd);
    writeSync(fd, text);
  } catch (error) {
    // The lock counts; whoever is refused does not hear by whom.
    log.debug(`${path}: ${(error as Error).message}`);
  }
  sweepDeadFolders();
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
