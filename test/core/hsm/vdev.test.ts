/** struct acrn_vdev: bytes a C program made against the ACRN headers, round trips, and refusals before any ioctl. */
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { ConfigError, DmError } from '../../../devicemodel/core/errors.ts';
import { checkVdev, encodeVdev, encodeVdevForDestroy, type HvVdev } from '../../../devicemodel/core/hsm/vdev.ts';
import { decodeVdev } from '../../support/decode-vdev.ts';

function bytes192(rows: Record<number, string>): Uint8Array {
  const out = new Uint8Array(192);
  for (const [at, text] of Object.entries(rows)) {
    text.split(' ').forEach((byte, i) => {
      out[Number(at) + i] = Number.parseInt(byte, 16);
    });
  }
  return out;
}

const ivshmem: HvVdev = {
  type: 'ivshmem',
  bdf: { bus: 0, device: 8, function: 0 },
  registersBar: 0xdf000000,
  msixBar: 0xdf001000,
  memoryBar: 0x4000000000,
  regionName: 'hv:/shm_region_0',
  sizeBytes: 2 << 20,
};

describe('vectors', () => {
  test('ivshmem hv:/shm_region_0, 2 MiB, 00:08.0, memory above 4 GiB', () => {
    expect(encodeVdev(ivshmem)).toEqual(
      bytes192({
        0: 'f4 1a 10 11 00 00 00 00 40 00 00 00 00 00 00 00',
        16: '00 00 00 df 00 10 00 df 0c 00 00 00 40 00 00 00',
        48: '00 00 20 00 00 00 00 00',
        64: '68 76 3a 2f 73 68 6d 5f 72 65 67 69 6f 6e 5f 30',
      }),
    );
  });

  test('vUART index 1 at 00:03.0', () => {
    const vdev: HvVdev = {
      type: 'vuart',
      bdf: { bus: 0, device: 3, function: 0 },
      registersBar: 0xdf002000,
      msixBar: 0xdf003000,
      vuartIndex: 1,
    };
    expect(encodeVdev(vdev)).toEqual(
      bytes192({
        0: '10 97 00 99 00 00 00 00 18 00 00 00 00 00 00 00',
        16: '00 20 00 df 00 30 00 df',
        64: '01 00 00 00',
      }),
    );
  });

  test('virtual root port 00:06.0 for 00:1d.0 with PTM at 0x150', () => {
    const vdev: HvVdev = {
      type: 'root-port',
      bdf: { bus: 0, device: 6, function: 0 },
      physicalBdf: { bus: 0, device: 0x1d, function: 0 },
      maxPayload: 1,
      primaryBus: 0,
      secondaryBus: 1,
      subordinateBus: 1,
      ptmCapOffset: 0x150,
    };
    expect(encodeVdev(vdev)).toEqual(
      bytes192({ 0: '86 80 14 9d 00 00 00 00 30', 64: 'e8 00 01 00 01 01 01 00 50 01 00 00' }),
    );
  });

  test('DESTROY_VDEV carries identity and slot only', () => {
    expect(encodeVdevForDestroy(ivshmem)).toEqual(bytes192({ 0: 'f4 1a 10 11 00 00 00 00 40' }));
  });
});

const bdf = fc.record({ bus: fc.nat(255), device: fc.nat(31), function: fc.nat(7) });
const page = fc.nat(0xfffff).map((n) => n * 4096);
const anyVdev: fc.Arbitrary<HvVdev> = fc.oneof(
  fc.record({
    type: fc.constant('ivshmem' as const),
    bdf,
    registersBar: page,
    msixBar: page,
    memoryBar: fc.nat(0xffff).map((n) => n * (512 << 20)),
    regionName: fc.stringMatching(/^hv:\/[a-z0-9_]{1,27}$/),
    sizeBytes: fc.integer({ min: 1, max: 9 }).map((n) => 2 ** n * (1 << 20)),
  }),
  fc.record({
    type: fc.constant('vuart' as const),
    bdf,
    registersBar: page,
    msixBar: page,
    vuartIndex: fc.nat(0xffff),
  }),
  fc.record({
    type: fc.constant('root-port' as const),
    bdf,
    physicalBdf: bdf,
    maxPayload: fc.nat(5),
    primaryBus: fc.nat(255),
    secondaryBus: fc.integer({ min: 1, max: 255 }),
    subordinateBus: fc.constant(255),
    ptmCapOffset: fc.option(fc.nat(0xfff), { nil: undefined }),
  }),
);

test('decode is the inverse of encode', () => {
  fc.assert(
    fc.property(anyVdev, (vdev) => {
      expect(decodeVdev(encodeVdev(vdev))).toEqual(vdev);
    }),
  );
});

test('decode of arbitrary bytes answers a vdev or a DmError', () => {
  fc.assert(
    fc.property(fc.uint8Array({ minLength: 0, maxLength: 256 }), (input) => {
      try {
        expect(decodeVdev(input).type).toMatch(/ivshmem|vuart|root-port/);
      } catch (error) {
        expect(error).toBeInstanceOf(DmError);
      }
    }),
  );
});

test('a region name of more than 32 bytes is cut where the hypervisor stops comparing', () => {
  const long = encodeVdev({
    ...(ivshmem as Extract<HvVdev, { type: 'ivshmem' }>),
    regionName: `hv:/${'x'.repeat(40)}`,
  });
  expect(long.subarray(64, 96)).toEqual(new TextEncoder().encode(`hv:/${'x'.repeat(28)}`));
  expect(long.subarray(96)).toEqual(new Uint8Array(96));
});

describe('refused before any ioctl, with the reason', () => {
  const refuse = (change: object, reason: RegExp, base: HvVdev = ivshmem) => {
    expect(() => checkVdev({ ...base, ...change } as HvVdev)).toThrow(ConfigError);
    expect(() => checkVdev({ ...base, ...change } as HvVdev)).toThrow(reason);
  };
  test('a region of the device model', () => refuse({ regionName: 'dm:/a' }, /not kept by the hypervisor/));
  test('a size over 32 bits', () => refuse({ sizeBytes: 2 ** 32, memoryBar: 0 }, /32-bit size/));
  test('a register BAR over 4 GiB', () => refuse({ registersBar: 2 ** 32 }, /32-bit address/));
  test('an MSI-X BAR that is not page aligned', () => refuse({ msixBar: 0xdf000800 }, /aligned/));
  test('a memory BAR that is not aligned to its size', () =>
    refuse({ memoryBar: 0x4000100000 }, /aligned to its size/));
  test('a vuart index over 16 bits', () =>
    refuse({ vuartIndex: 65536 }, /0\.\.65535/, {
      type: 'vuart',
      bdf: ivshmem.bdf,
      registersBar: 0,
      msixBar: 0,
      vuartIndex: 0,
    }));
});
