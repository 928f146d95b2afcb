import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { splitRam } from '../../../devicemodel/core/boot/loader.ts';
import { buildE820, E820Type, encodeE820, ovmfE820Block } from '../../../devicemodel/core/firmware/e820.ts';
import { GiB, KiB, MiB } from '../../../devicemodel/core/units.ts';

const ramOf = (entries: ReturnType<typeof buildE820>) => entries.filter((e) => e.type === E820Type.Ram);
const total = (entries: readonly { size: number }[]) => entries.reduce((sum, e) => sum + e.size, 0);

test('RAM is everything but the hole below 1 MiB, whatever the size', () => {
  fc.assert(
    fc.property(fc.integer({ min: 64, max: 64 * 1024 }), (sizeMib) => {
      const memory = sizeMib * MiB;
      const entries = buildE820(splitRam(memory));
      expect(total(ramOf(entries))).toBe(memory - (1 * MiB - 640 * KiB));
      for (const [i, entry] of entries.entries()) {
        const next = entries[i + 1];
        if (next !== undefined) expect(entry.base + entry.size).toBeLessThanOrEqual(next.base);
      }
    }),
  );
});

test('RAM above the PCI hole begins at 4 GiB', () => {
  expect(ramOf(buildE820(splitRam(3 * GiB))).at(-1)).toEqual({ base: 4 * GiB, size: 1 * GiB, type: E820Type.Ram });
});

describe('holes in low RAM', () => {
  const gpuReserved = { base: 1.5 * GiB, size: 64 * MiB };
  const softwareSram = { base: 1 * GiB, size: 8 * MiB };

  test('memory of a passed-through GPU is reserved, and RAM goes on behind it', () => {
    const entries = buildE820({ ...splitRam(2 * GiB), gpuReserved });
    expect(entries).toContainEqual({ ...gpuReserved, type: E820Type.Reserved });
    expect(ramOf(entries)).toEqual([
      { base: 0, size: 640 * KiB, type: E820Type.Ram },
      { base: 1 * MiB, size: 1.5 * GiB - 1 * MiB, type: E820Type.Ram },
      { base: 1.5 * GiB + 64 * MiB, size: 0.5 * GiB - 64 * MiB, type: E820Type.Ram },
    ]);
  });

  test('a VM that ends below them just has them reserved', () => {
    const entries = buildE820({ ...splitRam(512 * MiB), gpuReserved, softwareSram });
    expect(total(ramOf(entries))).toBe(512 * MiB - 384 * KiB);
    expect(entries).toContainEqual({ ...softwareSram, type: E820Type.Reserved });
  });
});

test('an entry is base, size and type, little endian', () => {
  const view = new DataView(encodeE820([{ base: 4 * GiB, size: 5 * GiB, type: E820Type.Ram }]).buffer);
  expect([view.getBigUint64(0, true), view.getBigUint64(8, true), view.getUint32(16, true)]).toEqual([
    BigInt(4 * GiB),
    BigInt(5 * GiB),
    1,
  ]);
});

test('the block for OVMF says how many entries count', () => {
  const entries = buildE820(splitRam(256 * MiB));
  expect(new DataView(ovmfE820Block(entries).buffer).getUint32(4, true)).toBe(entries.length);
});
