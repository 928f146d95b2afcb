import * as fc from 'fast-check';
import { expect, test } from 'vitest';
import { ConfigSpace } from '../../../devicemodel/chips/pci-config-space.ts';
import { Msi, type MsiOptions } from '../../../devicemodel/hw/pci/msi.ts';
import { FakeMsi } from '../../support/fake-line.ts';

/** PCI 3.0 §6.8.1, 64-bit with per-vector masking; offsets in the capability. */
const Cap = { Control: 2, AddressLow: 4, AddressHigh: 8, Data: 12, Mask: 16, Pending: 20 } as const;

function makeMsi(options: MsiOptions = { vectors: 4 }) {
  const sink = new FakeMsi();
  const config = new ConfigSpace();
  const msi = new Msi(options, sink);
  const base = msi.attach(config);
  config.seal();
  return { sink, config, msi, base };
}

/** Address, data, all vectors granted, enabled. */
function enable({ config, base }: ReturnType<typeof makeMsi>, control = 0x21) {
  config.write(base + Cap.AddressLow, 4, 0xfee01000);
  config.write(base + Cap.Data, 2, 0x40);
  config.write(base + Cap.Control, 2, control);
}

test('the capability offers its vectors, 64 bits and masking, and is off', () => {
  const { config, base, msi } = makeMsi();
  expect(base).toBe(0x40);
  expect(config.read(base, 4)).toBe(0x01840005); // 4 vectors: log2 in bits 3:1 of the control word
  expect(msi.isEnabled).toBe(false);
});

test('nothing is sent while off; on, the vector number is added to the data', () => {
  const made = makeMsi();
  expect(made.msi.signal(0)).toBe(false);
  enable(made);
  made.config.write(made.base + Cap.Data, 2, 0x43);
  expect(made.msi.signal(2)).toBe(true);
  expect(made.sink.messages).toEqual([{ address: 0xfee01000, data: 0x45 }]);
});

test('a vector that is not granted, or does not exist, is not sent', () => {
  const made = makeMsi();
  enable(made, 0x11); // two of the four
  for (const vector of [2, 3, 4, 31, -1, 0xffff]) expect(made.msi.signal(vector)).toBe(false);
  expect(made.sink.messages).toEqual([]);
});

test('a guest that grants more than was offered gets no more', () => {
  const made = makeMsi({ vectors: 2 });
  enable(made, 0x51); // 32
  expect(made.msi.enabledVectors).toBe(2);
});

test('a masked vector is pending and goes out once when unmasked', () => {
  const made = makeMsi();
  const { config, base, msi, sink } = made;
  enable(made);
  config.write(base + Cap.Mask, 4, 0x2);
  msi.signal(1);
  msi.signal(1);
  expect(config.read(base + Cap.Pending, 4)).toBe(0x2);
  expect(sink.messages).toEqual([]);
  config.write(base + Cap.Mask, 4, 0);
  expect(config.read(base + Cap.Pending, 4)).toBe(0);
  expect(sink.messages).toEqual([{ address: 0xfee01000, data: 0x41 }]);
});

test('what is read-only stays: id, next pointer, capability bits, pending bits', () => {
  const { config, base } = makeMsi();
  const before = config.read(base, 4) & ~0x00710000;
  config.write(base, 4, 0xffffffff);
  config.write(base + Cap.Pending, 4, 0xffffffff);
  expect(config.read(base, 4) & ~0x00710000).toBe(before);
  expect(config.read(base + Cap.Pending, 4)).toBe(0);
});

test('a byte write to the control register enables too', () => {
  const { config, base, msi } = makeMsi();
  config.write(base + Cap.Control, 1, 0x01);
  expect(msi.isEnabled).toBe(true);
});

test('the upper half of the address is kept and means nothing, as in C', () => {
  const made = makeMsi();
  enable(made);
  made.config.write(made.base + Cap.AddressHigh, 4, 0xffffffff);
  expect(made.config.read(made.base + Cap.AddressHigh, 4)).toBe(0xffffffff);
  expect(made.msi.signal(0)).toBe(true);
  expect(made.sink.messages).toEqual([{ address: 0xfee01000, data: 0x40 }]);
});

test('32-bit without masking is the short form', () => {
  const made = makeMsi({ vectors: 1, is64Bit: false, perVectorMasking: false });
  const { config, base, msi, sink } = made;
  config.write(base + 4, 4, 0xfee00000);
  config.write(base + 8, 2, 0x31);
  config.write(base + Cap.Control, 2, 1);
  msi.signal(0);
  expect(sink.messages).toEqual([{ address: 0xfee00000, data: 0x31 }]);
  expect(config.addCapability(9, [3])).toBe(base + 12);
});

test('whatever is written to the capability, only sent vectors leave and no message is torn', () => {
  const write = fc.record({
    offset: fc.nat({ max: 23 }),
    size: fc.constantFrom(1 as const, 2 as const, 4 as const),
    value: fc.nat({ max: 0xffffffff }),
    signal: fc.nat({ max: 40 }),
  });
  fc.assert(
    fc.property(fc.array(write, { maxLength: 40 }), (writes) => {
      const { config, base, msi, sink } = makeMsi({ vectors: 32 });
      for (const { offset, size, value, signal } of writes) {
        config.write(base + offset, size, value);
        msi.signal(signal);
      }
      for (const { address, data } of sink.messages) {
        expect(Number.isSafeInteger(address) && address % 4 === 0).toBe(true);
        expect(data).toBeLessThan(0x10000);
      }
    }),
  );
});
