/** One request, however large, keeps nobody else from being served: neither on the device thread nor on a data thread. */
import { mkdtempSync, openSync, readFileSync, rmSync, truncateSync, writeFileSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { afterEach, describe, expect, test } from 'vitest';
import { checkOptions } from '../../../../devicemodel/core/options.ts';
import { VirtioBlock } from '../../../../devicemodel/hw/pci/virtio/block/block.ts';
import { BlockOptions, parseBlockText } from '../../../../devicemodel/hw/pci/virtio/block/options.ts';
import { virtioConsole } from '../../../../devicemodel/hw/pci/virtio/console/console.ts';
import { ConsoleOptions, parseConsoleText } from '../../../../devicemodel/hw/pci/virtio/console/options.ts';
import { virtioRnd } from '../../../../devicemodel/hw/pci/virtio/rng.ts';
import { VirtioPci } from '../../../../devicemodel/hw/pci/virtio/transport/transport.ts';
import { useDataThreadWorker } from '../../../support/data-thread-worker.ts';
import { MEMORY_DIR } from '../../../support/memory-dir.ts';
import { StepClock } from '../../../support/step-clock.ts';
import { VirtioDriver, VirtioMachine } from '../../../support/virtio-driver.ts';

const threadUrl = useDataThreadWorker();
const MiB = 1 << 20;
const PENDING = 0xee;
const RAM_BYTES = 32 * MiB;
/** Where the data of large requests lie, whatever else there is. */
const DATA_AT = 16 * MiB;
/** Far above what a slice takes on a slow and busy host, far below what the whole request does. */
const LONG_MS = 100;

const undo: Array<() => void | Promise<void>> = [];
afterEach(async () => {
  for (const step of undo.splice(0).reverse()) await step();
});

function makeImage(sizeBytes: number): string {
  const dir = mkdtempSync(join(MEMORY_DIR, 'virtio-slices-'));
  undo.push(() => rmSync(dir, { recursive: true }));
  const path = join(dir, 'disk');
  writeFileSync(path, '');
  truncateSync(path, sizeBytes);
  return path;
}

function makeMachine() {
  const machine = new VirtioMachine({ ram: [[0, RAM_BYTES]] });
  undo.push(() => machine.dispose());
  const clock = new StepClock();
  return { machine, clock, env: { ...machine.env(), clock } };
}

type World = ReturnType<typeof makeMachine>;

async function makeDisk({ machine, env }: World, text: string, workerUrl?: URL): Promise<VirtioDriver> {
  const options = checkOptions(BlockOptions, parseBlockText(text)) as BlockOptions;
  const device = new VirtioBlock(options, 1, env.log, workerUrl);
  const fn = new VirtioPci(device, env, {
    mode: 'legacy',
    identity: { legacyDeviceId: 0x1001, type: 2, classCode: 0x010000 },
  });
  const driver = new VirtioDriver(machine, fn);
  await fn.start();
  undo.push(() => fn.stop());
  driver.init();
  return driver;
}

async function makeConsole({ machine, env }: World): Promise<VirtioDriver> {
  const options = checkOptions(ConsoleOptions, parseConsoleText('@stdio:a'));
  const driver = new VirtioDriver(machine, virtioConsole.create(options, env));
  await driver.fn.start?.();
  undo.push(() => driver.fn.stop?.());
  // The same RAM as the disk's driver: apart from it.
  driver.allocate(8 * MiB);
  driver.init();
  return driver;
}

/** A request of `count` buffers of `length` bytes, all over the same RAM if `overlap`. @returns where its status will be. */
function addLarge(driver: VirtioDriver, type: number, count: number, length: number, overlap: boolean): number {
  const header = driver.allocate(16);
  const status = driver.allocate(1);
  const table = driver.allocate(16 * (count + 2), 16);
  driver.write(header, Uint8Array.of(type, ...new Uint8Array(15)));
  driver.write(status, Uint8Array.of(PENDING));
  driver.setDescriptor(table, 0, header, 16, 1, 1);
  for (let i = 0; i < count; i++) {
    driver.setDescriptor(table, 1 + i, DATA_AT + (overlap ? 0 : i * length), length, type === 0 ? 3 : 1, 2 + i);
  }
  driver.setDescriptor(table, 1 + count, status, 1, 2, 0);
  const ring = driver.queues[0] as { desc: number; nextDescriptor: number };
  driver.setDescriptor(ring.desc, ring.nextDescriptor, table, 16 * (count + 2), 4, 0);
  driver.makeAvailable(0, ring.nextDescriptor++);
  return status;
}

const byteAt = (driver: VirtioDriver, at: number) => driver.read(at, 1)[0];
function timed(what: () => void): number {
  const before = performance.now();
  what();
  return performance.now() - before;
}

describe('the device thread', () => {
  // Mutation: let `#in` and `#out` of BlockRequests transfer all of a request at once.
  test.each(['', ',writeback'])('a read of 8 MiB is served by the mebibyte ("%s")', async (options) => {
    const world = makeMachine();
    const path = makeImage(64 * MiB);
    const fd = openSync(path, 'r+');
    for (let i = 0; i < 8; i++) writeSync(fd, new Uint8Array(MiB).fill(1 + i), 0, MiB, i * MiB);
    const driver = await makeDisk(world, path + options);
    const status = addLarge(driver, 0, 8, MiB, false);
    driver.kick(0);
    for (let done = 1; done < 8; done++) {
      expect(byteAt(driver, DATA_AT + done * MiB - 1)).toBe(done);
      expect(byteAt(driver, DATA_AT + done * MiB)).toBe(0);
      expect(byteAt(driver, status)).toBe(PENDING);
      expect(world.clock.step()).toBe(true);
    }
    expect(byteAt(driver, status)).toBe(0);
    expect(driver.takeUsed(0)).toHaveLength(1);
    expect(world.clock.step()).toBe(false);
  });

  test.each(['', ',writeback'])('a write of 8 MiB likewise, and all of it arrives ("%s")', async (options) => {
    const world = makeMachine();
    const path = makeImage(64 * MiB);
    const driver = await makeDisk(world, path + options);
    for (let i = 0; i < 8; i++) driver.fill(DATA_AT + i * MiB, MiB, 1 + i);
    const status = addLarge(driver, 1, 8, MiB, false);
    driver.kick(0);
    let slices = 1;
    while (byteAt(driver, status) === PENDING && world.clock.step()) slices++;
    expect([slices, byteAt(driver, status)]).toEqual([8, 0]);
    const image = readFileSync(path);
    for (let i = 0; i < 8; i++) expect(image.subarray(i * MiB, (i + 1) * MiB).every((b) => b === 1 + i)).toBe(true);
  });

  test('many requests at one kick are served by the mebibyte, too', async () => {
    const world = makeMachine();
    const driver = await makeDisk(world, makeImage(64 * MiB));
    for (let i = 0; i < 8; i++) addLarge(driver, 0, 1, MiB / 2, true);
    driver.kick(0);
    expect(driver.takeUsed(0)).toHaveLength(2);
    world.clock.step();
    expect(driver.takeUsed(0)).toHaveLength(2);
  });

  // Mutation: as above. The console would wait for seconds.
  test('4 GiB of descriptors over the same RAM: an idle console is answered at once, all the way', async () => {
    const world = makeMachine();
    world.clock.isHostTime = true;
    const driver = await makeDisk(world, `${makeImage(8 * 1024 * MiB)},writeback`);
    const other = await makeConsole(world);
    const status = addLarge(driver, 0, 510, 8 * MiB, true);
    let longest = timed(() => driver.kick(0));
    let answered = 0;
    for (let turn = 0; turn < 200; turn++) {
      longest = Math.max(
        longest,
        timed(() => {
          expect(world.clock.step()).toBe(true);
          other.add(1, [{ read: '.', at: 12 * MiB }]);
          other.kick(1);
          answered += other.takeUsed(1).length;
        }),
      );
    }
    expect(answered).toBe(200);
    expect(byteAt(driver, status)).toBe(PENDING);
    expect(longest).toBeLessThan(LONG_MS);
  });

  // Mutation: leave `#parked` alone in Virtqueue.disable.
  test('a reset in the middle of a request ends it: nothing is written or answered afterwards', async () => {
    const world = makeMachine();
    const driver = await makeDisk(world, makeImage(64 * MiB));
    const status = addLarge(driver, 0, 8, MiB, false);
    driver.kick(0);
    driver.status = 0;
    driver.fill(DATA_AT, 8 * MiB, 0x77);
    while (world.clock.step());
    expect(byteAt(driver, status)).toBe(PENDING);
    expect(byteAt(driver, DATA_AT + 2 * MiB)).toBe(0x77);
    driver.init();
    const next = addLarge(driver, 0, 1, 512, true);
    driver.kick(0);
    expect(byteAt(driver, next)).toBe(0);
  });

  // Mutation: let VirtioPci reset without `settle`.
  test('a reset while a write waits for its sync: it is answered before, and not in the rings of after', async () => {
    const world = makeMachine();
    const driver = await makeDisk(world, makeImage(64 * MiB));
    const first = addLarge(driver, 1, 1, 4096, true);
    const large = addLarge(driver, 0, 8, MiB, false);
    driver.kick(0);
    expect([byteAt(driver, first), byteAt(driver, large)]).toEqual([PENDING, PENDING]);
    driver.status = 0;
    expect([byteAt(driver, first), byteAt(driver, large)]).toEqual([0, PENDING]);
    driver.init();
    addLarge(driver, 0, 1, 512, true);
    driver.kick(0);
    expect(driver.takeUsed(0)).toHaveLength(1);
    expect(byteAt(driver, large)).toBe(PENDING);
  });

  // Mutation: make MAX_SYNC_DELAY endless.
  test('a write is answered although a large read goes on behind it', async () => {
    const world = makeMachine();
    const driver = await makeDisk(world, `${makeImage(8 * 1024 * MiB)}`);
    const write = addLarge(driver, 1, 1, 4096, true);
    addLarge(driver, 0, 510, 8 * MiB, true);
    driver.kick(0);
    for (let turn = 0; turn < 20; turn++) world.clock.step();
    expect(byteAt(driver, write)).toBe(0);
  });

  test('a megabyte of console output is written whole, in slices', async () => {
    const world = makeMachine();
    const driver = await makeConsole(world);
    driver.fill(DATA_AT, MiB, 0x61);
    const head = driver.queues[1]?.nextDescriptor as number;
    driver.setDescriptor(driver.queues[1]?.desc as number, head, DATA_AT, MiB, 0, 0);
    driver.makeAvailable(1, head);
    driver.kick(1);
    expect(driver.takeUsed(1)).toHaveLength(0);
    while (world.clock.step());
    expect(driver.takeUsed(1)).toHaveLength(1);
    expect(world.machine.backends[0]?.written.length).toBe(MiB);
  });

  test('entropy: a ring of large buffers takes several slices', async () => {
    const world = makeMachine();
    const driver = new VirtioDriver(world.machine, virtioRnd.create({ transport: 'legacy' }, world.env));
    await driver.fn.start?.();
    undo.push(() => driver.fn.stop?.());
    driver.init();
    for (let i = 0; i < 16; i++) driver.add(0, [{ write: 64 * 1024, at: DATA_AT }]);
    driver.kick(0);
    expect(driver.takeUsed(0)).toHaveLength(4);
    while (world.clock.step());
    expect(driver.takeUsed(0)).toHaveLength(12);
  });
});

describe('a data thread', () => {
  // Mutation: let BlockRequests serve a request at once, or a ring full of them.
  test('an order is seen whatever the guest queued', async () => {
    const world = makeMachine();
    const driver = await makeDisk(world, `iothread,${makeImage(8 * 1024 * MiB)},aio=threads,writeback`, threadUrl);
    driver.enableMsix();
    driver.fill(DATA_AT, 8 * MiB, 0x77);
    const first = addLarge(driver, 0, 1, 4096, true);
    driver.kick(0);
    await expect.poll(() => byteAt(driver, first)).toBe(0);
    const status = addLarge(driver, 0, 510, 8 * MiB, true);
    driver.kick(0);
    // The other thread reads in this memory; a timer would see it too late where every CPU is busy.
    const deadline = Date.now() + 10_000;
    while (byteAt(driver, DATA_AT + 8 * MiB - 1) !== 0 && Date.now() < deadline);
    driver.status = 0;
    await expect.poll(() => driver.status).toBe(0);
    // Answered in the middle of the request, which is not completed.
    expect(byteAt(driver, status)).toBe(PENDING);
  });
});
