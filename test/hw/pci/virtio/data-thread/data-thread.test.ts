/** A disk whose queues are served by a data thread: the same requests, without the device thread. */
import { type ChildProcess, spawn } from 'node:child_process';
import {
  closeSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { afterEach, describe, expect, test } from 'vitest';
import type { MsiMessage } from '../../../../../devicemodel/core/device.ts';
import { checkOptions } from '../../../../../devicemodel/core/options.ts';
import type { PciEnv } from '../../../../../devicemodel/hw/pci/driver.ts';
import { resizeBlock, VirtioBlock } from '../../../../../devicemodel/hw/pci/virtio/block/block.ts';
import { BlockOptions, parseBlockText } from '../../../../../devicemodel/hw/pci/virtio/block/options.ts';
import { VirtioPci } from '../../../../../devicemodel/hw/pci/virtio/transport/transport.ts';
import { useDataThreadWorker } from '../../../../support/data-thread-worker.ts';
import { type DriverMode, VirtioDriver, VirtioMachine } from '../../../../support/virtio-driver.ts';

const SECTORS = 64;
const Type = { In: 0, Out: 1, Flush: 4 } as const;

const workerUrl = useDataThreadWorker();

const undo: Array<() => void | Promise<void>> = [];
afterEach(async () => {
  for (const step of undo.splice(0).reverse()) await step();
});

async function makeDisk(text: string, mode: DriverMode = 'legacy', url = workerUrl, sizeBytes = SECTORS * 512) {
  const dir = mkdtempSync(join(tmpdir(), 'virtio-thread-'));
  undo.push(() => rmSync(dir, { recursive: true }));
  const path = join(dir, 'disk');
  writeFileSync(
    path,
    Buffer.alloc(SECTORS * 512).map((_, i) => Math.floor(i / 512)),
  );
  truncateSync(path, sizeBytes);
  const machine = new VirtioMachine();
  undo.push(() => machine.dispose());
  const base = machine.env();
  const irqfds: Array<{ message: MsiMessage; assign: boolean }> = [];
  const irqfd = (_fd: number, message: MsiMessage, assign: boolean) => {
    // A hypervisor that refuses has its interrupts delivered from the device thread, where the test sees them.
    if (assign) throw new Error('IRQFD: not here');
    irqfds.push({ message, assign });
  };
  const env: PciEnv = { ...base, hsm: { ...base.hsm, irqfd } };
  const options = checkOptions(BlockOptions, parseBlockText(text.replace('DISK', path))) as BlockOptions;
  const device = new VirtioBlock(options, options.queues, env.log, url, env.counters('disk'));
  const fn = new VirtioPci(device, env, {
    mode: options.transport,
    identity: { legacyDeviceId: 0x1001, type: 2, classCode: 0x010000 },
  });
  const driver = new VirtioDriver(machine, fn, mode);
  await fn.start();
  undo.push(() => fn.stop());
  return { machine, driver, fn, path };
}

/** Until the returned function is called this process can open nothing. */
function takeAllDescriptors(): () => void {
  const taken: number[] = [];
  try {
    for (;;) taken.push(openSync('/dev/null', 'r'));
  } catch (error) {
    expect((error as NodeJS.ErrnoException).code).toBe('EMFILE');
  }
  return () => {
    for (const fd of taken) closeSync(fd);
  };
}

/** The newest thread of this process whose priority only a data thread asks for; it may need rights. */
function threadAtOurs(): number | undefined {
  const NICE_FIELD = 16;
  return readdirSync('/proc/self/task')
    .map(Number)
    .filter((tid) => {
      const stat = readFileSync(`/proc/self/task/${tid}/stat`, 'latin1');
      return stat.slice(stat.lastIndexOf(')') + 2).split(' ')[NICE_FIELD] === '-20';
    })
    .at(-1);
}

/** @returns the tracer, in whose hands the thread is until it is killed; undefined where that may not be. */
async function stopThread(tid: number): Promise<ChildProcess | undefined> {
  const [SEIZE, INTERRUPT] = [0x4206, 0x4207];
  const program = `import ctypes, time
ptrace = ctypes.CDLL(None).ptrace
ptrace.argtypes = [ctypes.c_long] * 4
print(ptrace(${SEIZE}, ${tid}, 0, 0) == 0 and ptrace(${INTERRUPT}, ${tid}, 0, 0) == 0, flush=True)
time.sleep(60)`;
  const tracer = spawn('python3', ['-c', program], { stdio: ['ignore', 'pipe', 'ignore'] });
  undo.push(() => void tracer.kill('SIGKILL'));
  const answer = await new Promise<string>((resolve) => {
    tracer.once('error', () => resolve(''));
    tracer.stdout.once('data', (data: Buffer) => resolve(data.toString()));
    tracer.once('exit', () => resolve(''));
  });
  return answer.startsWith('True') ? tracer : undefined;
}

function header(type: number, sector = 0): Uint8Array {
  const bytes = new DataView(new ArrayBuffer(16));
  bytes.setUint32(0, type, true);
  bytes.setBigUint64(8, BigInt(sector), true);
  return new Uint8Array(bytes.buffer);
}

/** The kick goes to an eventfd, the answer comes from another thread. */
async function request(driver: VirtioDriver, queue: number, specs: Parameters<VirtioDriver['add']>[1]) {
  driver.add(queue, specs);
  const buffers = driver.lastBuffers;
  driver.kick(queue);
  const used = driver.takeUsed(queue);
  await expect.poll(() => used.push(...driver.takeUsed(queue)), { interval: 1 }).toBe(1);
  return buffers.map((b) => driver.read(b.at, b.length));
}

describe('data thread', () => {
  test.each([
    ['legacy', ''],
    ['modern', ',transport=modern'],
    ['packed', ',transport=modern'],
  ] as const)('%s: reads, writes and flushes', async (mode, options) => {
    const { driver, path, machine } = await makeDisk(`iothread,DISK${options}`, mode);
    driver.init();
    expect(machine.ioeventfds.map((e) => [e.assign, e.spec.asyncio, e.spec.dataMatch])).toEqual([[true, true, 0n]]);
    const [, data, status] = await request(driver, 0, [{ read: header(Type.In, 5) }, { write: 1024 }, { write: 1 }]);
    expect([data?.[0], data?.[512], status?.[0]]).toEqual([5, 6, 0]);
    const written = await request(driver, 0, [
      { read: header(Type.Out, 9) },
      { read: new Uint8Array(512).fill(0xee) },
      { write: 1 },
    ]);
    expect(written[2]?.[0]).toBe(0);
    expect(readFileSync(path)[9 * 512]).toBe(0xee);
    expect((await request(driver, 0, [{ read: header(Type.Flush) }, { write: 1 }]))[1]?.[0]).toBe(0);
    // Counted by the thread, in memory that this one sees.
    const counts = { reads: 1, readBytes: 1024, writes: 1, writeBytes: 512, flushes: 1, discards: 0, errors: 0 };
    expect(machine.counters.of('disk', 'device').values()).toEqual(counts);
    expect(machine.counters.of('disk', 'device').own.every((n) => n === 0)).toBe(true);
  });

  test('answers whether it comes round, also while it sleeps; one that is stopped does not', async (context) => {
    const { machine, fn } = await makeDisk('iothread,DISK');
    const { threads } = fn;
    const comesRound = () => expect.poll(() => threads.silent, { interval: 1 }).toEqual([]);
    for (let i = 0; i < 3; i++) {
      threads.ask();
      await comesRound();
    }
    const tid = threadAtOurs();
    // Job control stops all threads of a process: one alone is stopped by a tracer.
    const tracer = tid === undefined ? undefined : await stopThread(tid);
    if (tracer === undefined) return context.skip();
    threads.ask();
    await new Promise((resolve) => setTimeout(resolve, 100));
    expect(threads.silent).toEqual([expect.stringContaining('disk')]);
    tracer.kill('SIGKILL');
    await comesRound();
    await fn.stop();
    threads.ask();
    expect(threads.silent).toEqual([]);
    expect(machine.lines).toEqual([]);
  });

  test('a disk that grows: the thread that has its queue serves what is new', async () => {
    const { driver, fn, path } = await makeDisk('iothread,DISK');
    driver.init();
    const readAt = async (sector: number) =>
      (await request(driver, 0, [{ read: header(Type.In, sector) }, { write: 512 }, { write: 1 }]))[2]?.[0];
    const IoError = 1;
    expect(await readAt(SECTORS)).toBe(IoError);
    expect(await resizeBlock(fn, 2 * SECTORS * 512)).toBe(2 * SECTORS * 512);
    expect([await readAt(SECTORS), await readAt(2 * SECTORS - 1), await readAt(2 * SECTORS)]).toEqual([0, 0, IoError]);
    truncateSync(path, SECTORS * 512);
    expect(await resizeBlock(fn, undefined)).toBe(SECTORS * 512);
    expect(await readAt(SECTORS)).toBe(IoError);
  });

  test('interrupts where there is no irqfd', async () => {
    const { driver, machine } = await makeDisk('iothread,DISK');
    driver.init();
    await request(driver, 0, [{ read: header(Type.In) }, { write: 512 }, { write: 1 }]);
    await expect.poll(() => machine.intx).toBe(true);
    expect(driver.isr).toBe(1);
  });

  test('two queues on two threads, bound to a CPU', async () => {
    const { driver } = await makeDisk('iothread=2@0/*,mq=2,DISK');
    driver.init();
    for (const queue of [0, 1]) {
      const [, data] = await request(driver, queue, [
        { read: header(Type.In, 3 + queue) },
        { write: 512 },
        { write: 1 },
      ]);
      expect(data?.[0]).toBe(3 + queue);
    }
  });

  test.each([
    ['legacy', ''],
    ['packed', ',transport=modern'],
  ] as const)(
    '%s: reset in the middle of traffic: nothing is written afterwards, and the next driver is served',
    async (mode, options) => {
      const { driver, machine } = await makeDisk(`iothread,DISK${options}`, mode);
      for (let round = 0; round < 5; round++) {
        driver.init();
        for (let i = 0; i < 20; i++) driver.add(0, [{ read: header(Type.In, i) }, { write: 512 }, { write: 1 }]);
        driver.kick(0);
        await driver.reset();
        const after = Buffer.concat(machine.memory.chunks.map((c) => Buffer.from(c.bytes)));
        await new Promise((resolve) => setTimeout(resolve, 5));
        expect(Buffer.concat(machine.memory.chunks.map((c) => Buffer.from(c.bytes))).equals(after)).toBe(true);
      }
      driver.init();
      expect((await request(driver, 0, [{ read: header(Type.In, 1) }, { write: 512 }, { write: 1 }]))[1]?.[0]).toBe(1);
    },
  );

  test('a hostile ring needs a reset', async () => {
    const { driver } = await makeDisk('iothread,DISK');
    driver.init();
    driver.makeAvailable(0, 0x1234);
    driver.kick(0);
    await expect.poll(() => driver.needsReset).toBe(true);
    await driver.reset();
    driver.init();
    expect(driver.needsReset).toBe(false);
    expect((await request(driver, 0, [{ read: header(Type.In, 1) }, { write: 512 }, { write: 1 }]))[1]?.[0]).toBe(1);
  });

  // Mutation tried: `lend` refuses unless every queue is ready.
  test('mq=4 with one queue used: that one is served by a thread', async () => {
    const { driver, machine } = await makeDisk('iothread,mq=4,DISK');
    driver.status = 0;
    driver.status = 3;
    driver.setUpQueue(1);
    driver.status = 7;
    expect(machine.ioeventfds.map((e) => [e.assign, e.spec.dataMatch])).toEqual([[true, 1n]]);
    const [, data] = await request(driver, 1, [{ read: header(Type.In, 5) }, { write: 512 }, { write: 1 }]);
    expect(data?.[0]).toBe(5);
    await driver.reset();
    expect(machine.ioeventfds.map((e) => e.assign)).toEqual([true, false]);
  });

  // Mutation tried: the loop looks for orders only when it has nothing more to serve.
  test('an order is seen in the middle of whatever the guest has queued', async () => {
    const { driver, path } = await makeDisk('iothread,DISK', 'legacy', workerUrl, 256 << 20);
    driver.init();
    const REQUESTS = 60;
    // A quarter of a gigabyte each, over the same half megabyte of RAM.
    const pieces = Array.from({ length: 510 }, () => ({ write: 0x80000, at: 0x80000 }));
    for (let i = 0; i < REQUESTS; i++) {
      driver.add(0, [{ read: header(Type.In) }, ...pieces, { write: 1 }], { indirect: true });
    }
    driver.kick(0);
    await new Promise((resolve) => setTimeout(resolve, 5));
    await driver.reset();
    // All of it takes many seconds, however late this thread is.
    expect(driver.takeUsed(0).length).toBeLessThan(REQUESTS);
    expect(statSync(path).size).toBe(256 << 20);
  });

  // Mutation tried: the generation is not compared.
  test('the position of a queue is not that of the next set-up of it', async () => {
    const { driver, fn } = await makeDisk('iothread,DISK');
    driver.init();
    for (let i = 0; i < 5; i++) {
      await request(driver, 0, [{ read: header(Type.In, i) }, { write: 512 }, { write: 1 }]);
    }
    // A legacy driver may name another place while the device runs: the queue begins anew there.
    driver.setUpQueue(0);
    await fn.settle(true);
    expect(fn.queue(0).position).toBe(0);
    fn.resume();
  });

  // Mutation tried: Eventfd's error is not caught where queues are lent.
  test('without a descriptor left the request page serves, with one line', async () => {
    const { driver, machine } = await makeDisk('iothread,DISK');
    const give = takeAllDescriptors();
    try {
      driver.init();
    } finally {
      give();
    }
    expect(machine.ioeventfds.filter((e) => e.assign).length).toBe(machine.ioeventfds.filter((e) => !e.assign).length);
    expect(machine.lines.filter((line) => line.includes('EMFILE')).length).toBe(1);
    driver.add(0, [{ read: header(Type.In, 7) }, { write: 512 }, { write: 1 }]);
    const buffers = driver.lastBuffers;
    driver.kick(0);
    expect(driver.takeUsed(0).length).toBe(1);
    expect(driver.read((buffers[1] as { at: number }).at, 1)[0]).toBe(7);
    await driver.reset();
    driver.init();
    expect(machine.ioeventfds.at(-1)?.assign).toBe(true);
  });

  test("a ring that was broken before a reset is not the next driver's", async () => {
    const { driver } = await makeDisk('iothread,DISK');
    driver.init();
    driver.makeAvailable(0, 0x1234);
    driver.kick(0);
    // The thread finds out while this one, which has yet to hear of it, does not run its event loop.
    Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 100);
    await driver.reset();
    driver.init();
    expect((await request(driver, 0, [{ read: header(Type.In, 1) }, { write: 512 }, { write: 1 }]))[1]?.[0]).toBe(1);
    expect(driver.needsReset).toBe(false);
  });

  test('packed: the driver moves a BAR: the thread gives the ring back and takes it where it was', async () => {
    const { driver, fn } = await makeDisk('iothread,DISK,transport=modern', 'packed');
    driver.init();
    // 64 entries, three for each request: the places and wrap counters are not those of the beginning.
    for (let i = 0; i < 50; i++) {
      const sector = i % SECTORS;
      const [, data] = await request(driver, 0, [{ read: header(Type.In, sector) }, { write: 512 }, { write: 1 }]);
      expect(data?.[0]).toBe(sector);
      fn.barMoved(2, 0x4000);
    }
  });

  test('a thread that dies is one line; the disk is served without it', async () => {
    const dir = mkdtempSync(join(tmpdir(), 'virtio-thread-'));
    undo.push(() => rmSync(dir, { recursive: true }));
    const path = join(dir, 'worker.mjs');
    writeFileSync(
      path,
      `import { parentPort } from 'node:worker_threads';
      parentPort.postMessage({ kind: 'ready' });
      setTimeout(() => { throw new Error('out of memory'); }, 1);`,
    );
    const { driver, machine } = await makeDisk('iothread,DISK', 'legacy', pathToFileURL(path));
    await expect.poll(() => machine.lines.filter((line) => line.includes('out of memory')).length).toBe(1);
    driver.init();
    expect((await request(driver, 0, [{ read: header(Type.In, 3) }, { write: 512 }, { write: 1 }]))[1]?.[0]).toBe(3);
  });

  test('stop ends the thread, twice is as good', async () => {
    const { driver, fn } = await makeDisk('iothread,DISK');
    driver.init();
    await request(driver, 0, [{ read: header(Type.In, 1) }, { write: 512 }, { write: 1 }]);
    await fn.stop();
    await fn.stop();
    driver.add(0, [{ read: header(Type.In, 1) }, { write: 512 }, { write: 1 }]);
    driver.kick(0);
    await new Promise((resolve) => setTimeout(resolve, 10));
    expect(driver.takeUsed(0)).toEqual([]);
  });
});
