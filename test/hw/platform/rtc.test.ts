import * as fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { PioBus } from '../../../devicemodel/core/io-bus.ts';
import { GiB, MiB } from '../../../devicemodel/core/units.ts';
import { Rtc, type RtcChange, type RtcOptions } from '../../../devicemodel/hw/platform/rtc.ts';
import { applyAccess, busAccesses } from '../../support/bus-access.ts';
import { FakeClock } from '../../support/fake-clock.ts';
import { FakeLine } from '../../support/fake-line.ts';

const Reg = { Sec: 0, SecAlarm: 1, Min: 2, MinAlarm: 3, Hour: 4, HourAlarm: 5, Wday: 6, Day: 7, Month: 8, Year: 9 };
const [A, B, C, D, CENTURY] = [0x0a, 0x0b, 0x0c, 0x0d, 0x32];
const RegB = { h24: 2, binary: 4, uie: 0x10, aie: 0x20, pie: 0x40, set: 0x80 };
const S = 1_000_000_000;
const MS = 1_000_000;

/** 2024-02-29 12:34:56.000 UTC, a Thursday. */
function makeRtc(options: Partial<RtcOptions> = {}, wallMs = Date.UTC(2024, 1, 29, 12, 34, 56)) {
  const clock = new FakeClock(wallMs);
  const irq = new FakeLine(8);
  const changes: RtcChange[] = [];
  let alarms = 0;
  const rtc = new Rtc({
    clock,
    irq,
    lowMemoryBytes: 256 * MiB,
    highMemoryBytes: 0,
    onTimeChanged: (change) => changes.push(change),
    onAlarm: () => alarms++,
    ...options,
  });
  const pio = new PioBus();
  rtc.attach(pio);
  const read = (index: number) => {
    pio.write(0x70, 1, index);
    return pio.read(0x71, 1) as number;
  };
  const write = (index: number, value: number) => {
    pio.write(0x70, 1, index);
    pio.write(0x71, 1, value);
  };
  const time = () => [Reg.Hour, Reg.Min, Reg.Sec].map(read);
  return { clock, irq, rtc, pio, changes, alarms: () => alarms, read, write, time };
}

/** As Linux does it: SET, divider held, registers, then both back. */
function setTime(m: ReturnType<typeof makeRtc>, fields: Partial<Record<keyof typeof Reg, number>>) {
  const b = m.read(B);
  m.write(B, b | RegB.set);
  m.write(A, 0x70);
  for (const [name, value] of Object.entries(fields)) m.write(Reg[name as keyof typeof Reg], value);
  m.write(B, b);
  m.write(A, 0x26);
}

describe('time of day', () => {
  test('BCD, 24 hours, UTC, with century', () => {
    const { read } = makeRtc();
    expect([CENTURY, Reg.Year, Reg.Month, Reg.Day, Reg.Wday, Reg.Hour, Reg.Min, Reg.Sec].map(read)).toEqual([
      0x20, 0x24, 0x02, 0x29, 0x05, 0x12, 0x34, 0x56,
    ]);
  });

  test('binary', () => {
    const { read, write } = makeRtc();
    write(B, RegB.h24 | RegB.binary);
    expect([CENTURY, Reg.Year, Reg.Day, Reg.Hour, Reg.Sec].map(read)).toEqual([20, 24, 29, 12, 56]);
  });

  test.for([
    [0, 0x12],
    [1, 0x01],
    [11, 0x11],
    [12, 0x92],
    [13, 0x81],
    [23, 0x91],
  ] as const)('12-hour format shows %i o’clock as %i', ([hour, shown]) => {
    const { read, write } = makeRtc({}, Date.UTC(2024, 0, 1, hour));
    write(B, 0);
    expect(read(Reg.Hour)).toBe(shown);
  });

  test('the second turns when the host’s does', () => {
    const { clock, read } = makeRtc({}, Date.UTC(2024, 0, 1, 0, 0, 0) + 700);
    clock.advance(299 * MS);
    expect(read(Reg.Sec)).toBe(0);
    clock.advance(2 * MS);
    expect(read(Reg.Sec)).toBe(1);
  });

  test('goes over midnight, month, leap day and year', () => {
    const { clock, read } = makeRtc({}, Date.UTC(2024, 1, 28, 23, 59, 59));
    clock.advance(S);
    expect([Reg.Month, Reg.Day, Reg.Hour].map(read)).toEqual([0x02, 0x29, 0x00]);
    clock.advance(86_400 * S);
    expect([Reg.Month, Reg.Day].map(read)).toEqual([0x03, 0x01]);
    clock.advance(306 * 86_400 * S);
    expect([CENTURY, Reg.Year, Reg.Month, Reg.Day].map(read)).toEqual([0x20, 0x25, 0x01, 0x01]);
  });

  test('nobody looks: no timer runs', () => {
    const { clock } = makeRtc();
    clock.advance(3600 * S);
    expect(clock.wakeUps).toBe(0);
  });

  test('UIP is up for 244 us before each update and not otherwise', () => {
    const { clock, read } = makeRtc();
    clock.advance(S - 250_000);
    expect(read(A)).toBe(0x20);
    clock.advance(10_000);
    expect(read(A)).toBe(0xa0);
    clock.advance(240_000);
    expect(read(A)).toBe(0x20);
  });
});

