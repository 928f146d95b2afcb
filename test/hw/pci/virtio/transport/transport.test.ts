/** Registers, interrupts and status of virtio over PCI, legacy and modern, with a device that only counts. */
import * as fc from 'fast-check';
import { afterEach, describe, expect, test } from 'vitest';
import type { Virtqueue } from '../../../../../devicemodel/hw/pci/virtio/ring/virtqueue.ts';
import {
  Feature,
  featureMask,
  ringFeatures,
  type VirtioDevice,
  type VirtioTransport,
} from '../../../../../devicemodel/hw/pci/virtio/transport/device.ts';
import type { TransportMode } from '../../../../../devicemodel/hw/pci/virtio/transport/options.ts';
import { VirtioPci } from '../../../../../devicemodel/hw/pci/virtio/transport/transport.ts';
import { applyAccess, type BusAccess, busAccesses } from '../../../../support/bus-access.ts';
import {
  type DriverMode,
  HIGH_RAM,
  type MachineChoices,
  VirtioDriver,
  VirtioMachine,
} from '../../../../support/virtio-driver.ts';

const undo: Array<() => void | Promise<void>> = [];
afterEach(async () => {
  for (const step of undo.splice(0).reverse()) await step();
});

/** Gives back every chain; eight bytes of configuration that can be written. */
class Echo implements VirtioDevice {
  readonly name = 'echo';
  readonly features: bigint;
  readonly queueSizes = [16, 16];
  readonly configSizeBytes = 8;
  readonly wantsIoeventfd: boolean;
  readonly config = new Uint8Array(8);
  transport: VirtioTransport | undefined;
  resets = 0;
  served = 0;

  constructor(features: bigint, wantsIoeventfd = false) {
    this.features = features;
    this.wantsIoeventfd = wantsIoeventfd;
  }
  attach(transport: VirtioTransport): void {
    this.transport = transport;
  }
  readConfig(offset: number, size: 1 | 2 | 4): number {
    const view = new DataView(this.config.buffer);
    return size === 4
      ? view.getUint32(offset, true)
      : size === 2
        ? view.getUint16(offset, true)
        : view.getUint8(offset);
  }
  writeConfig(offset: number, size: 1 | 2 | 4, value: number): boolean {
    for (let i = 0; i < size; i++) this.config[offset + i] = (value >>> (8 * i)) & 0xff;
    return true;
  }
  notify(queue: Virtqueue): void {
    for (let chain = queue.pop(); chain !== undefined; chain = queue.pop()) {
      this.served++;
      queue.push(chain, 0);
    }
    queue.publish();
  }
  reset(): void {
    this.resets++;
  }
}

const ring = featureMask(Feature.IndirectDesc, Feature.EventIdx);

function make(
  mode: TransportMode,
  driverMode: DriverMode = mode === 'modern' ? 'modern' : 'legacy',
  choices: MachineChoices = {},
  wantsIoeventfd = false,
) {
  const machine = new VirtioMachine(choices);
  undo.push(() => machine.dispose());
  const device = new Echo(ring | ringFeatures(mode), wantsIoeventfd);
  const fn = new VirtioPci(device, machine.env(), {
    mode,
    identity: { legacyDeviceId: 0x1009, type: 9, classCode: 0xff0000 },
  });
  undo.push(() => fn.stop());
  return { machine, device, fn, driver: new VirtioDriver(machine, fn, driverMode) };
}

describe('identity', () => {
  test.each([
    ['legacy', 0x1009, 0, 9],
    ['transitional', 0x1009, 0, 9],
    ['modern', 0x1049, 1, 0x40],
  ] as const)('%s', (mode, deviceId, revisionId, subsystemId) => {
    expect(make(mode).fn.identity).toMatchObject({
      vendorId: 0x1af4,
      deviceId,
      revisionId,
      subsystemId,
      subsystemVendorId: 0x1af4,
    });
  });

  test('BARs: legacy window, MSI-X, notification port and modern window', () => {
    const bars = (mode: TransportMode) => make(mode).fn.bars.map((b) => [b.index, b.kind, b.sizeBytes]);
    expect(bars('legacy')).toEqual([
      [1, 'mem32', 8192],
      [0, 'io', 32],
    ]);
    expect(bars('transitional')).toEqual([
      [1, 'mem32', 8192],
      [0, 'io', 32],
      [2, 'io', 4],
      [4, 'mem64', 16384],
    ]);
    expect(bars('modern')).toEqual([
      [1, 'mem32', 8192],
      [2, 'io', 4],
      [4, 'mem64', 16384],
    ]);
  });
});

