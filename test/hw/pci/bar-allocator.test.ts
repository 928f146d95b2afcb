import * as fc from 'fast-check';
import { expect, test } from 'vitest';
import type { BarSpec } from '../../../devicemodel/chips/pci-config-space.ts';
import { ConfigError } from '../../../devicemodel/core/errors.ts';
import { GiB, KiB, MiB } from '../../../devicemodel/core/units.ts';
import { BarAllocator, barSize } from '../../../devicemodel/hw/pci/bar-allocator.ts';

const io = (sizeBytes: number): BarSpec => ({ index: 0, kind: 'io', sizeBytes });
const mem32 = (sizeBytes: number): BarSpec => ({ index: 1, kind: 'mem32', sizeBytes });
const mem64 = (sizeBytes: number): BarSpec => ({ index: 2, kind: 'mem64', sizeBytes });

test('sizes are rounded up to a power of two and the least PCI allows', () => {
  expect([io(1), io(9), mem32(1), mem32(0x1808), mem32(4096)].map(barSize)).toEqual([4, 16, 16, 0x2000, 4096]);
});

test('small BARs get a page each, I/O too', () => {
  const allocator = new BarAllocator({ hasOvmf: false });
  const place = (spec: BarSpec) => allocator.allocate(spec, 'test').address;
  expect([place(io(32)), place(io(128)), place(mem32(256)), place(mem32(4096))]).toEqual([
    0x2000, 0x3000, 0x80000000, 0x80001000,
  ]);
});

test('BARs are naturally aligned and gaps are not used again', () => {
  const allocator = new BarAllocator({ hasOvmf: false });
  const place = (spec: BarSpec) => allocator.allocate(spec, 'test').address;
  expect([place(mem32(4096)), place(mem64(2 * MiB)), place(mem32(4096))]).toEqual([0x80000000, 0x80200000, 0x80400000]);
});

test('a 64-bit BAR of up to 32 MiB goes below 4 GiB and is then not prefetchable, unless OVMF boots', () => {
  const direct = new BarAllocator({ hasOvmf: false });
  expect(direct.allocate(mem64(32 * MiB), 'test')).toMatchObject({
    address: 0x80000000,
    spec: { prefetchable: false },
  });
  expect(direct.allocate(mem64(64 * MiB), 'test')).toMatchObject({
    address: 0x40_0000_0000,
    spec: { prefetchable: true },
  });
  expect(new BarAllocator({ hasOvmf: true }).allocate(mem64(2 * MiB), 'test').address).toBe(0x40_0000_0000);
});

test('reserved ranges are stepped over, in their own space only', () => {
  const allocator = new BarAllocator({ hasOvmf: false });
  allocator.reserve('io', 0x2040, 32);
  allocator.reserve('memory', 0x80000000, 4096);
  allocator.reserve('memory', 0x80001000, 1);
  expect(allocator.allocate(io(32), 'test').address).toBe(0x3000);
  expect(allocator.allocate(mem32(4096), 'test').address).toBe(0x80002000);
  expect(allocator.allocate(mem64(64 * MiB), 'test').address).toBe(0x40_0000_0000);
});

test('ports of the board are stepped over, and belong to no bus', () => {
  const allocator = new BarAllocator({ hasOvmf: false });
  allocator.reserveForBoard(0x2000, 8);
  allocator.reserveForBoard(0x9000, 8);
  expect(allocator.allocate(io(32), 'test').address).toBe(0x3000);
  expect(allocator.finishBus().io).toEqual({ base: 0x2000, end: 0x4020 });
});

test('a window that is full is the user’s error and says where', () => {
  const allocator = new BarAllocator({ hasOvmf: false });
  for (let i = 0; i < 14; i++) allocator.allocate(io(32), 'test');
  expect(() => allocator.allocate(io(32), '-s 20,uart')).toThrow(ConfigError);
  expect(() => allocator.allocate(io(32), '-s 20,uart')).toThrow(/-s 20,uart: BAR 0 of 32 bytes .*0x2000-0xffff/);
  expect(() => new BarAllocator({ hasOvmf: false }).allocate(mem32(2 * GiB), 'x')).toThrow(ConfigError);
});

test('each bus leaves room behind its BARs and the next starts there', () => {
  const allocator = new BarAllocator({ hasOvmf: false });
  allocator.allocate(io(32), 'test');
  allocator.allocate(mem32(4096), 'test');
  expect(allocator.finishBus()).toEqual({
    io: { base: 0x2000, end: 0x3020 },
    mem32: { base: 0x80000000, end: 0x80200000 },
    mem64: { base: 0x40_0000_0000, end: 0x40_0010_0000 },
  });
  expect(allocator.allocate(mem32(4096), 'test').address).toBe(0x80200000);
  expect(allocator.allocate(io(32), 'test').address).toBe(0x4000);
});

test('the room behind a bus ends where its window does, and a next bus finds none', () => {
  const allocator = new BarAllocator({ hasOvmf: false });
  for (let i = 0; i < 14; i++) allocator.allocate(io(32), 'test');
  allocator.allocate(mem32(1 * GiB), 'test');
  allocator.allocate(mem32(512 * MiB), 'test');
  expect(allocator.finishBus()).toMatchObject({
    io: { base: 0x2000, end: 0x1_0000 },
    mem32: { base: 0x8000_0000, end: 0xe000_0000 },
  });
  expect(() => allocator.allocate(io(32), 'test')).toThrow(ConfigError);
  expect(allocator.finishBus().io).toEqual({ base: 0x1_0000, end: 0x1_0000 });
});

test('BARs never overlap each other or what is reserved, and lie in their windows', () => {
  const spec = fc.record({
    index: fc.constant(0 as const),
    kind: fc.constantFrom('io' as const, 'mem32' as const, 'mem64' as const),
    sizeBytes: fc.oneof(fc.integer({ min: 1, max: 64 * KiB }), fc.constantFrom(1 * MiB, 64 * MiB, 256 * MiB)),
  });
  const reserved = fc.array(fc.tuple(fc.integer({ min: 0x2000, max: 0xf000 }), fc.integer({ min: 1, max: 0x800 })), {
    maxLength: 4,
  });
  fc.assert(
    fc.property(fc.array(spec, { maxLength: 20 }), reserved, fc.boolean(), (specs, ranges, hasOvmf) => {
      const allocator = new BarAllocator({ hasOvmf });
      for (const [base, size] of ranges) allocator.reserve('io', base, size);
      const placed: Array<{ isIo: boolean; base: number; end: number }> = ranges.map(([base, size]) => ({
        isIo: true,
        base,
        end: base + size,
      }));
      const ownFrom = placed.length;
      try {
        for (const s of specs) {
          const { address, spec: rounded } = allocator.allocate(s, 'test');
          expect(address % rounded.sizeBytes).toBe(0);
          placed.push({ isIo: s.kind === 'io', base: address, end: address + rounded.sizeBytes });
        }
      } catch (error) {
        expect(error).toBeInstanceOf(ConfigError);
      }
      for (const [i, a] of placed.entries()) {
        if (i < ownFrom) continue;
        for (const b of placed.slice(0, i)) expect(a.isIo !== b.isIo || a.end <= b.base || b.end <= a.base).toBe(true);
        if (a.isIo) expect(a.base >= 0x2000 && a.end <= 0x10000).toBe(true);
        else expect((a.base >= 0x80000000 && a.end <= 0xe0000000) || a.base >= 0x40_0000_0000).toBe(true);
      }
    }),
  );
});
