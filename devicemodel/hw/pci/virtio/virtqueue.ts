/**
 * Split virtqueue (Virtio 1.2 §2.7), device side: chains out of the available ring, used elements back, notification
 * suppression both ways. Legacy and modern transports share it.
 *
 * What the driver wrote is read once and checked here. A ring that breaks the rules stops the queue and is reported
 * (`broken`), after which it hands out nothing until it is set up again; nothing is thrown and no loop is longer than
 * the queue is.
 *
 * Chains are kept and used again: a queue in steady state allocates nothing.
 */
import type { Gpa } from '../../../core/address.ts';
import { hex } from '../../../core/address.ts';
import { BugError } from '../../../core/errors.ts';
import { fence, type GuestRam } from './guest-ram.ts';

/** Virtio 1.2 §2.7.5, struct virtq_desc. */
const Desc = { size: 16, addressLow: 0, addressHigh: 4, length: 8, flags: 12, next: 14 } as const;
const DescFlag = { Next: 1, Write: 2, Indirect: 4 } as const;
/** §2.7.6, struct virtq_avail. */
const Avail = { flags: 0, idx: 2, ring: 4 } as const;
const AvailFlag = { NoInterrupt: 1 } as const;
/** §2.7.8, struct virtq_used; elements are { u32 id, u32 len }. */
const Used = { flags: 0, idx: 2, ring: 4, elementSize: 8 } as const;
const UsedFlag = { NoNotify: 1 } as const;

/** §2.7: the queue size is a power of two of at most 2^15. */
export const MAX_QUEUE_SIZE = 32768;
/** Legacy rings: the used ring starts on the next boundary of this many bytes (§2.7.2, VIRTIO_PCI_VRING_ALIGN). */
const LEGACY_ALIGN = 4096;
/**
 * Longest chain taken, counted after indirection, when the queue is shorter. §2.7.5.3.1 asks drivers for no more than
 * the queue size. Compat: the C device model takes 512, and offers block requests of more segments than its queues have
 * entries, which Linux makes use of.
 */
const MIN_CHAIN_LIMIT = 512;
/** §2.7.4: a chain is at most 2^32 bytes in total. */
const MAX_CHAIN_BYTES = 2 ** 32;
const INITIAL_SEGMENTS = 8;

export function isQueueSize(size: number): boolean {
  return size > 0 && size <= MAX_QUEUE_SIZE && (size & (size - 1)) === 0;
}

/**
 * One request: what the device may read, then what it may write, as pieces of RAM. Descriptors that touch are one
 * segment; a descriptor over the seam of two chunks is two. Bytes are addressed by position in either part, whatever
 * the layout, as §2.7.4.1 wants.
 */
export class Chain {
  /** Index of the first descriptor: the driver's name for the request. */
  head = 0;
  /** Segments [0, readableCount) are the driver's, [readableCount, segmentCount) the device's to write. */
  readableCount = 0;
  segmentCount = 0;
  readableBytes = 0;
  writableBytes = 0;
  /** Descriptors it was made of. */
  descriptorCount = 0;
  chunk = new Uint16Array(INITIAL_SEGMENTS);
  offset = new Uint32Array(INITIAL_SEGMENTS);
  length = new Uint32Array(INITIAL_SEGMENTS);
  /** Which set-up of the queue it belongs to. */
  generation = 0;
  /** Free for the device: what it keeps about the request while it is in flight. */
  tag = 0;
  readonly ram: GuestRam;
  /** Cursor of `seek`. */
  segment = 0;
  within = 0;

  constructor(ram: GuestRam) {
    this.ram = ram;
  }

  clear(head: number): void {
    this.head = head;
    this.readableCount = 0;
    this.segmentCount = 0;
    this.readableBytes = 0;
    this.writableBytes = 0;
    this.descriptorCount = 0;
  }

