/** Whether /dev/shm has room for what a VM shares by it: looked at before there is a VM. */
import { accessSync, constants, type Stats, statfsSync, statSync } from 'node:fs';
import { ConfigError, ExitCode } from '../errors.ts';
import { formatSize } from '../units.ts';
import { pathFailure } from './path-failure.ts';
import { regionFiles } from './region-files.ts';

const SHM = '/dev/shm';
/** st_blocks counts in these, whatever the file system does. */
const BLOCK_BYTES = 512;

/** A file of /dev/shm, as it will be. */
export interface ShmFile {
  readonly path: string;
  readonly sizeBytes: number;
}

/** @returns undefined for what is not there or may not be looked at: whoever opens it hears why. */
function lookAt(path: string): Stats | undefined {
  try {
    return statSync(path, { throwIfNoEntry: false });
  } catch {
    return undefined;
  }
}

const allocatedBytes = (path: string) => (lookAt(path)?.blocks ?? 0) * BLOCK_BYTES;

/** @param have of the file that is there. @param sizeBytes what was asked for. */
export function otherSize(what: string, path: string, have: number, sizeBytes: number) {
  return {
    message: `${what} exists with ${have} bytes, ${sizeBytes} were asked for`,
    hint: `use the same size, or remove ${path} when no VM uses it`,
  };
}

/** POSIX shared memory that keeps what it has, if it is there: it must be ours to use, and have its size. @throws DmError */
export function inspectShm(what: string, { path, sizeBytes }: ShmFile): void {
  const stat = lookAt(path);
  try {
    if (stat === undefined) accessSync(SHM, constants.W_OK | constants.X_OK);
    else accessSync(path, constants.R_OK | constants.W_OK);
  } catch (error) {
    if (stat !== undefined) throw pathFailure(`${what}: ${path}`, error);
    throw pathFailure(`${what}: folder ${SHM}`, error, ExitCode.CannotCreate);
  }
  if (stat === undefined) return;
  if (!stat.isFile()) throw new ConfigError(`${what}: ${path} is no file`, { exitCode: ExitCode.NoInput });
  if (stat.size === 0 || stat.size === sizeBytes) return;
  const { message, hint } = otherSize(what, path, stat.size, sizeBytes);
  throw new ConfigError(message, { exitCode: ExitCode.Unavailable, hint });
}

export function howToMakeRoom(folder: string): string {
  return `remove what nobody uses from ${folder}, or "mount -o remount,size=… ${folder === SHM ? SHM : 'its file system'}"`;
}

/**
 * Only what is certain: regions of dead VMs are removed at the start, so those that are there count as room.
 * @param folder where the files are. @param regions that are there.
 * @throws ConfigError (69)
 */
export function checkShmRoom(
  files: readonly ShmFile[],
  folder = SHM,
  regions: readonly string[] = regionFiles(),
): void {
  const wanted = new Map(files.map(({ path, sizeBytes }) => [path, sizeBytes]));
  if (wanted.size === 0) return;
  let freeBytes: number;
  try {
    const { bavail, blocks, bsize } = statfsSync(folder);
    // A tmpfs without a limit says 0.
    freeBytes = blocks === 0 ? Number.POSITIVE_INFINITY : bavail * bsize;
  } catch {
    return;
  }
  const others = regions.filter((path) => !wanted.has(path));
  const roomBytes = others.reduce((sum, path) => sum + allocatedBytes(path), freeBytes);
  const neededBytes = [...wanted].reduce((sum, [path, size]) => sum + Math.max(0, size - allocatedBytes(path)), 0);
  if (neededBytes <= roomBytes) return;
  const how = wanted.size === 1 ? 'shared memory' : `${wanted.size} shared memories`;
  throw new ConfigError(
    `${folder} has no room for ${how} of ${formatSize(neededBytes)}, ${formatSize(roomBytes)} are free`,
    { exitCode: ExitCode.Unavailable, hint: howToMakeRoom(folder) },
  );
}
