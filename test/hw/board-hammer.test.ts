/** A guest that reads and writes anything, anywhere, a million times: the machine goes on, and the log stays readable. */
import { expect, test } from 'vitest';
import { LogLevel } from '../../devicemodel/core/log.ts';
import type { FakeHsm } from '../support/fake-hsm.ts';
import { makePc } from '../support/fake-pc.ts';

const ACCESSES = 1_000_000;
const BATCH = 256;
/** Ports by which a guest resets or switches off; each use costs milliseconds. */
const POWER_PORTS: ReadonlySet<number> = new Set([0x64, 0x404, 0xcf9]);
/** Of the accesses aimed at those, one in this many is done. */
const POWER_RARITY = 500;
const PORT_COUNT = 0x1_0000;
const HPET = { base: 0xfed0_0000, size: 0x400 };
/** Buses 0 and 1. */
const ECAM = { base: 0xe000_0000, size: 0x20_0000 };
const SIZES = [1, 1, 2, 2, 4, 4, 8, 3] as const;

/** Numerical Recipes' generator: a failure comes again. */
function makeRandom(seed: number): (limit: number) => number {
  let state = seed;
  return (limit) => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
    return Math.floor((state / 2 ** 32) * limit);
  };
}

test(`${ACCESSES} random accesses to ports, registers and configuration space`, { timeout: 180_000 }, async () => {
  const random = makeRandom(1);
  let done = 0;
  let present: FakeHsm | undefined;
  /** A VM is run once: one that the guest powered off gives way to the next. */
  const build = () => {
    const made = makePc(
      [
        ...['--debugexit', '-s', '3,wdt-i6300esb', '-s', '5,ivshmem,hv:/hammer,2', '-s', '7,uart,vuart_idx:1'],
        ...['-s', '8,root-port,ptm', '-s', '1:0:0,dummy'],
      ],
      (hsm) => {
        present = hsm;
        lives++;
      },
      { logLevel: LogLevel.info },
    );
    made.vm.on('state', (state) => {
      if (state === 'suspended') setImmediate(() => made.vm.wake());
    });
    return made;
  };
  let lives = 0;
  let pc = build();
  const log: string[] = [];
  const leave = async () => {
    await pc.dispose();
    log.push(...pc.log);
    expect(pc.ramOut).toBe(0);
  };

  /** Ports that belong to a device, and some that do not. */
  const ports: number[] = [];
  const choosePort = () => {
    if (ports.length === 0) {
      const { pio } = pc.parts;
      for (let port = 0; port < PORT_COUNT; port++) if (pio.findOverlap(port, 1) !== undefined) ports.push(port);
    }
    const port = random(20) === 0 ? random(PORT_COUNT) : (ports[random(ports.length)] as number);
    return POWER_PORTS.has(port) && random(POWER_RARITY) !== 0 ? 0x80 : port;
  };
  const access = (hsm: FakeHsm) => {
    done++;
    const isWrite = random(2) === 0;
    const size = SIZES[random(SIZES.length)] as 1 | 2 | 4;
    const value = random(3) === 0 ? random(2 ** 32) : random(256);
    const where = random(10);
    void hsm.guest.raw((bus, vcpu) => {
      if (where < 6) bus.page.fillPortIo(vcpu, isWrite, choosePort(), size, value);
      else if (where < 8) bus.page.fillMmio(vcpu, isWrite, HPET.base + random(HPET.size), size, value);
      else if (where < 9) bus.page.fillMmio(vcpu, isWrite, ECAM.base + random(ECAM.size), size, value);
      else bus.page.fillPciConfig(vcpu, isWrite, random(64), random(4096), size, value);
    });
  };

  let isOver = false;
  const pump = () => {
    const hsm = present;
    if (isOver) return;
    if (done >= ACCESSES) pc.vm.power.request({ kind: 'poweroff', reason: 'the end of the test' });
    else if (hsm !== undefined && pc.vm.state === 'running' && hsm.outstanding === 0) {
      for (let i = 0; i < BATCH; i++) access(hsm);
    }
    setImmediate(pump);
  };
  pump();
  for (;;) {
    await pc.vm.run();
    if (done >= ACCESSES) break;
    await leave();
    pc = build();
  }
  isOver = true;
  await leave();

  // Every life and reset is worth a line or two; what a guest provokes beyond that is rationed.
  const lifeLines = log.filter((line) => /: (system reset|full-reset|poweroff|suspend): |system reset: /.test(line));
  expect(lives).toBeGreaterThan(3);
  expect(log.length - lifeLines.length).toBeLessThan(100);
});
