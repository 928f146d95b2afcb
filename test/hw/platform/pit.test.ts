import * as fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { PioBus } from '../../../devicemodel/core/io-bus.ts';
import { PIT_HZ, Pit } from '../../../devicemodel/hw/platform/pit.ts';
import { applyAccess, busAccesses } from '../../support/bus-access.ts';
import { FakeClock } from '../../support/fake-clock.ts';
import { FakeLine } from '../../support/fake-line.ts';

const CONTROL = 0x43;
const NMI_SC = 0x61;
const OUT2 = 0x20;
const MS = 1_000_000;
const TICK_NS = 1e9 / PIT_HZ;

function makePit() {
  const clock = new FakeClock();
  const irq = new FakeLine(2);
  const pit = new Pit({ clock, irq });
  const pio = new PioBus();
  pit.attach(pio);
  const out = (port: number, ...values: number[]) => {
    for (const value of values) pio.write(port, 1, value);
  };
  const inb = (port: number) => pio.read(port, 1) as number;
  const in16 = (port: number) => inb(port) | (inb(port) << 8);
  /** Gate of counter 2 on, as the guest does before it programs it. */
  const openGate2 = () => out(NMI_SC, 1);
  return { clock, irq, pit, pio, out, inb, in16, openGate2 };
}

describe('counter 0 and its interrupt', () => {
  test('mode 2 interrupts once a period, to the microsecond', () => {
    const { clock, irq, out } = makePit();
    out(CONTROL, 0x34);
    out(0x40, 0xa9, 0x04); // 1193 ticks, 999.85 us
    clock.advance(1193 * TICK_NS - 1000);
    expect(irq.edges).toBe(0);
    clock.advance(2000);
    expect(irq.edges).toBe(1);
    clock.advance(999 * MS);
    // 1193182 / 1193 = 1000.15 periods in a second
    expect(irq.edges).toBe(1000);
  });

  test('mode 0 interrupts once, then leaves the host alone', () => {
    const { clock, irq, out } = makePit();
    out(CONTROL, 0x30);
    out(0x40, 0, 0); // 65536 ticks, 54.9 ms
    clock.advance(54 * MS);
    expect(irq.edges).toBe(0);
    clock.advance(MS);
    expect(irq.edges).toBe(1);
    expect(clock.armed).toBe(0);
  });

  test('mode 4 strobes one tick after the count', () => {
    const { clock, irq, out } = makePit();
    out(CONTROL, 0x38);
    out(0x40, 0xe8, 0x03);
    clock.advance(Math.floor(1001 * TICK_NS) - 10);
    expect(irq.edges).toBe(0);
    clock.advance(20);
    expect(irq.edges).toBe(1);
    expect(clock.armed).toBe(0);
  });

  test('modes 1 and 5 wait for a gate that never rises', () => {
    for (const mode of [0x32, 0x3a]) {
      const { clock, irq, out } = makePit();
      out(CONTROL, mode);
      out(0x40, 0x10, 0x00);
      expect(clock.armed).toBe(0);
      clock.advance(1000 * MS);
      expect(irq.edges).toBe(0);
    }
  });

  test('a control word stops the interrupts', () => {
    const { clock, irq, out } = makePit();
    out(CONTROL, 0x34);
    out(0x40, 0xa9, 0x04);
    clock.advance(5 * MS);
    irq.clear();
    out(CONTROL, 0x30);
    clock.advance(100 * MS);
    expect(irq.edges).toBe(0);
  });

  test('half a count in mode 0 stops counting until the other half comes', () => {
    const { clock, irq, out } = makePit();
    out(CONTROL, 0x30);
    out(0x40, 0xa9, 0x04);
    out(0x40, 0xa9);
    clock.advance(100 * MS);
    expect(irq.edges).toBe(0);
    out(0x40, 0x04);
    clock.advance(2 * MS);
    expect(irq.edges).toBe(1);
  });

  test('a new period starts when the old one ends', () => {
    const { clock, irq, out, inb } = makePit();
    out(CONTROL, 0x34);
    out(0x40, 0x9c, 0x2e); // 11932 ticks, 10 ms
    clock.advance(5 * MS);
    out(0x40, 0xa9, 0x04); // 1 ms
    out(CONTROL, 0xe2); // status of counter 0: the new count is not in use yet
    expect(inb(0x40) & 0x40).toBe(0x40);
    clock.advance(4 * MS);
    expect(irq.edges).toBe(0);
    clock.advance(2 * MS);
    expect(irq.edges).toBe(2); // at 10 ms and at 11 ms
    out(CONTROL, 0xe2);
    expect(inb(0x40) & 0x40).toBe(0);
  });

  test('a late host makes one interrupt of several periods and stays on the grid', () => {
    const { clock, irq, out } = makePit();
    out(CONTROL, 0x34);
    out(0x40, 0xa9, 0x04);
    clock.advanceLate(10_400_000); // 10.4 periods of 999.85 us
    expect(irq.edges).toBe(1);
    clock.advance(700_000);
    expect(irq.edges).toBe(2);
  });

  test('an edge that the host has not delivered yet survives reprogramming', () => {
    const { clock, irq, out } = makePit();
    out(CONTROL, 0x30);
    out(0x40, 0xa9, 0x04);
    const late = clock.nowNs() + 2 * MS;
    clock.nowNs = () => late; // the host's timer is 1 ms late, the guest comes first
    out(CONTROL, 0x30);
    expect(irq.edges).toBe(1);
  });

  test('a period of two ticks does not wake the host more than 20,000 times a second', () => {
    const { clock, irq, out } = makePit();
    out(CONTROL, 0x34);
    out(0x40, 2, 0);
    clock.advance(100 * MS);
    expect(irq.edges).toBeGreaterThan(1000);
    expect(clock.wakeUps).toBeLessThanOrEqual(2001);
  });

  test('nothing is armed while no count is loaded', () => {
    const { clock, out, inb } = makePit();
    out(CONTROL, 0x34);
    inb(0x40);
    expect(clock.armed).toBe(0);
  });
});

