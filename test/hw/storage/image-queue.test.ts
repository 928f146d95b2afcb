/** Queues of requests on an image: by io_uring, and in slices with what could wait done aside. The same rules for both. */
import { closeSync, mkdtempSync, readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, describe, expect, onTestFinished, test, vi } from 'vitest';
import { HostError } from '../../../devicemodel/core/errors.ts';
import { GuestBuffers, GuestRam } from '../../../devicemodel/core/guest-buffers.ts';
import { Errno } from '../../../devicemodel/core/host/errno.ts';
import { IoUring, UringFlag } from '../../../devicemodel/core/host/io-uring.ts';
import type * as Mapping from '../../../devicemodel/core/host/mapping.ts';
import { map } from '../../../devicemodel/core/host/mapping.ts';
import { silentLog } from '../../../devicemodel/core/log.ts';
import { ThreadPulses } from '../../../devicemodel/core/thread-pulses.ts';
import { openDiskImage } from '../../../devicemodel/hw/storage/disk-image.ts';
import { ImageIo } from '../../../devicemodel/hw/storage/image-io.ts';
import {
  ImageOp,
  type ImageQueue,
  type ImageRequest,
  QUEUE_CAPACITY,
} from '../../../devicemodel/hw/storage/image-queue.ts';
import { RingQueue } from '../../../devicemodel/hw/storage/ring-queue.ts';
import { SlicedQueue } from '../../../devicemodel/hw/storage/sliced-queue.ts';
import { FakeClock } from '../../support/fake-clock.ts';

/** Errnos with which the next buffers of a disk are not had. */
const noMemory = vi.hoisted(() => [] as number[]);
vi.mock('../../../devicemodel/core/host/mapping.ts', async (original) => {
  const real = await original<typeof Mapping>();
  return {
    ...real,
    map: (sizeBytes: number, what: string) => {
      const errno = what.startsWith('disk') && what.endsWith('buffer') ? noMemory.shift() : undefined;
      if (errno !== undefined) throw new HostError(`${what}: mmap`, errno);
      return real.map(sizeBytes, what);
    },
  };
});

const IMAGE_BYTES = 1 << 20;
const RAM_BYTES = 4 << 20;
function pattern(length: number, from = 0): Uint8Array {
  const bytes = new Uint8Array(length);
  for (let i = 0; i < length; i++) bytes[i] = (i + from) * 31 + ((i + from) >> 9);
  return bytes;
}

interface Choices {
  readonly nocache?: boolean;
  readonly ro?: boolean;
  /** The image is on a file system in memory, and known to be. */
  readonly inMemory?: boolean;
  /** How long it is waited for what the kernel copies. */
  readonly promptNs?: number;
}

/** A transfer: operation, first byte in the disk, pieces of memory as address and bytes. */
type Transfer = readonly [op: ImageOp, offset: number, pieces: ReadonlyArray<readonly [number, number]>];

