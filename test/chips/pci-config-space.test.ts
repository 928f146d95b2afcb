import * as fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { CapId, Cfg, ConfigSpace } from '../../devicemodel/chips/pci-config-space.ts';
import { BugError } from '../../devicemodel/core/errors.ts';
import { GiB, MiB } from '../../devicemodel/core/units.ts';
import { busAccesses, expectWithin } from '../support/bus-access.ts';

describe('header', () => {
  test('reserved command bits and the status register do not change', () => {
    const config = new ConfigSpace();
    config.addCapability(CapId.Vendor, [3]);
    config.write(Cfg.Command, 4, 0xffffffff);
    expect(config.read(Cfg.Command, 4)).toBe(0x0010077f);
    config.write(Cfg.Command + 1, 1, 0);
    expect(config.read(Cfg.Command, 2)).toBe(0x007f);
  });

  test('the guest cannot change the multifunction bit', () => {
    const config = new ConfigSpace();
    config.setMultifunction(true);
    config.write(Cfg.HeaderType, 1, 0);
    expect(config.read(Cfg.HeaderType, 1)).toBe(0x80);
    config.setMultifunction(false);
    config.write(Cfg.HeaderType, 1, 0xff);
    expect(config.read(Cfg.HeaderType, 1)).toBe(0x7f);
  });

  test('there is no expansion ROM', () => {
    const config = new ConfigSpace();
    config.write(Cfg.ExpansionRom, 4, 0xffffffff);
    expect(config.read(Cfg.ExpansionRom, 4)).toBe(0);
  });

  test('unaligned accesses read all ones and write nothing', () => {
    const config = new ConfigSpace();
    for (const [offset, size] of [
      [0x41, 2],
      [0x42, 4],
      [0xfe, 4],
      [0xff, 2],
    ] as const) {
      config.write(offset, size, 0);
      expect(config.read(offset, size)).toBe(2 ** (8 * size) - 1);
    }
    expect(config.bytes.every((b) => b === 0)).toBe(true);
  });

  test('behind 256 bytes there is an empty extended capability list and nothing else', () => {
    const config = new ConfigSpace();
    expect(config.read(0x100, 4)).toBe(0);
    expect(config.read(0x104, 4)).toBe(0xffffffff);
    config.write(0x100, 4, 0x12345678);
    expect(config.read(0x100, 4)).toBe(0);
  });
});

describe('capabilities', () => {
  test('the list leads from the pointer through every capability to zero', () => {
    const config = new ConfigSpace();
    expect(config.read(Cfg.Status, 2) & 0x10).toBe(0);
    const first = config.addCapability(CapId.Msix, new Uint8Array(10));
    const second = config.addCapability(CapId.Vendor, [5, 0, 0]);
    const third = config.addCapability(CapId.Msi, new Uint8Array(22));
    expect([config.read(Cfg.CapabilitiesPointer, 1), config.read(first + 1, 1), config.read(second + 1, 1)]).toEqual([
      first,
      second,
      third,
    ]);
    expect(config.read(third + 1, 1)).toBe(0);
    expect(third % 4).toBe(0);
    expect(config.read(Cfg.Status, 2) & 0x10).toBe(0x10);
    expect(config.findCapability(CapId.Msi)).toBe(third);
    expect(config.findCapability(CapId.PowerManagement)).toBeUndefined();
  });

  test('only bits of the mask change', () => {
    const config = new ConfigSpace();
    const at = config.addCapability(CapId.Vendor, [4, 0], { writable: [0, 0x0f] });
    config.write(at, 4, 0xffffffff);
    expect(config.read(at, 4)).toBe(0x0f040009);
  });

  test('256 bytes are full at some point', () => {
    const config = new ConfigSpace();
    for (let i = 0; i < 192 / 16; i++) config.addCapability(CapId.Vendor, new Uint8Array(14));
    expect(() => config.addCapability(CapId.Vendor, [3])).toThrow(BugError);
  });

  test('extended capabilities are linked by their headers', () => {
    const config = new ConfigSpace({ sizeBytes: 4096 });
    const body = new Uint8Array(8);
    expect(config.addExtendedCapability(0x1f, 1, body)).toBe(0x100);
    expect(config.addExtendedCapability(0x0b, 1, body)).toBe(0x10c);
    expect(config.read(0x100, 4)).toBe(0x10c1001f);
    expect(config.read(0x10c, 4)).toBe(0x0001000b);
    expect(config.read(0xffc, 4)).toBe(0);
    expect(config.read(0x1000, 4)).toBe(0xffffffff);
  });

  test('a 256-byte space has no extended capabilities', () => {
    expect(() => new ConfigSpace().addExtendedCapability(0x1f, 1, [])).toThrow(BugError);
  });
});