describe('reading counters', () => {
  test('a latched count stays until both bytes are read', () => {
    const { clock, out, in16 } = makePit();
    out(CONTROL, 0x34);
    out(0x40, 0x00, 0x10);
    clock.advance(MS); // 1193 ticks
    out(CONTROL, 0x00);
    clock.advance(MS);
    out(CONTROL, 0x00); // ignored: the first latch was not read
    expect(in16(0x40)).toBe(0x1000 - 1193);
    out(CONTROL, 0x00);
    expect(in16(0x40)).toBe(0x1000 - 2386);
  });

  test('without a latch each byte is of its own moment', () => {
    const { clock, out, inb } = makePit();
    out(CONTROL, 0x34);
    out(0x40, 0x00, 0x10);
    clock.advance(MS);
    expect(inb(0x40)).toBe((0x1000 - 1193) & 0xff);
    clock.advance(MS);
    expect(inb(0x40)).toBe((0x1000 - 2386) >> 8);
  });

  test('one-byte access modes read and write one byte', () => {
    const { clock, out, inb } = makePit();
    out(CONTROL, 0x24); // high byte only, mode 2
    out(0x40, 0x10);
    clock.advance(MS);
    expect(inb(0x40)).toBe((0x1000 - 1193) >> 8);
    out(CONTROL, 0x14); // low byte only
    out(0x40, 200);
    clock.advance(10 * TICK_NS + 1);
    expect(inb(0x40)).toBe(190);
  });

  test('BCD counts from 10000 for a count of 0', () => {
    const { clock, out, in16 } = makePit();
    out(CONTROL, 0x31);
    out(0x40, 0, 0);
    clock.advance(MS); // 1193 ticks: 10000 - 1193 = 8807
    out(CONTROL, 0x00);
    expect(in16(0x40)).toBe(0x8807);
  });

  test('square wave counts down by two, twice in a period', () => {
    const { clock, out, in16, inb } = makePit();
    out(CONTROL, 0x36);
    out(0x40, 0xe8, 0x03); // 1000
    clock.advance(Math.ceil(100 * TICK_NS));
    out(CONTROL, 0x00);
    expect(in16(0x40)).toBe(800);
    clock.advance(Math.ceil(500 * TICK_NS));
    out(CONTROL, 0x00);
    expect(in16(0x40)).toBe(800);
    out(CONTROL, 0xe2);
    expect(inb(0x40) & 0x80).toBe(0); // second half: OUT is low
  });

  test('read-back gives status, then count', () => {
    const { clock, out, in16, inb } = makePit();
    out(CONTROL, 0x34);
    out(0x40, 0x00, 0x10);
    clock.advance(MS);
    out(CONTROL, 0xc2); // both, counter 0
    expect(inb(0x40)).toBe(0x80 | 0x34);
    expect(in16(0x40)).toBe(0x1000 - 1193);
  });

  test('the control register, and accesses wider than a byte, read as all ones', () => {
    const { pio, inb } = makePit();
    expect(inb(CONTROL)).toBe(0xff);
    expect(pio.read(0x40, 2)).toBe(0xffff);
  });
  test('port 0x61 answers every width with its byte', () => {
    const { pio, inb } = makePit();
    expect(pio.read(0x61, 2)).toBe(inb(0x61));
    expect(pio.read(0x61, 4)).toBe(inb(0x61));
  });
});

