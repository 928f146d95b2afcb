/** Guest memory behind a resource: pieces that the driver named, in order (Virtio 1.2 §5.7.6.8, "attach backing"). */
import type { GuestRam } from '../../../../core/guest-buffers.ts';
import type { Chain } from '../ring/chain.ts';
import { MEM_ENTRY_BYTES } from './protocol.ts';

/** 256 MiB in pages, what all resources together may have. */
export const MAX_ENTRIES = 65536;

export class Backing {
  readonly #ram: GuestRam;
  readonly #address: Float64Array;
  /** Where the piece begins in the whole; one more for its end. */
  readonly #start: Float64Array;

  private constructor(ram: GuestRam, address: Float64Array, start: Float64Array) {
    this.#ram = ram;
    this.#address = address;
    this.#start = start;
  }

  /**
   * @param at where the entries are in the request
   * @returns undefined if the request has not so many, or nobody needs so many
   */
  static read(chain: Chain, at: number, count: number, ram: GuestRam): Backing | undefined {
    if (count > MAX_ENTRIES || at + count * MEM_ENTRY_BYTES > chain.readableBytes) return undefined;
    const bytes = new Uint8Array(count * MEM_ENTRY_BYTES);
    chain.copyOut(at, bytes, 0, bytes.length);
    const entries = new DataView(bytes.buffer);
    const address = new Float64Array(count);
    const start = new Float64Array(count + 1);
    for (let i = 0; i < count; i++) {
      const entry = i * MEM_ENTRY_BYTES;
      address[i] = entries.getUint32(entry + 4, true) * 0x1_0000_0000 + entries.getUint32(entry, true);
      start[i + 1] = (start[i] as number) + entries.getUint32(entry + 8, true);
    }
    return new Backing(ram, address, start);
  }

  get entryCount(): number {
    return this.#address.length;
  }

  get sizeBytes(): number {
    return this.#start[this.entryCount] as number;
  }

  /**
   * Copy bytes to the host. What is beyond the end, or no RAM, leaves `into` as it is.
   * @param offset in the whole
   */
  copyOut(offset: number, into: Uint8Array, at: number, length: number): void {
    const end = Math.min(offset + length, this.sizeBytes);
    let position = offset;
    for (let i = this.#entryAt(offset); position < end; i++) {
      const take = Math.min(end, this.#start[i + 1] as number) - position;
      const within = position - (this.#start[i] as number);
      if (take > 0) this.#copyPiece((this.#address[i] as number) + within, into, at + position - offset, take);
      position += take;
    }
  }

  #copyPiece(address: number, into: Uint8Array, at: number, length: number): void {
    let done = 0;
    while (done < length) {
      const chunk = this.#ram.chunkAt(address + done);
      if (chunk < 0) return;
      const take = Math.min(length - done, this.#ram.endOf(chunk) - address - done);
      const from = address + done - this.#ram.baseOf(chunk);
      into.set((this.#ram.bytes[chunk] as Uint8Array).subarray(from, from + take), at + done);
      done += take;
    }
  }

  /** The entry that has the byte at `offset`; the count of entries if none has. */
  #entryAt(offset: number): number {
    let low = 0;
    let high = this.entryCount;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if ((this.#start[middle + 1] as number) <= offset) low = middle + 1;
      else high = middle;
    }
    return low;
  }
}
