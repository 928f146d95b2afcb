/**
 * A virtqueue, device side: chains out, used elements back, notification suppression both ways. Which of the two ring
 * layouts lies below is settled by negotiation (split-ring.ts, packed-ring.ts); devices see no difference.
 *
 * What the driver wrote is read once and checked. A ring that breaks the rules stops the queue and is reported
 * (`broken`), after which it hands out nothing until it is set up again; nothing is thrown and no loop is longer than
 * the queue is.
 *
 * Chains are kept and used again: a queue in steady state allocates nothing.
 */
import type { Gpa } from '../../../../core/address.ts';
import { BugError } from '../../../../core/errors.ts';
import { fence, type GuestRam } from '../../../../core/guest-buffers.ts';
import { Chain } from './chain.ts';
import { isPackedQueueSize, PackedRing } from './packed-ring.ts';
import {
  ChainCollector,
  MAX_QUEUE_SIZE,
  noFeatures,
  type Ring,
  type RingAddresses,
  type RingFeatures,
} from './ring.ts';
import { isSplitQueueSize, legacyAddresses, SplitRing } from './split-ring.ts';

/** What the transport does for a queue. */
export interface VirtqueueHost {
  /** Used buffer notification: make the driver look at the queue. */
  interrupt(queue: Virtqueue): void;
  /** The driver broke the rules; the queue has stopped. Reported once. */
  broken(queue: Virtqueue, reason: string): void;
}

const nowhere: RingAddresses = { desc: 0, avail: 0, used: 0 };

export class Virtqueue {
  readonly index: number;
  /** What the device offers; `size` is what the driver settled on. */
  readonly maxSize: number;
  size: number;
  /** §4.1.5.1.2; NO_VECTOR = 0xffff. */
  vector = 0xffff;
  /** `--virtio_poll` is at work: the driver is never asked to notify. */
  isPolled = false;
  readonly #ram: GuestRam;
  readonly #host: VirtqueueHost;
  readonly #chains: ChainCollector;
  #features = noFeatures;
  /** Undefined until the driver has set the queue up. */
  #ring: Ring | undefined;
  #broken = false;
  #notifySuppressed = false;
  /** Counts set-ups: a chain of an earlier one must not reach the new rings. */
  #generation = 0;
  /** Entries of the ring that were taken and not given back. */
  #outstanding = 0;
  /** Taken last, and not given back. */
  #latest: Chain | undefined;
  /** Chains not in use. */
  readonly #pool: Chain[] = [];
  /** Served in part: `pop` returns it before any other. */
  #parked: Chain | undefined;

  /** @param maxSize what the device offers, a power of two: drivers may choose split rings and not write another. */
  constructor(index: number, maxSize: number, ram: GuestRam, host: VirtqueueHost) {
    if (!isSplitQueueSize(maxSize)) {
      throw new BugError(`queue size ${maxSize} is not a power of two up to ${MAX_QUEUE_SIZE}`);
    }
    this.index = index;
    this.maxSize = maxSize;
    this.size = maxSize;
    this.#ram = ram;
    this.#host = host;
    this.#chains = new ChainCollector(ram, (reason) => this.#fail(reason));
  }

  /** Set up and not broken: chains can be taken. */
  get isReady(): boolean {
    return this.#ring !== undefined && !this.#broken;
  }

  /** Counts set-ups; chains carry the one they belong to. */
  get generation(): number {
    return this.#generation;
  }

  get isBroken(): boolean {
    return this.#broken;
  }

  /** Guest addresses of the parts, for whoever else serves the queue; meaningful while it is ready. */
  get addresses(): RingAddresses {
    return this.#ring?.addresses ?? nowhere;
  }

  /** What the rings were set up with. */
  get features(): RingFeatures {
    return this.#features;
  }

