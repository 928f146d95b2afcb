/**
 * The MSI-X table that the guest sees in place of the device's, which is the host's: PCI Local Bus 3.0 §6.8.2. Where table
 * and pending bits are is the device's own choice.
 */
import { type AccessSize, allOnes } from '../../../devicemodel/core/address.ts';
import type { MsiMessage } from '../../../devicemodel/core/device.ts';

/** §6.8.2.6 to 9. */
const Entry = { size: 16, addressLow: 0, addressHigh: 4, data: 8, vectorControl: 12 } as const;
const VECTOR_MASKED = 1;
/** Addresses beyond 2^52 are not exact as numbers, and no interrupt controller has one. */
const MAX_ADDRESS_HIGH = 0xfffff;

export class MsixTable {
  readonly vectors: number;
  readonly #entries: DataView;

  constructor(vectors: number) {
    this.vectors = vectors;
    this.#entries = new DataView(new ArrayBuffer(vectors * Entry.size));
    for (let vector = 0; vector < vectors; vector++) {
      this.#entries.setUint32(vector * Entry.size + Entry.vectorControl, VECTOR_MASKED, true);
    }
  }

  get sizeBytes(): number {
    return this.#entries.byteLength;
  }

  isMasked(vector: number): boolean {
    return (this.#entries.getUint32(vector * Entry.size + Entry.vectorControl, true) & VECTOR_MASKED) !== 0;
  }

  /** @returns undefined while it is masked. */
  message(vector: number): MsiMessage | undefined {
    const at = vector * Entry.size;
    const high = this.#entries.getUint32(at + Entry.addressHigh, true);
    if (this.isMasked(vector) || high > MAX_ADDRESS_HIGH) return undefined;
    const address = high * 0x1_0000_0000 + this.#entries.getUint32(at + Entry.addressLow, true);
    return { address, data: this.#entries.getUint32(at + Entry.data, true) };
  }

  /** Dwords are what software may use; others get nothing. */
  read(offset: number, size: AccessSize): number {
    return size === 4 && offset % 4 === 0 ? this.#entries.getUint32(offset, true) : allOnes(size);
  }

  /** @returns the vector that changed. */
  write(offset: number, size: AccessSize, value: number): number | undefined {
    if (size !== 4 || offset % 4 !== 0) return undefined;
    this.#entries.setUint32(offset, value, true);
    return Math.floor(offset / Entry.size);
  }
}
