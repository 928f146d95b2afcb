/** A disk image that grows, or did, while it is in use. */
import { fstat, ftruncate } from 'node:fs';
import { promisify } from 'node:util';
import { ConfigError, HostError, RefusedError } from '../../core/errors.ts';
import { blockDeviceSize } from '../../core/host/block-device.ts';
import type { DiskImage } from './disk-image.ts';
import { SECTOR_BYTES } from './image-options.ts';
import { imageFileSize } from './image-size.ts';

const truncate = promisify(ftruncate);
const statOf = promisify(fstat);

/**
 * Make the file as long as is wished; or, without a wish, look how long the file or block device is now. Waits for storage
 * on threads of Node's.
 * @returns bytes. @throws ConfigError for a size that cannot be, RefusedError for an image that keeps its size, HostError.
 */
export async function imageSizeNow(image: DiskImage, wishedBytes: number | undefined): Promise<number> {
  const { path, fd, sizeBytes, logicalSectorBytes } = image;
  if (image.hasRange) throw new RefusedError('impossible', `${path}: the disk is a range of it, and keeps its size`);
  if (wishedBytes === undefined) {
    return image.isBlockDevice ? blockDeviceSize(fd, path) : imageFileSize(await statOf(fd), path);
  }
  if (image.isBlockDevice) {
    throw new RefusedError('impossible', `${path}: a block device has the size that the host gives it`, {
      hint: 'resize it on the host, then ask without a size',
    });
  }
  if (image.isReadOnly) throw new RefusedError('impossible', `${path}: the disk is read-only`);
  const unit = Math.max(logicalSectorBytes, SECTOR_BYTES);
  if (!Number.isSafeInteger(wishedBytes) || wishedBytes <= 0 || wishedBytes % unit !== 0) {
    throw new ConfigError(`${path}: a disk of ${wishedBytes} bytes is not possible: a multiple of ${unit} is`);
  }
  if (wishedBytes < sizeBytes) {
    throw new ConfigError(`${path}: ${wishedBytes} bytes are less than its ${sizeBytes}: the guest would lose data`, {
      hint: 'shrink the file yourself, then ask without a size',
    });
  }
  try {
    await truncate(fd, wishedBytes);
  } catch (cause) {
    const { errno = 0, code } = cause as NodeJS.ErrnoException;
    throw new HostError(`${path}: cannot be made ${wishedBytes} bytes long (${code})`, Math.abs(errno), { cause });
  }
  return wishedBytes;
}
