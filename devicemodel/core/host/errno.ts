/** Error numbers of system calls, as names and in words. */
import { constants } from 'node:os';
import { getSystemErrorMap } from 'node:util';

export const Errno = constants.errno;

/** What storage can say and libuv has no words for. */
const otherErrors: Readonly<Record<number, readonly [name: string, text: string]>> = {
  [Errno.EDQUOT]: ['EDQUOT', 'disk quota exceeded'],
  [Errno.ESTALE]: ['ESTALE', 'stale file handle'],
};

/** `EINVAL: invalid argument`. */
export function describeErrno(errno: number): string {
  const [name, text] = getSystemErrorMap().get(-errno) ?? otherErrors[errno] ?? [`errno ${errno}`, 'unknown error'];
  return `${name}: ${text}`;
}
