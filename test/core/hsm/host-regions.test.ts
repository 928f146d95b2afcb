/** Memory and ports of host devices: bytes as the driver takes them, and nothing that the hypervisor would refuse. */
import { expect, test } from 'vitest';
import { encodeMmiodev, encodePioRegion } from '../../../devicemodel/core/hsm/host-regions.ts';
import { Ioctl } from '../../../hypervisor/acrn/abi.ts';

test('struct acrn_mmiodev', () => {
  const bytes = Buffer.from(
    encodeMmiodev({
      name: 'tpm2',
      resources: [
        { gpa: 0xfed40000, hostPhysical: 0xfed40000, sizeBytes: 0x5000 },
        { gpa: 0xf0000000, hostPhysical: 0x7a000000, sizeBytes: 0x10000 },
      ],
    }),
  );
  // As recorded of the C device model.
  expect(bytes.toString('hex')).toBe(
    `${'74706d3200000000'}${'0000d4fe00000000'.repeat(2)}${'0050000000000000'}${'0000000000000000'}${'000000f000000000'}${'0000007a00000000'}${'0000010000000000'}${'00'.repeat(8 + 32)}`,
  );
  expect(Ioctl.ASSIGN_MMIODEV).toBe(0x4068a257);
});

test('struct acrn_pio_region of release 3.3: 12 bytes', () => {
  const bytes = Buffer.from(encodePioRegion({ name: 'uart', port: 0x2f8, sizeBytes: 8 }));
  expect(bytes.toString('hex')).toBe('7561727400000000f8020800');
  expect([Ioctl.ASSIGN_PIO_REGION, Ioctl.DEASSIGN_PIO_REGION]).toEqual([0x400ca25b, 0x400ca25c]);
});

const page = { gpa: 0xf0000000, hostPhysical: 0xfe000000, sizeBytes: 0x1000 };
test.each([
  ['a name of nine bytes', { name: 'ninebytes', resources: [page] }],
  ['no range', { name: '', resources: [] }],
  ['four ranges', { name: '', resources: [page, page, page, page] }],
  ['half a page', { name: '', resources: [{ ...page, sizeBytes: 0x800 }] }],
  ['nothing', { name: '', resources: [{ ...page, sizeBytes: 0 }] }],
  ['an odd host address', { name: '', resources: [{ ...page, hostPhysical: 0xfe000010 }] }],
  ['an odd guest address', { name: '', resources: [{ ...page, gpa: 1 }] }],
])('%s is our mistake', (_what, assignment) => {
  expect(() => encodeMmiodev(assignment)).toThrow();
});

test.each([
  { name: 'uart', port: -1, sizeBytes: 8 },
  { name: 'uart', port: 0xfff9, sizeBytes: 8 },
  { name: 'uart', port: 0x2f8, sizeBytes: 0 },
])('ports $port+$sizeBytes do not exist', (region) => {
  expect(() => encodePioRegion(region)).toThrow('not ports');
});
