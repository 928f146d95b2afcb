/**
 * A request as it comes out of a ring of either layout: pieces of guest RAM, first those the device may read, then those
 * it may write (Virtio 1.2 §2.6.4, §2.7.4, §2.8.5).
 */
import type { GuestRam } from '../../../../core/guest-buffers.ts';

const INITIAL_SEGMENTS = 8;
/** Up to this many bytes are copied one by one: cheaper than making two views. */
const SMALL_COPY = 64;

/**
 * One request: what the device may read, then what it may write, as pieces of RAM. Descriptors that touch are one
 * segment; a descriptor over the seam of two chunks is two. Bytes are addressed by position in either part, whatever
 * the layout, as §2.7.4.1 wants.
 */
export class Chain {
  /** The driver's name for the request: index of the first descriptor (split), buffer id (packed). */
  id = 0;
  /** Entries of the ring it takes: one of the available ring (split), its descriptors outside of a table (packed). */
  ringEntries = 0;
  /** Segments [0, readableCount) are the driver's, [readableCount, segmentCount) the device's to write. */
  readableCount = 0;
  segmentCount = 0;
  readableBytes = 0;
  writableBytes = 0;
  /** Descriptors it was made of, those of an indirect table included. */
  descriptorCount = 0;
  chunk = new Uint16Array(INITIAL_SEGMENTS);
  offset = new Uint32Array(INITIAL_SEGMENTS);
  length = new Uint32Array(INITIAL_SEGMENTS);
  /** Which set-up of the queue it belongs to. */
  generation = 0;
  /** Bytes of the request that are served, while it is served in parts. */
  progress = 0;
  readonly ram: GuestRam;
  /** Cursor of `seek`. */
  segment = 0;
  within = 0;

  constructor(ram: GuestRam) {
    this.ram = ram;
  }

  clear(): void {
    this.id = 0;
    this.ringEntries = 0;
    this.readableCount = 0;
    this.segmentCount = 0;
    this.readableBytes = 0;
    this.writableBytes = 0;
    this.descriptorCount = 0;
    this.progress = 0;
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
    return this.#copy(at, target, targetAt, count, false, false);
  }

  /** Copy `source` into the writable part at `at`. @returns how many bytes had room. */
  copyIn(at: number, source: Uint8Array, sourceAt: number, count: number): number {
    return this.#copy(at, source, sourceAt, count, true, true);
  }

  /** Copy what was written into the writable part back to `target`. The guest may have changed it. */
  copyBack(at: number, target: Uint8Array, targetAt: number, count: number): number {
    return this.#copy(at, target, targetAt, count, true, false);
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

  #copy(at: number, buffer: Uint8Array, bufferAt: number, count: number, writable: boolean, toGuest: boolean): number {
    let done = 0;
    if (count <= 0 || !this.seek(at, writable)) return 0;
    const end = writable ? this.segmentCount : this.readableCount;
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
      // Not by setIovec: a number beyond 32 bits is an object for a function that is not inlined, 16 bytes a request.
      iov.setUint32(n * 16, address % 0x1_0000_0000, true);
      iov.setUint32(n * 16 + 4, Math.floor(address / 0x1_0000_0000), true);
      iov.setUint32(n * 16 + 8, take, true);
      iov.setUint32(n * 16 + 12, 0, true);
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