async function setUp(
  kind: 'ring' | 'sliced',
  { nocache = false, ro = false, inMemory = false, promptNs }: Choices = {},
) {
  const dir = mkdtempSync(join(inMemory ? '/dev/shm' : tmpdir(), 'image-queue-'));
  const path = join(dir, 'image');
  writeFileSync(path, pattern(IMAGE_BYTES));
  const ram = map(RAM_BYTES, 'test');
  const chunk = { base: 0, bytes: ram.bytes, hostAddress: kind === 'ring' ? ram.address : undefined };
  const clock = new FakeClock();
  const image = await openDiskImage(path, { ro, writeback: false, nocache, discard: {} }, silentLog);
  // As on a file system of a disk, wherever the test runs.
  const io = new ImageIo({ ...image, neverWaits: inMemory });
  const queue: ImageQueue =
    kind === 'ring'
      ? new RingQueue(io, clock, silentLog, new ThreadPulses(), undefined, promptNs)
      : new SlicedQueue(io, clock);
  onTestFinished(async () => {
    await queue.drained();
    queue.dispose();
    io.dispose();
    closeSync(image.fd);
    ram.dispose();
    rmSync(dir, { recursive: true });
  });
  const guest = new GuestRam([chunk]);
  const submit = (op: ImageOp, offset: number, pieces: ReadonlyArray<readonly [number, number]>, isDurable = false) => {
    const buffers = new GuestBuffers(guest);
    let count = 0;
    for (const [at, length] of pieces) {
      buffers.append(0, at, length, op === ImageOp.Read);
      count += length;
    }
    return new Promise<number>((done) => {
      const request: ImageRequest = { op, buffers, count, offset, isDurable, done };
      queue.submit(request);
    });
  };
  /** @param pieces of memory: address, bytes. */
  const run: typeof submit = (...request) => {
    const result = submit(...request);
    queue.kick();
    return result;
  };
  /** All of them before one kick. */
  const runAll = (transfers: readonly Transfer[], isDurable = false) => {
    const results = transfers.map(([op, offset, pieces]) => submit(op, offset, pieces, isDurable));
    queue.kick();
    return Promise.all(results);
  };
  const order = (op: ImageOp, offset = 0, count = 0) =>
    new Promise<number>((done) => {
      queue.submit({ op, buffers: new GuestBuffers(guest), count, offset, isDurable: false, done });
      queue.kick();
    });
  return { path, ram, clock, io, queue, submit, run, runAll, order };
}

describe.each(['ring', 'sliced'] as const)('%s', (kind) => {
  test('what is read and written, in more pieces than a call has', async () => {
    const { run, ram, path } = await setUp(kind);
    const pieces = Array.from({ length: 700 }, (_, i) => [3 * i, 2] as const);
    expect(await run(ImageOp.Read, 4096, pieces)).toBe(0);
    const got = pieces.flatMap(([at]) => [ram.bytes[at] as number, ram.bytes[at + 1] as number]);
    expect(Uint8Array.from(got)).toEqual(pattern(1400, 4096));
    ram.bytes.fill(0xee, 0, 4096);
    expect(await run(ImageOp.Write, 8192, pieces, true)).toBe(0);
    expect(readFileSync(path).subarray(8192, 8192 + 1400)).toEqual(Buffer.alloc(1400, 0xee));
    expect(readFileSync(path)[8192 + 1400]).toBe(pattern(1, 8192 + 1400)[0]);
  });

  test('as many at once as a queue holds, and each is done once', async () => {
    const { run, ram, queue } = await setUp(kind);
    const all = Array.from({ length: QUEUE_CAPACITY }, (_, i) => run(ImageOp.Read, i * 4096, [[i * 8192, 4096]]));
    expect(await Promise.all(all)).toEqual(new Array(QUEUE_CAPACITY).fill(0));
    for (let i = 0; i < QUEUE_CAPACITY; i++)
      expect(ram.bytes.slice(i * 8192, i * 8192 + 4096)).toEqual(pattern(4096, i * 4096));
    expect(queue.inFlight).toBe(0);
    expect(queue.drained()).toBeUndefined();
  });

  test('a large one goes on in parts, and drained waits for it', async () => {
    const { run, ram, queue, clock } = await setUp(kind);
    let isDone = false;
    const read = run(ImageOp.Read, 0, [[0, IMAGE_BYTES]]).then(() => {
      isDone = true;
    });
    while (queue.inFlight > 0) {
      clock.advance(1_000_000);
      await new Promise((resolve) => setImmediate(resolve));
    }
    await read;
    expect(isDone).toBe(true);
    expect(Buffer.compare(ram.bytes.subarray(0, IMAGE_BYTES), pattern(IMAGE_BYTES))).toBe(0);
  });

  test('a file that lost its end is an error', async () => {
    const { run, path } = await setUp(kind);
    truncateSync(path, 6144);
    expect(await run(ImageOp.Read, 4096, [[0, 4096]])).toBe(Errno.EIO);
    // A write makes the file longer again, as on any file.
    expect(await run(ImageOp.Write, 4096, [[0, 4096]])).toBe(0);
  });

  test('discard gives back, flush brings to the medium', async () => {
    const { order, path } = await setUp(kind);
    expect(await order(ImageOp.Discard, 4096, 8192)).toBe(0);
    expect(await order(ImageOp.Flush)).toBe(0);
    expect(readFileSync(path).subarray(4096, 4096 + 8192)).toEqual(Buffer.alloc(8192));
  });

  test('after one sync that failed every flush and every durable write fails', async () => {
    const { order, run, io } = await setUp(kind);
    io.syncFailed(Errno.EIO);
    expect(await order(ImageOp.Flush)).toBe(Errno.EIO);
    expect(await run(ImageOp.Write, 0, [[0, 512]], true)).toBe(Errno.EIO);
    expect(await run(ImageOp.Write, 0, [[0, 512]], false)).toBe(0);
  });

  test('a disk that cannot be written has nothing to flush', async () => {
    const { order, io } = await setUp(kind, { ro: true });
    io.syncFailed(Errno.EIO);
    expect(await order(ImageOp.Flush)).toBe(0);
  });

  test('past the host cache: aligned memory, and memory that is not', async () => {
    const { run, ram } = await setUp(kind, { nocache: true });
    expect(await run(ImageOp.Read, 4096, [[8192, 4096]])).toBe(0);
    expect(ram.bytes.slice(8192, 12288)).toEqual(pattern(4096, 4096));
    expect(
      await run(ImageOp.Read, 4096, [
        [3, 511],
        [1000, 3585],
      ]),
    ).toBe(0);
    expect(Uint8Array.from([...ram.bytes.slice(3, 514), ...ram.bytes.slice(1000, 4585)])).toEqual(pattern(4096, 4096));
    ram.bytes.fill(0x5a, 16384, 20480);
    expect(await run(ImageOp.Write, 8192, [[16384, 4096]], true)).toBe(0);
    expect(await run(ImageOp.Read, 8192, [[1, 512]])).toBe(0);
    expect(ram.bytes.slice(1, 513)).toEqual(new Uint8Array(512).fill(0x5a));
  });

  test('what is waited for has a name', async () => {
    const { run, queue } = await setUp(kind);
    const write = run(ImageOp.Write, 512, [[0, 4096]], true);
    expect(queue.describeWork()).toBe('write of 4096 bytes at sector 1');
    await write;
    expect(queue.describeWork()).toBeUndefined();
  });
});

