/** Files that the program writes because the command line named them. */
import {
  closeSync,
  constants,
  fstatSync,
  ftruncateSync,
  openSync,
  type Stats,
  statSync,
  writeFile as writeFileOf,
} from 'node:fs';
import { dirname, resolve } from 'node:path';
import { promisify } from 'node:util';
import { ExitCode, type HostError } from '../errors.ts';
import { Errno } from './errno.ts';
import { isInStickyFolder } from './folders.ts';
import { errnoOf, pathFailure } from './path-failure.ts';

const writeFile = promisify(writeFileOf);

const { O_WRONLY, O_CREAT, O_APPEND, O_NONBLOCK, O_NOCTTY, O_NOFOLLOW } = constants;

/** Where anybody may make files, a link of somebody else would choose what is written to. Nobody is waited for. */
function flagsFor(path: string): number {
  const follow = isInStickyFolder(path) ? O_NOFOLLOW : 0;
  return O_WRONLY | O_CREAT | O_NONBLOCK | O_NOCTTY | follow;
}

/**
 * Where anybody may make files, one that somebody else put there would have what we write: a file, a pipe, or another name
 * of a file of ours. The kernel's own rule (fs.protected_regular, fs.protected_fifos) is off on some hosts.
 */
export function isForeign(path: string, stat: Stats): boolean {
  if ((!stat.isFile() && !stat.isFIFO()) || !isInStickyFolder(path)) return false;
  const isOurs = stat.uid === (process.geteuid?.() ?? 0) || stat.uid === 0 || stat.uid === folderOwner(path);
  return !isOurs || (stat.isFile() && stat.nlink > 1);
}

/** @throws Error as of openSync */
function checkOwner(path: string, fd: number): void {
  if (!isForeign(path, fstatSync(fd))) return;
  throw Object.assign(new Error(FOREIGN), { code: 'EACCES', errno: -Errno.EACCES, isForeign: true });
}

export const FOREIGN = 'in a folder where everybody may make files, one of somebody else is not written to';

function folderOwner(path: string): number | undefined {
  const stat: Stats | undefined = statSync(dirname(resolve(path)), { throwIfNoEntry: false });
  return stat?.uid;
}

function openChecked(path: string, flags: number, mode: number): number {
  const fd = openSync(path, flagsFor(path) | flags, mode);
  try {
    checkOwner(path, fd);
  } catch (error) {
    closeSync(fd);
    throw error;
  }
  return fd;
}

function isPipe(path: string): boolean {
  try {
    return statSync(path).isFIFO();
  } catch {
    return false;
  }
}

function openFailure(path: string, error: unknown): HostError {
  const errno = errnoOf(error);
  const hint =
    errno === Errno.ENXIO && isPipe(path)
      ? 'a named pipe needs its reader first'
      : errno === Errno.ELOOP && isInStickyFolder(path)
        ? 'links are not followed in a folder where everybody may make them'
        : (error as { isForeign?: boolean }).isForeign === true
          ? FOREIGN
          : undefined;
  return pathFailure(`${path}: cannot be opened for output`, error, ExitCode.CannotCreate, hint);
}

/**
 * A file, named pipe or device to append to; a file is made if it is not there. A pipe without a reader is an error.
 * @param mode of a file that is made. @throws HostError (73)
 */
export function openOutput(path: string, mode: number): number {
  try {
    return openChecked(path, O_APPEND, mode);
  } catch (error) {
    throw openFailure(path, error);
  }
}

/** Write all of a file anew. @param mode of a file that is made. @throws HostError (73, or 74 while it is written) */
export async function writeOutput(path: string, text: string, mode: number): Promise<void> {
  let fd: number;
  try {
    fd = openChecked(path, 0, mode);
  } catch (error) {
    throw openFailure(path, error);
  }
  try {
    // Not when it is opened: it may be somebody else's.
    if (fstatSync(fd).isFile()) ftruncateSync(fd);
    await writeFile(fd, text);
  } catch (error) {
    throw pathFailure(`${path}: cannot be written`, error, ExitCode.IoError);
  } finally {
    closeSync(fd);
  }
}
