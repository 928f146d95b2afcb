import { expect, test } from 'vitest';
import { AplCapabilities, plainCapabilities } from '../../../../devicemodel/hw/pci/xhci/extended-capabilities.ts';

test('with cap=apl those of the plain controller stay where they are, as in C', () => {
  const apl = new AplCapabilities(() => false);
  expect(apl.start).toBe(0x8000);
  const dwords = Array.from({ length: 8 }, (_, i) => apl.read(0x20 + 4 * i));
  expect(dwords).toEqual([0x0200_0402, 0x2042_5355, 0x0a0b, 0, 0x0300_0002, 0x2042_5355, 0x0a01, 0]);
  expect(dwords).toEqual(Array.from({ length: 8 }, (_, i) => plainCapabilities.read(0x20 + 4 * i)));
  expect(apl.read(0x1c)).toBeUndefined();
});