test('a PCI Express capability takes what the guest writes, but for its id and the next pointer', () => {
  const config = new ConfigSpace();
  const offset = config.addExpressCapability(4, { capabilities: 0x411, status: 0x11 });
  expect(config.read(offset, 4)).toBe(0x00420010);
  for (let i = 0; i < 60; i += 4) config.write(offset + i, 4, 0xa5a5a5a5);
  expect(config.read(offset, 4)).toBe(0xa5a50010);
  for (let i = 4; i < 60; i += 4) expect(config.read(offset + i, 4), `+${i}`).toBe(0xa5a5a5a5);
});

describe('base address registers', () => {
  const probe = (config: ConfigSpace, register: number) => {
    config.write(Cfg.Bar0 + 4 * register, 4, 0xffffffff);
    return config.read(Cfg.Bar0 + 4 * register, 4);
  };

  test('a size probe shows type bits and size of each kind', () => {
    const config = new ConfigSpace();
    config.defineBar({ index: 0, kind: 'io', sizeBytes: 32 }, 0x2000);
    config.defineBar({ index: 1, kind: 'mem32', sizeBytes: 4096 }, 0x80000000);
    config.defineBar({ index: 2, kind: 'mem64', sizeBytes: 8 * GiB, prefetchable: true }, 0x40_0000_0000);
    config.defineBar({ index: 4, kind: 'mem64', sizeBytes: 2 * MiB }, 0x80200000);
    expect([0, 1, 2, 3, 4, 5].map((i) => config.read(Cfg.Bar0 + 4 * i, 4))).toEqual([
      0x2001, 0x80000000, 0x0000000c, 0x40, 0x80200004, 0,
    ]);
    expect([0, 1, 2, 3, 4, 5].map((i) => probe(config, i))).toEqual([
      0xffe1, 0xfffff000, 0x0000000c, 0xfffffffe, 0xffe00004, 0xffffffff,
    ]);
  });

  test('a BAR that is not there reads zero', () => {
    expect(probe(new ConfigSpace(), 3)).toBe(0);
  });

  test('only dword writes count, and low bits are not the guest’s', () => {
    const config = new ConfigSpace();
    config.defineBar({ index: 1, kind: 'mem32', sizeBytes: 4096 }, 0x80000000);
    config.write(Cfg.Bar0 + 4, 2, 0xffff);
    config.write(Cfg.Bar0 + 6, 1, 0xff);
    expect(config.barAddress(1)).toBe(0x80000000);
    config.write(Cfg.Bar0 + 4, 4, 0x90000fff);
    expect(config.barAddress(1)).toBe(0x90000000);
  });

  test('a 64-bit address is put together of both registers', () => {
    const config = new ConfigSpace();
    config.defineBar({ index: 2, kind: 'mem64', sizeBytes: 2 * MiB }, 0x80200000);
    config.write(Cfg.Bar0 + 12, 4, 0x41);
    config.write(Cfg.Bar0 + 8, 4, 0x00400000);
    expect(config.barAddress(2)).toBe(0x41_0040_0000);
  });

  test('a probed register is no address until something else is written', () => {
    const config = new ConfigSpace();
    config.defineBar({ index: 2, kind: 'mem64', sizeBytes: 2 * MiB }, 0x80200000);
    probe(config, 3);
    expect(config.isBarProbed(2)).toBe(true);
    config.write(Cfg.Bar0 + 12, 4, 0);
    expect(config.isBarProbed(2)).toBe(false);
  });

  test('reset forgets a size probe', () => {
    const config = new ConfigSpace();
    config.defineBar({ index: 1, kind: 'mem32', sizeBytes: 4096 }, 0x80000000);
    config.seal();
    probe(config, 1);
    config.reset();
    expect([config.isBarProbed(1), config.barAddress(1)]).toEqual([false, 0x80000000]);
  });

  test('two BARs cannot share a register', () => {
    const config = new ConfigSpace();
    config.defineBar({ index: 1, kind: 'mem64', sizeBytes: 4096 }, 0x80000000);
    expect(() => config.defineBar({ index: 1, kind: 'io', sizeBytes: 4 }, 0x2000)).toThrow(BugError);
    expect(() => config.defineBar({ index: 2, kind: 'io', sizeBytes: 4 }, 0x2000)).toThrow(BugError);
    expect(() => config.defineBar({ index: 0, kind: 'mem64', sizeBytes: 4096 }, 0x80001000)).toThrow(BugError);
    expect(() => config.defineBar({ index: 5, kind: 'mem64', sizeBytes: 4096 }, 0x80001000)).toThrow(BugError);
  });
});

