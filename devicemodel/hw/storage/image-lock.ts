/** Locks on disk images: two User VMs that write one image destroy it. */
import { HostError } from '../../core/errors.ts';
import { Errno } from '../../core/host/errno.ts';
import { tryLockAside } from '../../core/host/file-lock.ts';
import type { Log } from '../../core/log.ts';

/** What of an image is locked. */
export interface LockableImage {
  readonly path: string;
  readonly fd: number;
  readonly isReadOnly: boolean;
  /** First byte of the disk in the file, and its size; without a range the whole file counts. */
  readonly base: number;
  readonly sizeBytes: number;
  readonly hasRange: boolean;
}

/**
 * Take the image, or its range, for as long as its descriptor is open: for this disk alone if it can be written, else
 * together with other readers. @throws HostError when another disk or User VM has it.
 */
export async function lockImage(image: LockableImage, log: Log): Promise<void> {
  const range = { base: image.base, sizeBytes: image.hasRange ? image.sizeBytes : 0 };
  try {
    if (await tryLockAside(image.fd, image.isReadOnly ? 'shared' : 'exclusive', image.path, range)) return;
  } catch (error) {
    if (!(error instanceof HostError)) throw error;
    log.warn(`${error.message}: other User VMs are not kept from it`);
    return;
  }
  throw new HostError(`${image.path}: in use by another disk or User VM`, Errno.EAGAIN, {
    hint: 'stop the other VM, or give both the image with ro, or parts that do not overlap with range=',
  });
}
