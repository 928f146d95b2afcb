import * as fc from 'fast-check';
import { expect, test } from 'vitest';
import { Msix } from '../../devicemodel/chips/msix.ts';
import { CapId, ConfigSpace } from '../../devicemodel/chips/pci-config-space.ts';
import { BugError } from '../../devicemodel/core/errors.ts';
import { Msi } from '../../devicemodel/hw/pci/msi.ts';
import { applyAccess, busAccesses } from '../support/bus-access.ts';
import { FakeMsi } from '../support/fake-line.ts';

const ENABLE = 0x8000;
const FUNCTION_MASK = 0x4000;
const ENTRY = 16;
const CONTROL = 12;

function makeMsix(vectors = 3) {
  const sink = new FakeMsi();
  const config = new ConfigSpace();
  const msix = new Msix(vectors, 1, sink);
  const control = msix.attach(config) + 2;
  config.seal();
  const program = (vector: number, masked = false) => {
    msix.write(vector * ENTRY, 4, 0xfee00000 + (vector << 12));
    msix.write(vector * ENTRY + 4, 4, 0);
    msix.write(vector * ENTRY + 8, 4, 0x50 + vector);
    msix.write(vector * ENTRY + CONTROL, 4, masked ? 1 : 0);
  };
  return { sink, config, msix, control, program };
}

test('the capability names the table, the pending bits and the last vector', () => {
  const { config, msix } = makeMsix();
  const base = config.findCapability(CapId.Msix) as number;
  expect(config.read(base, 4)).toBe(0x00020011);
  expect(config.read(base + 4, 4)).toBe(1);
  expect(config.read(base + 8, 4)).toBe(0x1001);
  expect(msix.barBytes).toBe(0x1008);
});

test('every vector is masked at power-on', () => {
  const { config, msix, control } = makeMsix();
  config.write(control, 2, ENABLE);
  expect([0, 1, 2].map((v) => msix.read(v * ENTRY + CONTROL, 4))).toEqual([1, 1, 1]);
  expect(msix.signal(0)).toBe(false);
});

test('an unmasked vector is sent with its own message', () => {
  const { config, msix, control, program, sink } = makeMsix();
  program(2);
  config.write(control, 2, ENABLE);
  expect(msix.signal(2)).toBe(true);
  expect(sink.messages).toEqual([{ address: 0xfee02000, data: 0x52 }]);
  expect(msix.message(2)).toEqual({ address: 0xfee02000, data: 0x52 });
});

test('while off nothing is sent and nothing becomes pending', () => {
  const { msix, program, sink } = makeMsix();
  program(0);
  msix.signal(0);
  expect(msix.read(msix.pbaOffset, 4)).toBe(0);
  expect(sink.messages).toEqual([]);
});

test('a masked vector is pending, shows in the PBA, and goes out once on unmask', () => {
  const { config, msix, control, program, sink } = makeMsix();
  program(1, true);
  config.write(control, 2, ENABLE);
  msix.signal(1);
  msix.signal(1);
  expect(msix.read(msix.pbaOffset, 4)).toBe(0b10);
  msix.write(ENTRY + CONTROL, 4, 0);
  expect(sink.messages).toEqual([{ address: 0xfee01000, data: 0x51 }]);
  expect(msix.read(msix.pbaOffset, 4)).toBe(0);
});

test('the function mask holds every vector back until it is lifted', () => {
  const { config, msix, control, program, sink } = makeMsix();
  program(0);
  program(2);
  config.write(control, 2, ENABLE | FUNCTION_MASK);
  msix.signal(2);
  msix.signal(0);
  expect(sink.messages).toEqual([]);
  config.write(control, 2, ENABLE);
  expect(sink.messages.map((m) => m.data)).toEqual([0x50, 0x52]);
});

test('a vector that does not exist is harmless', () => {
  const { config, msix, control, sink } = makeMsix();
  config.write(control, 2, ENABLE);
  for (const vector of [3, 31, 2048, 0xffff, -1, Number.NaN]) expect(msix.signal(vector)).toBe(false);
  expect(msix.read(msix.pbaOffset, 4)).toBe(0);
  expect(sink.messages).toEqual([]);
});