describe('setting the time', () => {
  test('is held while SET, goes on from what was written, and is reported once', () => {
    const m = makeRtc();
    setTime(m, { Hour: 0x18, Min: 0x00, Sec: 0x00 });
    expect(m.time()).toEqual([0x18, 0x00, 0x00]);
    const lastS = Date.UTC(2024, 1, 29, 12, 34, 56) / 1000;
    const deltaS = Date.UTC(2024, 1, 29, 18, 0, 0) / 1000 - lastS;
    expect(m.changes).toEqual([{ lastS, deltaS }]);
  });

  test('the divider’s release gives the first update half a second later', () => {
    const m = makeRtc();
    m.clock.advance(900 * MS);
    setTime(m, { Sec: 0x10 });
    m.clock.advance(490 * MS);
    expect(m.read(Reg.Sec)).toBe(0x10);
    m.clock.advance(20 * MS);
    expect(m.read(Reg.Sec)).toBe(0x11);
  });

  test('without SET every register counts at once', () => {
    const m = makeRtc();
    m.write(Reg.Hour, 0x13);
    m.write(Reg.Min, 0x00);
    expect(m.time()).toEqual([0x13, 0x00, 0x56]);
    expect(m.changes.map((c) => c.deltaS)).toEqual([3600, -34 * 60]);
  });

  test('writing what is there is no change', () => {
    const m = makeRtc();
    m.write(Reg.Hour, 0x12);
    expect(m.changes).toEqual([]);
  });

  test('nonsense stops the clock until it is a date again', () => {
    const m = makeRtc();
    m.write(Reg.Month, 0x13);
    m.clock.advance(10 * S);
    expect([m.read(Reg.Month), m.read(Reg.Sec)]).toEqual([0x13, 0x56]);
    m.write(Reg.Month, 0x02);
    m.clock.advance(10 * S);
    expect([m.read(Reg.Month), m.read(Reg.Min), m.read(Reg.Sec)]).toEqual([0x02, 0x35, 0x06]);
  });

  test('31 February does not exist', () => {
    const m = makeRtc();
    m.write(Reg.Day, 0x31);
    m.clock.advance(5 * S);
    expect(m.read(Reg.Sec)).toBe(0x56);
  });

  test('a held divider stops the clock', () => {
    const m = makeRtc();
    m.write(A, 0x70);
    m.clock.advance(10 * S);
    expect(m.read(Reg.Sec)).toBe(0x56);
  });

  test('the century byte moves the year', () => {
    const m = makeRtc();
    m.write(CENTURY, 0x21);
    expect(m.changes[0]?.deltaS).toBe((Date.UTC(2124, 1, 29) - Date.UTC(2024, 1, 29)) / 1000);
  });
});

