/**
 * What the two layouts of a virtqueue have in common: where their parts are, descriptors, and how a chain is collected
 * from them. The layouts are split-ring.ts (Virtio 1.2 §2.7) and packed-ring.ts (§2.8); `Virtqueue` sits on top.
 */
import type { Gpa } from '../../../../core/address.ts';
import { hex } from '../../../../core/address.ts';
import type { GuestRam } from '../../../../core/guest-buffers.ts';
import type { Chain } from './chain.ts';

/** §2.7 and §2.8: no queue is larger. */
export const MAX_QUEUE_SIZE = 32768;

/** What struct virtq_desc (§2.7.5) and struct pvirtq_desc (§2.8.13) agree on. */
export const Desc = { size: 16, addressLow: 0, addressHigh: 4, length: 8 } as const;
export const DescFlag = { Next: 1, Write: 2, Indirect: 4 } as const;

/**
 * Longest chain taken, counted after indirection, when the queue is shorter. §2.7.5.3.1 asks drivers for no more than
 * the queue size. Compat: the C device model takes 512, and offers block requests of more segments than its queues have
 * entries, which Linux makes use of.
 */
const MIN_CHAIN_LIMIT = 512;
/** §2.7.4: a chain is at most 2^32 bytes in total. */
const MAX_CHAIN_BYTES = 2 ** 32;

/** Feature bits of the queue itself (§6). */
export interface RingFeatures {
  readonly packed: boolean;
  readonly indirect: boolean;
  readonly eventIdx: boolean;
  /** Legacy VIRTIO_F_NOTIFY_ON_EMPTY: an interrupt when the available ring runs dry, even if suppressed. */
  readonly notifyOnEmpty: boolean;
}

export const noFeatures: RingFeatures = { packed: false, indirect: false, eventIdx: false, notifyOnEmpty: false };

/** Where the parts of a queue are. A packed one has event suppression structures for the available and the used ring. */
export interface RingAddresses {
  /** Descriptor area. */
  readonly desc: Gpa;
  /** Driver area. */
  readonly avail: Gpa;
  /** Device area. */
  readonly used: Gpa;
}

/** The rings of a queue that is set up, seen from the device. Nothing here throws or loops for longer than the queue is. */
export interface Ring {
  readonly isPacked: boolean;
  readonly addresses: RingAddresses;
  features: RingFeatures;
  /** Where the ring goes on, in the form that vhost wants (VHOST_SET_VRING_BASE). */
  position: number;
  /** Whether there is a chain to take. Looks at guest memory unless it knows already. */
  hasNext(): boolean;
  /** Collect the next chain, which there is, into an empty one. @returns false, with the queue broken, if it breaks a rule. */
  take(chain: Chain): boolean;
  /** Make the chain taken last the next one again. */
  untake(chain: Chain): void;
  /** Write a used element, which the driver does not see before `publish`. */
  use(chain: Chain, writtenBytes: number): void;
  /** @returns false if there is nothing the driver has not seen yet. */
  publish(): boolean;
  /**
   * Whether the driver wants to hear of what was published since the last call.
   * @param isIdle nothing that was taken is still to be used.
   */
  wantsInterrupt(isIdle: boolean): boolean;
  /** Tell the driver that notifications are not needed. */
  suppressNotify(): void;
  /** Tell the driver to notify of the next chain. */
  requestNotify(): void;
}

/** A part of a ring: where it is, and the chunk that holds all of it, if one does. */
export class RingPart {
  gpa: Gpa = 0;
  // Not private: what is read for every field has to be little for V8 to inline it.
  readonly ram: GuestRam;
  view: DataView | undefined;
  base = 0;

  constructor(ram: GuestRam) {
    this.ram = ram;
  }

  /** @returns false unless all of it is RAM. */
  place(gpa: Gpa, sizeBytes: number): boolean {
    const { ram } = this;
    if (!ram.contains(gpa, sizeBytes)) return false;
    this.gpa = gpa;
    const chunk = ram.chunkAt(gpa);
    this.view = gpa + sizeBytes <= ram.endOf(chunk) ? ram.views[chunk] : undefined;
    this.base = gpa - ram.baseOf(chunk);
    return true;
  }

