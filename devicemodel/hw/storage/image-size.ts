/** What can be a disk image, by kind and size. Small: looked at before a VM is asked for, too. */
import { type Stats, statSync } from 'node:fs';
import { ConfigError, ExitCode } from '../../core/errors.ts';
import { alignUp } from '../../core/units.ts';
import { SECTOR_BYTES } from './image-options.ts';

/** @returns size of a file in bytes. @throws ConfigError (65) when it cannot be a disk. */
export function imageFileSize(stat: Stats, path: string): number {
  if (!stat.isFile()) {
    throw new ConfigError(`${path}: neither a file nor a block device`, { exitCode: ExitCode.DataError });
  }
  const { size } = stat;
  if (size >= SECTOR_BYTES && size % SECTOR_BYTES === 0) return size;
  const whole = Math.max(alignUp(size, SECTOR_BYTES), SECTOR_BYTES);
  throw new ConfigError(`${path}: the size must be a multiple of ${SECTOR_BYTES} bytes, it is ${size}`, {
    exitCode: ExitCode.DataError,
    hint: `truncate -s ${whole} ${path}`,
  });
}

/** The same before the image is opened; what is not there is found elsewhere. @throws ConfigError (65) */
export function inspectImage(path: string): void {
  const stat = statSync(path, { throwIfNoEntry: false });
  if (stat !== undefined && !stat.isBlockDevice()) imageFileSize(stat, path);
}