  /** Features count at once, but a driver that settles on another layout has to set the queue up again. */
  setFeatures(features: RingFeatures): void {
    this.#features = features;
    if (this.#ring !== undefined && this.#ring.isPacked !== features.packed) this.disable();
    if (this.#ring !== undefined) this.#ring.features = features;
  }

  /** Whether the driver may choose this size, given the layout it has negotiated. */
  allowsSize(size: number): boolean {
    return size <= this.maxSize && (this.#features.packed ? isPackedQueueSize(size) : isSplitQueueSize(size));
  }

  /** Back to power-on: no ring, no vector, the size the device offers. */
  reset(): void {
    this.disable();
    this.size = this.maxSize;
    this.vector = 0xffff;
    this.isPolled = false;
    this.#features = noFeatures;
  }

  disable(): void {
    this.#ring = undefined;
    this.#broken = false;
    this.#notifySuppressed = false;
    this.#generation = (this.#generation + 1) | 0;
    this.#outstanding = 0;
    if (this.#parked !== undefined) this.#pool.push(this.#parked);
    this.#parked = undefined;
  }

  /**
   * As legacy drivers do, who name one address for everything.
   * @returns false, and the queue stays off, unless all of it is RAM.
   */
  enableLegacy(base: Gpa): boolean {
    const { desc, avail, used } = legacyAddresses(base, this.size);
    return this.enable(desc, avail, used);
  }

  /**
   * Place the three parts, in the layout that was negotiated, and start from the beginning.
   * @param avail the driver area: available ring, or driver event suppression.
   * @param used the device area: used ring, or device event suppression.
   * @returns false, and the queue stays off, unless everything is RAM and aligned.
   */
  enable(desc: Gpa, avail: Gpa, used: Gpa): boolean {
    this.disable();
    const { size } = this;
    const ring = this.#features.packed ? new PackedRing(size, this.#chains) : new SplitRing(size, this.#chains);
    if (!ring.place(desc, avail, used)) return false;
    ring.features = this.#features;
    this.#chains.setQueueSize(size);
    this.#ring = ring;
    return true;
  }

  /** Whether there is something to serve: a chain that was not taken, or one served in part. Looks at guest memory. */
  hasAvailable(): boolean {
    return this.#ring !== undefined && !this.#broken && (this.#parked !== undefined || this.#ring.hasNext());
  }

  /**
   * The next chain, or undefined when there is none (or the queue is off or broken). It belongs to the device until it
   * is given back by `push` or `unpop`. A chain given back after the queue was set up anew is dropped.
   */
  pop(): Chain | undefined {
    const ring = this.#ring;
    if (ring === undefined || this.#broken) return undefined;
    const parked = this.#parked;
    if (parked !== undefined) {
      this.#parked = undefined;
      return parked;
    }
    if (!ring.hasNext()) return undefined;
    const chain = this.#pool.pop() ?? new Chain(this.#ram);
    chain.clear();
    if (!ring.take(chain)) {
      this.#pool.push(chain);
      return undefined;
    }
    this.#outstanding += chain.ringEntries;
    if (this.#outstanding > this.size) {
      this.#fail(`more requests at once than the queue has entries (${this.size})`);
      return undefined;
    }
    chain.generation = this.#generation;
    this.#latest = chain;
    return chain;
  }

  /** Entries of the ring that were taken and not given back. */
  get outstanding(): number {
    return this.#outstanding;
  }

  /** After a failure in the middle of a request: put it back if it is the one that was taken last and all others are done. */
  putBackLatest(): void {
    const latest = this.#latest;
    if (latest?.generation === this.#generation && this.#outstanding === latest.ringEntries) this.unpop(latest);
  }

  /** Put the chain just popped back as the next one: the device has no use for it yet. Only the latest can go back. */
  unpop(chain: Chain): void {
    this.#latest = undefined;
    this.#pool.push(chain);
    if (chain.generation !== this.#generation) return;
    this.#ring?.untake(chain);
    this.#outstanding -= chain.ringEntries;
  }

  /** Keep the chain just popped, which is served in part: the next `pop` returns it, with its `progress`. */
  park(chain: Chain): void {
    this.#parked = chain;
  }

  get hasParked(): boolean {
    return this.#parked !== undefined;
  }

  /** Put a chain that is served in part back into the ring: who serves the queue next starts it from the beginning. */
  putBackParked(): void {
    const parked = this.#parked;
    this.#parked = undefined;
    if (parked !== undefined) this.unpop(parked);
  }

  #fail(reason: string): false {
    this.#broken = true;
    this.#host.broken(this, reason);
    return false;
  }

  /**
   * Give a chain back with the number of bytes written to it. Not visible before `publish`.
   * @param writtenBytes from the start of the writable part (§2.7.8.2).
   */
  push(chain: Chain, writtenBytes: number): void {
    if (chain === this.#latest) this.#latest = undefined;
    if (this.#ram.isObserved) {
      for (let i = chain.readableCount; i < chain.segmentCount; i++) {
        this.#ram.noteWrite(chain.chunk[i] as number, chain.offset[i] as number, chain.length[i] as number);
      }
    }
    if (this.#ring !== undefined && chain.generation === this.#generation) {
      this.#outstanding -= chain.ringEntries;
      this.#ring.use(chain, writtenBytes);
    }
    this.#pool.push(chain);
  }

  /** Make what was pushed visible, and interrupt the driver if it wants to hear of it. */
  publish(): void {
    const ring = this.#ring;
    if (ring === undefined || !ring.publish()) return;
    // The driver sees it before its wish is read.
    fence();
    if (ring.wantsInterrupt(this.#outstanding === 0)) this.#host.interrupt(this);
  }

  /** Ask the driver not to notify: the device is looking at the queue anyway. A hint. */
  suppressNotify(): void {
    if (this.#ring === undefined || this.#notifySuppressed) return;
    this.#notifySuppressed = true;
    this.#ring.suppressNotify();
  }

  /**
   * Ask for notifications again.
   * @returns true if chains became available in between: look once more, no notification will come for them.
   */
  allowNotify(): boolean {
    const ring = this.#ring;
    if (ring === undefined || this.#broken) return false;
    if (!this.isPolled) {
      this.#notifySuppressed = false;
      ring.requestNotify();
      fence();
    }
    return ring.hasNext();
  }

  /** Position in the rings, to hand the queue to vhost or to a data thread and take it back. */
  get position(): number {
    return this.#ring?.position ?? 0;
  }

  /** Go on at a `position`; of a split queue everything before it was used. */
  resumeAt(position: number): void {
    if (this.#ring !== undefined) this.#ring.position = position;
  }
}