describe.each([
  ['ring', false],
  ['ring', true],
  ['sliced', false],
  ['sliced', true],
] as const)('several before one kick: %s, in memory %s', (kind, inMemory) => {
  const zeros = (count: number) => new Array<number>(count).fill(0);

  test('neighbours in the file, whose memory lies elsewhere', async () => {
    const { runAll, ram, path } = await setUp(kind, { inMemory });
    const at = (i: number) => ((i * 7) % QUEUE_CAPACITY) * 12288;
    const all = (op: ImageOp, from: number) =>
      Array.from({ length: QUEUE_CAPACITY }, (_, i): Transfer => [op, from + i * 8192, [[at(i), 8192]]]);
    expect(await runAll(all(ImageOp.Read, 16384))).toEqual(zeros(QUEUE_CAPACITY));
    for (let i = 0; i < QUEUE_CAPACITY; i++)
      expect(Buffer.compare(ram.bytes.subarray(at(i), at(i) + 8192), pattern(8192, 16384 + i * 8192))).toBe(0);
    expect(await runAll(all(ImageOp.Write, 0), true)).toEqual(zeros(QUEUE_CAPACITY));
    expect(
      Buffer.compare(readFileSync(path).subarray(0, 8192 * QUEUE_CAPACITY), pattern(8192 * QUEUE_CAPACITY, 16384)),
    ).toBe(0);
  });

  // Mutation: give all of a call one answer.
  test('each has its own answer where the file ends among them', async () => {
    const { runAll, ram, path } = await setUp(kind, { inMemory });
    truncateSync(path, 10240);
    const reads = Array.from({ length: 4 }, (_, i): Transfer => [ImageOp.Read, i * 4096, [[i * 4096, 4096]]]);
    expect(await runAll(reads)).toEqual([0, 0, Errno.EIO, Errno.EIO]);
    expect(Buffer.compare(ram.bytes.subarray(0, 8192), pattern(8192))).toBe(0);
  });

  // Mutation: join it without a look at whether there was room.
  test('one of more pieces than a call has, and one that begins where that call ends', async () => {
    const { runAll, ram } = await setUp(kind, { inMemory });
    const pieces = Array.from({ length: 300 }, (_, i) => [3 * i, 2] as const);
    const reads: Transfer[] = [
      [ImageOp.Read, 4096, pieces],
      [ImageOp.Read, 4096 + 2 * 256, [[65536, 512]]],
    ];
    expect(await runAll(reads)).toEqual([0, 0]);
    const got = pieces.flatMap(([at]) => [ram.bytes[at] as number, ram.bytes[at + 1] as number]);
    expect(Uint8Array.from(got)).toEqual(pattern(600, 4096));
    expect(ram.bytes.slice(65536, 66048)).toEqual(pattern(512, 4096 + 512));
  });

  test('reads, writes and a flush, and what an answer submits', async () => {
    const { submit, queue, order, ram, path } = await setUp(kind, { inMemory });
    ram.bytes.fill(0xa5, 0, 4096);
    const write = submit(ImageOp.Write, 0, [[0, 4096]]);
    const buffers = new GuestBuffers(new GuestRam([{ base: 0, bytes: ram.bytes, hostAddress: ram.address }]));
    const read = (at: number, offset: number, then: (errno: number) => void) => {
      const own = new GuestBuffers(buffers.ram);
      own.append(0, at, 4096, true);
      queue.submit({ op: ImageOp.Read, buffers: own, count: 4096, offset, isDurable: false, done: then });
    };
    const chained = new Promise<number>((resolve, reject) => {
      read(8192, 8192, (errno) => (errno === 0 ? read(12288, 12288, resolve) : reject(new Error(`errno ${errno}`))));
    });
    expect(await Promise.all([write, chained, order(ImageOp.Flush)])).toEqual([0, 0, 0]);
    expect(Buffer.compare(ram.bytes.subarray(8192, 16384), pattern(8192, 8192))).toBe(0);
    expect(readFileSync(path).subarray(0, 4096)).toEqual(Buffer.alloc(4096, 0xa5));
    expect(queue.inFlight).toBe(0);
  });
});

