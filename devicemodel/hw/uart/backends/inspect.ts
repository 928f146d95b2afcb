/**
 * Whether the paths of a character back end can be had on this host, asked before there is a VM. Reads only: what is to be
 * made is made at the start.
 */
import { accessSync, constants, lstatSync, type Stats, statSync } from 'node:fs';
import { dirname, resolve } from 'node:path';
import { ExitCode, HostError } from '../../../core/errors.ts';
import { Errno } from '../../../core/host/errno.ts';
import { errnoOf, pathFailure } from '../../../core/host/path-failure.ts';
import { inspectServedSocket } from '../../../core/host/socket-path.ts';
import { type CharBackendSpec, describeCharBackend } from './spec.ts';

const { W_OK, X_OK } = constants;

/** @throws HostError with the status of its kind: 66 or 77 for what has to be there, 73 for what has to be made. */
export function inspectCharBackend(spec: CharBackendSpec): void {
  switch (spec.kind) {
    case 'tty':
      inspectTerminal(spec.path);
      break;
    case 'file':
      inspectOutput(spec.path);
      break;
    case 'unix':
      if (spec.role === 'client')
        inspectServedSocket(spec.path, 'start whoever listens there first, or let this program listen with :server');
      else inspectPlace(spec.path, (stat) => stat.isSocket(), 'is no socket', describeCharBackend(spec));
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

function inspectTerminal(path: string): void {
  if (statOf(path, undefined).isCharacterDevice()) return;
  throw new HostError(`${path}: not a terminal`, Errno.ENOTTY, { exitCode: ExitCode.NoInput });
}

/** A file that is appended to, made if it is not there; its folder is not. */
function inspectOutput(path: string): void {
  try {
    accessSync(path, W_OK);
  } catch (error) {
    if (errnoOf(error) !== Errno.ENOENT) throw pathFailure(`${path}: cannot be written`, error, ExitCode.CannotCreate);
    inspectFolder(dirname(resolve(path)), path);
    return;
  }
  const stat = statOf(path, ExitCode.CannotCreate);
  if (stat.isDirectory()) throw refusal(`${path}: cannot be written`, Errno.EISDIR, ExitCode.CannotCreate);
  if (stat.isSocket()) throw refusal(`${path}: cannot be written`, Errno.ENXIO, ExitCode.CannotCreate);
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
}