describe('legacy window', () => {
  test('the device configuration moves when MSI-X is switched on', () => {
    const { driver, device } = make('legacy');
    device.config.set([1, 2, 3, 4, 5, 6, 7, 8]);
    expect(driver.in(0x14, 4)).toBe(0x04030201);
    driver.enableMsix();
    expect(driver.in(0x14, 2)).toBe(0xffff);
    expect(driver.in(0x18, 4)).toBe(0x04030201);
  });

  test('a queue beyond the last has size 0 and takes no address', () => {
    const { driver } = make('legacy');
    driver.out(0x0e, 2, 2);
    expect(driver.in(0x0c, 2)).toBe(0);
    driver.out(0x08, 4, 0x40);
    driver.out(0x0e, 2, 0);
    expect(driver.in(0x08, 4)).toBe(0);
  });

  test('registers answer only in their own width', () => {
    const { driver } = make('legacy');
    expect(driver.in(0x0c, 4)).toBe(0xffffffff);
    expect(driver.in(0x12, 2)).toBe(0xffff);
    driver.out(0x12, 4, 0xffffffff);
    expect(driver.status).toBe(0);
  });

  test('vectors that do not exist read back as NO_VECTOR (Firecracker PR 5353)', () => {
    const { driver } = make('legacy');
    driver.enableMsix();
    driver.out(0x14, 2, 2);
    expect(driver.in(0x14, 2)).toBe(2);
    driver.out(0x14, 2, 3);
    expect(driver.in(0x14, 2)).toBe(0xffff);
    driver.out(0x16, 2, 0x7fff);
    expect(driver.in(0x16, 2)).toBe(0xffff);
  });

  test('reset clears everything a driver wrote', () => {
    const { driver, device } = make('legacy');
    driver.init();
    driver.status = 0;
    expect([driver.status, driver.in(0x04, 4), driver.in(0x08, 4), driver.in(0x0e, 2)]).toEqual([0, 0, 0, 0]);
    expect(device.resets).toBeGreaterThan(0);
  });

  test('features that were not offered are not accepted, nor any after DRIVER_OK', () => {
    const { driver } = make('legacy');
    driver.out(0x04, 4, 0xffffffff);
    expect(BigInt(driver.in(0x04, 4))).toBe(ring);
    driver.init(() => 0n);
    driver.out(0x04, 4, 0xffffffff);
    expect(driver.in(0x04, 4)).toBe(0);
  });

  test('rings outside of RAM need a reset and are never touched', () => {
    const { driver, device } = make('legacy');
    driver.status = 3;
    driver.out(0x0e, 2, 0);
    driver.out(0x08, 4, 0xc0000);
    expect(driver.in(0x08, 4)).toBe(0xc0000);
    expect(driver.needsReset).toBe(true);
    driver.kick(0);
    expect(device.served).toBe(0);
  });
});

