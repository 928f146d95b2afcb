/** PCI functions whose guest accesses and moves their BARs as no driver would (§4.3 group 4, and CVEs of that kind). */
import * as v from 'valibot';
import { describe, expect, test } from 'vitest';
import type { BarSpec } from '../../devicemodel/chips/pci-config-space.ts';
import { type AccessSize, allOnes } from '../../devicemodel/core/address.ts';
import { MmioBus, PioBus } from '../../devicemodel/core/io-bus.ts';
import { definePciDriver } from '../../devicemodel/hw/pci/driver.ts';
import type { EmulatedPciFunction } from '../../devicemodel/hw/pci/function.ts';
import { virtioRnd } from '../../devicemodel/hw/pci/virtio/rng.ts';
import { expectWithin } from '../support/bus-access.ts';
import { PciMachine } from '../support/pci-machine.ts';

const SLOT = '0:5.0';
/** Offsets of BAR registers. */
const Bar = { legacy: 0x10, msix: 0x14, modern: 0x20 } as const;
const SIZES: readonly AccessSize[] = [1, 2, 4];
const IO_END = 0xffff;

function machineWithRng(slots: readonly string[] = [SLOT]): PciMachine {
  const machine = new PciMachine();
  for (const slot of slots) machine.plug(slot, virtioRnd, { kernel: 'off', transport: 'transitional' });
  return machine.power();
}

const addressOf = (machine: PciMachine, register: number, slot = SLOT) =>
  (machine.cfgRead(slot, register) & (register === Bar.legacy ? ~3 : ~15)) >>> 0;

describe('accesses by every width (§4.3 group 4, ACRN CVE-2019-18844)', () => {
  test('at the start, the last byte, the end and misaligned: within width, nothing thrown', () => {
    const machine = machineWithRng();
    for (const { register, sizeBytes, isIo } of [
      { register: Bar.legacy, sizeBytes: 32, isIo: true },
      { register: Bar.msix, sizeBytes: 0x2000, isIo: false },
      { register: Bar.modern, sizeBytes: 0x4000, isIo: false },
    ]) {
      const base = addressOf(machine, register);
      for (const size of SIZES) {
        for (const offset of [0, 1, 2, 3, 5, sizeBytes - 4, sizeBytes - 2, sizeBytes - 1, sizeBytes, sizeBytes + 1]) {
          const read = () =>
            isIo ? (machine.pio.read(base + offset, size) ?? allOnes(size)) : machine.mmioRead(base + offset, size);
          expectWithin(read(), size);
          if (isIo) machine.pio.write(base + offset, size, allOnes(size));
          else machine.mmioWrite(base + offset, allOnes(size), size);
          // Over the end nobody answers.
          if (offset + size > sizeBytes) expect([offset, size, read()]).toEqual([offset, size, allOnes(size)]);
        }
      }
      if (!isIo) {
        for (const offset of [0, 4, sizeBytes - 8, sizeBytes - 4, sizeBytes]) {
          expect(machine.mmio.readU64(base + offset) ?? 0n).toBeLessThan(1n << 64n);
          machine.mmio.writeU64(base + offset, (1n << 64n) - 1n);
        }
      }
    }
  });

  test('the MSI-X table beyond its entries, and the pending bits beyond theirs', () => {
    const machine = machineWithRng();
    const base = addressOf(machine, Bar.msix);
    // Two vectors of 16 bytes; pending bits are one qword at 4096.
    for (const offset of [32, 0x800, 0xffc, 0x1008, 0x1ffc]) {
      machine.mmioWrite(base + offset, 0x1234_5678);
      expect(machine.mmioRead(base + offset)).toBe(0xffff_ffff);
    }
    machine.mmioWrite(base + 0x1000, 0xffff_ffff);
    expect(machine.mmioRead(base + 0x1000)).toBe(0);
    expect(machine.msi.messages).toEqual([]);
  });
});

describe('BARs that move (§4.3 group 4)', () => {
  test.each([
    ['address 0', 0],
    ['the top of the 32 bits', 0xffff_c000],
    ['RAM', 0x4000],
    ['the configuration window', 0xe000_0000],
    ['the window of another BAR', 0x8000_0000],
  ])('to %s: not decoded there, and at home again', (_name, to) => {
    const machine = machineWithRng();
    const home = machine.cfgRead(SLOT, Bar.msix) & ~15;
    machine.cfgWrite(SLOT, Bar.modern, to);
    machine.cfgWrite(SLOT, Bar.msix, to);
    machine.mmioWrite(to, 0x55, 1);
    expectWithin(machine.mmioRead(to, 1), 1);
    machine.cfgWrite(SLOT, Bar.msix, home);
    machine.mmioWrite((home >>> 0) + 8, 0x41);
    expect(machine.mmioRead((home >>> 0) + 8)).toBe(0x41);
  });

  test('two functions at one address: the one that was there stays, the other waits until it goes', () => {
    const machine = machineWithRng(['0:5.0', '0:6.0']);
    const there = addressOf(machine, Bar.msix, '0:5.0');
    machine.mmioWrite(there + 8, 0x55);
    machine.cfgWrite('0:6.0', Bar.msix, there);
    expect(machine.mmioRead(there + 8)).toBe(0x55);
    machine.cfgWrite('0:5.0', Bar.msix, 0x9000_0000);
    expect(machine.mmioRead(0x9000_0008)).toBe(0x55);
    expect(machine.mmioRead(there + 8)).toBe(0);
  });

  test('the sizing sequence, with decoding on: the size reads back, the BAR answers where it was all the while', () => {
    const machine = machineWithRng();
    const home = machine.cfgRead(SLOT, Bar.msix);
    machine.mmioWrite((home & ~15) >>> 0, 0x77);
    machine.cfgWrite(SLOT, Bar.msix, 0xffff_ffff);
    expect(machine.cfgRead(SLOT, Bar.msix)).toBe(0xffff_e000);
    expect(machine.mmioRead((home & ~15) >>> 0)).toBe(0x77);
    machine.cfgWrite(SLOT, Bar.msix, home);
    expect(machine.mmioRead((home & ~15) >>> 0)).toBe(0x77);
  });

  test('a port BAR over the last port or the configuration ports is not decoded', () => {
    const machine = machineWithRng();
    for (const to of [IO_END - 15, 0xcf0]) {
      machine.cfgWrite(SLOT, Bar.legacy, to);
      expect(machine.pio.read(to, 1) ?? 0xff).toBe(0xff);
    }
  });
});

