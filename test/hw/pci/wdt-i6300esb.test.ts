import * as fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { wdtI6300esb } from '../../../devicemodel/hw/pci/wdt-i6300esb.ts';
import { busAccesses } from '../../support/bus-access.ts';
import { playRecordedCase } from '../../support/golden-player.ts';
import { PciMachine } from '../../support/pci-machine.ts';
import { recordedDir, recordedTrace } from '../../support/recorded-cases.ts';

const AT = '0:6.0';
const BAR = 0x8000_0000;
const [CONFIGURATION, LOCK] = [0x60, 0x68];
const [TIMER1, TIMER2, INTERRUPT, RELOAD] = [0x00, 0x04, 0x08, 0x0c];
const S = 1e9;

function makeWatchdog() {
  const machine = new PciMachine().plug(AT, wdtI6300esb).power();
  machine.hsm.calls.length = 0;
  const write = (offset: number, value: number, size: 1 | 2 | 4) => machine.mmioWrite(BAR + offset, value, size);
  const unlock = () => {
    write(RELOAD, 0x80, 2);
    write(RELOAD, 0x86, 2);
  };
  const setTimer = (register: number, seconds: number) => {
    unlock();
    write(register, seconds * 1024, 4);
  };
  const ping = () => {
    unlock();
    write(RELOAD, 0x100, 2);
  };
  const enable = () => machine.cfgWrite(AT, LOCK, 2, 1);
  const reload = () => machine.mmioRead(BAR + RELOAD, 2);
  /** As Linux starts it: no interrupt, both stages half of the timeout. */
  const start = (stageSeconds: number) => {
    machine.cfgWrite(AT, CONFIGURATION, 0x0003, 2);
    setTimer(TIMER1, stageSeconds);
    setTimer(TIMER2, stageSeconds);
    ping();
    enable();
  };
  return { machine, clock: machine.clock, power: machine.power_, write, unlock, setTimer, ping, enable, reload, start };
}

test.skipIf(recordedDir === undefined)('recorded guest', () => {
  const { machine } = makeWatchdog();
  const header = recordedTrace('wdt').find((e) => e.op === 'pci_fn' && e.bdf === AT).hex;
  expect(machine.cfgDump(AT)).toBe(header);
  const comparisons = playRecordedCase(
    'wdt',
    {
      pio: machine.pio,
      mmio: machine.mmio,
      clock: machine.clock,
      takeIrqs: () => [],
      pciConfig: machine.host,
    },
    (action) => action.op.startsWith('cfg_') || action.op.startsWith('mmio_'),
  );
  expect(comparisons.length).toBeGreaterThan(10);
  expect(comparisons.map((c) => ({ ...c, played: c.recorded }))).toEqual(comparisons);
});

describe('a guest that stops feeding it', () => {
  test('is reset after both stages', () => {
    const { clock, power, reload, start } = makeWatchdog();
    start(15);
    clock.advance(14.9 * S);
    expect(reload()).toBe(0x100); // first stage
    clock.advance(0.2 * S);
    expect(reload()).toBe(0);
    clock.advance(14.8 * S);
    expect(power.events).toEqual([]);
    clock.advance(0.2 * S);
    expect(power.events).toEqual([{ kind: 'system-reset', reason: 'watchdog timeout', by: 'watchdog' }]);
  });

  test('finds out after the reset, until it says it knows', () => {
    const { machine, clock, reload, start, unlock, write } = makeWatchdog();
    start(1);
    clock.advance(3 * S);
    machine.host.reset();
    expect(reload()).toBe(0x300);
    unlock();
    write(RELOAD, 0x200, 2);
    expect(reload()).toBe(0x100);
  });

  test('is not reset when reboot is off: the stages go round', () => {
    const { machine, clock, power, start } = makeWatchdog();
    start(1);
    machine.cfgWrite(AT, CONFIGURATION, 0x0023, 2);
    clock.advance(100 * S);
    expect(power.events).toEqual([]);
  });
});

test('feeding it keeps the machine running', () => {
  const { clock, ping, power, start } = makeWatchdog();
  start(15);
  for (let n = 0; n < 10; n++) {
    clock.advance(20 * S); // into the second stage
    ping();
  }
  expect(power.events).toEqual([]);
});