describe('modern window', () => {
  test('capabilities name all five structures', () => {
    const { driver } = make('modern');
    const found: number[][] = [];
    for (let at = driver.config.get8(0x34); at !== 0; at = driver.config.get8(at + 1)) {
      if (driver.config.get8(at) !== 9) continue;
      found.push([
        driver.config.get8(at + 3),
        driver.config.get8(at + 4),
        driver.config.get32(at + 8),
        driver.config.get32(at + 12),
      ]);
    }
    expect(found).toEqual([
      [2, 2, 0, 4],
      [1, 4, 0, 0x1000],
      [3, 4, 0x1000, 0x1000],
      [4, 4, 0x2000, 0x1000],
      [2, 4, 0x3000, 0x1000],
      [5, 0, 0, 0],
    ]);
  });

  test('FEATURES_OK does not stick without VERSION_1', () => {
    const { driver } = make('modern');
    driver.status = 3;
    driver.out(8, 4, 0);
    driver.out(12, 4, Number(ring));
    driver.status = 0xb;
    expect(driver.status).toBe(3);
  });

  test('features are closed after FEATURES_OK', () => {
    const { driver } = make('modern');
    driver.init();
    driver.out(8, 4, 0);
    driver.out(12, 4, 0);
    expect(driver.in(12, 4)).toBe(Number(ring));
  });

  test.each([0, 3, 32, 32769, 0xffff])('queue size %i is not taken', (size) => {
    const { driver } = make('modern');
    driver.out(22, 2, 0);
    driver.out(24, 2, size);
    expect(driver.in(24, 2)).toBe(16);
  });

  test.each([
    ['legacy', 0n],
    ['transitional', 0n],
    ['modern', 1n],
  ] as const)('%s: packed rings offered: %i', (mode, offered) => {
    const { driver } = make(mode, mode === 'legacy' ? 'legacy' : 'modern');
    expect((driver.hostFeatures >> 34n) & 1n).toBe(offered);
  });

  test('packed: sizes that are no powers of two are taken, those of split queues after another negotiation', () => {
    const { driver, device } = make('modern', 'packed');
    driver.init();
    driver.status = 0;
    driver.status = 3;
    driver.out(8, 4, 1);
    driver.out(12, 4, Number(featureMask(Feature.Version1, Feature.RingPacked) >> 32n));
    driver.status = 0xb;
    driver.setUpQueue(0, undefined, 11);
    expect(driver.in(24, 2)).toBe(11);
    driver.status = 0xf;
    for (let i = 0; i < 40; i++) driver.request(0, [{ read: [1] }, { write: 4 }]);
    expect(device.served).toBe(40);
    for (const size of [0, 17, 0xffff]) {
      driver.out(22, 2, 1);
      driver.out(24, 2, size);
      expect(driver.in(24, 2)).toBe(16);
    }
    driver.init();
    expect(driver.in(24, 2)).toBe(16);
  });

  test('packed: a queue set up before the driver settles on it is off', () => {
    const { driver, device } = make('modern', 'packed');
    driver.status = 3;
    driver.setUpQueue(0);
    driver.out(8, 4, 1);
    driver.out(12, 4, Number(featureMask(Feature.Version1, Feature.RingPacked) >> 32n));
    driver.status = 0xb;
    driver.status = 0xf;
    driver.add(0, [{ write: 4 }]);
    driver.kick(0);
    expect([device.served, driver.needsReset]).toEqual([0, false]);
  });

  test('packed: a ring that breaks the rules needs a reset, after which the queue works again', () => {
    const { driver, device } = make('modern', 'packed');
    driver.init();
    driver.add(0, [{ write: 4, at: 0x9000_0000 }]);
    driver.kick(0);
    expect([driver.needsReset, driver.isr]).toEqual([true, 2]);
    driver.init();
    driver.request(0, [{ write: 4 }]);
    expect(device.served).toBe(1);
  });

  test('a queue that is enabled is closed: size, addresses, enable (QEMU 3882, Firecracker CVE-2026-5747)', () => {
    const { driver, device } = make('modern');
    driver.init();
    driver.out(22, 2, 0);
    const before = [driver.in(24, 2), driver.in(32, 4), driver.in(28, 2)];
    driver.out(24, 2, 8);
    driver.out(32, 4, 0xc0000000);
    driver.out(28, 2, 0);
    driver.out(28, 2, 1);
    expect([driver.in(24, 2), driver.in(32, 4), driver.in(28, 2)]).toEqual(before);
    driver.add(0, [{ write: 4 }]);
    driver.kick(0);
    expect(device.served).toBe(1);
  });

  test('a queue whose rings are no RAM stays off, and the driver may try again, as in C', () => {
    const { driver, device } = make('modern');
    driver.init();
    driver.status = 0;
    driver.status = 3;
    driver.out(8, 4, 1);
    driver.out(12, 4, 1);
    driver.status = 0xb;
    driver.out(22, 2, 0);
    driver.out(32, 4, 0xc000_0000);
    driver.out(28, 2, 1);
    expect([driver.in(28, 2), driver.in(32, 4), driver.status]).toEqual([0, 0xc000_0000, 0xb]);
    expect(driver.needsReset).toBe(false);
    driver.setUpQueue(0);
    expect(driver.in(28, 2)).toBe(1);
    driver.status = 0xf;
    driver.request(0, [{ write: 4 }]);
    expect(device.served).toBe(1);
  });

  test('a queue of half the size, with its parts far apart and above 4 GiB', () => {
    const { driver, machine, device } = make('modern');
    driver.status = 3;
    driver.out(8, 4, 1);
    driver.out(12, 4, 1);
    driver.status = 0xb;
    driver.out(22, 2, 1);
    driver.out(24, 2, 8);
    for (const [offset, low, high] of [
      [32, 0x1000, 1],
      [40, 0x200, 0],
      [48, 0x8000, 1],
    ] as const) {
      driver.out(offset, 4, low);
      driver.out(offset + 4, 4, high);
    }
    driver.out(28, 2, 1);
    driver.status = 0xf;
    machine.memory.writeU64(HIGH_RAM + 0x1000, 0x9000n);
    machine.memory.writeU32(HIGH_RAM + 0x1008, 4);
    machine.memory.writeU16(0x202, 1);
    driver.kick(1);
    expect(device.served).toBe(1);
    expect(machine.memory.readU16(HIGH_RAM + 0x8002)).toBe(1);
  });

  test('nothing is consumed before DRIVER_OK', () => {
    const { driver, device } = make('modern');
    driver.init();
    driver.status = 0;
    driver.init();
    driver.status = 0;
    driver.status = 3;
    driver.out(8, 4, 1);
    driver.out(12, 4, 1);
    driver.status = 0xb;
    driver.setUpQueue(0);
    driver.add(0, [{ write: 4 }]);
    driver.kick(0);
    expect(device.served).toBe(0);
    driver.status = 0xf;
    driver.kick(0);
    expect(device.served).toBe(1);
  });

  test('a 16-bit field may come as two bytes, low one first, as some CPU engines do it', () => {
    const { driver } = make('modern');
    driver.out(22, 1, 1);
    expect(driver.in(22, 2)).toBe(0);
    driver.out(23, 1, 0);
    expect([driver.in(22, 1), driver.in(23, 1), driver.in(22, 2)]).toEqual([1, 0, 1]);
    driver.out(26, 1, 0xff);
    driver.out(27, 1, 0xff);
    expect([driver.in(26, 1), driver.in(27, 1)]).toEqual([0xff, 0xff]);
  });

  test('the notification port takes the queue number', () => {
    const { driver, device, fn } = make('modern');
    driver.init();
    driver.add(1, [{ write: 4 }]);
    fn.writeBar(2, 0, 2, 1);
    expect(device.served).toBe(1);
  });

  test('registers are reached through configuration space as well', () => {
    const { driver } = make('modern');
    let at: number = driver.config.get8(0x34);
    while (!(driver.config.get8(at) === 9 && driver.config.get8(at + 3) === 5)) at = driver.config.get8(at + 1);
    driver.config.write(at + 4, 1, 4);
    driver.config.write(at + 8, 4, 18);
    driver.config.write(at + 12, 4, 2);
    expect(driver.config.read(at + 16, 2)).toBe(2);
    driver.config.write(at + 8, 4, 20);
    driver.config.write(at + 12, 4, 1);
    driver.config.write(at + 16, 1, 3);
    expect(driver.status).toBe(3);
    // A part of what the window shows is that part, and never more than was asked for.
    driver.config.write(at + 8, 4, 32);
    driver.config.write(at + 12, 4, 4);
    driver.config.write(at + 16, 4, 0x89ab_cdef);
    expect(driver.config.read(at + 16, 4)).toBe(0x89ab_cdef);
    expect([0, 1, 2, 3].map((i) => driver.config.read(at + 16 + i, 1))).toEqual([0xef, 0xcd, 0xab, 0x89]);
    expect(driver.config.read(at + 18, 2)).toBe(0x89ab);
    driver.config.write(at + 18, 2, 0);
    expect(driver.config.read(at + 16, 4)).toBe(0x89ab_cdef);
    // Outside of every BAR: nothing.
    driver.config.write(at + 8, 4, 0xfffffffc);
    driver.config.write(at + 12, 4, 4);
    expect(driver.config.read(at + 16, 4)).toBe(0);
  });

  test('a transitional function serves a driver of either kind', () => {
    for (const kind of ['legacy', 'modern'] as const) {
      const { driver, device } = make('transitional', kind);
      driver.init();
      driver.add(0, [{ write: 4 }]);
      driver.kick(0);
      expect(device.served).toBe(1);
    }
  });
});

