/** Addresses for memory of devices, as the C device model gives them out. */
import { expect, test } from 'vitest';
import { ConfigError } from '../../../devicemodel/core/errors.ts';
import { Layout } from '../../../devicemodel/core/layout.ts';
import { KiB, MiB } from '../../../devicemodel/core/units.ts';
import { MmioWindow } from '../../../devicemodel/hw/platform/mmio-window.ts';

const { base, end } = Layout.deviceWindow;

/** Offsets in the window. */
function place(...sizes: number[]): number[] {
  const window = new MmioWindow();
  return sizes.map((size) => window.allocate(size, 'a device') - base);
}

test('powers of two are aligned to themselves, and less than a page is a page', () => {
  expect(place(4 * KiB, 16 * KiB, 1, 64 * KiB, MiB)).toEqual([0, 0x4000, 0x8000, 0x1_0000, MiB]);
});

test('other sizes by the same rule, as in C: the five pages of a TPM behind two of another device', () => {
  expect(place(8 * KiB, 20 * KiB)).toEqual([0, 0x2000]);
  expect(place(20 * KiB, 20 * KiB, 12 * KiB)).toEqual([0, 0x9000, 0x1_0000]);
});

test('nothing overlaps and all of it begins with a page, whatever the sizes are', () => {
  for (let first = 1; first < 40; first++) {
    for (let second = 1; second < 40; second++) {
      const sizes = [first, second, first + second, second].map((pages) => pages * 4 * KiB);
      let free = 0;
      for (const [i, at] of place(...sizes).entries()) {
        expect(at).toBeGreaterThanOrEqual(free);
        expect(at % (4 * KiB)).toBe(0);
        free = at + (sizes[i] as number);
      }
    }
  }
});

test('the window ends', () => {
  expect(() => place(end - base + 1)).toThrow(ConfigError);
  expect(place(end - base)).toEqual([0]);
  expect(() => place(end - base, 1)).toThrow('a device: 1 byte');
});
