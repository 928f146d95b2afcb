import * as fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { MmioBus, PioBus } from '../../../devicemodel/core/io-bus.ts';
import { HPET_HZ, Hpet, type HpetOptions } from '../../../devicemodel/hw/platform/hpet.ts';
import { applyAccess, busAccesses } from '../../support/bus-access.ts';
import { FakeClock } from '../../support/fake-clock.ts';
import { FakeMsi } from '../../support/fake-line.ts';

const Reg = { Caps: 0x00, Config: 0x10, Status: 0x20, Counter: 0xf0 } as const;
const timer = (n: number) => ({ config: 0x100 + n * 0x20, comparator: 0x108 + n * 0x20, fsb: 0x110 + n * 0x20 });
/** Timer configuration: enable, level, periodic, value set, FSB, IOAPIC pin. */
const Tn = { level: 2, enable: 4, periodic: 8, valueSet: 0x40, fsb: 0x4000, pin: (n: number) => n << 9 } as const;
const MS = 1_000_000;
/** 2^24 ticks a second: 16777 in a millisecond. */
const MS_TICKS = Math.floor(HPET_HZ / 1000);

function makeHpet(options: Partial<HpetOptions> = {}) {
  const clock = new FakeClock();
  const msi = new FakeMsi();
  const irqs: string[] = [];
  const ioapic = {
    pulse: (gsi: number) => irqs.push(`${gsi} pulse`),
    set: (gsi: number, asserted: boolean) => irqs.push(`${gsi} ${asserted ? 'high' : 'low'}`),
  };
  const hpet = new Hpet({ clock, msi, ioapic, ...options });
  const write = (offset: number, value: number) => hpet.write(offset, 4, value);
  const read = (offset: number) => hpet.read(offset, 4);
  return { clock, msi, irqs, hpet, read, write };
}

describe('main counter', () => {
  test('counts 2^24 a second and holds its value while it is off', () => {
    const { clock, read, write } = makeHpet();
    clock.advance(MS);
    expect(read(Reg.Counter)).toBe(0);
    write(Reg.Config, 1);
    clock.advance(1000 * MS);
    expect(read(Reg.Counter)).toBe(HPET_HZ);
    write(Reg.Config, 0);
    clock.advance(MS);
    expect(read(Reg.Counter)).toBe(HPET_HZ);
    write(Reg.Config, 1);
    clock.advance(1000 * MS);
    expect(read(Reg.Counter)).toBe(2 * HPET_HZ);
  });

  test('a 64-bit read takes both halves at one moment, across the end of 32 bits', () => {
    const { clock, hpet, write } = makeHpet();
    const mmio = new MmioBus();
    hpet.attach(new PioBus(), mmio);
    write(Reg.Counter, 0xffffffff);
    write(Reg.Config, 1);
    expect(mmio.readU64(0xfed000f0)).toBe(0xffffffffn);
    clock.advance(60); // one tick is 59.6 ns
    expect(mmio.readU64(0xfed000f0)).toBe(0n);
  });

  test('drives nothing by itself', () => {
    const { clock, write } = makeHpet();
    write(Reg.Config, 1);
    write(timer(0).comparator, 1000);
    expect(clock.armed).toBe(0);
  });
});

describe('one-shot', () => {
  test('pulses its pin when the counter meets the comparator', () => {
    const { clock, irqs, read, write } = makeHpet();
    write(timer(0).config, Tn.enable | Tn.pin(24));
    write(Reg.Config, 1);
    write(timer(0).comparator, MS_TICKS * 5);
    clock.advance(4_990_000);
    expect(irqs).toEqual([]);
    clock.advance(20_000);
    expect(irqs).toEqual(['24 pulse']);
    expect(read(timer(0).comparator)).toBe(MS_TICKS * 5);
    expect(read(Reg.Status)).toBe(0);
  });

  test('comes again when the 32-bit counter has gone round', () => {
    const { clock, irqs, write } = makeHpet();
    write(timer(0).config, Tn.enable | Tn.pin(24));
    write(Reg.Config, 1);
    write(timer(0).comparator, 1000);
    clock.advance(255_000 * MS);
    expect(irqs.length).toBe(1);
    clock.advance(2000 * MS); // 2^32 ticks are 256 s
    expect(irqs.length).toBe(2);
  });

  test('a match the host was too late for is delivered when the guest stops the timer', () => {
    const { clock, irqs, write } = makeHpet();
    write(timer(0).config, Tn.enable | Tn.pin(24));
    write(Reg.Config, 1);
    write(timer(0).comparator, 1000);
    const late = clock.nowNs() + MS;
    clock.nowNs = () => late;
    write(timer(0).config, Tn.pin(24));
    expect(irqs).toEqual(['24 pulse']);
  });

  test('a pin outside 24-31 is not taken', () => {
    const { read, write } = makeHpet();
    write(timer(2).config, Tn.enable | Tn.pin(5));
    expect(read(timer(2).config) & Tn.pin(31)).toBe(0);
  });
});

