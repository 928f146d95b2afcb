/** virtio-net as its driver sees it, on a datagram socket in place of a tap. */
import * as fc from 'fast-check';
import { afterEach, describe, expect, test } from 'vitest';
import { ConfigError } from '../../../../../devicemodel/core/errors.ts';
import { closeFd } from '../../../../../devicemodel/core/host/files.ts';
import { checkOptions } from '../../../../../devicemodel/core/options.ts';
import { defaultMac, setCableOf, VirtioNet, virtioNet } from '../../../../../devicemodel/hw/pci/virtio/net/net.ts';
import { NetOptions, parseNetText } from '../../../../../devicemodel/hw/pci/virtio/net/options.ts';
import { VirtioPci } from '../../../../../devicemodel/hw/pci/virtio/transport/transport.ts';
import { socketPair } from '../../../../support/socket-pair.ts';
import {
  type DriverMode,
  type MachineChoices,
  VirtioDriver,
  VirtioMachine,
} from '../../../../support/virtio-driver.ts';

const RX = 0;
const TX = 1;
const MRG_RXBUF = 1n << 15n;
const HEADER = new Uint8Array(12);

const undo: Array<() => void | Promise<void>> = [];
afterEach(async () => {
  for (const step of undo.splice(0).reverse()) await step();
});

const optionsOf = (text: string) => checkOptions(NetOptions, parseNetText(text)) as NetOptions;

async function makeNet(text = 'tap=t0', mode: DriverMode = 'legacy', choices: MachineChoices = {}) {
  const machine = new VirtioMachine({ ram: [[0, 0x100000]], ...choices });
  undo.push(() => machine.dispose());
  const env = machine.env();
  const [fd, peer] = socketPair();
  undo.push(() => peer.close());
  let opened = 0;
  const options = optionsOf(text);
  const device = new VirtioNet(options, {
    clock: env.clock,
    log: env.log,
    mac: options.mac ?? [2, 0, 0, 0, 0, 1],
    counters: env.counters('net'),
    openTap: () => {
      if (opened++ > 0) throw new Error('tap t0: gone');
      return fd;
    },
  });
  const fn = new VirtioPci(device, env, {
    mode: options.transport,
    identity: { legacyDeviceId: 0x1000, type: 1, classCode: 0x020000 },
  });
  const driver = new VirtioDriver(machine, fn, mode);
  await fn.start();
  undo.push(() => fn.stop());
  return { machine, driver, peer, fd, opened: () => opened };
}

const frame = (size: number, value = 0x5a) => new Uint8Array(size).fill(value);
const settle = () => new Promise((resolve) => setTimeout(resolve, 5));

/** Wait for used elements of a queue. */
async function used(driver: VirtioDriver, queue: number, count: number) {
  const all = driver.takeUsed(queue);
  await expect.poll(() => all.push(...driver.takeUsed(queue))).toBe(count);
  return all;
}

describe('the form of old releases, a bare name', () => {
  test.each([
    ['tap0', { tap: 'tap0' }],
    ['tap0_kata,mac=00:11:22:33:44:55', { tap: 'tap0_kata', mac: [0, 0x11, 0x22, 0x33, 0x44, 0x55] }],
    ['tap0,vhost', { tap: 'tap0', vhost: true }],
    ['WaaG', { tap: 'WaaG' }],
    ['tap0,mac_seed=a,b', { tap: 'tap0', macSeed: 'a,b' }],
  ])('%s names the tap', (text, expected) => {
    expect(optionsOf(text)).toMatchObject(expected);
  });
  test.each(['vhost', 'offload', 'mac=00:11:22:33:44:55'])('%s does not', (text) => {
    expect(optionsOf(text).tap).toBeUndefined();
  });
  test.each([
    'tap=a234567890123456',
    'tap=',
    'tap=a/b',
    'tap=a b',
    'a234567890123456',
    'tap=.',
    'tap=..',
    'tap=a:1',
    'tap=a\x1b',
  ])('%s is no interface name', (text) => {
    expect(() => optionsOf(text)).toThrow(/tap/);
  });
});