describe('interrupts', () => {
  test('INTx stays asserted until the ISR is read', () => {
    const { driver, machine } = make('legacy');
    driver.init(() => 0n);
    driver.request(0, [{ write: 4 }]);
    driver.request(1, [{ write: 4 }]);
    expect([machine.intx, machine.intxEdges]).toEqual([true, 1]);
    expect(driver.isr).toBe(1);
    expect(machine.intx).toBe(false);
    expect(driver.isr).toBe(0);
  });

  test('device reset and stop take the line back', async () => {
    const { driver, machine, fn } = make('legacy');
    driver.init(() => 0n);
    driver.request(0, [{ write: 4 }]);
    driver.status = 0;
    expect(machine.intx).toBe(false);
    driver.init(() => 0n);
    driver.request(0, [{ write: 4 }]);
    await fn.stop();
    expect(machine.intx).toBe(false);
  });

  test('MSI-X: each queue and the configuration has its vector, the ISR stays 0', () => {
    const { driver, machine, device } = make('legacy');
    driver.enableMsix();
    driver.init(() => 0n);
    driver.out(0x14, 2, 0);
    driver.out(0x0e, 2, 1);
    driver.out(0x16, 2, 2);
    driver.request(1, [{ write: 4 }]);
    device.transport?.configChanged();
    driver.request(0, [{ write: 4 }]);
    expect(machine.msis.map((m) => m.data)).toEqual([0x42, 0x40]);
    expect(driver.isr).toBe(0);
    expect(machine.intx).toBe(false);
  });

  test('a legacy driver reads back every status it writes, as from the C device model', () => {
    const { driver, device } = make('legacy');
    for (const status of [1, 3, 7, 0x40, 0x80, 0xff, 0x47]) {
      driver.status = status;
      expect(driver.status).toBe(status);
    }
    driver.status = 0;
    driver.init();
    driver.status = 0x47;
    driver.request(0, [{ write: 4 }]);
    expect(device.served).toBe(1);
  });

  test('--virtio_msi: one message for everything, and the ISR tells which', () => {
    const { driver, machine } = make('legacy', 'legacy', { virtioMsi: true });
    expect(driver.config.findCapability(0x11)).toBeUndefined();
    const msi = driver.config.findCapability(0x05) as number;
    driver.config.write(msi + 4, 4, 0xfee00000);
    driver.config.write(msi + 12, 2, 0x55);
    driver.config.write(msi + 2, 2, 1);
    driver.init(() => 0n);
    driver.request(0, [{ write: 4 }]);
    expect(machine.msis).toEqual([{ address: 0xfee00000, data: 0x55 }]);
    expect(driver.isr).toBe(1);
  });

  test('a configuration change before DRIVER_OK is no interrupt, but a driver that reads meanwhile sees a generation', () => {
    const { driver, machine, device } = make('modern');
    device.transport?.configChanged();
    expect(machine.intx).toBe(false);
    expect(driver.in(21, 1)).toBe(1);
    driver.init();
    device.transport?.configChanged();
    expect(driver.in(21, 1)).toBe(1);
    expect(driver.isr).toBe(2);
  });
});

