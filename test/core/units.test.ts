import { expect, test } from 'vitest';
import { GiB, KiB, MiB, parseBytes } from '../../devicemodel/core/units.ts';

test.each([
  ['0', 0],
  ['4096', 4096],
  ['3k', 3 * KiB],
  ['512M', 512 * MiB],
  ['1g', GiB],
  ['2T', 2048 * GiB],
])('%s is a size', (text, bytes) => {
  expect(parseBytes(text)).toBe(bytes);
});

test.each(['', 'M', '-1', '1.5G', '1 G', '1GB', '1P', '0x10', '1G\n'])('%j is none', (text) => {
  expect(parseBytes(text)).toBeUndefined();
});

test('units that are not named are none', () => {
  expect([parseBytes('1T', 'KMG'), parseBytes('1G', 'KMG')]).toEqual([undefined, GiB]);
});