describe('sending', () => {
  test.each([
    ['legacy', 'tap=t0', {}],
    ['legacy', 'tap=t0', { viewsOnly: true }],
  ] as const)('%s %s %j: the frame goes out without the header, padded to 60 bytes', async (mode, text, choices) => {
    const { driver, peer, machine } = await makeNet(text, mode, choices);
    driver.init();
    expect(driver.request(TX, [{ read: HEADER }, { read: frame(10, 1) }, { read: frame(90, 2) }]).length).toBe(112);
    expect(peer.receive()).toEqual(Uint8Array.of(...frame(10, 1), ...frame(90, 2)));
    driver.request(TX, [{ read: Uint8Array.of(...HEADER, ...frame(14, 7)) }]);
    expect(peer.receive()).toEqual(Uint8Array.of(...frame(14, 7), ...new Uint8Array(46)));
    // As the guest counts them: without the header, and before they are padded.
    expect(machine.counters.of('net', 'device').values()).toMatchObject({ txFrames: 2, txBytes: 114, txDrops: 0 });
  });

  test.each(['modern', 'packed'] as const)('%s: with offloads the header goes along', async (mode) => {
    const { driver, peer } = await makeNet('tap=t0,transport=modern', mode);
    driver.init();
    expect(driver.request(TX, [{ read: HEADER.map(() => 9) }, { read: frame(60) }]).length).toBe(0);
    expect(peer.receive()).toEqual(Uint8Array.of(...HEADER.map(() => 9), ...frame(60)));
  });

  test.each([
    ['nothing', []],
    ['half a header', [{ read: [1, 2, 3] }]],
    ['a header alone', [{ read: HEADER }]],
    ['70000 bytes', [{ read: HEADER }, { read: frame(70_000) }]],
    ['a buffer to write', [{ write: 100 }]],
  ])('%s is given back and not sent', async (_name, specs) => {
    const { driver, peer, machine } = await makeNet();
    driver.init();
    driver.request(TX, specs.length === 0 ? [{ read: [] }] : specs);
    expect(peer.receive()).toBeUndefined();
    expect(driver.needsReset).toBe(false);
    expect(machine.counters.of('net', 'device').values()).toMatchObject({ txFrames: 0, txBytes: 0, txDrops: 1 });
  });

  test('before DRIVER_OK or without a tap nothing happens', async () => {
    const { driver } = await makeNet('mac=02:00:00:00:00:09');
    driver.init();
    expect(driver.readConfig(6, 2)).toBe(0);
    driver.request(TX, [{ read: HEADER }, { read: frame(60) }]);
  });
});

