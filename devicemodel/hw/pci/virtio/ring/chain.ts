/**
 * A request as it comes out of a ring of either layout: the driver's buffers, as Virtio 1.2 §2.7.4.1 wants them whatever
 * their descriptors are (§2.6.4, §2.7.4, §2.8.5), and what the ring has to know of them.
 */
import { GuestBuffers } from '../../../../core/guest-buffers.ts';

/** One request. */
export class Chain extends GuestBuffers {
  /** The driver's name for the request: index of the first descriptor (split), buffer id (packed). */
  id = 0;
  /** Entries of the ring it takes: one of the available ring (split), its descriptors outside of a table (packed). */
  ringEntries = 0;
  /** Descriptors it was made of, those of an indirect table included. */
  descriptorCount = 0;
  /** Which set-up of the queue it belongs to. */
  generation = 0;
  /** Bytes of the request that are served, while it is served in parts. */
  progress = 0;

  override clear(): void {
    super.clear();
    this.id = 0;
    this.ringEntries = 0;
    this.descriptorCount = 0;
    this.progress = 0;
  }
}

/** Chains in order, without the allocations that shifting an array costs. */
export class ChainFifo {
  readonly #ring: Array<Chain | undefined>;
  #head = 0;
  #length = 0;

  /** @param capacity a power of two. */
  constructor(capacity: number) {
    this.#ring = new Array<Chain | undefined>(capacity).fill(undefined);
  }

  get length(): number {
    return this.#length;
  }

  get isFull(): boolean {
    return this.#length === this.#ring.length;
  }

  /** The `index`th oldest; there must be one. */
  at(index: number): Chain {
    return this.#ring[(this.#head + index) & (this.#ring.length - 1)] as Chain;
  }

  push(chain: Chain): void {
    this.#ring[(this.#head + this.#length++) & (this.#ring.length - 1)] = chain;
  }

  /** The newest, taken out; there must be one. */
  pop(): Chain {
    return this.at(--this.#length);
  }

  /** The oldest, taken out; there must be one. */
  shift(): Chain {
    const chain = this.at(0);
    this.#head = (this.#head + 1) & (this.#ring.length - 1);
    this.#length--;
    return chain;
  }
}