/** Its guest moves the BAR in the middle of every write to it, as another CPU would. */
class Fidgety implements EmulatedPciFunction {
  readonly backing = 'device-model';
  readonly identity = { vendorId: 0x1234, deviceId: 0x5678, classCode: 0xff0000 };
  readonly bars: readonly BarSpec[] = [{ index: 0, kind: 'mem32', sizeBytes: 4096 }];
  onWrite: () => void = () => {};
  writes = 0;
  readBar(_index: number, _offset: number, size: AccessSize): number {
    this.onWrite();
    return 0x5a5a_5a5a & allOnes(size);
  }
  writeBar(): void {
    this.writes++;
    this.onWrite();
  }
  reset(): void {}
}

describe('a BAR goes away while an access to it is under way (ACRN CVE-2021-36145)', () => {
  function fidgety() {
    const fn = new Fidgety();
    const options = v.strictObject({});
    const driver = definePciDriver({ name: 'fidgety', summary: 'for tests', options, create: () => fn });
    const machine = new PciMachine().plug(SLOT, driver).power();
    return { fn, machine, home: addressOf(machine, 0x10) };
  }

  test('moved by the write itself: the access ends, the old place is free, the new one answers', () => {
    const { fn, machine, home } = fidgety();
    fn.onWrite = () => machine.cfgWrite(SLOT, 0x10, 0x9000_0000);
    machine.mmioWrite(home, 1);
    expect(fn.writes).toBe(1);
    expect(machine.mmioRead(home)).toBe(0xffff_ffff);
    expect(machine.mmioRead(0x9000_0000)).toBe(0x5a5a_5a5a);
  });

  test('moved between the halves of a 64-bit access: the second half finds what is there then', () => {
    const { fn, machine, home } = fidgety();
    fn.onWrite = () => machine.cfgWrite(SLOT, 0x04, 0, 2);
    expect(machine.mmio.readU64(home)).toBe(0xffff_ffff_5a5a_5a5an);
    machine.cfgWrite(SLOT, 0x04, 7, 2);
    machine.mmio.writeU64(home, 0n);
    expect(fn.writes).toBe(1);
  });

  test.each([() => new MmioBus(), () => new PioBus()])(
    'a region taken off twice frees only its own range',
    (makeBus) => {
      const bus = makeBus();
      const region = { read: () => 1, write: () => {} };
      const range = { base: 0x100, size: 0x10, name: 'old' };
      const old = bus.register(range, region);
      expect(bus.read(0x100, 1)).toBe(1);
      old.dispose();
      const next = bus.register({ ...range, name: 'new' }, { read: () => 2, write: () => {} });
      old.dispose();
      expect(bus.read(0x100, 1)).toBe(2);
      next.dispose();
      expect(bus.read(0x100, 1)).toBeUndefined();
    },
  );

  test('a region that takes itself off in its own access', () => {
    const bus = new MmioBus();
    const registration = bus.register(
      { base: 0x1000, size: 0x1000, name: 'goes' },
      {
        read: () => {
          registration.dispose();
          return 7;
        },
        write: () => registration.dispose(),
      },
    );
    expect(bus.read(0x1000, 4)).toBe(7);
    expect(bus.read(0x1000, 4)).toBeUndefined();
    expect(bus.write(0x1000, 4, 0)).toBe(false);
  });
});

test('configuration and registers are written before the devices are started (xhyve CVE-2022-36659)', () => {
  const machine = machineWithRng();
  for (let offset = 4; offset < 0x100; offset += 4) machine.cfgWrite(SLOT, offset, 0xffff_ffff);
  machine.cfgWrite(SLOT, Bar.legacy, 0x3000);
  for (let port = 0x3000; port < 0x3020; port++) {
    for (const size of SIZES) machine.pio.write(port, size, allOnes(size));
  }
  machine.host.reset();
  expect(machine.cfgRead(SLOT, 0)).toBe(0x1005_1af4);
});
