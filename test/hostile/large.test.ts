/**
 * Requests of 4 GiB, all over the same RAM, to devices that expect a few bytes: nothing throws, nothing as large is copied
 * or kept, no access of the guest takes long, and a driver that begins anew is served.
 */
import { afterEach, describe, expect, test } from 'vitest';
import { silentLog } from '../../devicemodel/core/log.ts';
import { checkOptions } from '../../devicemodel/core/options.ts';
import type { PciEnv } from '../../devicemodel/hw/pci/driver.ts';
import type { PciFunction } from '../../devicemodel/hw/pci/function.ts';
import { virtioConsole } from '../../devicemodel/hw/pci/virtio/console/console.ts';
import { ConsoleOptions, parseConsoleText } from '../../devicemodel/hw/pci/virtio/console/options.ts';
import { AcrnGpio } from '../../devicemodel/hw/pci/virtio/gpio/gpio.ts';
import { ModernGpio } from '../../devicemodel/hw/pci/virtio/gpio/modern.ts';
import { VirtioI2c } from '../../devicemodel/hw/pci/virtio/i2c/i2c.ts';
import { VirtioInput } from '../../devicemodel/hw/pci/virtio/input/input.ts';
import { VirtioNet } from '../../devicemodel/hw/pci/virtio/net/net.ts';
import { NetOptions, parseNetText } from '../../devicemodel/hw/pci/virtio/net/options.ts';
import { virtioRnd } from '../../devicemodel/hw/pci/virtio/rng.ts';
import { VirtioRpmb } from '../../devicemodel/hw/pci/virtio/rpmb/rpmb.ts';
import type { VirtioDevice } from '../../devicemodel/hw/pci/virtio/transport/device.ts';
import { VirtioPci } from '../../devicemodel/hw/pci/virtio/transport/transport.ts';
import { FakeGpioLine } from '../support/fake-gpio.ts';
import { socketPair } from '../support/socket-pair.ts';
import { StepClock } from '../support/step-clock.ts';
import { type DriverMode, VirtioDriver, VirtioMachine } from '../support/virtio-driver.ts';

const MIB = 1 << 20;
const RAM_BYTES = 72 * MIB;
const DATA_AT = 4 * MIB;
const PIECE_BYTES = 64 * MIB;
const TOTAL_BYTES = 4096 * MIB;
/** Generous: a slice is a millisecond or so. */
const ACCESS_LIMIT_MS = 5000;
const KEPT_LIMIT_BYTES = 512 * MIB;

const undo: Array<() => unknown> = [];
afterEach(async () => {
  for (const step of undo.splice(0).reverse()) await step();
});

type Make = (env: PciEnv) => PciFunction;
const alone = (device: (env: PciEnv) => VirtioDevice, mode: 'legacy' | 'modern', type: number): Make => {
  const identity = { legacyDeviceId: 0x1000, type, classCode: 0xff0000 };
  return (env) => new VirtioPci(device(env), env, { mode, identity });
};

const net =
  (transport: string) =>
  (env: PciEnv): VirtioDevice => {
    const [fd, peer] = socketPair();
    undo.push(() => peer.close());
    const options = checkOptions(NetOptions, parseNetText(`tap=t0,transport=${transport}`)) as NetOptions;
    return new VirtioNet(options, { clock: env.clock, log: env.log, mac: [2, 0, 0, 0, 0, 1], openTap: () => fd });
  };

const lines = () => ['a', 'b'].map((name) => new FakeGpioLine(name));
const bus = { data: new Uint8Array(8192), transfer: () => true, close: () => {} };
const noInput = {
  ...{ name: () => new Uint8Array(0), ids: () => undefined, properties: () => new Uint8Array(0) },
  ...{ codes: () => undefined, axis: () => undefined, read: () => false, write: () => {} },
  ...{ watch: () => () => {}, close: () => {} },
};
const noBlocks = {
  open: async () => ({ blockCount: 160, counter: 0 }),
  read: async () => Buffer.alloc(256),
  write: async () => 0,
  close: async () => {},
};
const console_: Make = (env) =>
  virtioConsole.create(checkOptions(ConsoleOptions, parseConsoleText('@stdio:a,pty:b')), env);

