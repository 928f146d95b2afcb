/** A device with much to do is given a data thread while it runs: nothing is lost, and quiet ones never get there. */
import { mkdtempSync, readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs';

import { join } from 'node:path';
import * as fc from 'fast-check';
import { afterEach, describe, expect, test } from 'vitest';
import { closeFd } from '../../../../../devicemodel/core/host/files.ts';
import { checkOptions } from '../../../../../devicemodel/core/options.ts';
import type { PciEnv } from '../../../../../devicemodel/hw/pci/driver.ts';
import { VirtioBlock } from '../../../../../devicemodel/hw/pci/virtio/block/block.ts';
import { BlockOptions, parseBlockText } from '../../../../../devicemodel/hw/pci/virtio/block/options.ts';
import { setCableOf, VirtioNet } from '../../../../../devicemodel/hw/pci/virtio/net/net.ts';
import { NetOptions, parseNetText } from '../../../../../devicemodel/hw/pci/virtio/net/options.ts';
import { VirtioPci } from '../../../../../devicemodel/hw/pci/virtio/transport/transport.ts';
import { useDataThreadWorker } from '../../../../support/data-thread-worker.ts';
import { MEMORY_DIR } from '../../../../support/memory-dir.ts';
import { type FramePeer, socketPair } from '../../../../support/socket-pair.ts';
import {
  type DriverMode,
  type MachineChoices,
  VirtioDriver,
  VirtioMachine,
} from '../../../../support/virtio-driver.ts';

/** Requests after which a device counts as busy, with some to spare. */
const MANY = 1100;
const SECTORS = 1024;
const DEPTH = 16;

const workerUrl = useDataThreadWorker();
const undo: Array<() => void | Promise<void>> = [];
afterEach(async () => {
  for (const step of undo.splice(0).reverse()) await step();
});

function makeMachine(choices: MachineChoices) {
  const machine = new VirtioMachine({ ram: [[0, 16 << 20]], ...choices });
  undo.push(() => machine.dispose());
  const base = machine.env();
  const refused = () => {
    throw new Error('IRQFD: not here');
  };
  // Interrupts come from the device thread then, where the test sees them.
  const env: PciEnv = { ...base, hsm: { ...base.hsm, irqfd: refused } as unknown as PciEnv['hsm'] };
  return { machine, env };
}

async function makeDisk(text = 'DISK,writeback', choices: MachineChoices = {}) {
  const dir = mkdtempSync(join(MEMORY_DIR, 'virtio-busy-'));
  undo.push(() => rmSync(dir, { recursive: true }));
  const path = join(dir, 'disk');
  writeFileSync(path, Buffer.alloc(SECTORS * 512));
  const { machine, env } = makeMachine(choices);
  const options = checkOptions(BlockOptions, parseBlockText(text.replace('DISK', path))) as BlockOptions;
  const fn = new VirtioPci(new VirtioBlock(options, 1, env.log, workerUrl), env, {
    mode: 'legacy',
    identity: { legacyDeviceId: 0x1001, type: 2, classCode: 0x010000 },
  });
  const driver = new VirtioDriver(machine, fn);
  await fn.start();
  undo.push(() => fn.stop());
  if (choices.virtioMsi !== true) driver.enableMsix();
  return { machine, driver, fn, path, disk: new DiskDriver(driver) };
}

/** Requests of one sector from a fixed set of buffers, several at once. */
class DiskDriver {
  readonly #driver: VirtioDriver;
  readonly #slots: Array<{ header: number; data: number; status: number }>;
  inFlight = 0;
  done = 0;

  constructor(driver: VirtioDriver) {
    this.#driver = driver;
    this.#slots = Array.from({ length: DEPTH }, () => ({
      header: driver.allocate(16),
      // Aligned, as O_DIRECT wants it.
      data: driver.allocate(512, 512),
      status: driver.allocate(1),
    }));
  }

  /** Write `value` over a whole sector; not kicked yet. */
  write(slot: number, sector: number, value: number): void {
    const { header, data, status } = this.#slots[slot] as { header: number; data: number; status: number };
    const { memory } = this.#driver.machine;
    const ring = this.#driver.queues[0] as { desc: number };
    memory.writeU32(header, 1);
    memory.writeU32(header + 8, sector);
    this.#driver.fill(data, 512, value);
    this.#driver.fill(status, 1, 0xff);
    this.#driver.setDescriptor(ring.desc, 3 * slot, header, 16, 1, 3 * slot + 1);
    this.#driver.setDescriptor(ring.desc, 3 * slot + 1, data, 512, 1, 3 * slot + 2);
    this.#driver.setDescriptor(ring.desc, 3 * slot + 2, status, 1, 2, 0);
    this.#driver.makeAvailable(0, 3 * slot);
    this.inFlight++;
  }

  /** Read a whole sector; not kicked yet. */
  read(slot: number, sector: number): void {
    this.write(slot, sector, 0);
    const { header, data } = this.#slots[slot] as { header: number; data: number };
    this.#driver.machine.memory.writeU32(header, 0);
    const ring = this.#driver.queues[0] as { desc: number };
    this.#driver.setDescriptor(ring.desc, 3 * slot + 1, data, 512, 3, 3 * slot + 2);
  }

  /** Kick, and wait until all is given back: each once, in any order, with this status. */
  async finish(status = 0): Promise<void> {
    this.#driver.kickIfWanted(0);
    const heads: number[] = [];
    const take = () => {
      for (const { head } of this.#driver.takeUsed(0)) heads.push(head);
      return heads.length;
    };
    if (take() < this.inFlight) await expect.poll(take, { interval: 1, timeout: 5000 }).toBe(this.inFlight);
    expect(new Set(heads).size).toBe(this.inFlight);
    for (const head of heads) expect(this.#driver.read(this.#slots[head / 3]?.status as number, 1)[0]).toBe(status);
    this.done += this.inFlight;
    this.inFlight = 0;
  }
}

async function keepBusy(disk: DiskDriver, requests: number): Promise<void> {
  for (let i = 0; i < requests; i++) {
    disk.read(0, i % SECTORS);
    await disk.finish();
  }
}

describe('a disk', () => {
  test('with few requests stays on the request page', async () => {
    const { machine, driver, disk } = await makeDisk();
    driver.init();
    await keepBusy(disk, 290);
    await new Promise((resolve) => setTimeout(resolve, 100));
    expect(machine.ioeventfds).toEqual([]);
  });

  test('with many requests over a long time stays there as well', async () => {
    const { machine, driver, disk } = await makeDisk();
    driver.init();
    for (let i = 0; i < 4; i++) {
      await keepBusy(disk, 250);
      machine.clock.advance(2e9);
    }
    await new Promise((resolve) => setTimeout(resolve, 100));
    expect(machine.ioeventfds).toEqual([]);
  });

  test.each([
    ['without MSI-X', { virtioMsi: true }],
    ['with --virtio_poll', { virtioPollNs: 1000 }],
    ['in RAM without addresses', { viewsOnly: true }],
  ])('%s stays there', async (_name, choices) => {
    const { machine, driver, disk } = await makeDisk('DISK', choices);
    driver.init();
    await keepBusy(disk, MANY);
    await new Promise((resolve) => setTimeout(resolve, 100));
    expect(machine.ioeventfds).toEqual([]);
  });

  test('with much to do gets a thread, and gives it up at reset', async () => {
    const { machine, driver, disk, path } = await makeDisk();
    driver.init();
    // Vector 0 for the queue.
    driver.out(0x0e, 2, 0);
    driver.out(0x16, 2, 0);
    await keepBusy(disk, MANY);
    await expect.poll(() => machine.ioeventfds.length, { timeout: 5000 }).toBe(1);
    expect(machine.ioeventfds[0]).toMatchObject({ assign: true, spec: { asyncio: true, dataMatch: 0n } });
    machine.msis.length = 0;
    await keepBusy(disk, 50);
    await expect.poll(() => machine.msis.length).toBeGreaterThan(0);
    disk.write(3, 7, 0x77);
    await disk.finish();
    expect(readFileSync(path)[7 * 512]).toBe(0x77);
    await driver.reset();
    expect(machine.ioeventfds.map((e) => e.assign)).toEqual([true, false]);
    driver.init();
    await keepBusy(disk, 10);
    expect(machine.ioeventfds.length).toBe(2);
    // A thread that is there already is given the queues again.
    await keepBusy(disk, MANY);
    await expect.poll(() => machine.ioeventfds.length).toBe(3);
    await keepBusy(disk, 10);
  });

  // Mutation tried: `startDataThread` always answers by a promise.
  test('rebound on an idle host: a thread that is there is given the queues before the host has another event', async () => {
    const { machine, driver, disk } = await makeDisk();
    driver.init();
    await keepBusy(disk, MANY);
    await expect.poll(() => machine.ioeventfds.length, { timeout: 5000 }).toBe(1);
    await driver.reset();
    driver.init();
    // From here on the event loop has no turn, as on a host where only the guest does something.
    for (let i = 0; i < MANY && machine.ioeventfds.length === 2; i++) {
      disk.write(0, i % SECTORS, 1);
      driver.kickIfWanted(0);
      disk.inFlight = 0;
      if (machine.ioeventfds.length === 2) expect(driver.takeUsed(0).length).toBe(1);
    }
    expect(machine.ioeventfds.map((e) => e.assign)).toEqual([true, false, true]);
    disk.inFlight = 1;
    await disk.finish();
  });

  test('a reset while the thread comes up: the next driver starts without it', async () => {
    const { machine, driver, disk } = await makeDisk();
    driver.init();
    for (let i = 0; i < MANY; i++) {
      disk.write(0, i % SECTORS, 1);
      driver.kickIfWanted(0);
      driver.takeUsed(0);
      disk.inFlight = 0;
    }
    driver.init();
    await keepBusy(disk, 10);
    await new Promise((resolve) => setTimeout(resolve, 300));
    expect(machine.ioeventfds).toEqual([]);
    await keepBusy(disk, 10);
  });

  test('suspended with a thread: what was in flight is done, and it goes on afterwards', async () => {
    const { machine, driver, disk, fn, path } = await makeDisk();
    driver.init();
    await keepBusy(disk, MANY);
    await expect.poll(() => machine.ioeventfds.length, { timeout: 5000 }).toBe(1);
    for (let slot = 0; slot < DEPTH; slot++) disk.write(slot, 100 + slot, 0xa0 + slot);
    driver.kickIfWanted(0);
    await fn.settle?.(true);
    fn.suspend?.();
    const before = readFileSync(path);
    disk.write(0, 50, 0xee);
    driver.kick(0);
    await new Promise((resolve) => setTimeout(resolve, 20));
    expect(readFileSync(path).equals(before)).toBe(true);
    fn.resume?.();
    disk.inFlight = DEPTH + 1;
    await expect
      .poll(() => driver.machine.memory.readU16((driver.queues[0]?.used as number) + 2) & 0xffff)
      .toBe((disk.done + DEPTH + 1) & 0xffff);
    expect(readFileSync(path)[50 * 512]).toBe(0xee);
  });

  test.each(['DISK,nocache', 'DISK,nocache,writeback', 'DISK,nocache,aio=threads', 'DISK,writethru,aio=io_uring'])(
    '%s with a thread: many at once, whole and in the right place',
    async (text) => {
      const { machine, driver, disk, path, fn } = await makeDisk(text);
      driver.init();
      await keepBusy(disk, MANY);
      await expect.poll(() => machine.ioeventfds.length, { timeout: 5000 }).toBe(1);
      for (let round = 0; round < 60; round++) {
        for (let slot = 0; slot < DEPTH; slot++)
          disk.write(slot, (round * DEPTH + slot) % SECTORS, (round + slot) & 0xff);
        await disk.finish();
      }
      // What is in flight when the driver resets is either there or not, and nothing comes afterwards.
      for (let slot = 0; slot < DEPTH; slot++) disk.write(slot, SECTORS - 1 - slot, 0xdd);
      driver.kickIfWanted(0);
      await driver.reset();
      const after = readFileSync(path);
      await new Promise((resolve) => setTimeout(resolve, 20));
      expect(readFileSync(path).equals(after)).toBe(true);
      for (let n = 0; n < 60 * DEPTH; n++) {
        const expected = (Math.floor(n / DEPTH) + (n % DEPTH)) & 0xff;
        expect([n, after[n * 512], after[n * 512 + 511]]).toEqual([n, expected, expected]);
      }
      await fn.stop();
    },
  );

  test.each(['DISK', 'DISK,nocache'])(
    '%s that shrank under a thread: IOERR, one line, and it recovers',
    async (text) => {
      const { machine, driver, disk, path } = await makeDisk(text);
      driver.init();
      await keepBusy(disk, MANY);
      await expect.poll(() => machine.ioeventfds.length, { timeout: 5000 }).toBe(1);
      truncateSync(path, 512 * 512);
      for (let slot = 0; slot < DEPTH; slot++) disk.read(slot, 600 + slot);
      await disk.finish(1);
      await expect.poll(() => machine.lines.filter((line) => line.includes('read failed')).length).toBeGreaterThan(0);
      expect(machine.lines.filter((line) => line.includes('read failed')).length).toBeLessThan(DEPTH);
      truncateSync(path, SECTORS * 512);
      for (let slot = 0; slot < DEPTH; slot++) disk.read(slot, 600 + slot);
      await disk.finish();
    },
  );

  test('stopped while its thread comes up', async () => {
    const { driver, disk, fn } = await makeDisk();
    driver.init();
    await keepBusy(disk, MANY);
    await fn.stop();
    await fn.stop();
  });

  test('whatever the driver does around the hand-over: each request is served once, and the last write wins', async () => {
    const { machine, driver, disk, path } = await makeDisk();
    const expected = new Uint8Array(SECTORS);
    driver.init();
    const batch = fc.array(fc.tuple(fc.nat(SECTORS - 1), fc.nat(255)), { minLength: 1, maxLength: DEPTH });
    const batches = fc.sample(batch, { numRuns: 400, seed: 5 });
    let rounds = 0;
    for (let i = 0; machine.ioeventfds.length === 0 || i % 400 !== 0; i++) {
      const requests = batches[i % 400] as Array<[number, number]>;
      for (const [slot, [sector, value]] of requests.entries()) {
        disk.write(slot, sector, value);
        expected[sector] = value;
        // Some kicks come early, some not at all before the last.
        if ((sector & 3) === 0) driver.kickIfWanted(0);
      }
      await disk.finish();
      // Others have their turn, among them the thread that comes up.
      if ((i & 15) === 0) await new Promise((resolve) => setImmediate(resolve));
      if (++rounds > 200_000) throw new Error('no thread came');
    }
    const file = readFileSync(path);
    for (let sector = 0; sector < SECTORS; sector++) {
      expect(file.subarray(sector * 512, sector * 512 + 512).every((byte) => byte === expected[sector])).toBe(true);
    }
  });
});

type TapPeer = Pick<FramePeer, 'receive' | 'send'>;

async function makeNet(mode: DriverMode = 'legacy') {
  const { machine, env } = makeMachine({});
  const [fd, peer] = socketPair();
  undo.push(() => peer.close());
  const options = checkOptions(
    NetOptions,
    parseNetText(`tap=t0${mode === 'legacy' ? '' : ',transport=modern'}`),
  ) as NetOptions;
  let opened = 0;
  const [spareFd, sparePeer] = socketPair();
  undo.push(() => sparePeer.close());
  const device = new VirtioNet(options, {
    clock: env.clock,
    log: env.log,
    mac: [2, 0, 0, 0, 0, 1],
    openTap: () => [fd, spareFd][opened++] as number,
    workerUrl,
  });
  const fn = new VirtioPci(device, env, {
    mode: options.transport,
    identity: { legacyDeviceId: 0x1000, type: 1, classCode: 0x020000 },
  });
  const driver = new VirtioDriver(machine, fn, mode);
  await fn.start();
  undo.push(() => fn.stop());
  driver.enableMsix();
  driver.init();
  // With offloads the tap carries headers.
  const header = mode === 'legacy' ? 0 : HEADER;
  const tap: TapPeer = {
    receive: () => peer.receive()?.slice(header),
    send: (frame) => peer.send(Uint8Array.of(...new Uint8Array(header), ...frame)),
  };
  return { machine, driver, fn, fd, peer: tap, sparePeer, net: new NetDriver(driver) };
}

const HEADER = 12;
const FRAME = 100;

/** Numbered frames both ways. */
class NetDriver {
  readonly #driver: VirtioDriver;
  readonly #buffers: number;
  /** Of the receive buffers, by what the ring calls them. */
  readonly #placeOf = new Map<number, number>();
  #sent = 0;
  #posted = 0;

  constructor(driver: VirtioDriver) {
    this.#driver = driver;
    this.#buffers = driver.allocate(2 * 1024 * 256, 256);
  }

  post(buffers: number): void {
    for (let i = 0; i < buffers; i++) {
      const at = this.#buffers + (this.#posted++ % 1024) * 256;
      this.#placeOf.set(this.#driver.add(0, [{ write: 256, at }]), at);
    }
    this.#driver.kickIfWanted(0);
  }

  send(): void {
    const at = this.#buffers + (1024 + (this.#sent % 1024)) * 256;
    this.#driver.takeUsed(1);
    this.#driver.add(1, [{ read: [...new Uint8Array(HEADER), ...numbered(this.#sent++)], at }]);
    this.#driver.kickIfWanted(1);
  }

  /** Numbers of the frames received since the last look. */
  received(): number[] {
    const used = this.#driver.takeUsed(0);
    return used.map(({ head }) => this.#driver.machine.memory.readU32((this.#placeOf.get(head) as number) + HEADER));
  }
}

const numbered = (n: number) => {
  const frame = new Uint8Array(FRAME);
  new DataView(frame.buffer).setUint32(0, n, true);
  return frame;
};
const turn = () => new Promise((resolve) => setTimeout(resolve, 1));

describe('a network device', () => {
  /** Echo until the device has a thread, and `more` frames beyond. */
  async function busy(net: NetDriver, peer: TapPeer, machine: VirtioMachine, more: number) {
    const out: number[] = [];
    const back: number[] = [];
    const take = () => {
      for (let frame = peer.receive(); frame !== undefined; frame = peer.receive()) {
        const n = new DataView(frame.buffer).getUint32(0, true);
        out.push(n);
        peer.send(numbered(n));
      }
      back.push(...net.received());
      return back.length;
    };
    net.post(512);
    let sent = 0;
    for (let left = more; left > 0; ) {
      const count = 1 + (sent % 7);
      for (let i = 0; i < count; i++) net.send();
      sent += count;
      await turn();
      if (take() < sent) await expect.poll(take, { interval: 1, timeout: 5000 }).toBe(sent);
      net.post(count);
      if (machine.ioeventfds.length === 2) left -= count;
    }
    return { out, back, sent };
  }

  test.each(['legacy', 'packed'] as const)(
    '%s: gets a thread when it has much to do: every frame arrives once and in order, both ways',
    async (mode) => {
      const { machine, driver, net, peer } = await makeNet(mode);
      const { out, back, sent } = await busy(net, peer, machine, 300);
      const all = Array.from({ length: sent }, (_, i) => i);
      expect(out).toEqual(all);
      expect(back).toEqual(all);
      expect(machine.ioeventfds.map((e) => [e.assign, e.spec.dataMatch])).toEqual([
        [true, 0n],
        [true, 1n],
      ]);
      await driver.reset();
      expect(machine.ioeventfds.map((e) => e.assign)).toEqual([true, true, false, false]);
      driver.init();
      const again = new NetDriver(driver);
      again.post(4);
      peer.send(numbered(9));
      await expect.poll(() => again.received(), { interval: 1 }).toEqual([9]);
    },
  );

  test.each(['legacy', 'packed'] as const)(
    '%s: frames wait in the tap while there are no buffers, also on a thread',
    async (mode) => {
      const { machine, driver, net, peer } = await makeNet(mode);
      await busy(net, peer, machine, 10);
      // Use up what is posted.
      const got: number[] = [];
      for (let n = 0; n < 600; n++) {
        try {
          peer.send(numbered(10_000 + n));
        } catch {
          await turn();
          n--;
        }
        got.push(...net.received());
        if (got.length === 512) break;
      }
      await turn();
      net.post(200);
      driver.kick(0);
      peer.send(numbered(1));
      await expect.poll(() => got.push(...net.received()) && got.at(-1), { interval: 1, timeout: 5000 }).toBe(1);
      expect(got.slice(0, -1)).toEqual(Array.from({ length: got.length - 1 }, (_, i) => 10_000 + i));
    },
  );

  test('the interface goes away under the thread: the link is down, and comes back with it', async () => {
    const { machine, driver, net, peer, sparePeer, fd } = await makeNet();
    await busy(net, peer, machine, 10);
    expect(driver.readConfig(6, 2)).toBe(1);
    closeFd(fd);
    net.send();
    await expect.poll(() => machine.ioeventfds.length).toBe(4);
    expect(machine.lines.filter((line) => line.includes('tap t0: send: EBADF')).length).toBe(1);
    expect(machine.ioeventfds.map((e) => e.assign)).toEqual([true, true, false, false]);
    expect(driver.readConfig(6, 2)).toBe(0);
    machine.clock.advance(2e9);
    expect(driver.readConfig(6, 2)).toBe(1);
    sparePeer.send(numbered(5));
    await expect.poll(() => net.received(), { interval: 1 }).toEqual([5]);
  });

  test('the cable is taken out under the thread: no frame passes, and what comes afterwards does', async () => {
    const { machine, driver, fn, net, peer } = await makeNet();
    const { sent } = await busy(net, peer, machine, 10);
    setCableOf(fn, false);
    expect(driver.readConfig(6, 2)).toBe(0);
    await expect.poll(() => machine.ioeventfds.length, { timeout: 5000 }).toBe(4);
    net.send();
    peer.send(numbered(7));
    await turn();
    expect([peer.receive(), net.received()]).toEqual([undefined, []]);
    setCableOf(fn, true);
    expect(driver.readConfig(6, 2)).toBe(1);
    net.send();
    const received = () => {
      const frame = peer.receive();
      return frame === undefined ? undefined : new DataView(frame.buffer).getUint32(0, true);
    };
    await expect.poll(received, { interval: 1, timeout: 5000 }).toBe(sent + 1);
    peer.send(numbered(9));
    await expect.poll(() => net.received(), { interval: 1, timeout: 5000 }).toEqual([9]);
  });
});
