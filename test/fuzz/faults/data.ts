/** What the guest of the fault run writes, and who looks for it afterwards expects. */
export const SECTOR_BYTES = 512;

export function sectorPattern(sector: number): Uint8Array {
  return Uint8Array.from({ length: SECTOR_BYTES }, (_, n) => (sector * 31 + n * 7 + 1) & 0xff);
}
