import * as fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { TickRate } from '../../../devicemodel/hw/platform/tick-rate.ts';

const frequencies = fc.constantFrom(1_193_182, 1 << 24, 32_768, 3_579_545, 1);
/** 100 days: far beyond what a product of two plain numbers could hold. */
const times = fc.nat({ max: 8_640_000_000_000_000 });

describe('TickRate', () => {
  test('counts exactly, compared with integer arithmetic', () => {
    fc.assert(
      fc.property(frequencies, times, (hz, ns) => {
        expect(BigInt(new TickRate(hz).ticksIn(ns))).toBe((BigInt(ns) * BigInt(hz)) / 1_000_000_000n);
      }),
    );
  });

  test('nsFor is the first nanosecond at which that many ticks have passed', () => {
    fc.assert(
      fc.property(frequencies, times, (hz, time) => {
        const rate = new TickRate(hz);
        const ticks = rate.ticksIn(time);
        const ns = rate.nsFor(ticks);
        expect(rate.ticksIn(ns)).toBe(ticks);
        if (ns > 0) expect(rate.ticksIn(ns - 1)).toBeLessThan(ticks);
      }),
    );
  });

  test('a time before the start has no ticks', () => {
    expect(new TickRate(1000).ticksIn(-5_000_000)).toBe(0);
  });
});