describe('receiving', () => {
  test('a frame comes with a header that says one buffer', async () => {
    const { driver, peer, machine } = await makeNet();
    driver.init();
    driver.add(RX, [{ write: 2048 }]);
    driver.kick(RX);
    peer.send(frame(100, 3));
    expect((await used(driver, RX, 1))[0]?.length).toBe(112);
    expect([...driver.buffer(0, 12)]).toEqual([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
    expect(driver.buffer(0, 112).subarray(12)).toEqual(frame(100, 3));
    expect(machine.counters.of('net', 'device').values()).toMatchObject({ rxFrames: 1, rxBytes: 100, rxDrops: 0 });
  });

  test('a legacy driver that does not merge has a header of ten bytes', async () => {
    const { driver, peer } = await makeNet();
    driver.init((f) => f & ~MRG_RXBUF);
    driver.add(RX, [{ write: 10 }, { write: 1514 }]);
    driver.kick(RX);
    peer.send(frame(64, 4));
    expect((await used(driver, RX, 1))[0]?.length).toBe(74);
    expect(driver.buffer(1, 64)).toEqual(frame(64, 4));
  });

  test.each([{}, { viewsOnly: true }])('a large frame goes over as many buffers as it needs (%j)', async (choices) => {
    const { driver, peer } = await makeNet('tap=t0', 'legacy', choices);
    driver.init();
    const at: number[] = [];
    for (let i = 0; i < 8; i++) {
      driver.add(RX, [{ write: 1000 }]);
      at.push((driver.lastBuffers[0] as { at: number }).at);
    }
    driver.kick(RX);
    const data = frame(3500).map((_, i) => i * 7);
    peer.send(data);
    const elements = await used(driver, RX, 4);
    expect(elements.map((u) => u.length)).toEqual([1000, 1000, 1000, 512]);
    expect(driver.read((at[0] as number) + 10, 2)).toEqual(Uint8Array.of(4, 0));
    const got = Buffer.concat(at.slice(0, 4).map((a) => driver.read(a, 1000)));
    expect(Uint8Array.from(got.subarray(12, 3512))).toEqual(data);
  });

  test('a suppressed interrupt stays suppressed while a buffer is left, and comes when none is', async () => {
    const { driver, peer, machine } = await makeNet();
    driver.init();
    machine.memory.writeU16((driver.queues[RX] as { avail: number }).avail, 1);
    driver.add(RX, [{ write: 1000 }]);
    driver.add(RX, [{ write: 1000 }]);
    driver.kick(RX);
    peer.send(frame(60));
    await used(driver, RX, 1);
    expect(machine.intxEdges).toBe(0);
    peer.send(frame(60));
    await used(driver, RX, 1);
    expect(machine.intxEdges).toBe(1);
  });

  test('a frame that does not fit is dropped, the next one arrives', async () => {
    const { driver, machine, peer } = await makeNet();
    driver.init((f) => f & ~MRG_RXBUF);
    driver.add(RX, [{ write: 200 }]);
    driver.kick(RX);
    peer.send(frame(1000));
    peer.send(frame(100, 8));
    expect((await used(driver, RX, 1))[0]?.length).toBe(110);
    expect(driver.buffer(0, 110)[10]).toBe(8);
    expect(machine.counters.of('net', 'device').values()).toMatchObject({ rxFrames: 1, rxDrops: 1 });
  });

  test('frames wait in the tap while the driver has no buffers (Firecracker CVE-2020-16843)', async () => {
    const { driver, peer } = await makeNet();
    driver.init();
    driver.kick(RX);
    peer.send(frame(60, 1));
    peer.send(frame(60, 2));
    await settle();
    driver.add(RX, [{ write: 2048 }]);
    driver.kick(RX);
    expect(await used(driver, RX, 1)).toHaveLength(1);
    expect(driver.buffer(0, 72)[12]).toBe(1);
    await settle();
    driver.add(RX, [{ write: 2048 }]);
    driver.kick(RX);
    expect(await used(driver, RX, 1)).toHaveLength(1);
    expect(driver.buffer(0, 72)[12]).toBe(2);
  });

  test.each([
    ['a driver that takes DRIVER_OK back', (driver: VirtioDriver) => (driver.status = 3)],
    [
      'a driver that broke its ring',
      (driver: VirtioDriver) => {
        driver.makeAvailable(RX, 0xffff);
        driver.kick(RX);
      },
    ],
  ])('%s: frames that wait cost nothing', async (_name, act) => {
    const { driver, peer } = await makeNet();
    driver.init();
    driver.add(RX, [{ write: 2048 }]);
    driver.add(RX, [{ write: 2048 }]);
    driver.kick(RX);
    peer.send(frame(60));
    await used(driver, RX, 1);
    act(driver);
    peer.send(frame(60));
    await settle();
    const events = async () => {
      const before = performance.nodeTiming.uvMetricsInfo.events;
      await settle();
      return performance.nodeTiming.uvMetricsInfo.events - before;
    };
    // A device that looks at the tap all the time is never quiet; the test runner's own events pass.
    await expect.poll(events).toBeLessThan(20);
  });

  test('buffers too small for a header are given back empty', async () => {
    const { driver, peer } = await makeNet();
    driver.init();
    driver.add(RX, [{ write: 5 }]);
    driver.add(RX, [{ write: 2048 }]);
    driver.kick(RX);
    peer.send(frame(60));
    expect((await used(driver, RX, 2)).map((u) => u.length)).toEqual([0, 72]);
  });

  test('buffers outside of RAM need a reset and nothing is written (QEMU CVE-2021-3748, ACRN CVE-2021-36147)', async () => {
    const { driver, peer } = await makeNet();
    driver.kick(RX);
    driver.init();
    driver.add(RX, [{ write: 2048, at: 0xfff00000 }]);
    driver.kick(RX);
    peer.send(frame(60));
    await expect.poll(() => driver.needsReset).toBe(true);
  });

  test('a reset in between: the new rings start empty and get the next frame', async () => {
    const { driver, peer } = await makeNet();
    driver.init();
    for (let i = 0; i < 4; i++) driver.add(RX, [{ write: 2048 }]);
    driver.kick(RX);
    peer.send(frame(60, 1));
    await used(driver, RX, 1);
    driver.status = 0;
    peer.send(frame(60, 2));
    await settle();
    driver.init();
    driver.add(RX, [{ write: 2048 }]);
    driver.kick(RX);
    peer.send(frame(60, 3));
    await used(driver, RX, 1);
    // The frame of the time without driver is out of date.
    expect(driver.buffer(0, 72)[12]).toBe(3);
  });
});

describe('address', () => {
  test('two networks below two root ports, in slot 0 of their buses, have addresses of their own', () => {
    const at = (bus: number) => defaultMac({ bus, device: 0, function: 0 }, 'vm');
    expect(at(1)).not.toEqual(at(2));
    expect(at(1)).not.toEqual(at(0));
    expect(at(1).slice(0, 3)).toEqual([0x00, 0x16, 0x3e]);
  });

  test('the default is made from slot, function and seed', () => {
    const bdf = { bus: 0, device: 4, function: 0 };
    // Recorded from the C device model: mac_seed=vm_net in slot 4.
    expect(defaultMac(bdf, 'vm_net')).toEqual([0x00, 0x16, 0x3e, 0x0b, 0x44, 0xd9]);
    expect(defaultMac(bdf, '00:16:3e:5d:f8:8e-lab')).toEqual([0x00, 0x16, 0x3e, 0x11, 0x6a, 0xf1]);
    expect(defaultMac(bdf, undefined)).not.toEqual(defaultMac({ ...bdf, device: 5 }, undefined));
  });

  test('a seed counts only right after the tap or first, and takes the rest of the text', () => {
    expect(optionsOf('tap=t,mac_seed=a,b').macSeed).toBe('a,b');
    expect(optionsOf('mac_seed=a,b').macSeed).toBe('a,b');
    // As C: these two count behind the seed, and are part of it.
    expect(optionsOf('tap=t,mac_seed=a,vhost,mac=02:00:00:00:00:01,offload,x=y')).toMatchObject({
      macSeed: 'a,vhost,mac=02:00:00:00:00:01,offload,x=y',
      vhost: true,
      mac: [2, 0, 0, 0, 0, 1],
      offload: false,
      unknown: [],
    });
    expect(optionsOf('tap=t,vhost,mac_seed=a').macSeed).toBeUndefined();
    expect(optionsOf('slirp,mac_seed=a').macSeed).toBeUndefined();
  });

  test('mac= is used, and a legacy driver may change it', async () => {
    const { driver } = await makeNet('tap=t0,mac=02:11:22:33:44:5');
    driver.init();
    expect([driver.readConfig(0, 4), driver.readConfig(4, 2)]).toEqual([0x33221102, 0x0544]);
    driver.writeConfig(5, 1, 0x77);
    expect(driver.readConfig(5, 1)).toBe(0x77);
    driver.writeConfig(6, 2, 0);
    expect(driver.readConfig(6, 2)).toBe(1);
    driver.fn.reset();
    expect([driver.readConfig(0, 4), driver.readConfig(4, 2)]).toEqual([0x33221102, 0x0544]);
  });

  test.each([
    '',
    'tap=',
    'tap=t,mac=01:00:5e:00:00:01',
    'tap=t,mac=00:00:00:00:00:00',
    'tap=t,mac=1:2:3',
    'tap=t,transport=x',
  ])('"%s" is refused', (text) => {
    expect(() => optionsOf(text)).toThrow(ConfigError);
  });

  test('any text is either options or a ConfigError', () => {
    fc.assert(
      fc.property(fc.string({ maxLength: 60 }), (text) => {
        try {
          optionsOf(text);
        } catch (error) {
          expect(error).toBeInstanceOf(ConfigError);
        }
      }),
    );
  });
});

describe('the host', () => {
  test('a tap that cannot be opened: one line, link down, the VM starts', async () => {
    const machine = new VirtioMachine();
    undo.push(() => machine.dispose());
    const fn = virtioNet.create(optionsOf('tap=lo'), machine.env());
    const driver = new VirtioDriver(machine, fn);
    await driver.fn.start?.();
    undo.push(() => driver.fn.stop?.());
    expect(machine.lines.filter((l) => l.startsWith('warn'))).toHaveLength(1);
    expect(driver.readConfig(6, 2)).toBe(0);
  });

  test('the cable is taken out and put back: no frame passes meanwhile, and none that came is told later', async () => {
    const { driver, machine, peer } = await makeNet();
    driver.init();
    driver.add(RX, [{ write: 2048 }]);
    const { at } = driver.lastBuffers[0] as { at: number };
    driver.kick(RX);
    setCableOf(driver.fn, false);
    expect([driver.readConfig(6, 2), driver.isr & 2]).toEqual([0, 2]);
    driver.request(TX, [{ read: HEADER }, { read: frame(60, 1) }]);
    expect(peer.receive()).toBeUndefined();
    peer.send(frame(60, 2));
    await settle();
    expect(driver.takeUsed(RX)).toHaveLength(0);
    setCableOf(driver.fn, true);
    expect([driver.readConfig(6, 2), driver.isr & 2]).toEqual([1, 2]);
    driver.request(TX, [{ read: HEADER }, { read: frame(60, 3) }]);
    expect(peer.receive()).toEqual(frame(60, 3));
    peer.send(frame(60, 4));
    expect(await used(driver, RX, 1)).toHaveLength(1);
    expect(driver.read(at, 72)[12]).toBe(4);
    expect(machine.counters.of('net', 'device').values()).toMatchObject({
      txFrames: 1,
      txDrops: 1,
      rxFrames: 1,
      rxDrops: 1,
    });
  });

  test('only a network has a cable', () => {
    expect(() => setCableOf(undefined, false)).toThrow('only virtio-net');
  });

  test('the interface goes away: the link is down and it is looked for again', async () => {
    const { driver, machine, fd, opened } = await makeNet();
    driver.init();
    closeFd(fd);
    driver.request(TX, [{ read: HEADER }, { read: frame(60) }]);
    expect(driver.readConfig(6, 2)).toBe(0);
    expect(driver.isr & 2).toBe(2);
    const before = opened();
    machine.clock.advance(3e9);
    expect(opened()).toBe(before + 3);
  });
});