describe('periodic', () => {
  test('Linux’s set-up: value set, then the period', () => {
    const { clock, irqs, read, write } = makeHpet();
    write(Reg.Config, 1);
    write(timer(0).config, Tn.enable | Tn.periodic | Tn.valueSet | Tn.pin(24));
    write(timer(0).comparator, MS_TICKS * 2);
    expect(read(timer(0).config) & Tn.valueSet).toBe(0);
    write(timer(0).comparator, MS_TICKS);
    clock.advance(1_900_000);
    expect(irqs.length).toBe(0);
    clock.advance(8_200_000); // 2, 3 … 10 ms
    expect(irqs.length).toBe(9);
    expect(read(timer(0).comparator)).toBe(MS_TICKS * 11);
  });

  test('without its interrupt the comparator still moves, and the host sleeps', () => {
    const { clock, irqs, read, write } = makeHpet();
    write(Reg.Config, 1);
    write(timer(0).config, Tn.periodic | Tn.valueSet);
    write(timer(0).comparator, MS_TICKS);
    clock.advance(3_500_000);
    expect(clock.wakeUps).toBe(0);
    expect(read(timer(0).comparator)).toBe(MS_TICKS * 4);
    expect(irqs).toEqual([]);
  });

  test('a period of one tick does not wake the host more than 20,000 times a second', () => {
    const { clock, write } = makeHpet();
    write(Reg.Config, 1);
    write(timer(0).config, Tn.enable | Tn.periodic | Tn.valueSet | Tn.pin(24));
    write(timer(0).comparator, 1);
    clock.advance(100 * MS);
    expect(clock.wakeUps).toBeGreaterThan(1000);
    expect(clock.wakeUps).toBeLessThanOrEqual(2001);
  });

  test('a 64-bit comparator write split high half first keeps the period', () => {
    const { clock, irqs, write } = makeHpet();
    write(Reg.Config, 1);
    write(timer(0).config, Tn.enable | Tn.periodic | Tn.valueSet | Tn.pin(24));
    write(timer(0).comparator + 4, 0);
    write(timer(0).comparator, MS_TICKS);
    clock.advance(3_500_000);
    expect(irqs.length).toBe(3);
  });
});

describe('delivery', () => {
  test('level: asserted until the status bit is written', () => {
    const { clock, irqs, read, write } = makeHpet();
    write(Reg.Config, 1);
    write(timer(1).config, Tn.enable | Tn.periodic | Tn.valueSet | Tn.level | Tn.pin(25));
    write(timer(1).comparator, MS_TICKS);
    clock.advance(3_500_000);
    expect(irqs).toEqual(['25 high']);
    expect(read(Reg.Status)).toBe(2);
    write(Reg.Status, 2);
    expect(irqs).toEqual(['25 high', '25 low']);
    expect(read(Reg.Status)).toBe(0);
    clock.advance(MS);
    expect(irqs.at(-1)).toBe('25 high');
  });

  test('while a level is asserted the host is not woken for it', () => {
    const { clock, write } = makeHpet();
    write(Reg.Config, 1);
    write(timer(1).config, Tn.enable | Tn.periodic | Tn.valueSet | Tn.level | Tn.pin(25));
    write(timer(1).comparator, MS_TICKS);
    clock.advance(100 * MS);
    expect(clock.wakeUps).toBe(1);
  });

  test.for([
    ['the interrupt is disabled', Tn.level | Tn.pin(25)],
    ['it becomes an edge', Tn.enable | Tn.pin(25)],
    ['it becomes an FSB message', Tn.enable | Tn.level | Tn.fsb | Tn.pin(25)],
    ['it goes to another pin', Tn.enable | Tn.level | Tn.pin(26)],
  ] as const)('an asserted level goes low when %s', ([, config]) => {
    const { clock, irqs, write } = makeHpet();
    write(Reg.Config, 1);
    write(timer(0).config, Tn.enable | Tn.level | Tn.pin(25));
    write(timer(0).comparator, MS_TICKS);
    clock.advance(2 * MS);
    write(timer(0).config, config);
    expect(irqs).toEqual(['25 high', '25 low']);
  });

  test('FSB: the message the guest wrote', () => {
    const { clock, irqs, msi, write } = makeHpet();
    write(timer(3).fsb, 0x4041);
    write(timer(3).fsb + 4, 0xfee01000);
    write(timer(3).config, Tn.enable | Tn.fsb);
    write(Reg.Config, 1);
    write(timer(3).comparator, MS_TICKS);
    clock.advance(2 * MS);
    expect(msi.messages).toEqual([{ address: 0xfee01000, data: 0x4041 }]);
    expect(irqs).toEqual([]);
  });

  test('an enabled timer that is routed nowhere wakes nobody', () => {
    const { clock, write } = makeHpet();
    write(timer(0).config, Tn.enable);
    write(Reg.Config, 1);
    write(timer(0).comparator, 1000);
    expect(clock.armed).toBe(0);
  });
});