  u16(offset: number): number {
    const { view } = this;
    return view !== undefined ? view.getUint16(this.base + offset, true) : this.ram.readU16(this.gpa + offset);
  }
  u32(offset: number): number {
    const { view } = this;
    return view !== undefined ? view.getUint32(this.base + offset, true) : this.ram.readU32(this.gpa + offset);
  }
  setU16(offset: number, value: number): void {
    const { view } = this;
    if (view !== undefined) view.setUint16(this.base + offset, value, true);
    else this.ram.writeU16(this.gpa + offset, value);
  }
  setU32(offset: number, value: number): void {
    const { view } = this;
    if (view !== undefined) view.setUint32(this.base + offset, value, true);
    else this.ram.writeU32(this.gpa + offset, value);
  }
}

/** Makes chains of descriptors, whatever table they are in. What the driver wrote is checked here. */
export class ChainCollector {
  readonly ram: GuestRam;
  /** The indirect table that `openTable` found. */
  readonly table: RingPart;
  /** Stops the queue. */
  readonly fail: (reason: string) => false;
  #limit = MIN_CHAIN_LIMIT;

  constructor(ram: GuestRam, fail: (reason: string) => false) {
    this.ram = ram;
    this.table = new RingPart(ram);
    this.fail = fail;
  }

  setQueueSize(size: number): void {
    this.#limit = Math.max(size, MIN_CHAIN_LIMIT);
  }

  /** Add the buffer of the descriptor at byte `at` of `part`. @returns false, with the queue broken, if it breaks a rule. */
  add(chain: Chain, part: RingPart, at: number, isWritable: boolean): boolean {
    const length = part.u32(at + Desc.length);
    // §2.7.4.2, §2.8.17: everything the device may write comes after everything it may read.
    const isOutOfOrder = !isWritable && chain.segmentCount > chain.readableCount;
    const totalBytes = chain.readableBytes + chain.writableBytes + length;
    if (isOutOfOrder || totalBytes > MAX_CHAIN_BYTES || chain.descriptorCount >= this.#limit) {
      return this.#refuse(isOutOfOrder, totalBytes);
    }
    chain.descriptorCount++;
    if (length === 0) return true;
    const address = addressAt(part, at);
    const { ram } = this;
    const chunk = ram.chunkAt(address);
    if (chunk < 0 || address + length > ram.endOf(chunk)) return this.#addPieces(chain, address, length, isWritable);
    chain.append(chunk, address - ram.baseOf(chunk), length, isWritable);
    return true;
  }

  #refuse(isOutOfOrder: boolean, totalBytes: number): false {
    if (isOutOfOrder) return this.fail('readable descriptor after a writable one');
    if (totalBytes > MAX_CHAIN_BYTES) return this.fail('chain of more than 4 GiB');
    // Longer than this it has a loop (§2.7.5.3.1), or is more than any driver makes.
    return this.fail(`chain of more than ${this.#limit} descriptors`);
  }

  /** A buffer over the seam of chunks. */
  #addPieces(chain: Chain, address: Gpa, length: number, isWritable: boolean): boolean {
    let next = address;
    let left = length;
    while (left > 0) {
      const chunk = this.ram.chunkAt(next);
      if (chunk < 0 || chain.segmentCount > 4 * this.#limit) {
        return this.fail(`buffer at ${hex(address)}+${hex(length)} is not RAM`);
      }
      const take = Math.min(left, this.ram.endOf(chunk) - next);
      chain.append(chunk, next - this.ram.baseOf(chunk), take, isWritable);
      next += take;
      left -= take;
    }
    return true;
  }

  /**
   * The table that the indirect descriptor at byte `at` of `part` refers to becomes `table`.
   * @returns how many descriptors it has; 0, with the queue broken, if it is not in RAM or its length makes no sense.
   */
  openTable(part: RingPart, at: number): number {
    const address = addressAt(part, at);
    const length = part.u32(at + Desc.length);
    const count = length / Desc.size;
    if (length === 0 || length % Desc.size !== 0 || count > 0x1_0000) {
      this.fail(`indirect table of ${length} bytes`);
      return 0;
    }
    if (!this.table.place(address, length)) {
      this.fail(`indirect table at ${hex(address)}+${hex(length)} is not RAM`);
      return 0;
    }
    return count;
  }
}

function addressAt(part: RingPart, at: number): Gpa {
  return part.u32(at + Desc.addressLow) + part.u32(at + Desc.addressHigh) * 0x1_0000_0000;
}
