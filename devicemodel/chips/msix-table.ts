/** Entries of an MSI-X table, whoever's it is. Spec: PCI Local Bus 3.0 §6.8.2. */
import type { MsiMessage } from '../core/device.ts';

/** §6.8.2.6 to 9. */
export const MsixEntry = { Size: 16, AddressLow: 0, AddressHigh: 4, Data: 8, VectorControl: 12 } as const;
const VECTOR_MASKED = 1 << 0;
/** Addresses beyond 2^52 are not exact as numbers, and no interrupt controller has one. */
const MAX_ADDRESS_HIGH = 0xfffff;

/** As after a reset: zero, every vector masked. */
export function clearMsixTable(table: DataView): void {
  for (let offset = 0; offset < table.byteLength; offset += 4) {
    table.setUint32(offset, offset % MsixEntry.Size === MsixEntry.VectorControl ? VECTOR_MASKED : 0, true);
  }
}

export function isMsixVectorMasked(table: DataView, vector: number): boolean {
  return (table.getUint32(vector * MsixEntry.Size + MsixEntry.VectorControl, true) & VECTOR_MASKED) !== 0;
}

/** What the vector sends, masked or not. @returns false for an address no interrupt controller can have. */
export function loadMsixMessage(
  table: DataView,
  vector: number,
  into: { -readonly [K in keyof MsiMessage]: MsiMessage[K] },
): boolean {
  const entry = vector * MsixEntry.Size;
  const high = table.getUint32(entry + MsixEntry.AddressHigh, true);
  if (high > MAX_ADDRESS_HIGH) return false;
  into.address = high * 0x1_0000_0000 + table.getUint32(entry + MsixEntry.AddressLow, true);
  into.data = table.getUint32(entry + MsixEntry.Data, true);
  return true;
}
