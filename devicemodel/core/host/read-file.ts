/** Reading files through Node: whole small ones that a user names, and parts of any. */
import { closeSync, constants, fstatSync, openSync, readSync } from 'node:fs';
import { ExitCode, HostError } from '../errors.ts';
import { formatSize } from '../units.ts';
import { Errno } from './errno.ts';
import { pathFailure } from './path-failure.ts';

/** What a person wrote is smaller by far. */
const MAX_SMALL_BYTES = 16 * 1024 * 1024;

/**
 * The contents of a regular file. A named pipe or a device could keep the reader for ever, and is refused.
 * @param what the file as messages name it. @throws HostError
 */
export function readRegularFile(path: string, what: string, maxBytes = MAX_SMALL_BYTES): Buffer {
  let fd: number;
  try {
    fd = openSync(path, constants.O_RDONLY | constants.O_NONBLOCK | constants.O_NOCTTY);
  } catch (error) {
    throw pathFailure(`${what} cannot be opened`, error);
  }
  try {
    const stat = fstatSync(fd);
    if (stat.isDirectory()) throw Object.assign(new Error(), { code: 'EISDIR', errno: -Errno.EISDIR });
    if (stat.isFile()) {
      // Files of proc and sysfs, and those that grow, have more than their size says.
      const bytes = stat.size <= maxBytes ? readToEnd(fd, maxBytes) : undefined;
      if (bytes !== undefined) return bytes;
      throw new HostError(`${what} is larger than ${formatSize(maxBytes)}`, Errno.EFBIG, {
        exitCode: ExitCode.DataError,
      });
    }
  } catch (error) {
    throw error instanceof HostError ? error : pathFailure(`${what} cannot be read`, error);
  } finally {
    closeSync(fd);
  }
  throw new HostError(`${what} is no regular file`, Errno.EINVAL, { exitCode: ExitCode.DataError });
}

/**
 * fs.readSync, made again when a signal interrupts it: of all calls libuv gives back only this one's EINTR, which file
 * systems over a network or in user space can answer.
 */
export function readSome(fd: number, into: Uint8Array, at: number, length: number, position: number | null): number {
  for (;;) {
    try {
      return readSync(fd, into, at, length, position);
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'EINTR') throw error;
    }
  }
}

const CHUNK_BYTES = 64 * 1024;

/** @returns undefined if there is more than `maxBytes`. */
function readToEnd(fd: number, maxBytes: number): Buffer | undefined {
  const chunks: Buffer[] = [];
  for (let sizeBytes = 0; sizeBytes <= maxBytes; ) {
    const chunk = Buffer.alloc(CHUNK_BYTES);
    const count = readSome(fd, chunk, 0, CHUNK_BYTES, null);
    if (count === 0) return Buffer.concat(chunks);
    chunks.push(chunk.subarray(0, count));
    sizeBytes += count;
  }
  return undefined;
}
