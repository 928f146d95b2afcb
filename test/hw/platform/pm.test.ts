import * as fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { PioBus } from '../../../devicemodel/core/io-bus.ts';
import { AcpiPm } from '../../../devicemodel/hw/platform/pm.ts';
import { applyAccess, busAccesses } from '../../support/bus-access.ts';
import { FakeLine, FakePower } from '../../support/fake-line.ts';

const [STATUS, ENABLE, CONTROL, SMI] = [0x400, 0x402, 0x404, 0xb2];
const Sts = { powerButton: 1 << 8, rtc: 1 << 10, wake: 1 << 15 };
const SCI_EN = 1;

function makePm() {
  const sci = new FakeLine(9);
  const power = new FakePower();
  const told: string[] = [];
  const pm = new AcpiPm({
    sci,
    power,
    onSoftOff: () => told.push(`soft off before ${power.events.length} requests`),
    onWake: (source) => told.push(`wake by ${source}`),
  });
  const pio = new PioBus();
  pm.attach(pio);
  const read = (port: number) => pio.read(port, 2) as number;
  const write = (port: number, value: number) => pio.write(port, 2, value);
  const smi = (value: number) => pio.write(SMI, 1, value);
  return { sci, power, told, pm, pio, read, write, smi };
}

describe('ACPI mode', () => {
  test('the SMI command port switches SCI_EN, which the guest cannot write', () => {
    const { read, smi, write } = makePm();
    smi(0xa0);
    expect(read(CONTROL)).toBe(SCI_EN);
    write(CONTROL, 0);
    expect(read(CONTROL)).toBe(SCI_EN);
    smi(0xa1);
    write(CONTROL, SCI_EN);
    expect(read(CONTROL)).toBe(0);
  });

  test('other commands and widths do nothing, reads are all ones', () => {
    const { pio, read, smi } = makePm();
    smi(0x55);
    pio.write(SMI, 2, 0xa0);
    expect(read(CONTROL)).toBe(0);
    expect(pio.read(SMI, 1)).toBe(0xff);
  });
});

describe('power button', () => {
  test('raises the SCI until the guest clears it', () => {
    const { sci, pm, read, smi, write } = makePm();
    smi(0xa0);
    write(ENABLE, Sts.powerButton);
    expect(pm.isPowerButtonEnabled).toBe(true);
    pm.pressPowerButton();
    expect(sci.asserted).toBe(true);
    expect(read(STATUS)).toBe(Sts.powerButton);
    pm.pressPowerButton();
    expect(sci.edges).toBe(1);
    write(STATUS, Sts.powerButton);
    expect(sci.asserted).toBe(false);
    expect(read(STATUS)).toBe(0);
  });

  test('pressed before ACPI is on it is told when ACPI comes on', () => {
    const { sci, pm, smi, write } = makePm();
    write(ENABLE, Sts.powerButton);
    pm.pressPowerButton();
    expect(sci.asserted).toBe(false);
    expect(pm.isPowerButtonEnabled).toBe(false);
    smi(0xa0);
    expect(sci.asserted).toBe(true);
  });

  test('disabling the event lowers the SCI', () => {
    const { sci, pm, smi, write } = makePm();
    smi(0xa0);
    write(ENABLE, Sts.powerButton);
    pm.pressPowerButton();
    write(ENABLE, 0);
    expect(sci.asserted).toBe(false);
  });
});

describe('RTC alarm', () => {
  test('is an event only for a guest that asked', () => {
    const { sci, pm, read, smi, write } = makePm();
    smi(0xa0);
    pm.rtcAlarm();
    expect(read(STATUS)).toBe(0);
    write(ENABLE, Sts.rtc);
    pm.rtcAlarm();
    expect(read(STATUS)).toBe(Sts.rtc);
    expect(sci.asserted).toBe(true);
  });
});

describe('sleep', () => {
  test('S5 powers off, after the event', () => {
    const { power, told, write } = makePm();
    write(CONTROL, 0x3400);
    expect(told).toEqual(['soft off before 0 requests']);
    expect(power.kinds).toEqual(['poweroff']);
  });

  test('S3 suspends; SLP_EN reads back as 0', () => {
    const { power, read, write } = makePm();
    write(CONTROL, 0x2c00);
    expect(power.kinds).toEqual(['suspend']);
    expect(read(CONTROL)).toBe(0x0c00);
  });

  test.for([0, 1, 2, 4, 6, 7])('sleep type %i does nothing', (type) => {
    const { power, write } = makePm();
    write(CONTROL, 0x2000 | (type << 10));
    expect(power.events).toEqual([]);
  });

  test('without SLP_EN nothing sleeps', () => {
    const { power, write } = makePm();
    write(CONTROL, 0x1400);
    expect(power.events).toEqual([]);
  });

  test('button and alarm wake a suspended VM only; then WAK_STS is set', () => {
    const { told, pm, read, smi, write } = makePm();
    smi(0xa0);
    write(ENABLE, Sts.rtc | Sts.powerButton);
    pm.pressPowerButton();
    expect(told).toEqual([]);
    write(STATUS, Sts.powerButton);
    pm.suspend();
    expect(told).toEqual([]);
    pm.rtcAlarm();
    pm.pressPowerButton();
    expect(told).toEqual(['wake by rtc-alarm', 'wake by power-button']);
    pm.resume();
    expect(read(STATUS)).toBe(Sts.wake | Sts.rtc | Sts.powerButton);
    write(STATUS, 0xffff);
    expect(read(STATUS)).toBe(0);
  });
});

test('an event that came before the VM was suspended, and was not seen, wakes it at once', () => {
  const { told, pm, smi, write } = makePm();
  smi(0xa0);
  write(ENABLE, Sts.rtc);
  pm.rtcAlarm();
  pm.pressPowerButton(); // not enabled: no reason to wake
  pm.suspend();
  expect(told).toEqual(['wake by rtc-alarm']);
});

test('reset lowers the SCI', () => {
  const { sci, pm, smi, write } = makePm();
  smi(0xa0);
  write(ENABLE, Sts.powerButton);
  pm.pressPowerButton();
  pm.reset();
  expect(sci.asserted).toBe(false);
});

test('any access sequence: no throw, reads in width, reset equals fresh', () => {
  const region = (pio: PioBus) => ({
    read: (offset: number, size: 1 | 2 | 4) => pio.read(offset < 6 ? STATUS + offset : SMI, size) as number,
    write: (offset: number, size: 1 | 2 | 4, value: number) => {
      pio.write(offset < 6 ? STATUS + offset : SMI, size, value);
    },
  });
  fc.assert(
    fc.property(busAccesses(8), busAccesses(8), (before, after) => {
      const used = makePm();
      for (const access of before) {
        applyAccess(region(used.pio), access);
        if (access.value === 0xff) used.pm.pressPowerButton();
      }
      used.pm.reset();
      const fresh = makePm();
      for (const access of after) {
        expect(applyAccess(region(used.pio), access)).toBe(applyAccess(region(fresh.pio), access));
        expect(used.sci.asserted).toBe(fresh.sci.asserted);
      }
    }),
  );
});