describe('first stage interrupt', () => {
  test('INTx until the guest clears it', () => {
    const { machine, clock, setTimer, enable, write } = makeWatchdog();
    machine.cfgWrite(AT, CONFIGURATION, 0x0000, 2);
    setTimer(TIMER1, 1);
    enable();
    clock.advance(1.1 * S);
    expect(machine.takeIrqs()).toEqual(['16 low']); // active low
    expect(machine.mmioRead(BAR + INTERRUPT)).toBe(1);
    write(INTERRUPT, 1, 4);
    expect(machine.takeIrqs()).toEqual(['16 high']);
    expect(machine.mmioRead(BAR + INTERRUPT)).toBe(0);
  });

  test('MSI when the guest enabled that', () => {
    const { machine, clock, setTimer, enable } = makeWatchdog();
    machine.cfgWrite(AT, CONFIGURATION, 0x0000, 2);
    machine.cfgWrite(AT, 0x44, 0xfee00000);
    machine.cfgWrite(AT, 0x4c, 0x31, 2);
    machine.cfgWrite(AT, 0x42, 1, 2);
    setTimer(TIMER1, 1);
    enable();
    clock.advance(1.1 * S);
    expect(machine.msi.messages).toEqual([{ address: 0xfee00000, data: 0x31 }]);
    expect(machine.takeIrqs()).toEqual([]);
  });

  test('none for the types that do not exist here', () => {
    const { machine, clock, setTimer, enable } = makeWatchdog();
    machine.cfgWrite(AT, CONFIGURATION, 0x0002, 2);
    setTimer(TIMER1, 1);
    enable();
    clock.advance(1.1 * S);
    expect(machine.takeIrqs()).toEqual([]);
  });
});

describe('protection', () => {
  test('preload and ping need the unlock sequence, each time', () => {
    const { clock, power, write, setTimer, enable } = makeWatchdog();
    setTimer(TIMER1, 1);
    write(TIMER1, 0xfffff, 4); // locked again
    setTimer(TIMER2, 1);
    enable();
    clock.advance(0.9 * S);
    write(RELOAD, 0x100, 2); // no unlock: no ping
    clock.advance(1.2 * S);
    expect(power.kinds).toEqual(['system-reset']);
  });

  test('the sequence must be in order', () => {
    const { clock, power, write, enable, setTimer } = makeWatchdog();
    setTimer(TIMER1, 1);
    setTimer(TIMER2, 1);
    write(RELOAD, 0x86, 2);
    write(TIMER1, 0xfffff, 4);
    enable();
    clock.advance(2.1 * S);
    expect(power.kinds).toEqual(['system-reset']);
  });

  test('the lock bit makes it unstoppable', () => {
    const { machine, clock, power, start } = makeWatchdog();
    start(1);
    machine.cfgWrite(AT, LOCK, 3, 1);
    machine.cfgWrite(AT, LOCK, 0, 1);
    expect(machine.cfgRead(AT, LOCK, 1)).toBe(3);
    clock.advance(3 * S);
    expect(power.kinds).toEqual(['system-reset']);
  });

  test('without the lock it can be switched off', () => {
    const { machine, clock, start } = makeWatchdog();
    start(1);
    machine.cfgWrite(AT, LOCK, 0, 1);
    expect(clock.armed).toBe(0);
  });
});

describe('life cycle', () => {
  test('S3 stops it; after it the guest has a minute for each stage', () => {
    const { machine, clock, power, start } = makeWatchdog();
    start(1);
    machine.host.suspend();
    clock.advance(1000 * S);
    machine.host.resume();
    clock.advance(119 * S);
    expect(power.events).toEqual([]);
    clock.advance(2 * S);
    expect(power.kinds).toEqual(['system-reset']);
  });

  test('any access sequence: no throw, reset stops it and equals fresh', () => {
    fc.assert(
      fc.property(busAccesses(0x20, S), busAccesses(0x20, S), (before, after) => {
        const play = ({ machine }: ReturnType<typeof makeWatchdog>, access: (typeof before)[number]) => {
          machine.clock.advance(access.delayNs);
          const isConfig = access.offset >= 0x10;
          const offset = isConfig ? 0x50 + access.offset : BAR + access.offset;
          if (access.write) {
            if (isConfig) machine.cfgWrite(AT, offset, access.value, access.size);
            else machine.mmioWrite(offset, access.value, access.size);
            return undefined;
          }
          return isConfig ? machine.cfgRead(AT, offset, access.size) : machine.mmioRead(offset, access.size);
        };
        const used = makeWatchdog();
        for (const access of before) play(used, access);
        const hadTimedOut = used.power.events.length > 0;
        used.machine.host.reset();
        expect(used.clock.armed).toBe(0);
        if (hadTimedOut) return; // the timeout flag is meant to outlive a reset
        const fresh = makeWatchdog();
        for (const access of after) expect(play(used, access)).toBe(play(fresh, access));
      }),
    );
  });
});