describe('writes to the cache of the host, by io_uring', () => {
  afterEach(() => {
    vi.restoreAllMocks();
  });

  const LONG_NS = 900_000_000;

  // Mutation: without the wait each write is one of the event loop, a quarter of a millisecond later.
  test.each([1, 32])('%i of them are done when the kick is over', async (count) => {
    const { submit, queue, ram, path } = await setUp('ring', { promptNs: LONG_NS });
    ram.bytes.fill(0x3c, 0, 4096);
    for (let i = 0; i < count; i++) {
      void submit(ImageOp.Write, ((i * 7) % count) * 8192, [[0, 4096]]).then((errno) => expect(errno).toBe(0));
    }
    queue.kick();
    expect(queue.inFlight).toBe(0);
    expect(readFileSync(path).subarray((count - 1) * 8192, (count - 1) * 8192 + 4096)).toEqual(
      Buffer.alloc(4096, 0x3c),
    );
  });

  // Mutation: wait for durable writes, too, which take as long as a medium does.
  test('those that are to be on the medium are not waited for', async () => {
    const { run } = await setUp('ring', { promptNs: LONG_NS });
    const wait = vi.spyOn(IoUring.prototype, 'submitFor');
    expect(await run(ImageOp.Write, 0, [[0, 4096]], true)).toBe(0);
    expect(await run(ImageOp.Read, 0, [[0, 512 * 1024]])).toBe(0);
    expect(wait).not.toHaveBeenCalled();
  });

  // Mutation: without the look behind turning the bell on.
  test('what is complete just before the bell is on is not lost', async () => {
    const { run, queue } = await setUp('ring');
    const { set } = Object.getOwnPropertyDescriptor(IoUring.prototype, 'rings') as { set(isOn: boolean): void };
    const bell = vi.spyOn(IoUring.prototype, 'rings', 'set').mockImplementation(function (this: IoUring, isOn) {
      while (isOn && !this.hasCompletions);
      set.call(this, isOn);
    });
    expect(await run(ImageOp.Write, 0, [[0, 4096]], true)).toBe(0);
    expect(bell).toHaveBeenCalledWith(true);
    expect(queue.inFlight).toBe(0);
  });

  // Mutation: leave the bell off; count no wait as late.
  test('one that is late is done by the event loop, and after four nobody waits for 20 ms', async () => {
    const { run, queue, clock } = await setUp('ring', { promptNs: LONG_NS });
    let late: IoUring | undefined;
    const wait = vi.spyOn(IoUring.prototype, 'submitFor').mockImplementation(function (this: IoUring) {
      clock.advance(LONG_NS);
      late = this;
      return 0;
    });
    const write = async () => {
      const result = run(ImageOp.Write, 0, [[0, 4096]]);
      if (late !== undefined) expect(queue.inFlight).toBe(1);
      late?.submit();
      late = undefined;
      expect(await result).toBe(0);
    };
    for (let i = 0; i < 8; i++) await write();
    expect(wait).toHaveBeenCalledTimes(4);
    clock.advance(20_000_000);
    await write();
    expect(wait).toHaveBeenCalledTimes(5);
  });
});