describe('hooks', () => {
  test('a hook may answer a read, take a write, or only hear of it', () => {
    const config = new ConfigSpace();
    const heard: number[] = [];
    config.hook(0x60, 4, { read: (offset) => (offset === 0x61 ? 0x5a : undefined), written: (o) => heard.push(o) });
    config.hook(0x64, 1, { write: () => true });
    config.write(0x60, 4, 0x11223344);
    config.write(0x64, 4, 0xffffffff);
    expect(config.read(0x60, 1)).toBe(0x44);
    expect(config.read(0x61, 1)).toBe(0x5a);
    expect(config.read(0x64, 4)).toBe(0);
    expect(heard).toEqual([0x60]);
    expect(() => config.hook(0x63, 1, {})).toThrow(BugError);
    expect(() => config.hook(0xff, 4, {})).toThrow(BugError);
  });

  test('the host hears of command, BAR and MSI control writes only', () => {
    const config = new ConfigSpace();
    const msi = config.addCapability(CapId.Msi, new Uint8Array(22), { writable: [1] });
    config.defineBar({ index: 0, kind: 'mem32', sizeBytes: 16 }, 0x80000000);
    let heard = 0;
    config.onControlWritten = () => heard++;
    for (const offset of [0x0c, 0x2c, 0x3c, msi + 4, 0xf0]) config.write(offset, 4, 0);
    expect(heard).toBe(0);
    for (const offset of [Cfg.Command, Cfg.Bar0, msi]) config.write(offset, 4, 0);
    expect(heard).toBe(3);
  });
});

test('whatever a guest writes, reads stay within width, and reset brings the sealed state back', () => {
  fc.assert(
    fc.property(busAccesses(0x120), (accesses) => {
      const config = new ConfigSpace();
      config.defineBar({ index: 0, kind: 'io', sizeBytes: 8 }, 0x2000);
      config.defineBar({ index: 2, kind: 'mem64', sizeBytes: 64 * MiB, prefetchable: true }, 0x40_0400_0000);
      config.addCapability(CapId.Msi, new Uint8Array(22), { writable: [0x71] });
      config.seal();
      const fresh = config.bytes.slice();
      for (const { write, offset, size, value } of accesses) {
        if (write) config.write(offset, size, value);
        else expectWithin(config.read(offset, size), size);
      }
      config.reset();
      expect(config.bytes).toEqual(fresh);
      expect([config.barAddress(0), config.barAddress(2)]).toEqual([0x2000, 0x40_0400_0000]);
      expect(config.isBarProbed(0) || config.isBarProbed(2)).toBe(false);
    }),
  );
});

test('a bridge has two BARs, and registers of its own behind them', () => {
  const config = new ConfigSpace({ headerType: 1 });
  config.setIdentity({ vendorId: 0x8086, deviceId: 0x9d14, classCode: 0x060400, headerType: 1, subsystemId: 5 });
  expect([config.read(0, 4), config.read(8, 4), config.read(0x0c, 4)]).toEqual([0x9d14_8086, 0x0604_0000, 0x0001_0000]);
  config.write(0x10, 4, 0xffff_ffff);
  config.write(0x18, 1, 0x12); // bytes, unlike a BAR
  expect([config.read(0x10, 4), config.read(0x18, 4), config.read(0x2c, 4)]).toEqual([0, 0x12, 0]);
});

test('with registers read-only, only those that have a rule can be written', () => {
  const config = new ConfigSpace({ sizeBytes: 4096, otherRegisters: 'read-only' });
  config.setIdentity({ vendorId: 1, deviceId: 2, classCode: 3 });
  const at = config.addCapability(CapId.Vendor, [0, 0], { writable: [0, 0x0f] });
  for (let offset = 0; offset < 4096; offset += 4) config.write(offset, 4, 0xffff_ffff);
  const changed = Array.from({ length: 4096 }, (_, i) => i).filter((i) => config.read(i, 1) !== 0);
  // Ids, command, status and class as they were, cache line size, capability, interrupt line.
  expect(changed).toEqual([0, 2, 4, 5, 6, 9, 0x0c, 0x34, 0x3c, at, at + 3]);
  expect([config.read(0, 4), config.read(4, 2), config.read(at + 3, 1)]).toEqual([0x0002_0001, 0x077f, 0x0f]);
});
