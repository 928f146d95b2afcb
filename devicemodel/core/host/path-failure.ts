/** What the file system said of a path that a user named, as an error with words and the documented status. */
import { ExitCode, HostError } from '../errors.ts';
import { describeErrno, Errno } from './errno.ts';

const forbidden: ReadonlySet<number> = new Set([Errno.EACCES, Errno.EPERM, Errno.EROFS]);
const notThere: ReadonlySet<number> = new Set([
  Errno.ENOENT,
  Errno.ENOTDIR,
  Errno.ELOOP,
  Errno.ENAMETOOLONG,
  Errno.EISDIR,
  Errno.ENXIO,
  Errno.ENODEV,
]);

/** Status of a path that cannot be opened: 66, 77 where it is a matter of rights, 74 for the medium. */
export function pathStatus(errno: number): ExitCode {
  if (forbidden.has(errno)) return ExitCode.NoPermission;
  return notThere.has(errno) ? ExitCode.NoInput : ExitCode.IoError;
}

/** The errno of what a function of Node threw; EIO for anything else. */
export function errnoOf(error: unknown): number {
  const { errno } = (error ?? {}) as { errno?: unknown };
  return typeof errno === 'number' && errno !== 0 ? Math.abs(errno) : Errno.EIO;
}

/** @param text what failed, with the path: `pty link /x: cannot be made`. @param exitCode if not that of reading. */
export function pathFailure(text: string, error: unknown, exitCode?: ExitCode, hint?: string): HostError {
  const errno = errnoOf(error);
  return new HostError(`${text}: ${describeErrno(errno)}`, errno, {
    exitCode: exitCode ?? pathStatus(errno),
    ...(hint === undefined ? {} : { hint }),
  });
}
