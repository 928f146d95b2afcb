/** What can be a disk image, by kind and size. Small: looked at before a VM is asked for, too. */
import { type Stats, statSync } from 'node:fs';
import { ConfigError, ExitCode } from '../../core/errors.ts';
import { fileKey, type HostClaim } from '../../core/host-claims.ts';
import { alignUp } from '../../core/units.ts';
import { type ImageOptions, SECTOR_BYTES } from './image-options.ts';

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

/**
 * The part of an image that is the disk.
 * Compat: C takes a range that the file does not have; reads of it are short, writes let the file grow.
 * @param wholeBytes of the file or block device. @throws ConfigError (65) when the range goes beyond it.
 */
export function diskPart(
  path: string,
  wholeBytes: number,
  { range, sectorSize }: Pick<ImageOptions, 'range' | 'sectorSize'>,
): { readonly base: number; readonly sizeBytes: number } {
  if (range === undefined) return { base: 0, sizeBytes: wholeBytes };
  const sectorBytes = sectorSize?.logical ?? SECTOR_BYTES;
  const { startLba, sectors } = range;
  const present = Math.floor(wholeBytes / sectorBytes);
  if (startLba + sectors > present) {
    throw new ConfigError(
      `${path}: range=${startLba}/${sectors} ends at sector ${startLba + sectors}, there are ${present} of ${sectorBytes} bytes`,
      {
        exitCode: ExitCode.DataError,
        hint:
          startLba < present
            ? `range=${startLba}/${present - startLba} goes up to the end`
            : 'range= is the first sector and how many there are, as in range=2048/4096',
      },
    );
  }
  return { base: startLba * sectorBytes, sizeBytes: sectors * sectorBytes };
}

/**
 * The same before the image is opened; what is not there is found elsewhere, the size of a block device shows when it is
 * opened. @throws ConfigError (65)
 */
export function inspectImage(path: string, options: Pick<ImageOptions, 'range' | 'sectorSize'> = {}): void {
  const stat = statSync(path, { throwIfNoEntry: false });
  if (stat !== undefined && !stat.isBlockDevice()) diskPart(path, imageFileSize(stat, path), options);
}

/** An image is one disk's alone, unless all only read it or have parts that do not overlap: as the locks on it say. */
export function imageClaim(path: string, { ro, range, sectorSize }: Partial<ImageOptions>): HostClaim {
  const sectorBytes = sectorSize?.logical ?? SECTOR_BYTES;
  const part = range && { base: range.startLba * sectorBytes, sizeBytes: range.sectors * sectorBytes };
  return {
    what: `the image ${path}`,
    key: fileKey(path),
    isShared: ro === true,
    ...(part === undefined ? {} : { range: part }),
    hint: 'give both the image with ro, or parts that do not overlap with range=',
  };
}
