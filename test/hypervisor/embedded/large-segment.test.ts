/** Segments of huge pages are longer than a view may be: an engine gets them in pieces of at most 1 GiB, all of it. */
import { expect, test } from 'vitest';
import { addressOf, mapZeroAt, reserveAddressSpace, viewOf } from '../../../devicemodel/core/host/mapping.ts';
import { GiB, MiB } from '../../../devicemodel/core/units.ts';
import { FakeHsm } from '../../support/fake-hsm.ts';

test.each([2 * MiB, GiB - 2 * MiB, GiB, GiB + 2 * MiB, 3 * GiB, 5 * GiB])(
  'a segment of %i bytes',
  async (sizeBytes) => {
    const space = reserveAddressSpace(sizeBytes, GiB, 'test');
    mapZeroAt(space.base, sizeBytes, 'test');
    const hsm = new FakeHsm();
    await hsm.createVm({ name: 'vm', flags: 0n, cpuAffinity: 0n });
    const pieces = hsm.ramWindows;
    const bytes = viewOf(space.base, Math.min(sizeBytes, GiB));
    const mapping = { gpa: 4 * GiB, sizeBytes, bytes, hostAddress: space.base, writable: true };
    hsm.mapRam(mapping);

    let next = mapping.gpa;
    for (const piece of pieces) {
      expect(piece.gpa).toBe(next);
      expect(piece.bytes.length).toBeLessThanOrEqual(GiB);
      expect(addressOf(piece.bytes)).toBe(space.base + BigInt(piece.gpa - mapping.gpa));
      next += piece.bytes.length;
    }
    expect(next).toBe(mapping.gpa + sizeBytes);
    // The last byte of the last piece is the last of the segment.
    viewOf(space.base + BigInt(sizeBytes - 1), 1)[0] = 0x5a;
    expect(pieces.at(-1)?.bytes.at(-1)).toBe(0x5a);
    hsm.unmapRam(mapping);
    expect(hsm.ramWindows).toEqual([]);
    hsm.close();
    space.dispose();
  },
);