describe('kicks by ioeventfd', () => {
  test('one a queue from DRIVER_OK to reset, and the request page is not needed', async () => {
    const { driver, machine, device } = make('legacy', 'legacy', {}, true);
    driver.init();
    expect(
      machine.ioeventfds.map((e) => [e.assign, e.spec.address, e.spec.space, e.spec.sizeBytes, e.spec.dataMatch]),
    ).toEqual([
      [true, 0x2010, 'pio', 2, 0n],
      [true, 0x2010, 'pio', 2, 1n],
    ]);
    driver.add(1, [{ write: 4 }]);
    const { writeSync } = await import('node:fs');
    writeSync((machine.ioeventfds[1] as { spec: { fd: number } }).spec.fd, Uint8Array.of(1, 0, 0, 0, 0, 0, 0, 0));
    await expect.poll(() => device.served).toBe(1);
    driver.status = 0;
    expect(machine.ioeventfds.slice(2).map((e) => [e.assign, e.spec.dataMatch])).toEqual([
      [false, 0n],
      [false, 1n],
    ]);
  });

  test('the modern form uses its notification port', () => {
    const { driver, machine } = make('modern', 'modern', {}, true);
    driver.init();
    expect(machine.ioeventfds.map((e) => [e.spec.address, e.spec.space])).toEqual([
      [0x80020000, 'pio'],
      [0x80020000, 'pio'],
    ]);
  });
});

