/** The image behind a disk of any kind: a file, a block device, or a range of either. */
import { fstat, type Stats } from 'node:fs';
import { promisify } from 'node:util';
import { blockDeviceSize, discardBlocks, physicalBlockBytes } from '../../core/host/block-device.ts';
import { closeFdAside, isInMemory, OpenFlag, openFileAside } from '../../core/host/files.ts';
import type { Log } from '../../core/log.ts';
import { lockImage } from './image-lock.ts';
import { type ImageOptions, SECTOR_BYTES } from './image-options.ts';
import { diskPart, imageFileSize } from './image-size.ts';

/** An open image as plain data: what a data thread needs to work on it as well. */
export interface DiskImage {
  readonly path: string;
  readonly fd: number;
  /** Opened read-only, by wish or because the host allows no more. */
  readonly isReadOnly: boolean;
  readonly sizeBytes: number;
  readonly logicalSectorBytes: number;
  readonly physicalSectorBytes: number;
  /** Undefined: discard is not offered. Counts of 512-byte sectors. */
  readonly discardLimits: DiscardLimits | undefined;
  /** First byte of the range in the file. */
  readonly base: number;
  readonly isBlockDevice: boolean;
  readonly isDirect: boolean;
  readonly hasRange: boolean;
  /** It is in the host's memory: whoever works on it never waits. */
  readonly neverWaits: boolean;
  /** One i32: errno of the first sync that failed, 0 while none has. Threads that work on the image share it. */
  readonly syncFailure: SharedArrayBuffer;
}

export interface DiscardLimits {
  readonly maxSectors: number;
  readonly maxSegments: number;
  readonly alignmentSectors: number;
}

const statOf: (fd: number) => Promise<Stats> = promisify(fstat);

/**
 * Open and lock an image. What may wait for storage is done on threads of Node's: the guest and the host are served.
 * @throws HostError; ConfigError when it cannot be a disk.
 */
export async function openDiskImage(path: string, options: ImageOptions, log: Log): Promise<DiskImage> {
  const direct = options.nocache ? OpenFlag.Direct : 0;
  let isReadOnly = options.ro;
  let fd: number;
  try {
    fd = await openFileAside(
      path,
      (isReadOnly ? OpenFlag.ReadOnly : OpenFlag.ReadWrite) | OpenFlag.CloseOnExec | direct,
    );
  } catch (error) {
    if (isReadOnly) throw error;
    // As the C device model does, but not silently.
    fd = await openFileAside(path, OpenFlag.ReadOnly | OpenFlag.CloseOnExec | direct);
    isReadOnly = true;
    log.warn(`${path} cannot be written: the disk is read-only`);
  }
  try {
    const stat = await statOf(fd);
    const isBlockDevice = stat.isBlockDevice();
    const whole = isBlockDevice ? blockDeviceSize(fd, path) : imageFileSize(stat, path);
    const logicalSectorBytes = options.sectorSize?.logical ?? SECTOR_BYTES;
    const image = {
      path,
      fd,
      isReadOnly,
      ...diskPart(path, whole, options),
      logicalSectorBytes,
      physicalSectorBytes: options.sectorSize?.physical ?? (isBlockDevice ? physicalBlockBytes(fd) : stat.blksize),
      isBlockDevice,
      isDirect: options.nocache,
      hasRange: options.range !== undefined,
      neverWaits: !isBlockDevice && (await isInMemory(fd)),
      syncFailure: new SharedArrayBuffer(4),
    };
    await lockImage(image, log);
    return { ...image, discardLimits: discardLimits(options, image, log) };
  } catch (error) {
    await closeFdAside(fd);
    throw error;
  }
}

function discardLimits(
  options: ImageOptions,
  image: Omit<DiskImage, 'discardLimits'>,
  log: Log,
): DiscardLimits | undefined {
  if (options.discard === undefined) return undefined;
  if (image.isBlockDevice) {
    if (image.isReadOnly) return undefined;
    // A discard of nothing tells whether the device knows the order.
    if (discardBlocks(image.fd, 0, 0) !== 0) {
      log.warn(`${image.path}: the device has no discard, it is not offered`);
      return undefined;
    }
  }
  return {
    maxSectors: options.discard.maxSectors ?? Math.min(Math.floor(image.sizeBytes / SECTOR_BYTES), 0xffffffff),
    maxSegments: options.discard.maxSegments ?? 1,
    alignmentSectors: options.discard.alignmentSectors ?? 0,
  };
}