describe('the host’s clock', () => {
  test('a step carries over and is reported', () => {
    const m = makeRtc();
    m.clock.advance(4 * S);
    m.clock.jumpWall(3_600_000);
    expect(m.time()).toEqual([0x13, 0x35, 0x00]);
    expect(m.changes).toEqual([{ lastS: Date.UTC(2024, 1, 29, 12, 35, 0) / 1000, deltaS: 3600 }]);
  });

  test('backwards too, once', () => {
    const m = makeRtc();
    m.clock.jumpWall(-60_000);
    m.time();
    expect(m.time()).toEqual([0x12, 0x33, 0x56]);
    expect(m.changes.map((c) => c.deltaS)).toEqual([-60]);
  });

  test('less than a second is not a step', () => {
    const m = makeRtc();
    m.clock.jumpWall(900);
    expect(m.time()).toEqual([0x12, 0x34, 0x56]);
    expect(m.changes).toEqual([]);
  });

  test('a time the guest set keeps its distance', () => {
    const m = makeRtc();
    setTime(m, { Hour: 0x10 });
    m.clock.jumpWall(120_000);
    expect(m.time()).toEqual([0x10, 0x36, 0x56]);
  });
});

describe('interrupts', () => {
  test('periodic: asserted until register C is read, then on the grid again', () => {
    const { clock, irq, read, write } = makeRtc();
    write(A, 0x26); // 1024 Hz
    write(B, RegB.h24 | RegB.pie);
    clock.advance(970_000);
    expect(irq.asserted).toBe(false);
    clock.advance(10_000); // 976.6 us
    expect(irq.asserted).toBe(true);
    expect(read(C)).toBe(0xc0);
    expect(irq.asserted).toBe(false);
    clock.advance(970_000); // 1953.1 us from the start
    expect(irq.asserted).toBe(false);
    clock.advance(10_000);
    expect(irq.asserted).toBe(true);
  });

  test('an interrupt nobody takes wakes the host once', () => {
    const { clock, irq, write } = makeRtc();
    write(A, 0x23); // 8192 Hz
    write(B, RegB.h24 | RegB.pie);
    clock.advance(10 * S);
    expect(clock.wakeUps).toBe(1);
    expect(irq.edges).toBe(1);
  });

  test.for([
    [1, 256],
    [2, 128],
    [3, 8192],
    [8, 256],
    [15, 2],
  ] as const)('rate %i is %i Hz', ([rate, hz]) => {
    const { clock, irq, read, write } = makeRtc();
    write(A, 0x20 | rate);
    write(B, RegB.h24 | RegB.pie);
    const start = clock.nowNs();
    for (let n = 0; n < 8; n++) {
      clock.advance((clock.nextDueNs as number) - clock.nowNs());
      read(C);
    }
    expect(irq.edges).toBe(8);
    expect(clock.nowNs() - start).toBe(Math.ceil((8 * S) / hz));
  });

  test('update-ended comes with each second', () => {
    const { clock, irq, read, write } = makeRtc();
    write(B, RegB.h24 | RegB.uie);
    clock.advance(S - 1);
    expect(irq.asserted).toBe(false);
    clock.advance(1);
    expect(irq.asserted).toBe(true);
    expect(read(C)).toBe(0x90);
    clock.advance(S);
    expect(read(C)).toBe(0x90);
  });

  test('a time written outside SET is an update at once, and goes over the alarm', () => {
    const m = makeRtc();
    m.write(Reg.HourAlarm, 0x13);
    m.write(Reg.MinAlarm, 0x00);
    m.write(Reg.SecAlarm, 0x30);
    m.write(B, RegB.h24 | RegB.aie | RegB.uie);
    m.write(Reg.Min, 0x34); // what it is
    expect(m.irq.asserted).toBe(false);
    m.write(Reg.Min, 0x33); // back
    expect(m.irq.asserted).toBe(true);
    expect(m.read(C)).toBe(0x90);
    m.write(Reg.Hour, 0x13);
    expect(m.irq.asserted).toBe(true);
    expect(m.read(C)).toBe(0xb0);
    expect(m.alarms()).toBe(1);
    m.write(Reg.Sec, 0x57);
    expect(m.read(C)).toBe(0x90);
    m.clock.advance(S);
    expect(m.read(C)).toBe(0x90);
  });

  test('the end of SET is an update at once, and an alarm if it is its time', () => {
    const m = makeRtc();
    m.write(Reg.HourAlarm, 0x13);
    m.write(Reg.MinAlarm, 0x00);
    m.write(Reg.SecAlarm, 0x30);
    m.write(B, RegB.h24 | RegB.aie | RegB.set);
    m.write(Reg.Hour, 0x14); // past the alarm
    m.write(B, RegB.h24 | RegB.aie | RegB.uie);
    expect(m.irq.asserted).toBe(true);
    expect(m.read(C)).toBe(0x90);
    m.write(B, RegB.h24 | RegB.aie | RegB.set);
    for (const [reg, value] of [
      [Reg.Hour, 0x13],
      [Reg.Min, 0x00],
      [Reg.Sec, 0x30],
    ] as const)
      m.write(reg, value);
    m.write(B, RegB.h24 | RegB.aie);
    expect(m.read(C)).toBe(0xa0);
  });

  test('SET clears the update interrupt enable', () => {
    const { read, write } = makeRtc();
    write(B, RegB.h24 | RegB.uie | RegB.set);
    expect(read(B)).toBe(RegB.h24 | RegB.set);
  });

  test('alarm at a time of day, with one timer from now to then', () => {
    const { clock, irq, alarms, read, write } = makeRtc();
    write(Reg.HourAlarm, 0x13);
    write(Reg.MinAlarm, 0x00);
    write(Reg.SecAlarm, 0x30);
    write(B, RegB.h24 | RegB.aie);
    clock.advance((25 * 60 + 33) * S);
    expect(irq.asserted).toBe(false);
    clock.advance(S);
    expect(irq.asserted).toBe(true);
    expect(clock.wakeUps).toBe(1);
    expect(alarms()).toBe(1);
    expect(read(C)).toBe(0xa0);
    clock.advance(86_399 * S);
    expect(irq.asserted).toBe(false);
    clock.advance(S);
    expect(irq.asserted).toBe(true);
  });

  test('don’t care in the hours: every hour', () => {
    const { clock, read, write } = makeRtc();
    write(Reg.HourAlarm, 0xff);
    write(Reg.MinAlarm, 0x40);
    write(Reg.SecAlarm, 0x00);
    write(B, RegB.h24 | RegB.aie);
    clock.advance((5 * 60 + 4) * S);
    expect(read(C)).toBe(0xa0);
    clock.advance(3600 * S);
    expect(read(C)).toBe(0xa0);
  });

  test('don’t care everywhere: every second', () => {
    const { clock, read, write } = makeRtc();
    for (const index of [Reg.HourAlarm, Reg.MinAlarm, Reg.SecAlarm]) write(index, 0xc0);
    write(B, RegB.h24 | RegB.aie);
    clock.advance(S);
    expect(read(C)).toBe(0xa0);
    clock.advance(S);
    expect(read(C)).toBe(0xa0);
  });

  test('an alarm that matches no time arms nothing', () => {
    const { clock, write } = makeRtc();
    write(Reg.HourAlarm, 0x77);
    write(B, RegB.h24 | RegB.aie);
    expect(clock.armed).toBe(0);
  });

  test('setting the clock back with an alarm on does not hang', () => {
    const m = makeRtc();
    m.write(Reg.MinAlarm, 0x00);
    m.write(Reg.HourAlarm, 0x13);
    m.write(B, RegB.h24 | RegB.aie);
    m.write(Reg.Hour, 0x11);
    m.clock.advance((85 * 60 + 3) * S);
    expect(m.irq.asserted).toBe(false);
    m.clock.advance(S);
    expect(m.irq.asserted).toBe(true);
  });

  test('a step of the host’s clock over the alarm sets it off', () => {
    const { clock, irq, read, write } = makeRtc();
    write(Reg.HourAlarm, 0x13);
    write(B, RegB.h24 | RegB.aie);
    clock.jumpWall(7_200_000);
    read(D);
    expect(irq.asserted).toBe(true);
  });

  test('flags appear only for enabled sources', () => {
    const { clock, read, write } = makeRtc();
    write(A, 0x26);
    clock.advance(10 * S);
    expect(read(C)).toBe(0);
  });

  test('clearing the enable of a pending interrupt releases the line, setting it asserts again', () => {
    const { clock, irq, write } = makeRtc();
    write(B, RegB.h24 | RegB.uie);
    clock.advance(S);
    write(B, RegB.h24);
    expect(irq.asserted).toBe(false);
    write(B, RegB.h24 | RegB.uie);
    expect(irq.asserted).toBe(true);
  });
});