  /** Append a piece. The caller has checked that it is RAM of this chunk. */
  append(chunk: number, offset: number, length: number, writable: boolean): void {
    const last = this.segmentCount - 1;
    const sameKind = writable ? last >= this.readableCount : last >= 0;
    if (
      sameKind &&
      this.chunk[last] === chunk &&
      (this.offset[last] as number) + (this.length[last] as number) === offset
    ) {
      this.length[last] = (this.length[last] as number) + length;
    } else {
      if (this.segmentCount === this.chunk.length) this.#grow();
      this.chunk[this.segmentCount] = chunk;
      this.offset[this.segmentCount] = offset;
      this.length[this.segmentCount] = length;
      this.segmentCount++;
      if (!writable) this.readableCount++;
    }
    if (writable) this.writableBytes += length;
    else this.readableBytes += length;
  }

  #grow(): void {
    const grow = <T extends Uint16Array | Uint32Array>(old: T, wider: T): T => {
      wider.set(old);
      return wider;
    };
    const size = this.chunk.length * 2;
    this.chunk = grow(this.chunk, new Uint16Array(size));
    this.offset = grow(this.offset, new Uint32Array(size));
    this.length = grow(this.length, new Uint32Array(size));
  }

  /**
   * Point `segment` and `within` at byte `at` of the readable or the writable part.
   * @returns false when there is no such byte.
   */
  seek(at: number, writable: boolean): boolean {
    const end = writable ? this.segmentCount : this.readableCount;
    let left = at;
    for (let i = writable ? this.readableCount : 0; i < end; i++) {
      const length = this.length[i] as number;
      if (left < length) {
        this.segment = i;
        this.within = left;
        return true;
      }
      left -= length;
    }
    return false;
  }

  /** Byte `at` of the readable part; 0 past its end. */
  readU8(at: number): number {
    if (!this.seek(at, false)) return 0;
    const i = this.segment;
    return (this.ram.bytes[this.chunk[i] as number] as Uint8Array)[(this.offset[i] as number) + this.within] as number;
  }

  /** Little-endian fields of the readable part; missing bytes are 0. */
  readU16(at: number): number {
    if (this.seek(at, false) && this.within + 2 <= (this.length[this.segment] as number)) {
      const i = this.segment;
      return (this.ram.views[this.chunk[i] as number] as DataView).getUint16(
        (this.offset[i] as number) + this.within,
        true,
      );
    }
    return this.readU8(at) | (this.readU8(at + 1) << 8);
  }

  readU32(at: number): number {
    if (this.seek(at, false) && this.within + 4 <= (this.length[this.segment] as number)) {
      const i = this.segment;
      return (this.ram.views[this.chunk[i] as number] as DataView).getUint32(
        (this.offset[i] as number) + this.within,
        true,
      );
    }
    return (this.readU16(at) | (this.readU16(at + 2) << 16)) >>> 0;
  }

  /** Copy readable bytes [at, at + count) to `target`. @returns how many there were. */
  copyOut(at: number, target: Uint8Array, targetAt: number, count: number): number {
    return this.#copy(at, target, targetAt, count, false);
  }

  /** Copy `source` into the writable part at `at`. @returns how many bytes had room. */
  copyIn(at: number, source: Uint8Array, sourceAt: number, count: number): number {
    return this.#copy(at, source, sourceAt, count, true);
  }

  /** Fill writable bytes with one value. */
  fillIn(at: number, count: number, value: number): void {
    let left = count;
    if (!this.seek(at, true)) return;
    for (let i = this.segment, within = this.within; left > 0 && i < this.segmentCount; i++, within = 0) {
      const take = Math.min(left, (this.length[i] as number) - within);
      const from = (this.offset[i] as number) + within;
      (this.ram.bytes[this.chunk[i] as number] as Uint8Array).fill(value, from, from + take);
      left -= take;
    }
  }

  writeU8(at: number, value: number): void {
    if (!this.seek(at, true)) return;
    const i = this.segment;
    (this.ram.bytes[this.chunk[i] as number] as Uint8Array)[(this.offset[i] as number) + this.within] = value;
  }

  #copy(at: number, buffer: Uint8Array, bufferAt: number, count: number, toGuest: boolean): number {
    let done = 0;
    if (count <= 0 || !this.seek(at, toGuest)) return 0;
    const end = toGuest ? this.segmentCount : this.readableCount;
    for (let i = this.segment, within = this.within; done < count && i < end; i++, within = 0) {
      const take = Math.min(count - done, (this.length[i] as number) - within);
      const guest = this.ram.bytes[this.chunk[i] as number] as Uint8Array;
      const from = (this.offset[i] as number) + within;
      if (take <= SMALL_COPY) {
        // Headers and status words: a loop allocates no view.
        if (toGuest) for (let n = 0; n < take; n++) guest[from + n] = buffer[bufferAt + done + n] as number;
        else for (let n = 0; n < take; n++) buffer[bufferAt + done + n] = guest[from + n] as number;
      } else if (toGuest) {
        guest.set(buffer.subarray(bufferAt + done, bufferAt + done + take), from);
      } else {
        buffer.set(guest.subarray(from, from + take), bufferAt + done);
      }
      done += take;
    }
    return done;
  }

  /**
   * Describe bytes [at, at + count) as `struct iovec`s from entry `first` of `iov`, which ends at entry `end`.
   * @returns how many were written; `iovBytes` says how many bytes they cover.
   */
  toIovecs(at: number, count: number, writable: boolean, iov: DataView, first: number, end: number): number {
    this.iovBytes = 0;
    let n = first;
    if (count <= 0 || !this.seek(at, writable)) return 0;
    const stop = writable ? this.segmentCount : this.readableCount;
    for (let i = this.segment, within = this.within; this.iovBytes < count && i < stop && n < end; i++, within = 0) {
      const take = Math.min(count - this.iovBytes, (this.length[i] as number) - within);
      const address = (this.ram.hostAddresses[this.chunk[i] as number] as number) + (this.offset[i] as number) + within;
      setIovec(iov, n, address, take);
      this.iovBytes += take;
      n++;
    }
    return n - first;
  }
  /** Result of `toIovecs`. */
  iovBytes = 0;
}