const devices: Readonly<Record<string, readonly [make: Make, mode: DriverMode]>> = {
  'virtio-net, legacy': [alone(net('legacy'), 'legacy', 1), 'legacy'],
  'virtio-net, modern': [alone(net('modern'), 'modern', 1), 'modern'],
  'virtio-console': [console_, 'legacy'],
  'virtio-rnd': [(env) => virtioRnd.create({ transport: 'legacy' }, env), 'legacy'],
  'virtio-rnd, modern': [(env) => virtioRnd.create({ transport: 'modern' }, env), 'modern'],
  'virtio-gpio, ACRN’s': [alone(() => new AcrnGpio(lines, silentLog), 'legacy', 41), 'legacy'],
  'virtio-gpio, modern': [alone(() => new ModernGpio(lines, silentLog), 'modern', 41), 'modern'],
  'virtio-i2c': [alone(() => new VirtioI2c(() => [{ bus, addresses: [0x1c] }]), 'modern', 34), 'modern'],
  'virtio-input': [alone(() => new VirtioInput(() => noInput, undefined, silentLog), 'modern', 18), 'modern'],
  'virtio-rpmb': [alone((env) => new VirtioRpmb(Buffer.alloc(32), noBlocks, env.log), 'legacy', 0xffff), 'legacy'],
};

/** What the guest asks for, as descriptors of a chain; the directions change in the middle where both are meant. */
const shapes: Readonly<Record<string, (i: number, count: number) => boolean>> = {
  'all to be read': () => false,
  'all to be written': () => true,
  'a half of each': (i, count) => i >= count / 2,
};

function addLarge(driver: VirtioDriver, index: number, isWritable: (i: number, count: number) => boolean): void {
  const queue = driver.queues[index];
  if (queue === undefined) return;
  const count = Math.min(queue.size, TOTAL_BYTES / PIECE_BYTES);
  for (let i = 0; i < count; i++) {
    const flags = (i + 1 < count ? 1 : 0) | (isWritable(i, count) ? 2 : 0);
    driver.setDescriptor(queue.desc, i, DATA_AT, PIECE_BYTES, flags, i + 1);
  }
  for (let n = 0; n < 2; n++) driver.makeAvailable(index, 0);
}

function timed(what: () => void): number {
  const before = performance.now();
  what();
  return performance.now() - before;
}

describe.each(Object.entries(devices))('%s', (_name, [make, mode]) => {
  test.each(Object.entries(shapes))('%s', { timeout: 120_000 }, async (_shape, isWritable) => {
    const machine = new VirtioMachine({ ram: [[0, RAM_BYTES]] });
    undo.push(() => machine.dispose());
    const clock = new StepClock();
    clock.isHostTime = true;
    const driver = new VirtioDriver(machine, make({ ...machine.env(), clock }), mode);
    await driver.fn.start?.();
    undo.push(() => driver.fn.stop?.());
    const before = process.memoryUsage.rss();
    driver.init();
    const times: number[] = [];
    for (let queue = 0; queue < Math.min(driver.queues.length, 4); queue++) {
      addLarge(driver, queue, isWritable);
      times.push(timed(() => driver.kick(queue)));
      for (let step = 0; step < 3; step++) times.push(timed(() => void clock.step()));
      await new Promise((resolve) => setImmediate(resolve));
    }
    expect(Math.max(...times)).toBeLessThan(ACCESS_LIMIT_MS);
    expect(process.memoryUsage.rss() - before).toBeLessThan(KEPT_LIMIT_BYTES);
    await driver.reset();
    driver.init();
    expect(driver.needsReset).toBe(false);
  });
});
