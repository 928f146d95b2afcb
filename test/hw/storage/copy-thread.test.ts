/** Transfers of an image in memory that two threads share: each is done once, by whoever has it, and belongs to it until then. */
import { closeSync, mkdtempSync, openSync, readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { Worker } from 'node:worker_threads';
import { beforeAll, expect, onTestFinished, test, vi } from 'vitest';
import { GuestBuffers, GuestRam } from '../../../devicemodel/core/guest-buffers.ts';
import { Errno } from '../../../devicemodel/core/host/errno.ts';
import { tryLock } from '../../../devicemodel/core/host/file-lock.ts';
import { map } from '../../../devicemodel/core/host/mapping.ts';
import { MemoryWriter } from '../../../devicemodel/core/host/process-memory.ts';
import { silentLog } from '../../../devicemodel/core/log.ts';
import { ThreadPulses } from '../../../devicemodel/core/thread-pulses.ts';
import { CopyThread } from '../../../devicemodel/hw/storage/copy-thread/copy-thread.ts';
import { openDiskImage } from '../../../devicemodel/hw/storage/disk-image.ts';
import { ImageIo } from '../../../devicemodel/hw/storage/image-io.ts';
import { SECTOR_BYTES } from '../../../devicemodel/hw/storage/image-options.ts';
import { ImageOp, QUEUE_CAPACITY } from '../../../devicemodel/hw/storage/image-queue.ts';
import { RingQueue } from '../../../devicemodel/hw/storage/ring-queue.ts';
import { bundledWorker } from '../../support/bundle-worker.ts';
import { FakeClock } from '../../support/fake-clock.ts';
import { MEMORY_DIR } from '../../support/memory-dir.ts';
import { memoryLog } from '../../support/memory-log.ts';

const READ_BYTES = 32 * 1024;
const IMAGE_BYTES = QUEUE_CAPACITY * READ_BYTES;
/** Nothing is shared for at most so long after a thread was late. */
const MAX_REST_NS = 1e9;
/** Kicks of a full queue after which an image is busy. */
const BUSY_KICKS = Math.ceil(300 / (QUEUE_CAPACITY - 1));

const image = Uint8Array.from({ length: IMAGE_BYTES }, (_, i) => i * 31 + (i >> 9));
const contents = (from: number, length = READ_BYTES) => image.subarray(from, from + length);

const real = bundledWorker('devicemodel/hw/storage/copy-thread/copy-thread-main.ts');
/**
 * A thread that takes one job of this kind, and is then at it until it is told how it ends. It does nothing of it, and tells
 * nobody that it was done unless it was asked to: words as in words.ts.
 */
const stallingAt = (op: ImageOp) => `
import { parentPort, workerData } from 'node:worker_threads';
const words = new Int32Array(workerData.words);
const [published, taken, late, order, jobs] = [0, 1, 4, 10, 10 + ${QUEUE_CAPACITY}];
parentPort.postMessage('ready');
let job = -1;
while (job < 0) {
  const next = Atomics.load(words, taken);
  const first = words[order + next % ${QUEUE_CAPACITY}];
  if (next === Atomics.load(words, published)) Atomics.wait(words, published, next, 1);
  else if (words[jobs + 8 * first + 5] !== ${op === ImageOp.Write ? 1 : 0}) Atomics.wait(words, taken, next, 1);
  else if (Atomics.compareExchange(words, taken, next, next + 1) === next) job = first;
}
parentPort.on('message', (how) => {
  if (how === 'die') throw new Error('told to');
  Atomics.store(words, jobs + 8 * job, how === 'done' ? 1 : 2);
  if (Atomics.exchange(words, late, 0) !== 0) parentPort.postMessage('done');
});
`;

beforeAll(async () => {
  await real.build();
  return () => real.remove();
});

async function setUp(workerUrl: URL = real.url) {
  const dir = mkdtempSync(join(MEMORY_DIR, 'copy-thread-'));
  const path = join(dir, 'image');
  writeFileSync(path, image);
  const ram = map(2 * IMAGE_BYTES, 'test');
  const clock = new FakeClock();
  const log = memoryLog();
  const pulses = new ThreadPulses();
  const options = { ro: false, writeback: true, nocache: false, discard: undefined };
  const io = new ImageIo({ ...(await openDiskImage(path, options, silentLog)), neverWaits: true });
  const queue = new RingQueue(io, clock, log.log, pulses, workerUrl);
  let isOpen = true;
  const closeImage = () => {
    if (isOpen) closeSync(io.image.fd);
    isOpen = false;
  };
  onTestFinished(async () => {
    await queue.drained();
    await queue.dispose();
    io.dispose();
    closeImage();
    ram.dispose();
    rmSync(dir, { recursive: true });
  });
  const guest = new GuestRam([{ base: 0, bytes: ram.bytes, hostAddress: ram.address }]);
  const submit = (op: ImageOp, offset: number, at: number, count = READ_BYTES) => {
    const buffers = new GuestBuffers(guest);
    buffers.append(0, at, count, op === ImageOp.Read);
    return new Promise<number>((done) => {
      queue.submit({ op, buffers, count, offset, isDurable: false, done });
    });
  };
  /** In guest memory, of the n-th transfer of a full queue. */
  const placeOf = (i: number) => ((i * 7) % QUEUE_CAPACITY) * READ_BYTES;
  /** A full queue, each from another place to another. */
  const moveAll = (op: ImageOp) => {
    const results = all.map((i) => submit(op, i * READ_BYTES, placeOf(i)));
    queue.kick();
    return Promise.all(results);
  };
  const readAll = () => {
    ram.bytes.fill(0);
    return moveAll(ImageOp.Read);
  };
  const writeAll = (n: number) => {
    for (const i of all) ram.bytes.fill(n + i, placeOf(i), placeOf(i) + READ_BYTES);
    return moveAll(ImageOp.Write);
  };
  const isRight = (i: number) => {
    const at = placeOf(i);
    return Buffer.compare(ram.bytes.subarray(at, at + READ_BYTES), contents(i * READ_BYTES)) === 0;
  };
  /** Whether the image has what `writeAll(n)` wrote. */
  const isWritten = (n: number) =>
    readFileSync(path).equals(Buffer.concat(all.map((i) => Buffer.alloc(READ_BYTES, n + i))));
  const publish = vi.spyOn(CopyThread.prototype, 'publish');
  onTestFinished(() => publish.mockRestore());
  /** There is much to do until the thread takes part. */
  const beBusy = async () => {
    for (let n = 0; n < BUSY_KICKS; n++) await readAll();
    while (publish.mock.calls.length === 0) {
      await new Promise((resolve) => setTimeout(resolve, 5));
      void readAll();
    }
  };
  return {
    path,
    ram,
    clock,
    log,
    pulses,
    queue,
    submit,
    readAll,
    isRight,
    writeAll,
    isWritten,
    beBusy,
    publish,
    closeImage,
  };
}

/** @param code of a worker. */
function workerOf(code: string): URL {
  const dir = mkdtempSync(join(MEMORY_DIR, 'copy-worker-'));
  onTestFinished(() => rmSync(dir, { recursive: true }));
  const path = join(dir, 'worker.mjs');
  writeFileSync(path, code);
  return pathToFileURL(path);
}

const all = Array.from({ length: QUEUE_CAPACITY }, (_, i) => i);
const zeros = new Array<number>(QUEUE_CAPACITY).fill(0);

test('what is read by two is read once, and right', async () => {
  const { readAll, isRight, beBusy, queue, publish, clock } = await setUp();
  await beBusy();
  publish.mockClear();
  for (let n = 0; n < 50; n++) {
    // Nothing is left of a rest, whatever CPUs the thread had.
    clock.advance(MAX_REST_NS);
    expect(await readAll()).toEqual(zeros);
    expect(all.filter((i) => !isRight(i))).toEqual([]);
  }
  // All but the first of each kick.
  expect(publish).toHaveBeenCalledTimes(50 * (QUEUE_CAPACITY - 1));
  expect(queue.inFlight).toBe(0);
  expect(queue.drained()).toBeUndefined();
});

test('what is written by two is written once, and right', async () => {
  const { writeAll, isWritten, beBusy, publish, clock } = await setUp();
  await beBusy();
  publish.mockClear();
  const transfer = vi.spyOn(ImageIo.prototype, 'transfer');
  onTestFinished(() => transfer.mockRestore());
  let times = 0;
  // Two threads run for the jobs, and this one may have had them all.
  while (times < 50 || transfer.mock.calls.length === times * QUEUE_CAPACITY) {
    clock.advance(MAX_REST_NS);
    expect(await writeAll(++times)).toEqual(zeros);
    expect(isWritten(times)).toBe(true);
  }
  expect(publish).toHaveBeenCalledTimes(times * (QUEUE_CAPACITY - 1));
});

// Mutation: what is mapped is left to the thread, or for ever; or the device thread gives it back, page by page.
test('an image that is closed is locked no longer', async () => {
  const { beBusy, queue, path, closeImage } = await setUp();
  await beBusy();
  const other = openSync(path, 'r+');
  onTestFinished(() => closeSync(other));
  expect(tryLock(other, 'exclusive', path)).toBe(false);
  await queue.drained();
  const isMapped = () => readFileSync('/proc/self/maps', 'utf8').includes(path);
  expect(isMapped()).toBe(true);
  const unmapped = queue.dispose();
  expect(unmapped).toBeInstanceOf(Promise);
  await unmapped;
  expect(isMapped()).toBe(false);
  closeImage();
  expect(tryLock(other, 'exclusive', path)).toBe(true);
});

// Mutation: the answer of the thread is the request's; the thread does not ask for the length.
test.each([
  ['at a page', IMAGE_BYTES / 4],
  ['within a page', IMAGE_BYTES - 512],
])('where the image was cut %s nobody is hurt, and it is written all the same', async (_, leftBytes) => {
  const { writeAll, isWritten, beBusy, path, clock } = await setUp();
  await beBusy();
  for (let n = 0; n < 60; n++) {
    clock.advance(MAX_REST_NS);
    truncateSync(path, leftBytes);
    expect(await writeAll(n)).toEqual(zeros);
    expect(isWritten(n)).toBe(true);
  }
});

// Mutation: the answer of the thread is the request's.
test('what the thread cannot read this one looks at', async () => {
  const { readAll, isRight, beBusy, path } = await setUp();
  await beBusy();
  truncateSync(path, IMAGE_BYTES / 2);
  const half = QUEUE_CAPACITY / 2;
  expect(await readAll()).toEqual([...zeros.slice(half), ...new Array(half).fill(Errno.EIO)]);
  expect(all.slice(0, half).filter((i) => !isRight(i))).toEqual([]);
});

test('a quiet image, small transfers and one that is alone have no thread', async () => {
  const { readAll, submit, queue, clock, pulses, publish } = await setUp();
  const start = vi.spyOn(pulses, 'add');
  for (let n = 0; n < 3 * BUSY_KICKS; n++) {
    await readAll();
    clock.advance(2e9 / 5);
  }
  const several = async (op: ImageOp, count: number, times: number) => {
    for (let n = 0; n < 1000; n++) {
      const results = Array.from({ length: times }, (_, i) => submit(op, i * count, i * count, count));
      queue.kick();
      await Promise.all(results);
    }
  };
  await several(ImageOp.Read, 4096, 8);
  await several(ImageOp.Read, READ_BYTES, 1);
  await several(ImageOp.Write, 4096, 8);
  await several(ImageOp.Write, READ_BYTES, 1);
  expect(start).not.toHaveBeenCalled();
  expect(publish).not.toHaveBeenCalled();
});

test('a thread that sleeps answers who asks whether it is there', async () => {
  const { beBusy, pulses, path } = await setUp();
  await beBusy();
  pulses.ask();
  await vi.waitUntil(() => pulses.silent.length === 0);
  // A second time: it was not awake by chance.
  await new Promise((resolve) => setTimeout(resolve, 20));
  pulses.ask();
  expect([[], [path]]).toContainEqual(pulses.silent);
  await vi.waitUntil(() => pulses.silent.length === 0);
});

/** The thread is at a job of which it does not come back; the others of that kick are done. */
async function stalled(op: ImageOp = ImageOp.Read) {
  const workers: Worker[] = [];
  const unref = vi.spyOn(Worker.prototype, 'unref').mockImplementation(function (this: Worker) {
    workers.push(this);
  });
  onTestFinished(() => unref.mockRestore());
  const made = await setUp(workerOf(stallingAt(op)));
  await made.beBusy();
  // Two threads run for the jobs, and this one may have had them all.
  while (made.queue.inFlight === 0) {
    made.clock.advance(MAX_REST_NS);
    void (op === ImageOp.Write ? made.writeAll(1) : made.readAll());
  }
  onTestFinished(async () => void (await workers[0]?.terminate()));
  return { ...made, tell: (how: 'done' | 'fail' | 'die') => workers[0]?.postMessage(how) };
}

// Mutation: what the thread is at counts as done.
test('what it is at is in flight, has a name, and keeps no other request', async () => {
  const { queue, submit, tell } = await stalled();
  expect(queue.inFlight).toBe(1);
  expect(queue.describeWork()).toMatch(/^read of 32768 bytes at sector \d+$/);
  let isDrained = false;
  const drained = queue.drained()?.then(() => {
    isDrained = true;
  });
  const other = submit(ImageOp.Read, 0, 0, 4096);
  queue.kick();
  expect(await other).toBe(0);
  expect(isDrained).toBe(false);
  tell('done');
  await drained;
  expect(queue.inFlight).toBe(0);
});

// Mutation: only what is large enough to be shared is looked at, or only what is held.
test.each([SECTOR_BYTES, READ_BYTES])('a write of %i bytes to where it is writing waits for it', async (count) => {
  const { queue, submit, tell, ram, path, clock } = await stalled(ImageOp.Write);
  const sector = Number(/^write of 32768 bytes at sector (\d+)$/.exec(queue.describeWork() ?? '')?.[1]);
  const at = sector * SECTOR_BYTES;
  ram.bytes.fill(99, IMAGE_BYTES);
  clock.advance(MAX_REST_NS);
  const order: string[] = [];
  const write = (name: string, offset: number) =>
    submit(ImageOp.Write, offset, IMAGE_BYTES, count).then((errno) => order.push(`${name} ${errno}`));
  // One sector of it.
  const place = at === 0 ? READ_BYTES - SECTOR_BYTES : at + SECTOR_BYTES - count;
  const same = write('same', place);
  const other = write('other', (at + IMAGE_BYTES / 2) % IMAGE_BYTES);
  queue.kick();
  await other;
  expect([order, queue.inFlight]).toEqual([['other 0'], 2]);
  tell('done');
  await same;
  await queue.drained();
  expect(order).toEqual(['other 0', 'same 0']);
  expect(readFileSync(path).subarray(place, place + count)).toEqual(Buffer.alloc(count, 99));
});

// Mutation: each of the three that is not asked for: writes that are held, that are shared, discards.
test('two writes of the same bytes are never shared', async () => {
  const { beBusy, submit, queue, publish, clock } = await setUp();
  await beBusy();
  publish.mockClear();
  clock.advance(MAX_REST_NS);
  const results = [
    submit(ImageOp.Write, 0, 0, SECTOR_BYTES),
    submit(ImageOp.Discard, 4 * READ_BYTES, 0, READ_BYTES),
    // Not shared: they overlap what is held, by a sector.
    submit(ImageOp.Write, 0, 0),
    submit(ImageOp.Write, 3 * READ_BYTES + SECTOR_BYTES, 0),
    submit(ImageOp.Write, 5 * READ_BYTES - SECTOR_BYTES, 0),
  ];
  expect(publish).not.toHaveBeenCalled();
  results.push(submit(ImageOp.Write, 10 * READ_BYTES, 0), submit(ImageOp.Write, 11 * READ_BYTES, 0));
  expect(publish).toHaveBeenCalledTimes(2);
  results.push(submit(ImageOp.Write, 11 * READ_BYTES - SECTOR_BYTES, 0));
  // What waits for them lets nothing else be shared.
  results.push(submit(ImageOp.Write, 20 * READ_BYTES, 0));
  expect(queue.inFlight).toBe(results.length);
  queue.kick();
  expect(await Promise.all(results)).toEqual(results.map(() => 0));
  expect(publish).toHaveBeenCalledTimes(2);
});

// Mutation: a thread that is late does not rest.
test('a thread that had no CPU is left alone for a while', async () => {
  const { readAll, publish, clock, tell, queue } = await stalled();
  tell('done');
  await vi.waitUntil(() => queue.inFlight === 0);
  publish.mockClear();
  expect(await readAll()).toEqual(zeros);
  expect(publish).not.toHaveBeenCalled();
  clock.advance(MAX_REST_NS);
  expect(await readAll()).toEqual(zeros);
  expect(publish).toHaveBeenCalledTimes(QUEUE_CAPACITY - 1);
});

test.each(['fail', 'die'] as const)('where the thread says %s the read is made here', async (how) => {
  const { queue, tell, isRight, log, readAll } = await stalled();
  tell(how);
  await vi.waitUntil(() => queue.inFlight === 0);
  // All of the kick in which it stalled are there.
  expect(all.filter((i) => !isRight(i))).toEqual([]);
  expect(log.lines.some((line) => line.includes('told to'))).toBe(how === 'die');
  if (how === 'die') expect(await readAll()).toEqual(zeros);
});

test('where the host does not let it write it is left to read', async () => {
  const isAllowed = vi.spyOn(MemoryWriter.prototype, 'isAllowed', 'get').mockReturnValue(false);
  onTestFinished(() => isAllowed.mockRestore());
  const { beBusy, readAll, writeAll, isWritten, publish, clock } = await setUp();
  await beBusy();
  publish.mockClear();
  clock.advance(MAX_REST_NS);
  expect(await writeAll(1)).toEqual(zeros);
  expect(isWritten(1)).toBe(true);
  expect(publish).not.toHaveBeenCalled();
  await readAll();
  expect(publish).toHaveBeenCalled();
});

test('a thread that does not come up is not tried again', async () => {
  const { readAll, pulses, log } = await setUp(workerOf('throw new Error("not here")'));
  const start = vi.spyOn(pulses, 'add');
  for (let n = 0; n < BUSY_KICKS; n++) await readAll();
  await vi.waitUntil(() => log.lines.some((line) => line.includes('not here')));
  await vi.waitUntil(() => pulses.silent.length === 0);
  for (let n = 0; n < 3 * BUSY_KICKS; n++) expect(await readAll()).toEqual(zeros);
  expect(start).toHaveBeenCalledTimes(1);
});