describe('an image in memory, by io_uring', () => {
  const MIB = 1 << 20;
  const many = (count: number, bytes: number): Transfer[] =>
    Array.from({ length: count }, (_, i) => [
      i % 2 === 0 ? ImageOp.Read : ImageOp.Write,
      (i * bytes) % MIB,
      [[0, bytes]],
    ]);

  test('is read and written before the kick is over', async () => {
    const { runAll, queue } = await setUp('ring', { inMemory: true });
    const results = runAll(many(QUEUE_CAPACITY, 4096));
    expect(queue.inFlight).toBe(0);
    expect(await results).toEqual(new Array(QUEUE_CAPACITY).fill(0));
  });

  // Mutation: no limit; whoever kicks waits for all of it.
  test('more than is copied between two kicks is for the threads of the kernel', async () => {
    const { runAll } = await setUp('ring', { inMemory: true });
    const prepare = vi.spyOn(IoUring.prototype, 'prepare');
    onTestFinished(() => prepare.mockRestore());
    expect(await runAll(many(QUEUE_CAPACITY, MIB / 4))).toEqual(new Array(QUEUE_CAPACITY).fill(0));
    const isAside = prepare.mock.calls.map(([op]) => op >> 8 === UringFlag.Async);
    // 4 MiB of the 8.
    expect(isAside.filter(Boolean).length).toBe(QUEUE_CAPACITY / 2);
  });
});

// Mutation: let the error through; it ends the VM.
describe('a host that has no memory for a buffer', () => {
  test.each([
    ['sliced', false, Errno.ENOMEM],
    ['sliced', false, Errno.ENFILE],
    ['sliced', true, Errno.EAGAIN],
    ['ring', true, Errno.ENOMEM],
    ['ring', true, Errno.ENODEV],
  ] as const)('%s, nocache %s: the request fails, the next one asks again', async (kind, nocache, errno) => {
    const { run } = await setUp(kind, { nocache });
    // An address that O_DIRECT does not take, so that what io_uring can do has to be copied, too.
    const write = () => run(ImageOp.Write, 0, [[100, 512]]);
    noMemory.push(errno);
    expect(await write()).toBe(Errno.ENOMEM);
    expect(noMemory).toEqual([]);
    expect(await write()).toBe(0);
  });
});
