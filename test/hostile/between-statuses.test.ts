/**
 * What a driver may do between two statuses with buffers outstanding, to every virtio device in every form: served on the
 * device thread, by data threads, io_uring and the pool. Nothing throws, no wire, buffer or lease is left behind, and a
 * driver that begins anew is served.
 */
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { BarIndex } from '../../devicemodel/chips/pci-config-space.ts';
import { SLOT } from '../fuzz/virtio-machine.ts';
import { makeTargets, type Target } from '../fuzz/virtio-targets.ts';

const SEED = 2012;
const COMMAND = 0x04;
const QUEUES = [0, 1, 2, 3];
const OFFERS = 12;
/** Tries of a random driver to get something done; each sets the device up its own way. */
const TRIES = 1000;
/** The kernel serves it: there is nobody to give anything back here. */
const SERVED_ELSEWHERE = 'vhost-vsock';
/** Virtio 1.2 §6, in the upper half. */
const VERSION_1 = 1 << 0;
const RING_PACKED = 1 << 2;
/** BARs that Linux never moves. */
const BAR4 = 0x20;
const Bar = { legacy: 0, modern: 4 } as const;
/** In BAR 0, and in BAR 4: Virtio 1.2 §4.1.4.10 and §4.1.4.3. */
const Legacy = { accepted: 4, pfn: 8, select: 0x0e, notify: 0x10, status: 0x12 } as const;
const Modern = {
  driverSelect: 8,
  driverFeature: 12,
  status: 20,
  select: 22,
  size: 24,
  enable: 28,
  desc: 32,
  avail: 40,
} as const;

