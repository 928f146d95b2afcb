/**
 * The MSI-X table that the guest sees in place of the device's, which is the host's: PCI Local Bus 3.0 §6.8.2. Where table
 * and pending bits are is the device's own choice.
 */
import {
  clearMsixTable,
  isMsixVectorMasked,
  loadMsixMessage,
  MsixEntry,
} from '../../../devicemodel/chips/msix-table.ts';
import { type AccessSize, allOnes } from '../../../devicemodel/core/address.ts';
import type { MsiMessage } from '../../../devicemodel/core/device.ts';

export class MsixTable {
  readonly vectors: number;
  readonly #entries: DataView;

  constructor(vectors: number) {
    this.vectors = vectors;
    this.#entries = new DataView(new ArrayBuffer(vectors * MsixEntry.Size));
    clearMsixTable(this.#entries);
  }

  get sizeBytes(): number {
    return this.#entries.byteLength;
  }

  isMasked(vector: number): boolean {
    return isMsixVectorMasked(this.#entries, vector);
  }

  /** @returns undefined while it is masked. */
  message(vector: number): MsiMessage | undefined {
    const message = { address: 0, data: 0 };
    return !this.isMasked(vector) && loadMsixMessage(this.#entries, vector, message) ? message : undefined;
  }

  /** Dwords are what software may use; others get nothing. */
  read(offset: number, size: AccessSize): number {
    return size === 4 && offset % 4 === 0 ? this.#entries.getUint32(offset, true) : allOnes(size);
  }

  /** @returns the vector that changed. */
  write(offset: number, size: AccessSize, value: number): number | undefined {
    if (size !== 4 || offset % 4 !== 0) return undefined;
    this.#entries.setUint32(offset, value, true);
    return Math.floor(offset / MsixEntry.Size);
  }
}
