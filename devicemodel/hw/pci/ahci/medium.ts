/** An image in a drive: open, locked, with the queue of its requests, until it is closed. */
import { StorageHangError } from '../../../core/errors.ts';
import type { GuestRam } from '../../../core/guest-buffers.ts';
import { describeErrno } from '../../../core/host/errno.ts';
import { leaveThreadBehind } from '../../../core/host/exit-hooks.ts';
import { closeFd } from '../../../core/host/files.ts';
import type { Log } from '../../../core/log.ts';
import { openDiskImage } from '../../storage/disk-image.ts';
import { ImageIo } from '../../storage/image-io.ts';
import type { ImageQueue } from '../../storage/image-queue.ts';
import type { openImageQueue } from '../../storage/open-queue.ts';
import type { PciEnv } from '../driver.ts';
import type { DriveImage } from './options.ts';

export type OpenQueue = typeof openImageQueue;

export class Medium {
  readonly io: ImageIo;
  readonly queue: ImageQueue;
  readonly #env: Pick<PciEnv, 'waits'>;
  readonly #log: Log;

  private constructor(io: ImageIo, queue: ImageQueue, env: Pick<PciEnv, 'log' | 'waits'>) {
    this.#env = env;
    this.#log = env.log;
    this.io = io;
    this.queue = queue;
  }

  /** @throws HostError, ConfigError, asynchronously */
  static async open(
    image: DriveImage,
    ram: GuestRam,
    env: Pick<PciEnv, 'clock' | 'log' | 'waits'>,
    openQueue: OpenQueue,
  ): Promise<Medium> {
    const io = new ImageIo(await openDiskImage(image.path, image, env.log));
    try {
      return new Medium(io, openQueue(io, ram, env.clock, env.log), env);
    } catch (error) {
      closeFd(io.image.fd);
      throw error;
    }
  }

  get path(): string {
    return this.io.image.path;
  }

  /**
   * Nothing is under way any more. @param isFlushed what was written is on the medium, too.
   * @returns when it is so; undefined: it is. @throws StorageHangError, asynchronously
   */
  settle(isFlushed: boolean): Promise<void> | undefined {
    const isToFlush = isFlushed && !this.io.image.isReadOnly;
    const drained = this.queue.drained();
    if (drained === undefined && !isToFlush) return undefined;
    return this.#patiently(this.#settle(drained, isToFlush));
  }

  async #settle(drained: Promise<void> | undefined, isToFlush: boolean): Promise<void> {
    await drained;
    if (!isToFlush) return;
    const errno = await this.io.flush();
    if (errno !== 0) this.#log.error(`${this.path}: the last flush failed: ${describeErrno(errno)}`);
  }

  #patiently(work: Promise<void>): Promise<void> {
    const { patience } = this.#env.waits;
    const { limitMs } = patience;
    return new Promise((resolve, reject) => {
      const endPatience = patience.start(() => {
        leaveThreadBehind();
        reject(new StorageHangError(this.path, this.queue.describeWork() ?? 'flush', limitMs));
      });
      work.then(() => {
        endPatience();
        resolve();
      }, reject);
    });
  }

  /** The lock goes with the descriptor. The queue is drained. */
  close(): void {
    this.queue.dispose();
    closeFd(this.io.image.fd);
    this.io.dispose();
  }
}
