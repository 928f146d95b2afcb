import { expect, test } from 'vitest';
import { BugError } from '../../../devicemodel/core/errors.ts';
import { encodeVdev } from '../../../devicemodel/core/hsm/vdev.ts';
import { RootPort } from '../../../devicemodel/hw/pci/root-port.ts';

const physicalBdf = { bus: 0, device: 0x1c, function: 0 };
const at = (device: number, bus = 0) => ({ bdf: { bus, device, function: 0 }, barAddress: () => 0 });

test('describes itself as the recorded port of PTM passthrough did', () => {
  const port = new RootPort({ physicalBdf, maxPayload: 1, secondaryBus: 1, ptmCapOffset: 0x150 });
  const bytes = Buffer.from(encodeVdev(port.describe(at(6)))).toString('hex');
  // vendor, device, slot 0x30 and struct vrp_config as C sends them for 00:1c.0 with PTM at 0x150.
  expect(bytes.slice(0, 32)).toBe('8680149d000000003000000000000000');
  expect(bytes.slice(128, 128 + 24)).toBe('e00001000101010050010000');
  expect(port.endpointBdf).toEqual({ bus: 1, device: 0, function: 0 });
});

test('a port without PTM says so', () => {
  const port = new RootPort({ physicalBdf, maxPayload: 0, secondaryBus: 1, ptmCapOffset: undefined });
  expect(port.describe(at(6))).toMatchObject({ ptmCapOffset: undefined, primaryBus: 0, subordinateBus: 1 });
});

test('the bus below is not above', () => {
  const port = new RootPort({ physicalBdf, maxPayload: 0, secondaryBus: 1, ptmCapOffset: undefined });
  expect(() => port.describe(at(6, 1))).toThrow(BugError);
});
