/**
 * Guest RAM as the device model sees it: a few regions, each a list of mapped chunks of at most 1 GiB (a typed array
 * on Node 20 cannot be larger than 4 GiB; a koffi view of more aborts the process).
 *
 * Every address and length a device takes from the guest goes through here and nowhere else.
 */
import type { Gpa } from './address.ts';
import { hex } from './address.ts';
import { GuestFault } from './errors.ts';

/** One mapped piece of RAM. `hostAddress` is absent where RAM is not plain process memory (a WebAssembly engine). */
export interface RamChunk {
  readonly base: Gpa;
  readonly bytes: Uint8Array;
  readonly hostAddress: bigint | undefined;
  /** An engine that translates guest code must hear of host writes to RAM, or it runs what was there before. */
  readonly onHostWrite?: (at: Gpa, length: number) => void;
}

export interface RamRegion {
  readonly base: Gpa;
  readonly size: number;
}

interface MappedChunk extends RamChunk {
  readonly view: DataView;
}

export class GuestMemory {
  readonly #chunks: readonly MappedChunk[];

  /** @param chunks sorted or not; must not overlap. Neighbours that touch form one region. */
  constructor(chunks: readonly RamChunk[]) {
    this.#chunks = [...chunks]
      .sort((a, b) => a.base - b.base)
      .map((c) => ({ ...c, view: new DataView(c.bytes.buffer, c.bytes.byteOffset, c.bytes.byteLength) }));
  }

  get chunks(): readonly RamChunk[] {
    return this.#chunks;
  }

  get regions(): readonly RamRegion[] {
    const regions: Array<{ base: Gpa; size: number }> = [];
    for (const chunk of this.#chunks) {
      const last = regions.at(-1);
      if (last !== undefined && last.base + last.size === chunk.base) last.size += chunk.bytes.length;
      else regions.push({ base: chunk.base, size: chunk.bytes.length });
    }
    return regions;
  }

  /** Whether all of [at, at+length) is RAM, across chunks. */
  contains(at: Gpa, length: number): boolean {
    if (!Number.isSafeInteger(at) || !Number.isSafeInteger(length) || at < 0 || length < 0) return false;
    return this.regions.some((r) => at >= r.base && at + length <= r.base + r.size);
  }

  /**
   * Guest RAM in place, no copy: the guest may change it at any moment.
   * @throws GuestFault unless all of it is RAM of one chunk.
   */
  bytes(at: Gpa, length: number): Uint8Array {
    const chunk = this.#chunkOf(at, length);
    const offset = at - chunk.base;
    return chunk.bytes.subarray(offset, offset + length);
  }

  /** As `bytes`, split where chunks meet. @throws GuestFault unless all of it is RAM. */
  pieces(at: Gpa, length: number): Uint8Array[] {
    const pieces: Uint8Array[] = [];
    let next = at;
    let left = length;
    while (left > 0) {
      const chunk = this.#chunkOf(next, 1);
      const offset = next - chunk.base;
      const take = Math.min(left, chunk.bytes.length - offset);
      pieces.push(chunk.bytes.subarray(offset, offset + take));
      next += take;
      left -= take;
    }
    return pieces;
  }

  /**
   * Tell the engine that `bytes`, `pieces` or `hostAddress` of this range were written: after every transfer of data
   * that may become code (a disk read, a packet), before the guest hears of it. The writing methods do it themselves.
   */
  noteWrite(at: Gpa, length: number): void {
    for (const chunk of this.#chunks) {
      if (chunk.onHostWrite === undefined) continue;
      const start = Math.max(at, chunk.base);
      const end = Math.min(at + length, chunk.base + chunk.bytes.length);
      if (start < end) chunk.onHostWrite(start, end - start);
    }
  }

  /** Copy into the guest, across chunks. */
  write(at: Gpa, data: Uint8Array): void {
    let done = 0;
    for (const piece of this.pieces(at, data.length)) {
      piece.set(data.subarray(done, done + piece.length));
      done += piece.length;
    }
    this.noteWrite(at, data.length);
  }

  /** Copy out of the guest, across chunks. */
  read(at: Gpa, length: number): Uint8Array {
    const out = new Uint8Array(length);
    let done = 0;
    for (const piece of this.pieces(at, length)) {
      out.set(piece, done);
      done += piece.length;
    }
    return out;
  }

  /** Host address of a guest range for a system call. @throws GuestFault; BugError if RAM has no host address. */
  hostAddress(at: Gpa, length: number): bigint {
    const chunk = this.#chunkOf(at, length);
    if (chunk.hostAddress === undefined)
      throw new GuestFault(`RAM at ${hex(at)} has no host address on this hypervisor`);
    return chunk.hostAddress + BigInt(at - chunk.base);
  }

  readU8(at: Gpa): number {
    const chunk = this.#chunkOf(at, 1);
    return chunk.view.getUint8(at - chunk.base);
  }
  readU16(at: Gpa): number {
    const chunk = this.#chunkOf(at, 2);
    return chunk.view.getUint16(at - chunk.base, true);
  }
  readU32(at: Gpa): number {
    const chunk = this.#chunkOf(at, 4);
    return chunk.view.getUint32(at - chunk.base, true);
  }
  readU64(at: Gpa): bigint {
    const chunk = this.#chunkOf(at, 8);
    return chunk.view.getBigUint64(at - chunk.base, true);
  }
  writeU8(at: Gpa, value: number): void {
    const chunk = this.#chunkOf(at, 1);
    chunk.view.setUint8(at - chunk.base, value);
    chunk.onHostWrite?.(at, 1);
  }
  writeU16(at: Gpa, value: number): void {
    const chunk = this.#chunkOf(at, 2);
    chunk.view.setUint16(at - chunk.base, value, true);
    chunk.onHostWrite?.(at, 2);
  }
  writeU32(at: Gpa, value: number): void {
    const chunk = this.#chunkOf(at, 4);
    chunk.view.setUint32(at - chunk.base, value, true);
    chunk.onHostWrite?.(at, 4);
  }
  writeU64(at: Gpa, value: bigint): void {
    const chunk = this.#chunkOf(at, 8);
    chunk.view.setBigUint64(at - chunk.base, value, true);
    chunk.onHostWrite?.(at, 8);
  }

  #chunkOf(at: Gpa, length: number): MappedChunk {
    // `at` and `length` may be anything a guest can write: NaN and fractions fail the comparisons below.
    for (const chunk of this.#chunks) {
      if (at >= chunk.base && length >= 0 && at + length <= chunk.base + chunk.bytes.length) return chunk;
    }
    throw new GuestFault(`guest address ${hex(at)}+${hex(length)} is not RAM`);
  }
}
