/** Arbitrary guest accesses, for "never throws, reads within width, reset equals fresh". */
import * as fc from 'fast-check';
import { expect } from 'vitest';
import type { AccessSize } from '../../devicemodel/core/address.ts';
import type { IoRegion } from '../../devicemodel/core/device.ts';

export interface BusAccess {
  readonly write: boolean;
  readonly offset: number;
  readonly size: AccessSize;
  /** Already cut to `size`; unused by reads. */
  readonly value: number;
  /** Time that passes before the access. */
  readonly delayNs: number;
}

/** Accesses of any width anywhere in a window of `sizeBytes`, also over its end, with pauses of up to `maxDelayNs`. */
export function busAccess(sizeBytes: number, maxDelayNs = 0): fc.Arbitrary<BusAccess> {
  return fc
    .record({
      write: fc.boolean(),
      offset: fc.nat({ max: sizeBytes - 1 }),
      size: fc.constantFrom<AccessSize>(1, 2, 4),
      value: fc.oneof(
        fc.nat({ max: 0xffffffff }),
        fc.nat({ max: 0xff }),
        fc.constantFrom(0, 1, 0xff, 0xffff, 0xffffffff, 0x80000000),
      ),
      delayNs: fc.nat({ max: maxDelayNs }),
    })
    .map((a) => ({ ...a, value: a.size === 4 ? a.value : a.value & (a.size === 2 ? 0xffff : 0xff) }));
}

export function busAccesses(sizeBytes: number, maxDelayNs = 0): fc.Arbitrary<BusAccess[]> {
  return fc.array(busAccess(sizeBytes, maxDelayNs), { maxLength: 60 });
}

/** Do one access; a read must be an unsigned integer within its width. @returns the value read, or undefined. */
export function applyAccess(region: IoRegion, access: BusAccess): number | undefined {
  if (access.write) {
    region.write(access.offset, access.size, access.value);
    return undefined;
  }
  const value = region.read(access.offset, access.size);
  expectWithin(value, access.size);
  return value;
}

/** The value is an unsigned integer of `size` bytes. */
export function expectWithin(value: number, size: AccessSize): void {
  // Not an expect for every access: that costs more than the access.
  if (Number.isInteger(value) && value >= 0 && value < 2 ** (8 * size)) return;
  expect.fail(`read ${value} of ${size} bytes`);
}