describe('CMOS memory', () => {
  test('memory sizes in blocks of 64 KiB', () => {
    const { read } = makeRtc({ lowMemoryBytes: 2 * GiB, highMemoryBytes: 5 * GiB });
    expect(read(0x34) | (read(0x35) << 8)).toBe((2 * GiB - 16 * MiB) / 65536);
    expect(read(0x5b) | (read(0x5c) << 8) | (read(0x5d) << 16)).toBe((5 * GiB) / 65536);
  });

  test('free bytes hold what was written, status D does not', () => {
    const { read, write } = makeRtc();
    write(0x7f, 0xa5);
    write(D, 0);
    expect([read(0x7f), read(D)]).toEqual([0xa5, 0x80]);
  });

  test('the NMI bit of the index does not matter', () => {
    const { read } = makeRtc();
    expect(read(0x80 | D)).toBe(0x80);
  });

  test('S3 leaves a mark for the firmware', () => {
    const { read, rtc } = makeRtc();
    rtc.markS3Resume();
    expect(read(0x0f)).toBe(0xfe);
  });
});

describe('life cycle', () => {
  test('in S3 only the alarm goes on', () => {
    const { clock, rtc, alarms, write } = makeRtc();
    write(A, 0x2f);
    write(Reg.HourAlarm, 0x12);
    write(Reg.MinAlarm, 0x35);
    write(B, RegB.h24 | RegB.pie | RegB.uie | RegB.aie);
    rtc.suspend();
    clock.advance(60 * S);
    expect(clock.wakeUps).toBe(1);
    expect(alarms()).toBe(1);
    rtc.resume();
    expect(clock.armed).toBeGreaterThan(0);
  });

  test('reset releases the line and takes the host’s time again', () => {
    const m = makeRtc();
    setTime(m, { Hour: 0x03 });
    m.write(B, RegB.h24 | RegB.uie);
    m.clock.advance(2 * S);
    m.rtc.reset();
    expect(m.irq.asserted).toBe(false);
    expect(m.clock.armed).toBe(0);
    expect(m.time()).toEqual([0x12, 0x34, 0x58]);
  });

  test('any access sequence: no throw, reads in width, reset equals fresh', () => {
    const cmosAccess = fc.array(fc.tuple(fc.nat({ max: 0x35 }), fc.nat({ max: 255 }), fc.nat({ max: 3 * S })), {
      maxLength: 40,
    });
    fc.assert(
      fc.property(cmosAccess, busAccesses(2, S), (before, after) => {
        const m = makeRtc();
        for (const [index, value, delayNs] of before) {
          m.write(index, value);
          m.clock.advance(delayNs);
        }
        m.rtc.reset();
        expect(m.clock.armed).toBe(0);
        const clock = new FakeClock(m.clock.wallMs(), m.clock.nowNs());
        const fresh = new Rtc({ clock, irq: new FakeLine(), lowMemoryBytes: 256 * MiB, highMemoryBytes: 0 });
        for (const access of after) {
          m.clock.advance(access.delayNs);
          clock.advance(access.delayNs);
          expect(applyAccess(m.rtc, access)).toBe(applyAccess(fresh, access));
        }
      }),
    );
  });

  test('every date from 1970 to 2199 comes back as it was set', () => {
    fc.assert(
      fc.property(fc.nat({ max: 7_258_118_399 }), fc.boolean(), fc.boolean(), (seconds, isBinary, is24Hour) => {
        const m = makeRtc({}, seconds * 1000);
        m.write(B, (isBinary ? RegB.binary : 0) | (is24Hour ? RegB.h24 : 0));
        // Writing a register back unchanged decodes all of them.
        m.write(Reg.Min, m.read(Reg.Min));
        expect(m.changes).toEqual([]);
        m.clock.advance(S);
        m.read(Reg.Sec);
        m.write(B, RegB.h24 | RegB.binary);
        const date = new Date((seconds + 1) * 1000);
        expect([m.read(CENTURY) * 100 + m.read(Reg.Year), m.read(Reg.Month), m.read(Reg.Day), ...m.time()]).toEqual([
          date.getUTCFullYear(),
          date.getUTCMonth() + 1,
          date.getUTCDate(),
          date.getUTCHours(),
          date.getUTCMinutes(),
          date.getUTCSeconds(),
        ]);
      }),
    );
  });
});