/** Entry `index` of an array of `struct iovec`: an address in this process and a length. */
export function setIovec(iov: DataView, index: number, address: number, length: number): void {
  iov.setUint32(index * 16, address % 0x1_0000_0000, true);
  iov.setUint32(index * 16 + 4, Math.floor(address / 0x1_0000_0000), true);
  iov.setUint32(index * 16 + 8, length, true);
  iov.setUint32(index * 16 + 12, 0, true);
}

/** Up to this many bytes are copied one by one: cheaper than making two views. */
const SMALL_COPY = 64;

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

/** What the transport does for a queue. */
export interface VirtqueueHost {
  /** Used buffer notification: make the driver look at the queue. */
  interrupt(queue: Virtqueue): void;
  /** The driver broke the rules; the queue has stopped. Reported once. */
  broken(queue: Virtqueue, reason: string): void;
}

/** One part of the ring: where it is, and the chunk that holds all of it, if one does. */
class RingPart {
  gpa: Gpa = 0;
  view: DataView | undefined;
  base = 0;
  #ram: GuestRam | undefined;

  /** @returns false unless all of it is RAM. */
  place(ram: GuestRam, gpa: Gpa, size: number): boolean {
    if (!ram.contains(gpa, size)) return false;
    this.#ram = ram;
    this.gpa = gpa;
    const chunk = ram.chunkAt(gpa);
    const whole = gpa + size <= ram.endOf(chunk);
    this.view = whole ? ram.views[chunk] : undefined;
    this.base = gpa - ram.baseOf(chunk);
    return true;
  }

