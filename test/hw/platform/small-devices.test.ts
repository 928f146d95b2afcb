/** Reset register, debug exit, extended CMOS and the quiet ports. */
import * as fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { PioBus } from '../../../devicemodel/core/io-bus.ts';
import { CmosIo, CmosMemory } from '../../../devicemodel/hw/platform/cmos-io.ts';
import { DebugExit } from '../../../devicemodel/hw/platform/debug-exit.ts';
import { QuietPorts } from '../../../devicemodel/hw/platform/quiet-ports.ts';
import { ResetRegister } from '../../../devicemodel/hw/platform/reset.ts';
import { applyAccess, busAccesses } from '../../support/bus-access.ts';
import { FakePower } from '../../support/fake-line.ts';

describe('reset register', () => {
  const makeReset = () => {
    const power = new FakePower();
    return { power, register: new ResetRegister(power) };
  };

  test.for([
    [0x06, 'system-reset', 0x06],
    [0x04, 'system-reset', 0x04],
    [0x0e, 'full-reset', 0x00],
    [0x08, 'full-reset', 0x00],
  ] as const)('%i', ([value, kind, readBack]) => {
    const { power, register } = makeReset();
    register.write(0, 1, value);
    expect(power.kinds).toEqual([kind]);
    register.reset();
    expect(register.read(0, 1)).toBe(readBack);
  });

  test('the same value resets again after a reset', () => {
    const { power, register } = makeReset();
    register.write(0, 1, 0x06);
    register.reset();
    register.write(0, 1, 0x06);
    expect(power.events.length).toBe(2);
  });

  test('other bits are kept, wide accesses refused', () => {
    const { power, register } = makeReset();
    register.write(0, 1, 0x11);
    register.write(0, 2, 0x06);
    expect(register.read(0, 1)).toBe(0x11);
    expect(register.read(0, 2)).toBe(0xffff);
    expect(power.events).toEqual([]);
  });
});

test('debug exit ends the VM on any write', () => {
  const power = new FakePower();
  const exit = new DebugExit(power);
  expect([exit.read(0, 1), exit.read(0, 2), exit.read(0, 4)]).toEqual([0xff, 0xffff, 0xffff]);
  exit.write(0, 4, 0x10);
  expect(power.kinds).toEqual(['poweroff']);
});

describe('extended CMOS', () => {
  const makeCmos = () => {
    const memory = new CmosMemory();
    const cmos = new CmosIo(memory);
    const read = (index: number) => {
      cmos.write(0, 1, index);
      return cmos.read(1, 1);
    };
    const write = (index: number, value: number) => {
      cmos.write(0, 1, index);
      cmos.write(1, 1, value);
    };
    return { memory, cmos, read, write };
  };

  test('keeps the reboot reason over a reset', () => {
    const { cmos, read, write } = makeCmos();
    write(0x10, 0x42);
    cmos.reset();
    expect([read(0x10), read(0x10)]).toEqual([0x42, 0x42]);
  });

  test('gives the RPMB key away once', () => {
    const { memory, cmos, read } = makeCmos();
    const key = [...memory.rpmbKey];
    const readKey = () => key.map((_, i) => read(0x20 + i));
    expect(key).toHaveLength(64);
    cmos.storeRpmbKey();
    expect(readKey()).toEqual(key);
    expect(readKey()).toEqual(key.map(() => 0));
    expect(read(0x60)).toBe(0);
  });

  test('refuses accesses out of order and starts over', () => {
    const { cmos, write, read } = makeCmos();
    write(0x10, 0x42);
    expect(cmos.read(1, 1)).toBe(0xff);
    cmos.write(0, 1, 0x10);
    cmos.write(0, 1, 0x10);
    expect(cmos.read(1, 1)).toBe(0xff);
    expect(read(0x10)).toBe(0x42);
  });

  test('any access sequence: no throw, reads in width', () => {
    fc.assert(
      fc.property(busAccesses(2), (accesses) => {
        const { cmos } = makeCmos();
        for (const access of accesses) applyAccess(cmos, access);
      }),
    );
  });
});

test('quiet ports answer all ones at the places the firmware probes', () => {
  const pio = new PioBus();
  new QuietPorts().attach(pio);
  for (const port of [0x72, 0x80, 0x84, 0x4d0, 0x4d1]) {
    expect(pio.write(port, 1, 0x55)).toBe(true);
    expect([pio.read(port, 1), pio.read(port, 4)]).toEqual([0xff, 0xffffffff]);
  }
});