test('pending bits are read-only', () => {
  const { config, msix, control } = makeMsix();
  config.write(control, 2, ENABLE);
  msix.signal(0);
  msix.write(msix.pbaOffset, 4, 0);
  expect(msix.read(msix.pbaOffset, 4)).toBe(1);
});

test('the table takes dwords, gives bytes and dwords, and nothing else', () => {
  const { msix } = makeMsix();
  msix.write(0, 4, 0x11223344);
  msix.write(0, 1, 0xff);
  msix.write(0, 2, 0xffff);
  msix.write(2, 4, 0xffffffff);
  expect(msix.read(0, 4)).toBe(0x11223344);
  expect(msix.read(1, 1)).toBe(0x33);
  expect(msix.read(0, 2)).toBe(0xffff);
  expect(msix.read(2, 4)).toBe(0xffffffff);
  expect(msix.read(3 * ENTRY, 4)).toBe(0xffffffff);
});

test('table offsets and the vector count are read-only, enable and mask bits are not', () => {
  const { config, control } = makeMsix();
  const base = control - 2;
  for (const offset of [0, 4, 8]) config.write(base + offset, 4, 0xffffffff);
  expect([0, 4, 8].map((o) => config.read(base + o, 4))).toEqual([0xc0020011, 1, 0x1001]);
});

test('MSI enabled at the same time wins', () => {
  const sink = new FakeMsi();
  const config = new ConfigSpace();
  const msi = new Msi({ vectors: 1 }, sink);
  const msix = new Msix(1, 1, sink);
  const msiControl = msi.attach(config) + 2;
  const msixControl = msix.attach(config) + 2;
  msix.write(CONTROL, 4, 0);
  config.write(msixControl, 2, ENABLE);
  expect(msix.isEnabled).toBe(true);
  config.write(msiControl, 2, 1);
  expect(msix.isEnabled).toBe(false);
  expect(msix.signal(0)).toBe(false);
});

test('reset masks and clears everything', () => {
  const { config, msix, control, program } = makeMsix();
  program(0);
  config.write(control, 2, ENABLE | FUNCTION_MASK);
  msix.signal(0);
  config.reset();
  msix.reset();
  const fresh = makeMsix();
  const dump = (m: Msix) => Array.from({ length: m.barBytes / 4 }, (_, i) => m.read(i * 4, 4));
  expect(dump(msix)).toEqual(dump(fresh.msix));
  expect(msix.isEnabled).toBe(false);
});

test('2048 vectors work to the last', () => {
  const { config, msix, control, sink } = makeMsix(2048);
  msix.write(2047 * ENTRY, 4, 0xfee00000);
  config.write(control, 2, ENABLE);
  msix.signal(2047);
  expect(msix.read(msix.pbaOffset + 252, 4)).toBe(0x80000000);
  msix.write(2047 * ENTRY + CONTROL, 4, 0);
  expect(sink.messages).toHaveLength(1);
});

test('any access sequence stays within width and sends exact addresses only', () => {
  fc.assert(
    fc.property(busAccesses(0x1100), fc.array(fc.nat({ max: 9 })), (accesses, signals) => {
      const { config, msix, control, sink } = makeMsix(8);
      config.write(control, 2, ENABLE);
      accesses.forEach((access, i) => {
        applyAccess(msix, access);
        msix.signal(signals[i] ?? 0);
      });
      for (const message of sink.messages) expect(Number.isSafeInteger(message.address)).toBe(true);
    }),
  );
});

test('the pending bits can be elsewhere behind the table', () => {
  const config = new ConfigSpace();
  const msix = new Msix(8, 1, new FakeMsi(), 0x800);
  msix.attach(config);
  config.seal();
  const base = config.findCapability(CapId.Msix) as number;
  expect([config.read(base + 8, 4), msix.barBytes]).toEqual([0x801, 0x808]);
  config.write(base + 2, 2, ENABLE);
  msix.signal(3); // masked
  expect([msix.read(0x800, 4), msix.read(0x7f8, 4)]).toEqual([8, 0xffff_ffff]);
  expect(() => new Msix(8, 1, new FakeMsi(), 0x40)).toThrow(BugError);
});