  u16(offset: number): number {
    return this.view !== undefined
      ? this.view.getUint16(this.base + offset, true)
      : (this.#ram as GuestRam).readU16(this.gpa + offset);
  }
  u32(offset: number): number {
    return this.view !== undefined
      ? this.view.getUint32(this.base + offset, true)
      : (this.#ram as GuestRam).readU32(this.gpa + offset);
  }
  setU16(offset: number, value: number): void {
    if (this.view !== undefined) this.view.setUint16(this.base + offset, value, true);
    else (this.#ram as GuestRam).writeU16(this.gpa + offset, value);
  }
  setU32(offset: number, value: number): void {
    if (this.view !== undefined) this.view.setUint32(this.base + offset, value, true);
    else (this.#ram as GuestRam).writeU32(this.gpa + offset, value);
  }
}

/** Feature bits of the queue itself (Virtio 1.2 §6). */
export interface RingFeatures {
  readonly indirect: boolean;
  readonly eventIdx: boolean;
  /** Legacy VIRTIO_F_NOTIFY_ON_EMPTY: an interrupt when the available ring runs dry, even if suppressed. */
  readonly notifyOnEmpty: boolean;
}

const noFeatures: RingFeatures = { indirect: false, eventIdx: false, notifyOnEmpty: false };

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
  #features = noFeatures;
  #ready = false;
  #broken = false;
  readonly #desc = new RingPart();
  readonly #avail = new RingPart();
  readonly #used = new RingPart();
  /** Next entry of the available ring to take, and the driver's index when last looked at; both wrap at 2^16. */
  #lastAvail = 0;
  #seenAvail = 0;
  /** Next used index, counting elements that are written but not published. */
  #nextUsed = 0;
  #publishedUsed = 0;
  /** Used index at the last decision about an interrupt. */
  #signalledUsed = 0;
  #notifySuppressed = false;
  /** Counts set-ups: a chain of an earlier one must not reach the new rings. */
  #generation = 0;
  /** Chains taken and not given back. */
  #outstanding = 0;
  /** Chains not in use. */
  readonly #pool: Chain[] = [];
  #chainLimit = MIN_CHAIN_LIMIT;
  /** Descriptor table being walked: the ring's own, or an indirect one. */
  readonly #indirect = new RingPart();

  constructor(index: number, maxSize: number, ram: GuestRam, host: VirtqueueHost) {
    if (!isQueueSize(maxSize))
      throw new BugError(`queue size ${maxSize} is not a power of two up to ${MAX_QUEUE_SIZE}`);
    this.index = index;
    this.maxSize = maxSize;
    this.size = maxSize;
    this.#ram = ram;
    this.#host = host;
  }

  /** Set up and not broken: chains can be taken. */
  get isReady(): boolean {
    return this.#ready && !this.#broken;
  }

  /** Counts set-ups; chains carry the one they belong to. */
  get generation(): number {
    return this.#generation;
  }

  get isBroken(): boolean {
    return this.#broken;
  }

  /** Guest addresses of the parts, for vhost; meaningful while the queue is ready. */
  get addresses(): { readonly desc: Gpa; readonly avail: Gpa; readonly used: Gpa } {
    return { desc: this.#desc.gpa, avail: this.#avail.gpa, used: this.#used.gpa };
  }

  get features(): RingFeatures {
    return this.#features;
  }

  setFeatures(features: RingFeatures): void {
    this.#features = features;
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
    this.#ready = false;
    this.#broken = false;
    this.#lastAvail = 0;
    this.#seenAvail = 0;
    this.#nextUsed = 0;
    this.#publishedUsed = 0;
    this.#signalledUsed = 0;
    this.#notifySuppressed = false;
    this.#generation = (this.#generation + 1) | 0;
    this.#outstanding = 0;
  }

  /**
   * Legacy layout (§2.7.2): the three parts follow each other from one page-aligned address.
   * @returns false, and the queue stays off, unless all of it is RAM.
   */
  enableLegacy(base: Gpa): boolean {
    const availAt = base + Desc.size * this.size;
    const usedAt = Math.ceil((availAt + 6 + 2 * this.size) / LEGACY_ALIGN) * LEGACY_ALIGN;
    return this.enable(base, availAt, usedAt);
  }

  /**
   * Place the three parts and start at index 0. §2.7: alignment 16, 2 and 4.
   * @returns false, and the queue stays off, unless everything is RAM and aligned.
   */
  enable(desc: Gpa, avail: Gpa, used: Gpa): boolean {
    this.disable();
    const size = this.size;
    if (desc % 16 !== 0 || avail % 2 !== 0 || used % 4 !== 0) return false;
    // The event words are counted in: they are there whether used or not, as in the legacy layout.
    if (
      !this.#desc.place(this.#ram, desc, Desc.size * size) ||
      !this.#avail.place(this.#ram, avail, 6 + 2 * size) ||
      !this.#used.place(this.#ram, used, 6 + Used.elementSize * size)
    ) {
      return false;
    }
    this.#chainLimit = Math.max(size, MIN_CHAIN_LIMIT);
    this.#ready = true;
    return true;
  }

  /** Whether the driver has made chains available that were not taken. Looks at guest memory. */
  hasAvailable(): boolean {
    return this.#ready && !this.#broken && this.#countAvailable() > 0;
  }

  /** @returns chains available; marks the queue broken if the driver's index makes no sense. */
  #countAvailable(): number {
    this.#seenAvail = this.#avail.u16(Avail.idx);
    const count = (this.#seenAvail - this.#lastAvail) & 0xffff;
    // §2.7.13.3: the driver never has more entries outstanding than the ring has.
    if (count > this.size) {
      this.#fail(`available index ${this.#seenAvail} is ${count} ahead, the queue has ${this.size} entries`);
      return 0;
    }
    return count;
  }

  /**
   * The next chain, or undefined when there is none (or the queue is off or broken). It belongs to the device until it
   * is given back by `push` or `unpop`. A chain given back after the queue was set up anew is dropped.
   */
  pop(): Chain | undefined {
    if (!this.#ready || this.#broken) return undefined;
    if (this.#lastAvail === this.#seenAvail && this.#countAvailable() === 0) return undefined;
    const size = this.size;
    if (this.#outstanding >= size) {
      this.#fail(`more requests at once than the queue has entries (${size})`);
      return undefined;
    }
    const head = this.#avail.u16(Avail.ring + 2 * (this.#lastAvail & (size - 1)));
    const chain = this.#pool.pop() ?? new Chain(this.#ram);
    chain.clear(head);
    if (!this.#walk(chain, head)) {
      this.#pool.push(chain);
      return undefined;
    }
    this.#lastAvail = (this.#lastAvail + 1) & 0xffff;
    this.#outstanding++;
    chain.generation = this.#generation;
    return chain;
  }

  /** Put the chain just popped back as the next one: the device has no use for it yet. Only the latest can go back. */
  unpop(chain: Chain): void {
    this.#pool.push(chain);
    if (chain.generation !== this.#generation) return;
    this.#lastAvail = (this.#lastAvail - 1) & 0xffff;
    this.#outstanding--;
  }

  /** Collect a chain's descriptors. @returns false, with the queue broken, if they break a rule. */
  #walk(chain: Chain, head: number): boolean {
    let table = this.#desc;
    let tableSize = this.size;
    let next = head;
    let inIndirect = false;
    for (;;) {
      if (next >= tableSize) return this.#fail(`descriptor ${next} of a table of ${tableSize}`);
      // A longer chain than this has a loop (§2.7.5.3.1), or is more than any driver makes.
      if (chain.descriptorCount >= (inIndirect ? this.#chainLimit : this.size)) {
        return this.#fail(`chain of more than ${chain.descriptorCount} descriptors`);
      }
      const at = next * Desc.size;
      const flags = table.u16(at + Desc.flags);
      const address = table.u32(at + Desc.addressLow) + table.u32(at + Desc.addressHigh) * 0x1_0000_0000;
      const length = table.u32(at + Desc.length);
      if ((flags & DescFlag.Indirect) !== 0) {
        // §2.7.5.3.1: only if negotiated, never within an indirect table, never together with NEXT.
        // Compat: the C device model takes chains that go on after an indirect descriptor, no driver makes them.
        if (!this.#features.indirect) return this.#fail('indirect descriptor, not negotiated');
        if (inIndirect) return this.#fail('indirect descriptor within an indirect table');
        if ((flags & DescFlag.Next) !== 0) return this.#fail('descriptor with both INDIRECT and NEXT');
        if (length === 0 || length % Desc.size !== 0) return this.#fail(`indirect table of ${length} bytes`);
        if (length / Desc.size > 0x1_0000) return this.#fail(`indirect table of ${length} bytes`);
        if (!this.#indirect.place(this.#ram, address, length)) {
          return this.#fail(`indirect table at ${hex(address)}+${hex(length)} is not RAM`);
        }
        table = this.#indirect;
        tableSize = length / Desc.size;
        next = 0;
        inIndirect = true;
        continue;
      }
      chain.descriptorCount++;
      if (!this.#append(chain, address, length, (flags & DescFlag.Write) !== 0)) return false;
      if ((flags & DescFlag.Next) === 0) return true;
      next = table.u16(at + Desc.next);
    }
  }

  #append(chain: Chain, address: Gpa, length: number, writable: boolean): boolean {
    // §2.7.4.2: everything the device may write comes after everything it may read.
    if (!writable && chain.segmentCount > chain.readableCount) {
      return this.#fail('readable descriptor after a writable one');
    }
    if (chain.readableBytes + chain.writableBytes + length > MAX_CHAIN_BYTES) {
      return this.#fail('chain of more than 4 GiB');
    }
    let next = address;
    let left = length;
    while (left > 0) {
      const chunk = this.#ram.chunkAt(next);
      if (chunk < 0 || chain.segmentCount > 4 * this.#chainLimit) {
        return this.#fail(`buffer at ${hex(address)}+${hex(length)} is not RAM`);
      }
      const take = Math.min(left, this.#ram.endOf(chunk) - next);
      chain.append(chunk, next - this.#ram.baseOf(chunk), take, writable);
      next += take;
      left -= take;
    }
    return true;
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
    if (this.#ram.isObserved) {
      for (let i = chain.readableCount; i < chain.segmentCount; i++) {
        this.#ram.noteWrite(chain.chunk[i] as number, chain.offset[i] as number, chain.length[i] as number);
      }
    }
    if (this.#ready && chain.generation === this.#generation) {
      this.#outstanding--;
      const at = Used.ring + Used.elementSize * (this.#nextUsed & (this.size - 1));
      this.#used.setU32(at, chain.head);
      this.#used.setU32(at + 4, writtenBytes);
      this.#nextUsed = (this.#nextUsed + 1) & 0xffff;
    }
    this.#pool.push(chain);
  }

  /** Make what was pushed visible, and interrupt the driver if it wants to hear of it. */
  publish(): void {
    if (!this.#ready || this.#nextUsed === this.#publishedUsed) return;
    // The elements are stored before the index (x86 keeps stores in order), the index before the driver's wish is read.
    this.#used.setU16(Used.idx, this.#nextUsed);
    this.#publishedUsed = this.#nextUsed;
    fence();
    if (this.#wantsInterrupt()) this.#host.interrupt(this);
  }

  /** §2.7.7. */
  #wantsInterrupt(): boolean {
    const before = this.#signalledUsed;
    const now = this.#publishedUsed;
    this.#signalledUsed = now;
    // A buffer the device took ahead and still has is not used up.
    if (this.#features.notifyOnEmpty && this.#outstanding === 0 && this.#avail.u16(Avail.idx) === this.#lastAvail) {
      return true;
    }
    if (this.#features.eventIdx) {
      const usedEvent = this.#avail.u16(Avail.ring + 2 * this.size);
      return ((now - usedEvent - 1) & 0xffff) < ((now - before) & 0xffff);
    }
    return (this.#avail.u16(Avail.flags) & AvailFlag.NoInterrupt) === 0;
  }

  /** Ask the driver not to notify: the device is looking at the queue anyway. A hint. */
  suppressNotify(): void {
    if (!this.#ready || this.#notifySuppressed) return;
    this.#notifySuppressed = true;
    // With the event index the flag means nothing; an avail_event that is not moved has the same effect (§2.7.10).
    if (!this.#features.eventIdx) this.#used.setU16(Used.flags, UsedFlag.NoNotify);
  }

  /**
   * Ask for notifications again.
   * @returns true if chains became available in between: look once more, no notification will come for them.
   */
  allowNotify(): boolean {
    if (!this.#ready || this.#broken) return false;
    if (this.isPolled) return this.#countAvailable() > 0;
    this.#notifySuppressed = false;
    if (this.#features.eventIdx) this.#used.setU16(Used.ring + Used.elementSize * this.size, this.#lastAvail);
    else this.#used.setU16(Used.flags, 0);
    fence();
    return this.#countAvailable() > 0;
  }

  /** Position in the rings, to hand the queue to vhost or to a data thread and take it back. */
  get position(): number {
    return this.#lastAvail;
  }

  /** Go on at `lastAvail`, with everything before it used. */
  resumeAt(lastAvail: number): void {
    this.#lastAvail = lastAvail & 0xffff;
    this.#seenAvail = this.#lastAvail;
    const used = this.#ready ? this.#used.u16(Used.idx) : 0;
    this.#nextUsed = used;
    this.#publishedUsed = used;
    this.#signalledUsed = used;
  }
}