describe('counter 2 behind port 0x61', () => {
  test('mode 0 with the gate on: OUT2 rises after the count, as TSC calibration expects', () => {
    const { clock, out, inb, openGate2 } = makePit();
    openGate2();
    out(CONTROL, 0xb0);
    out(0x42, 0x9c, 0x2e); // 11932 ticks, 10 ms
    clock.advance(9_990_000);
    expect(inb(NMI_SC) & OUT2).toBe(0);
    clock.advance(20_000);
    expect(inb(NMI_SC) & OUT2).toBe(OUT2);
    expect(clock.armed).toBe(0);
  });

  test('the gate holds mode 0 and lets it go on where it was', () => {
    const { clock, out, in16, openGate2 } = makePit();
    openGate2();
    out(CONTROL, 0xb0);
    out(0x42, 0x00, 0x10);
    clock.advance(MS);
    out(NMI_SC, 0);
    clock.advance(5 * MS);
    out(CONTROL, 0x80);
    expect(in16(0x42)).toBe(0x1000 - 1193);
    openGate2();
    clock.advance(MS);
    out(CONTROL, 0x80);
    expect(in16(0x42)).toBe(0x1000 - 2386);
  });

  test('mode 1 starts with each rising gate', () => {
    const { clock, out, inb, openGate2 } = makePit();
    out(CONTROL, 0xb2);
    out(0x42, 0xa9, 0x04);
    expect(inb(NMI_SC) & OUT2).toBe(OUT2);
    openGate2();
    expect(inb(NMI_SC) & OUT2).toBe(0);
    clock.advance(2 * MS);
    expect(inb(NMI_SC) & OUT2).toBe(OUT2);
    out(NMI_SC, 0, 1);
    expect(inb(NMI_SC) & OUT2).toBe(0);
  });

  test('gate and speaker bits read back, the reserved upper bits do not', () => {
    const { pit, out, inb } = makePit();
    out(NMI_SC, 0xff);
    expect(inb(NMI_SC) & 0xcf).toBe(0x0f);
    expect(pit.isSpeakerOn).toBe(true);
    out(NMI_SC, 0x01);
    expect(pit.isSpeakerOn).toBe(false);
  });

  test('the refresh bit toggles every 15 us', () => {
    const { clock, inb } = makePit();
    let toggles = 0;
    let last = inb(NMI_SC) & 0x10;
    for (let us = 0; us < 1000; us++) {
      clock.advance(1000);
      const now = inb(NMI_SC) & 0x10;
      if (now !== last) toggles++;
      last = now;
    }
    expect(toggles).toBeGreaterThanOrEqual(65);
    expect(toggles).toBeLessThanOrEqual(67);
  });
});

describe('life cycle', () => {
  test('S3 silences the timer, resume brings it back on its grid', () => {
    const { clock, irq, pit, out } = makePit();
    out(CONTROL, 0x34);
    out(0x40, 0xa9, 0x04);
    pit.suspend();
    expect(clock.armed).toBe(0);
    clock.advance(5_500_000);
    pit.resume();
    clock.advance(600_000);
    expect(irq.edges).toBe(1);
  });

  test('any access sequence: no throw, reads in width, reset equals fresh', () => {
    fc.assert(
      fc.property(busAccesses(4, 3 * MS), busAccesses(4, 3 * MS), fc.boolean(), (before, after, gate) => {
        const clock = new FakeClock();
        const pit = new Pit({ clock, irq: new FakeLine() });
        const region = {
          read: pit.readTimer.bind(pit),
          write: pit.writeTimer.bind(pit),
        };
        if (gate) pit.writeNmiSc(1, 3);
        for (const access of before) {
          clock.advance(access.delayNs);
          applyAccess(region, access);
        }
        pit.reset();
        expect(clock.armed).toBe(0);
        const freshClock = new FakeClock(undefined, clock.nowNs());
        const fresh = new Pit({ clock: freshClock, irq: new FakeLine() });
        const freshRegion = { read: fresh.readTimer.bind(fresh), write: fresh.writeTimer.bind(fresh) };
        for (const access of after) {
          clock.advance(access.delayNs);
          freshClock.advance(access.delayNs);
          expect(applyAccess(region, access)).toBe(applyAccess(freshRegion, access));
          expect(pit.readNmiSc()).toBe(fresh.readNmiSc());
        }
      }),
    );
  });
});
