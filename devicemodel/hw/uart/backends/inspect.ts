/**
 * Whether the paths of a character back end can be had on this host, asked before there is a VM. Reads only: what is to be
 * made is made at the start.
 */
import {
  accessSync,
  closeSync,
  constants,
  lstatSync,
  openSync,
  readlinkSync,
  type Stats,
  statfsSync,
  statSync,
} from 'node:fs';
import { dirname, resolve } from 'node:path';
import { ExitCode, HostError } from '../../../core/errors.ts';
import { inspectCharDevice } from '../../../core/host/char-device.ts';
import { Errno } from '../../../core/host/errno.ts';
import { isInStickyFolder } from '../../../core/host/folders.ts';
import { FOREIGN, isForeign } from '../../../core/host/output-file.ts';
import { errnoOf, pathFailure } from '../../../core/host/path-failure.ts';
import { inspectServedSocket, isListenedAt, socketInUse } from '../../../core/host/socket-path.ts';
import { type CharBackendSpec, describeCharBackend } from './spec.ts';

const { O_APPEND, O_WRONLY, S_IXGRP, S_IXOTH, S_IXUSR, W_OK, X_OK } = constants;
/** <linux/magic.h>: proc and sysfs say that everybody may write to their folders, and take nothing. */
const KERNELS_OWN: readonly number[] = [0x9fa0, 0x6265_6572];
/** Links behind one another, as the kernel follows them. [MAXSYMLINKS] */
const MAX_LINKS = 40;

/** @throws HostError with the status of its kind: 66 or 77 for what has to be there, 73 for what has to be made. */
export function inspectCharBackend(spec: CharBackendSpec): void {
  switch (spec.kind) {
    case 'tty':
      inspectCharDevice(spec.path, 'tty', 'not a terminal');
      break;
    case 'file':
      inspectOutput(spec.path);
      break;
    case 'unix':
      if (spec.role === 'client')
        inspectServedSocket(spec.path, 'start whoever listens there first, or let this program listen with :server');
      else inspectListener(spec.path, describeCharBackend(spec));
      break;
    case 'pty':
      if (spec.linkPath !== undefined) {
        const what = `pty link ${spec.linkPath}`;
        inspectPlace(spec.linkPath, (stat) => stat.isSymbolicLink(), 'is no symbolic link', what);
      }
      break;
    default:
      break;
  }
}

function refusal(path: string, errno: number, exitCode: ExitCode): HostError {
  return pathFailure(path, { errno }, exitCode);
}

/** @param exitCode if not that of reading. @throws HostError */
function statOf(path: string, exitCode: ExitCode | undefined): Stats {
  try {
    return statSync(path);
  } catch (error) {
    throw pathFailure(`${path}: cannot be looked at`, error, exitCode);
  }
}

/** A file that is appended to, made if it is not there; its folder is not. Whether a pipe has a reader shows at the start. */
function inspectOutput(path: string, linksLeft = MAX_LINKS): void {
  if (isInStickyFolder(path) && isLink(path)) {
    throw refusal(
      `${path}: links are not followed in a folder where everybody may make them`,
      Errno.ELOOP,
      ExitCode.CannotCreate,
    );
  }
  try {
    accessSync(path, W_OK);
  } catch (error) {
    if (errnoOf(error) !== Errno.ENOENT) throw pathFailure(`${path}: cannot be written`, error, ExitCode.CannotCreate);
    // A link to what is not there: it is made where the link leads.
    if (linksLeft > 0 && isLink(path)) inspectOutput(resolve(dirname(path), readlinkSync(path)), linksLeft - 1);
    else inspectFolder(dirname(resolve(path)), path);
    return;
  }
  const stat = statOf(path, ExitCode.CannotCreate);
  if (stat.isDirectory()) throw refusal(`${path}: cannot be written`, Errno.EISDIR, ExitCode.CannotCreate);
  if (stat.isSocket()) throw refusal(`${path}: cannot be written`, Errno.ENXIO, ExitCode.CannotCreate);
  if (isForeign(path, stat)) throw refusal(`${path}: ${FOREIGN}`, Errno.EACCES, ExitCode.CannotCreate);
  if (stat.isFile() && (stat.mode & (S_IXUSR | S_IXGRP | S_IXOTH)) !== 0) inspectExecutable(path);
}

/** Only who opens a program to write hears that it runs. */
function inspectExecutable(path: string): void {
  try {
    closeSync(openSync(path, O_WRONLY | O_APPEND));
  } catch (error) {
    throw pathFailure(`${path}: cannot be written`, error, ExitCode.CannotCreate);
  }
}

function isLink(path: string): boolean {
  try {
    return lstatSync(path).isSymbolicLink();
  } catch {
    return false;
  }
}

/** Where a link or socket is put, with the folders above it; one of a former VM may be there. */
function inspectPlace(path: string, isOfThisKind: (stat: Stats) => boolean, otherwise: string, what: string): void {
  let stat: Stats | undefined;
  try {
    stat = lstatSync(path);
  } catch (error) {
    if (errnoOf(error) !== Errno.ENOENT) throw pathFailure(`${what}: cannot be made`, error, ExitCode.CannotCreate);
  }
  if (stat !== undefined && !isOfThisKind(stat)) {
    throw new HostError(`${what}: the path exists and ${otherwise}`, Errno.EEXIST, {
      exitCode: ExitCode.CannotCreate,
      hint: 'choose another path, or remove it',
    });
  }
  inspectFolder(existingAbove(resolve(path), what), what);
}

/** A dead socket is replaced; one that somebody serves is theirs. */
function inspectListener(path: string, what: string): void {
  inspectPlace(path, (stat) => stat.isSocket(), 'is no socket', what);
  if (isListenedAt(path)) throw socketInUse(what);
}

/** The nearest folder above that is there. */
function existingAbove(path: string, what: string): string {
  for (let folder = dirname(path); ; folder = dirname(folder)) {
    try {
      statSync(folder);
      return folder;
    } catch (error) {
      const isMissing = errnoOf(error) === Errno.ENOENT && folder !== '/';
      if (!isMissing) throw pathFailure(`${what}: cannot be made`, error, ExitCode.CannotCreate);
    }
  }
}

/** @throws HostError unless something can be made in it. */
function inspectFolder(folder: string, what: string): void {
  try {
    accessSync(folder, W_OK | X_OK);
  } catch (error) {
    throw pathFailure(`${what}: folder ${folder}`, error, ExitCode.CannotCreate);
  }
  if (!statOf(folder, ExitCode.CannotCreate).isDirectory()) {
    throw refusal(`${what}: folder ${folder}`, Errno.ENOTDIR, ExitCode.CannotCreate);
  }
  if (isKernelsOwn(folder)) {
    throw refusal(
      `${what}: folder ${folder} is the kernel's: nothing can be made in it`,
      Errno.EPERM,
      ExitCode.CannotCreate,
    );
  }
}

function isKernelsOwn(folder: string): boolean {
  try {
    return KERNELS_OWN.includes(statfsSync(folder).type);
  } catch {
    return false;
  }
}
