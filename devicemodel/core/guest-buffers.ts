/**
 * Guest RAM as the virtio data path sees it: a table of chunks that is searched without allocating and without
 * throwing. The one place where an address or a length that a driver wrote into a ring is checked.
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