describe('hostile guests', () => {
  test.each([2, 0xff, 0xffff])(
    'notification for queue %i of 2 (QEMU CVE-2011-2512, kvmtool CVE-2021-45464)',
    (index) => {
      const { driver, device, fn } = make('transitional', 'legacy');
      driver.init();
      driver.out(0x10, 2, index);
      fn.writeBar(4, 0x3000 + 4 * (index & 0x3ff), 2, 0);
      fn.writeBar(2, 0, 4, index);
      expect(device.served).toBe(0);
    },
  );

  test('configuration accesses over its end (kvmtool CVE-2021-45464)', () => {
    const { driver, device } = make('legacy');
    for (const [offset, size] of [
      [0x1c, 4],
      [0x1b, 2],
      [0x1f, 4],
    ] as const) {
      driver.out(offset - 1, size, 0x41414141);
      expect(driver.in(offset + 1, size)).toBe(size === 4 ? 0xffffffff : 0xffff);
    }
    expect(device.config).toHaveLength(8);
  });

  test('a broken queue tells by configuration interrupt, once, and stays quiet until reset', () => {
    const { driver, machine, device } = make('legacy');
    driver.init();
    driver.makeAvailable(0, 0x1234);
    driver.kick(0);
    expect(driver.needsReset).toBe(true);
    expect(driver.isr).toBe(2);
    driver.kick(0);
    driver.add(1, [{ write: 4 }]);
    driver.kick(1);
    expect([machine.intx, device.served]).toEqual([false, 0]);
    driver.status = 7;
    expect(driver.needsReset).toBe(true);
    driver.init();
    driver.request(1, [{ write: 4 }]);
    expect(device.served).toBe(1);
  });

  test.each(['legacy', 'transitional', 'modern'] as const)(
    '%s: any accesses leave reads in range and never throw',
    (mode) => {
      fc.assert(
        fc.property(
          fc.array(fc.tuple(fc.constantFrom(0, 1, 2, 4), busAccesses(0x4010)), { maxLength: 6 }),
          busAccesses(64),
          (groups, legacy) => {
            const { driver, fn, machine } = make(mode);
            const region = (bar: 0 | 1 | 2 | 4) => ({
              read: (offset: number, size: 1 | 2 | 4) => fn.readBar(bar, offset, size),
              write: (offset: number, size: 1 | 2 | 4, value: number) => fn.writeBar(bar, offset, size, value),
            });
            const apply = (bar: number, accesses: readonly BusAccess[]) => {
              for (const access of accesses) applyAccess(region(bar as 0 | 1 | 2 | 4), access);
            };
            apply(0, legacy);
            for (const [bar, accesses] of groups) apply(bar, accesses);
            fn.reset();
            expect(driver.status).toBe(0);
            machine.dispose();
          },
        ),
        { numRuns: 60 },
      );
    },
  );

  test('reset equals fresh: every register reads as after construction', () => {
    const fresh = make('transitional', 'modern');
    const used = make('transitional', 'modern');
    used.driver.init();
    used.driver.request(0, [{ write: 4 }]);
    used.fn.reset();
    for (const world of [fresh, used]) world.device.config.fill(0);
    const registers = (w: typeof fresh) =>
      Array.from({ length: 56 }, (_, i) => [w.driver.in(i, 1), w.driver.in(i, 2), w.driver.in(i, 4)]);
    expect(registers(used)).toEqual(registers(fresh));
  });
});
