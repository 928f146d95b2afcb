/**
 * Guest RAM as the data path of a device sees it: a table of chunks that is searched without allocating and without
 * throwing, and the buffers of a request as pieces of it. The one place where an address or a length that a driver
 * wrote is checked.
 *
 * It is built from plain chunks, so that a data thread can make its own over the same memory.
 */
import type { Gpa } from './address.ts';
import type { RamChunk } from './memory.ts';

export class GuestRam {
  /** Bytes of each chunk, sorted by address. Aliases guest memory. */
  readonly bytes: readonly Uint8Array[];
  readonly views: readonly DataView[];
  /** Where each chunk is in this process, for system calls; NaN where RAM has no host address (a WebAssembly engine). */
  readonly hostAddresses: readonly number[];
  /** An engine that translates guest code hears of what devices write. */
  readonly #hooks: ReadonlyArray<RamChunk['onHostWrite']>;
  readonly isObserved: boolean;
  readonly #bases: readonly Gpa[];
  readonly #ends: readonly Gpa[];
  /** Chunk of the previous hit: rings and buffers of one driver are near each other. */
  #last = 0;

  constructor(chunks: readonly RamChunk[]) {
    const sorted = [...chunks].sort((a, b) => a.base - b.base);
    this.bytes = sorted.map((c) => c.bytes);
    this.views = sorted.map((c) => new DataView(c.bytes.buffer, c.bytes.byteOffset, c.bytes.byteLength));
    // User-space addresses are below 2^47: exact as a number.
    this.hostAddresses = sorted.map((c) => (c.hostAddress === undefined ? Number.NaN : Number(c.hostAddress)));
    this.#hooks = sorted.map((c) => c.onHostWrite);
    this.isObserved = this.#hooks.some((hook) => hook !== undefined);
    this.#bases = sorted.map((c) => c.base);
    this.#ends = sorted.map((c) => c.base + c.bytes.length);
  }

  /** Whether every chunk can be named to a system call by address. */
  get hasHostAddresses(): boolean {
    return this.hostAddresses.every((address) => !Number.isNaN(address));
  }

  /** For a data thread, which makes views of its own. Only where there are host addresses. */
  describeChunks(): Array<{ base: Gpa; sizeBytes: number; hostAddress: bigint }> {
    return this.bytes.map((bytes, i) => ({
      base: this.baseOf(i),
      sizeBytes: bytes.length,
      hostAddress: BigInt(this.hostAddresses[i] as number),
    }));
  }

  /** A device wrote here: to be told before the driver hears of it. */
  noteWrite(chunk: number, offset: number, length: number): void {
    this.#hooks[chunk]?.(this.baseOf(chunk) + offset, length);
  }

  /** @returns index of the chunk that holds the byte at `at`, or -1. `at` may be any number a guest can write. */
  chunkAt(at: Gpa): number {
    const last = this.#last;
    if (at >= (this.#bases[last] as number) && at < (this.#ends[last] as number)) return last;
    for (let i = 0; i < this.#bases.length; i++) {
      if (at >= (this.#bases[i] as number) && at < (this.#ends[i] as number)) {
        this.#last = i;
        return i;
      }
    }
    return -1;
  }

  baseOf(chunk: number): Gpa {
    return this.#bases[chunk] as number;
  }

  /** First address after the chunk. */
  endOf(chunk: number): Gpa {
    return this.#ends[chunk] as number;
  }

  /** Whether all of [at, at + length) is RAM, across chunks that touch. */
  contains(at: Gpa, length: number): boolean {
    if (!(at >= 0) || !(length >= 0) || !Number.isSafeInteger(at + length)) return false;
    let next = at;
    const end = at + length;
    while (next < end) {
      const chunk = this.chunkAt(next);
      if (chunk < 0) return false;
      next = this.endOf(chunk);
    }
    return true;
  }

  /** Little-endian fields of rings that no one chunk holds. The caller has checked that all of it is RAM. */
  readU8(at: Gpa): number {
    const chunk = this.chunkAt(at);
    return chunk < 0 ? 0 : ((this.bytes[chunk] as Uint8Array)[at - this.baseOf(chunk)] as number);
  }
  readU16(at: Gpa): number {
    // At once where it can be: the driver may be writing an index.
    const chunk = this.chunkAt(at);
    return chunk >= 0 && at + 2 <= this.endOf(chunk)
      ? (this.views[chunk] as DataView).getUint16(at - this.baseOf(chunk), true)
      : this.readU8(at) | (this.readU8(at + 1) << 8);
  }
  readU32(at: Gpa): number {
    const chunk = this.chunkAt(at);
    if (chunk >= 0 && at + 4 <= this.endOf(chunk))
      return (this.views[chunk] as DataView).getUint32(at - this.baseOf(chunk), true);
    return (this.readU16(at) | (this.readU16(at + 2) << 16)) >>> 0;
  }
  writeU16(at: Gpa, value: number): void {
    // Aligned: rings are refused otherwise. An index must not be seen half written.
    const chunk = this.chunkAt(at);
    if (chunk >= 0) (this.views[chunk] as DataView).setUint16(at - this.baseOf(chunk), value, true);
  }
  writeU32(at: Gpa, value: number): void {
    const chunk = this.chunkAt(at);
    if (chunk >= 0) (this.views[chunk] as DataView).setUint32(at - this.baseOf(chunk), value, true);
  }
}

const fenceWord = new Int32Array(new SharedArrayBuffer(4));

/**
 * A full memory barrier. The guest's CPUs run beside this code: "publish, then look whether the other side wants to
 * hear of it" needs the store to be visible before the load, which x86 does not promise without one.
 */
export function fence(): void {
  Atomics.add(fenceWord, 0, 0);
}

const INITIAL_SEGMENTS = 8;
/** Up to this many bytes are copied one by one: cheaper than making two views. */
const SMALL_COPY = 64;

/**
 * Buffers of a request in guest RAM, as pieces: first those the device may read, then those it may write; either part
 * may be empty. Pieces that touch are one; a buffer over the seam of two chunks is two. Bytes are addressed by their
 * position in either part.
 */
export class GuestBuffers {
  /** Pieces [0, readableCount) are the driver's, [readableCount, segmentCount) the device's to write. */
  readableCount = 0;
  segmentCount = 0;
  readableBytes = 0;
  writableBytes = 0;
  chunk = new Uint16Array(INITIAL_SEGMENTS);
  offset = new Uint32Array(INITIAL_SEGMENTS);
  length = new Uint32Array(INITIAL_SEGMENTS);
  readonly ram: GuestRam;
  /** Cursor of `seek`. */
  segment = 0;
  within = 0;

  constructor(ram: GuestRam) {
    this.ram = ram;
  }

  clear(): void {
    this.readableCount = 0;
    this.segmentCount = 0;
    this.readableBytes = 0;
    this.writableBytes = 0;
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
