import * as fc from 'fast-check';
import { expect, test } from 'vitest';
import { IoreqPage, IoreqState, IoreqType } from '../../devicemodel/core/ioreq-page.ts';

const makePage = () => new IoreqPage(new Uint8Array(4096));

test('fields are where struct acrn_io_request has them', () => {
  const page = makePage();
  page.fillMmio(2, true, 0x12_3456_7890, 8, 0);
  page.setValueU64(2, 0x8877_6655_4433_2211n);
  const view = new DataView(page.bytes.buffer, 2 * 256);
  expect(view.getUint32(0, true)).toBe(1); // type
  expect(view.getUint32(64, true)).toBe(1); // direction
  expect(view.getBigUint64(72, true)).toBe(0x12_3456_7890n);
  expect(view.getBigUint64(80, true)).toBe(8n); // size
  expect(view.getBigUint64(88, true)).toBe(0x8877_6655_4433_2211n);
  expect(view.getUint32(136, true)).toBe(IoreqState.Pending);
});

test('a config request has its function at 92, 96, 100 and its register at 104', () => {
  const page = makePage();
  page.fillPciConfig(0, false, (3 << 8) | (31 << 3) | 7, 0xffc, 4, 0);
  const view = new DataView(page.bytes.buffer);
  expect([92, 96, 100, 104].map((at) => view.getUint32(at, true))).toEqual([3, 31, 7, 0xffc]);
  expect(page.type(0)).toBe(IoreqType.PciConfig);
});

test('the answer to a config read leaves the bus number alone', () => {
  const page = makePage();
  page.fillPciConfig(0, false, 0x1ff, 0, 4, 0);
  page.setValue(0, 0xffff_ffff);
  expect([page.value(0), page.pciBus(0)]).toEqual([0xffff_ffff, 1]);
});

test('an answer of up to 4 bytes clears the upper half of an MMIO value', () => {
  const page = makePage();
  page.fillMmio(0, false, 0x1000, 4, 0);
  page.setValueU64(0, 0xffff_ffff_ffff_ffffn);
  page.setValue(0, 5);
  expect(page.valueU64(0)).toBe(5n);
});

test('only a slot in PROCESSING that no kernel client has is for the device model', () => {
  const page = makePage();
  page.fillPortIo(1, false, 0x60, 1, 0);
  expect(page.isPending(1)).toBe(false);
  page.setState(1, IoreqState.Processing);
  expect(page.isPending(1)).toBe(true);
  page.setKernelHandled(1, true);
  expect(page.isPending(1)).toBe(false);
});

test('what is filled in comes out unsigned, and no other slot changes', () => {
  fc.assert(
    fc.property(
      fc.nat({ max: 15 }),
      fc.boolean(),
      fc.maxSafeNat(),
      fc.constantFrom(1, 2, 4, 8) as fc.Arbitrary<1 | 2 | 4 | 8>,
      fc.nat({ max: 0xffff_ffff }),
      (vcpu, isWrite, address, size, value) => {
        const page = makePage();
        page.fillMmio(vcpu, isWrite, address, size, value);
        expect([page.isWrite(vcpu), page.address(vcpu), page.size(vcpu), page.value(vcpu)]).toEqual([
          isWrite,
          address,
          size,
          value,
        ]);
        const others = page.bytes.slice();
        others.fill(0, vcpu * 256, vcpu * 256 + 256);
        expect(others.every((b) => b === 0)).toBe(true);
      },
    ),
  );
});
