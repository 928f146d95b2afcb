/** Error numbers of system calls, as names and in words. */
import { constants } from 'node:os';
import { getSystemErrorMap } from 'node:util';

export const Errno = constants.errno;

/** `EINVAL: invalid argument`. */
export function describeErrno(errno: number): string {
  const [name, text] = getSystemErrorMap().get(-errno) ?? [`errno ${errno}`, 'unknown error'];
  return `${name}: ${text}`;
}
