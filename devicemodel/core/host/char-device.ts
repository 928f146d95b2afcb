/** Whether a path is a device of a kind, without opening it: that could raise the control lines of a serial port. */
import { accessSync, constants, readlinkSync, type Stats, statSync } from 'node:fs';
import { basename } from 'node:path';
import { ExitCode, HostError } from '../errors.ts';
import { Errno } from './errno.ts';
import { pathFailure } from './path-failure.ts';

/**
 * @param subsystem as sysfs names it: `tty`, `input`. @param otherwise what something else is said to be.
 * @throws HostError (66, or 77 where it is a matter of rights)
 */
export function inspectCharDevice(path: string, subsystem: string, otherwise: string): void {
  let stat: Stats;
  try {
    stat = statSync(path);
  } catch (error) {
    throw pathFailure(`${path}: cannot be looked at`, error);
  }
  if (!stat.isCharacterDevice() || isOfOther(subsystem, stat.rdev)) {
    throw new HostError(`${path}: ${otherwise}`, Errno.ENOTTY, { exitCode: ExitCode.NoInput });
  }
  try {
    accessSync(path, constants.R_OK | constants.W_OK);
  } catch (error) {
    throw pathFailure(`${path}: cannot be opened`, error);
  }
}

function isOfOther(subsystem: string, rdev: number): boolean {
  // gnu_dev_major(3) and minor, as far as Linux gives numbers.
  const major = (rdev >>> 8) & 0xfff;
  const minor = (rdev & 0xff) | ((rdev >>> 12) & 0xf_ff00);
  try {
    return basename(readlinkSync(`/sys/dev/char/${major}:${minor}/subsystem`)) !== subsystem;
  } catch {
    return false; // pseudo terminals are not in sysfs
  }
}