/** Both sets of registers, where the device has them: a transitional one hears it twice. */
class Hand {
  readonly target: Target;
  constructor(target: Target) {
    this.target = target;
  }
  #has(bar: BarIndex): boolean {
    return this.target.machine.fn.bars.some(({ index }) => index === bar);
  }
  status(value: number): void {
    if (this.#has(Bar.legacy)) this.target.guest.write(Bar.legacy, Legacy.status, 1, value);
    if (this.#has(Bar.modern)) this.target.guest.write(Bar.modern, Modern.status, 1, value);
  }
  /** @param high of a modern driver: VERSION_1 alone, unless it says so. */
  features(value: number, high = VERSION_1): void {
    const { guest } = this.target;
    if (this.#has(Bar.legacy)) guest.write(Bar.legacy, Legacy.accepted, 4, value);
    if (!this.#has(Bar.modern)) return;
    for (const half of [0, 1]) {
      guest.write(Bar.modern, Modern.driverSelect, 4, half);
      guest.write(Bar.modern, Modern.driverFeature, 4, half === 0 ? value : high);
    }
    guest.write(Bar.modern, Modern.status, 1, 0xb);
  }
  /** @param pfn of the legacy ring. @param registers of the modern one. */
  queues(pfn: number | undefined, registers: ReadonlyArray<readonly [offset: number, value: number]>): void {
    const { guest } = this.target;
    for (const queue of QUEUES) {
      if (this.#has(Bar.legacy) && pfn !== undefined) {
        guest.write(Bar.legacy, Legacy.select, 2, queue);
        guest.write(Bar.legacy, Legacy.pfn, 4, pfn);
      }
      if (!this.#has(Bar.modern)) continue;
      guest.write(Bar.modern, Modern.select, 2, queue);
      for (const [offset, value] of registers) guest.write(Bar.modern, offset, offset < Modern.desc ? 2 : 4, value);
    }
  }
  /** Every queue is kicked, and some that are not there. */
  kick(): void {
    for (const queue of [...QUEUES, 64, 0xffff]) {
      if (this.#has(Bar.legacy)) this.target.guest.write(Bar.legacy, Legacy.notify, 2, queue);
      if (this.#has(Bar.modern)) this.target.guest.write(Bar.modern, 0x3000 + 4 * (queue & 0xff), 2, queue);
    }
  }
  /** All of a device's own configuration, and a little more. */
  configuration(value: number): void {
    for (let offset = 0; offset < 128; offset += 4) {
      if (this.#has(Bar.modern)) this.target.guest.write(Bar.modern, 0x2000 + offset, 4, value);
      if (this.#has(Bar.legacy)) this.target.guest.write(Bar.legacy, 0x14 + offset, 4, value);
    }
  }
  config(offset: number, value: number): number {
    const { host } = this.target.machine;
    const before = host.readConfig(SLOT, offset, 4);
    host.writeConfig(SLOT, offset, 4, value);
    return before;
  }
  command(value: number): void {
    this.target.machine.host.writeConfig(SLOT, COMMAND, 2, value);
  }
}

const forms: Readonly<Record<string, (hand: Hand) => void>> = {
  'a reset': (hand) => hand.status(0),
  'DRIVER_OK taken back, and given': (hand) => {
    hand.status(3);
    hand.status(0xf);
  },
  'other features without a reset: none': (hand) => {
    hand.status(3);
    hand.features(0);
    hand.status(0xf);
  },
  'other features without a reset: all, offered or not': (hand) => {
    hand.status(3);
    hand.features(0xffff_ffff);
    hand.status(0xf);
  },
  'other features without taking anything back': (hand) => hand.features(0x0fff_ffff),
  'FAILED, then going on': (hand) => {
    hand.status(0x8f);
    hand.status(0xf);
  },
  'every status there is': (hand) => {
    for (let status = 255; status > 0; status -= 2) hand.status(status);
  },
  'rings at another place': (hand) =>
    hand.queues(0x10, [
      [Modern.desc, 0x1_0000],
      [Modern.avail, 0x1_8000],
      [Modern.enable, 1],
    ]),
  'rings where there is no RAM': (hand) =>
    hand.queues(0xffff_ffff, [
      [Modern.desc + 4, 0xffff_ffff],
      [Modern.enable, 1],
    ]),
  'queues disabled': (hand) => hand.queues(0, [[Modern.enable, 0]]),
  'queues of another size': (hand) => {
    for (const size of [1, 3, 0x8000, 0, 0xffff]) hand.queues(undefined, [[Modern.size, size]]);
  },
  'DRIVER_OK taken back, other rings, and given': (hand) => {
    hand.status(3);
    hand.queues(0x10, [
      [Modern.size, 8],
      [Modern.desc, 0x1_0000],
      [Modern.enable, 1],
    ]);
    hand.status(0xf);
  },
  'bus mastering and decoding off, and on': (hand) => {
    hand.command(0);
    hand.target.machine.clock.advance(1e7);
    hand.command(7);
  },
  'bus mastering off, a reset, and on': (hand) => {
    hand.command(3);
    hand.status(0);
    hand.command(7);
  },
  'FEATURES_OK taken back, and given': (hand) => {
    hand.status(7);
    hand.kick();
    hand.status(0xf);
  },
  'packed rings become split ones, and packed again': (hand) => {
    for (const high of [VERSION_1, VERSION_1 | RING_PACKED, VERSION_1]) {
      hand.status(3);
      hand.features(0xffff_ffff, high);
      hand.status(0xf);
      hand.kick();
    }
  },
  'VERSION_1 given up without a reset': (hand) => {
    hand.status(3);
    hand.features(0xffff_ffff, RING_PACKED);
    hand.status(0xf);
    hand.kick();
  },
  'a second vCPU resets while the reset goes on': (hand) => {
    hand.status(0);
    hand.status(0);
    hand.kick();
    hand.status(0);
  },
  'kicks of a device that is reset': (hand) => {
    hand.status(0);
    hand.kick();
    hand.status(1);
    hand.kick();
  },
  'the configuration written all over': (hand) => {
    for (const value of [0, 0xffff_ffff, 0x0101_0101]) hand.configuration(value);
    hand.kick();
  },
  'its BAR elsewhere, kicked there, and back': (hand) => {
    const before = hand.config(BAR4, 0xfff0_0000);
    hand.kick();
    hand.config(BAR4, before);
    hand.kick();
  },
  'DRIVER_OK taken back twice, other sizes, and given': (hand) => {
    hand.status(3);
    hand.queues(undefined, [[Modern.size, 2]]);
    hand.status(0xf);
    hand.kick();
    hand.status(3);
    hand.queues(0, [
      [Modern.size, 4],
      [Modern.enable, 1],
    ]);
    hand.status(0xf);
    hand.kick();
  },
  'resets and starts without a pause': (hand) => {
    for (let i = 0; i < 8; i++) {
      hand.status(i & 1 ? 0xf : 0);
      hand.target.guest.setUp();
      hand.target.guest.offer();
    }
  },
};

const turn = () => new Promise((resolve) => setImmediate(resolve));

/** A reset with buffers in other hands takes until they are back; a vCPU would be held meanwhile. */
async function held({ machine }: Target): Promise<void> {
  await expect.poll(() => machine.fn.gate?.isClosed ?? false, { interval: 1, timeout: 20_000 }).toBe(false);
}

/** Something was given back or interrupted for. */
const done = ({ guest, machine }: Target) => guest.served + machine.interrupts;

/** @returns whether the device did anything for a driver that begins from its reset. */
async function isServed(target: Target): Promise<boolean> {
  const { guest, machine } = target;
  const before = done(target);
  for (let i = 0; i < TRIES && done(target) === before && target.name !== SERVED_ELSEWHERE; i++) {
    await held(target);
    guest.setUp();
    for (let n = 0; n < OFFERS; n++) guest.offer();
    target.hostEvent();
    machine.hsm.isFull = false;
    machine.clock.advance(1e6);
    await turn();
  }
  return done(target) !== before || target.name === SERVED_ELSEWHERE;
}

describe('what a driver does between two statuses', { timeout: 120_000 }, () => {
  let targets: Target[];
  let dispose: () => void;
  beforeAll(async () => {
    ({ targets, dispose } = await makeTargets(SEED));
    for (const { machine } of targets) await machine.host.start();
  }, 120_000);
  afterAll(async () => {
    for (const target of targets) {
      await target.machine.stop();
      target.dispose();
    }
    dispose();
  }, 120_000);

  test.each(Object.entries(forms))('%s', async (_form, act) => {
    const names = targets.map(({ name }) => name);
    expect(names.length).toBeGreaterThan(30);
    const notServed: string[] = [];
    for (const target of targets) {
      const { guest, machine } = target;
      const where = { device: target.name };
      try {
        if (!(await isServed(target))) notServed.push(`${target.name}, before`);
        for (let n = 0; n < OFFERS; n++) guest.offer();
        act(new Hand(target));
        for (let n = 0; n < OFFERS / 2; n++) guest.offer();
        target.hostEvent();
        machine.hsm.isFull = false;
        machine.clock.advance(1e7);
        await turn();
        if (!(await isServed(target))) notServed.push(`${target.name}, after`);
        target.check();
      } catch (error) {
        throw new Error(`${where.device}: ${(error as Error).message}`, { cause: error });
      }
    }
    expect(notServed).toEqual([]);
  });
});
