/**
 * Disk requests of the device thread, which must not wait for storage: one piece of work at a time goes on beside it, and
 * the queues stand still until it is done. What is begun belongs to the work until then: a reset, a hand-over and the end
 * of the VM wait for `idle`.
 */
import type { ImageAside } from '../../../storage/image-aside.ts';

export class AsideWork {
  readonly image: ImageAside;
  readonly #onDone: () => void;
  #work: Promise<void> | undefined;
  #isAbandoned = false;

  /** @param onDone the queues may have more, or what is done waits for a sync: they are to be looked at. */
  constructor(image: ImageAside, onDone: () => void) {
    this.image = image;
    this.#onDone = onDone;
  }

  get isBusy(): boolean {
    return this.#work !== undefined;
  }

  /** Whether what is begun still matters. */
  readonly isWanted = (): boolean => !this.#isAbandoned;

  /** @param then called with the errno of the work, unless it was given up. */
  begin(work: Promise<number>, then: (errno: number) => void): void {
    this.#work = work.then((errno) => {
      this.#work = undefined;
      if (this.#isAbandoned) return;
      then(errno);
      this.#onDone();
    });
  }

  /** @returns when nothing is under way; undefined: nothing is. */
  get idle(): Promise<void> | undefined {
    return this.#work;
  }

  /** It took too long, and the VM may be gone: when the work is done nothing comes of it. */
  abandon(): void {
    this.#isAbandoned = true;
  }

  dispose(): void {
    this.image.dispose();
  }
}

/** The medium gets each part of a large write at once: a sync of gigabytes at the end could not be cut. */
export async function syncAfter(work: Promise<number>, { image }: AsideWork): Promise<number> {
  const errno = await work;
  return errno === 0 ? image.sync() : errno;
}
