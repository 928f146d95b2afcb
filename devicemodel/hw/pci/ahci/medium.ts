/** An image in a drive: open, locked, with the queue of its requests, until it is closed. */
import { StorageHangError } from '../../../core/errors.ts';
import type { GuestRam } from '../../../core/guest-buffers.ts';
import { describeErrno } from '../../../core/host/errno.ts';
import { leaveThreadBehind } from '../../../core/host/exit-hooks.ts';
import { closeFdAside } from '../../../core/host/files.ts';
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
      const usesRing = image.aio !== 'threads';
      return new Medium(io, openQueue(io, ram, env.clock, env.log, usesRing, env.waits.threads), env);
    } catch (error) {
      await closeFdAside(io.image.fd);
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
    return this.#wait(this.#settle(drained, isToFlush), () => this.queue.describeWork() ?? 'flush');
  }

  async #settle(drained: Promise<void> | undefined, isToFlush: boolean): Promise<void> {
    await drained;
    if (!isToFlush) return;
    const errno = await this.io.flush();
    if (errno !== 0) this.#log.error(`${this.path}: the last flush failed: ${describeErrno(errno)}`);
  }

  /** @param what is waited for, if it takes too long. */
  #wait(work: Promise<unknown>, what: () => string): Promise<void> {
    return this.#env.waits.patience.wait(work, (limitMs) => {
      leaveThreadBehind();
      return new StorageHangError(this.path, what(), limitMs);
    });
  }

  /** The lock goes with the descriptor and what is mapped. The queue is drained. @throws StorageHangError, asynchronously */
  close(): Promise<void> {
    const released = this.queue.dispose();
    this.io.dispose();
    const close = () => closeFdAside(this.io.image.fd);
    return this.#wait(released?.then(close) ?? close(), () => 'close');
  }
}
