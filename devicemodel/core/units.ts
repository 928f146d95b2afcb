export const KiB = 1024;
export const MiB = 1024 * KiB;
export const GiB = 1024 * MiB;

export function isPowerOfTwo(value: number): boolean {
  return Number.isSafeInteger(value) && value > 0 && Number.isInteger(Math.log2(value));
}

/** Smallest power of two that is >= value, a positive number. */
export function powerOfTwoAtLeast(value: number): number {
  return 2 ** Math.ceil(Math.log2(value));
}

/** Smallest multiple of `alignment` (a power of two or not) that is >= value. */
export function alignUp(value: number, alignment: number): number {
  return Math.ceil(value / alignment) * alignment;
}

export function alignDown(value: number, alignment: number): number {
  return Math.floor(value / alignment) * alignment;
}

/** `256 MiB`, `4 KiB`, `100 bytes`: the largest unit that divides evenly. */
export function formatSize(sizeBytes: number): string {
  for (const [unit, name] of [
    [GiB, 'GiB'],
    [MiB, 'MiB'],
    [KiB, 'KiB'],
  ] as const) {
    if (sizeBytes >= unit && sizeBytes % unit === 0) return `${sizeBytes / unit} ${name}`;
  }
  return `${sizeBytes} bytes`;
}

/**
 * `512M`, `1g`; a plain number is bytes.
 * @param units those that are known, each 1024 times the one before. @returns undefined for no size.
 */
export function parseBytes(text: string, units = 'KMGT'): number | undefined {
  const [, digits, unit = ''] = /^(\d+)([A-Z]?)$/i.exec(text) ?? [];
  const power = unit === '' ? 0 : units.indexOf(unit.toUpperCase()) + 1;
  if (digits === undefined || (unit !== '' && power === 0)) return undefined;
  return Number(digits) * 1024 ** power;
}