describe('legacy replacement', () => {
  test('is not there unless asked for', () => {
    const { read, write } = makeHpet();
    expect(read(Reg.Caps) & 0x8000).toBe(0);
    write(Reg.Config, 3);
    expect(read(Reg.Config)).toBe(1);
  });

  test('takes timers 0 and 1 to the pins of PIT and RTC and says so', () => {
    const switched: boolean[] = [];
    const { clock, irqs, read, write } = makeHpet({
      legacyReplacement: true,
      onLegacyRoute: (active) => switched.push(active),
    });
    expect(read(Reg.Caps) & 0x8000).toBe(0x8000);
    write(Reg.Config, 3);
    for (const n of [0, 1]) {
      write(timer(n).config, Tn.enable);
      write(timer(n).comparator, MS_TICKS * (n + 1));
    }
    clock.advance(3 * MS);
    expect(irqs).toEqual(['2 pulse', '8 pulse']);
    write(Reg.Config, 1);
    expect(switched).toEqual([true, false]);
  });
});

describe('life cycle', () => {
  test('reset lowers what is asserted', () => {
    const { clock, hpet, irqs, write } = makeHpet();
    write(Reg.Config, 1);
    write(timer(0).config, Tn.enable | Tn.level | Tn.pin(25));
    write(timer(0).comparator, MS_TICKS);
    clock.advance(2 * MS);
    hpet.reset();
    expect(irqs).toEqual(['25 high', '25 low']);
    expect(clock.armed).toBe(0);
  });

  test('S3 silences it; resume catches up with one interrupt', () => {
    const { clock, hpet, irqs, write } = makeHpet();
    write(Reg.Config, 1);
    write(timer(0).config, Tn.enable | Tn.periodic | Tn.valueSet | Tn.pin(24));
    write(timer(0).comparator, MS_TICKS);
    hpet.suspend();
    clock.advance(50 * MS);
    expect(irqs).toEqual([]);
    hpet.resume();
    clock.advance(1);
    expect(irqs.length).toBe(1);
  });

  test('any access sequence: no throw, reads in width, reset equals fresh', () => {
    const interesting = fc.array(
      fc.record({
        offset: fc.constantFrom(Reg.Config, Reg.Status, Reg.Counter, 0x100, 0x108, 0x110, 0x114, 0x120, 0x128, 0x10c),
        value: fc.oneof(
          fc.nat({ max: 0xffffffff }),
          fc.constantFrom(1, 0x4c, 0x304e, 0x404c, 0x3e0e, 5, 0x1000, MS_TICKS),
        ),
        delayNs: fc.nat({ max: 2 * MS }),
      }),
      { maxLength: 40 },
    );
    fc.assert(
      fc.property(interesting, busAccesses(0x400, MS), (setUp, after) => {
        const { clock, hpet } = makeHpet();
        for (const { offset, value, delayNs } of setUp) {
          hpet.write(offset, 4, value);
          clock.advance(delayNs);
        }
        for (const access of after) {
          clock.advance(access.delayNs);
          applyAccess(hpet, access);
          const wide = hpet.readU64(access.offset);
          expect(wide >= 0n && wide < 1n << 64n).toBe(true);
        }
        hpet.reset();
        expect(clock.armed).toBe(0);
        const fresh = makeHpet();
        for (const access of after) {
          clock.advance(access.delayNs);
          fresh.clock.advance(access.delayNs);
          expect(applyAccess(hpet, access)).toBe(applyAccess(fresh.hpet, access));
        }
      }),
    );
  });
});
