/** Small files that a user names, read whole. */
import { closeSync, constants, fstatSync, openSync, readFileSync } from 'node:fs';
import { ExitCode, HostError } from '../errors.ts';
import { Errno } from './errno.ts';
import { pathFailure } from './path-failure.ts';

/**
 * The contents of a regular file. A named pipe or a device could keep the reader for ever, and is refused.
 * @param what the file as messages name it. @throws HostError
 */
export function readRegularFile(path: string, what: string): Buffer {
  let fd: number;
  try {
    fd = openSync(path, constants.O_RDONLY | constants.O_NONBLOCK | constants.O_NOCTTY);
  } catch (error) {
    throw pathFailure(`${what} cannot be opened`, error);
  }
  try {
    const stat = fstatSync(fd);
    if (stat.isDirectory()) throw Object.assign(new Error(), { code: 'EISDIR', errno: -Errno.EISDIR });
    if (stat.isFile()) return readFileSync(fd);
  } catch (error) {
    throw pathFailure(`${what} cannot be read`, error);
  } finally {
    closeSync(fd);
  }
  throw new HostError(`${what} is no regular file`, Errno.EINVAL, { exitCode: ExitCode.DataError });
}
