/** What the host refuses half-way: whatever was acquired before is given back, and nobody waits for what does not come. */
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { constants, tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, test, vi } from 'vitest';
import type { Clock } from '../../../devicemodel/core/clock.ts';
import { HostError } from '../../../devicemodel/core/errors.ts';
import { ByteStream } from '../../../devicemodel/core/host/byte-stream.ts';
import { closeFd } from '../../../devicemodel/core/host/files.ts';
import { watchUevents } from '../../../devicemodel/core/host/uevents.ts';
import { acceptCaller, connectTo, listenAt } from '../../../devicemodel/core/host/wary-socket.ts';
import type { IoeventfdSpec } from '../../../devicemodel/core/hsm/hsm.ts';
import { silentLog } from '../../../devicemodel/core/log.ts';
import { ThreadPulses } from '../../../devicemodel/core/thread-pulses.ts';
import type { Virtqueue } from '../../../devicemodel/hw/pci/virtio/ring/virtqueue.ts';
import { QueueLending } from '../../../devicemodel/hw/pci/virtio/transport/queue-lending.ts';
import type { ImageIo } from '../../../devicemodel/hw/storage/image-io.ts';
import { RingQueue } from '../../../devicemodel/hw/storage/ring-queue.ts';
import { BlockingLoop } from '../../../hypervisor/blocking-loop/loop.ts';
import { Wakeups } from '../../../hypervisor/blocking-loop/wakeups.ts';
import { Doorbells } from '../../../hypervisor/embedded/doorbells.ts';
import { meetingFolder } from '../../../hypervisor/embedded/meeting-folder.ts';
import { ThreadedRunner } from '../../../hypervisor/kvm/threaded-runner.ts';
import { TimerfdClock } from '../../../hypervisor/turn-loop/timerfd-clock.ts';
import { FakeVcpu } from '../../support/fake-kvm.ts';
import { memoryLog } from '../../support/memory-log.ts';

const { ENOMEM, ENOBUFS, EAGAIN, EADDRINUSE } = constants.errno;
const PATIENCE_MS = 20_000;

/** How many more the host gives. */
const left = {
  watches: Number.POSITIVE_INFINITY,
  threads: Number.POSITIVE_INFINITY,
  listens: Number.POSITIVE_INFINITY,
  sends: Number.POSITIVE_INFINITY,
};

vi.mock(import('../../../devicemodel/core/host/fd-watch.ts'), async (original) => {
  const real = await original();
  const limited =
    <Args extends unknown[], Result>(watch: (...args: Args) => Result) =>
    (...args: Args): Result => {
      if (left.watches-- <= 0) throw new HostError('the event loop cannot look at it', ENOMEM);
      return watch(...args);
    };
  return { ...real, watchFd: limited(real.watchFd), watchFdFor: limited(real.watchFdFor) };
});
vi.mock(import('../../../devicemodel/core/host/worker.ts'), async (original) => {
  const real = await original();
  const startWorker: typeof real.startWorker = (...args) => {
    if (left.threads-- <= 0) throw new HostError('no more threads', EAGAIN);
    return real.startWorker(...args);
  };
  return { ...real, startWorker };
});
vi.mock(import('../../../devicemodel/core/host/libc.ts'), async (original) => {
  const real = await original();
  const hostCall: typeof real.hostCall = (prototype) => {
    const call = real.hostCall(prototype);
    if (prototype.startsWith('int listen(')) {
      return (...args) => (left.listens-- <= 0 ? -EADDRINUSE : call(...args));
    }
    return prototype.startsWith('int64_t send(') ? (...args) => (left.sends-- <= 0 ? -ENOBUFS : call(...args)) : call;
  };
  return { ...real, hostCall };
});

let directory: string;
beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), 'shortage-'));
});
afterEach(() => {
  for (const what of Object.keys(left) as (keyof typeof left)[]) left[what] = Number.POSITIVE_INFINITY;
  rmSync(directory, { recursive: true, force: true });
});

const openFds = () => readdirSync('/proc/self/fd').length;
const clock = { nowNs: () => 0, createTimer: () => ({}) } as unknown as Clock;
const queue = { index: 0, isReady: true, vector: 0 } as Virtqueue;

class Vcpu extends FakeVcpu {
  // KVM_RUN fails on it at once.
  override readonly fd = 0;
}
const vcpus = (count: number) => Array.from({ length: count }, () => new Vcpu(0, []));

test.each<[string, () => unknown]>([
  ['the clock of a loop that gives turns', () => new TimerfdClock()],
  ['wakeups of a thread that blocks', () => new Wakeups()],
  ['a loop that blocks', () => new BlockingLoop(silentLog)],
  ['a disk on io_uring', () => new RingQueue({ image: {} } as ImageIo, clock, silentLog, new ThreadPulses())],
  ['news of USB devices', () => watchUevents('usb', () => {})],
  ['threads of vCPUs', () => new ThreadedRunner({ vcpus: vcpus(2), cpus: [undefined, undefined], blocks: false })],
])('what cannot be watched is closed: %s', async (_what, make) => {
  const before = openFds();
  left.watches = 0;
  expect(make).toThrow(HostError);
  await new Promise((resolve) => setImmediate(resolve));
  expect(openFds()).toBe(before);
});

// Mutation: forget it: the other end gets what comes next, and does not know.
test('what the host has no memory to send ends the connection', () => {
  const path = join(directory, 'socket');
  const listener = listenAt(path, 'bytes');
  const stream = new ByteStream(connectTo(path, 'bytes'), {
    text: () => {},
    drained: () => {},
    ended: (why) => said.push(why),
  });
  const said: unknown[] = [];
  left.sends = 1;
  stream.write('one');
  expect(stream.isOpen).toBe(true);
  stream.write('two');
  expect([stream.isOpen, stream.keptBytes, said]).toEqual([false, 0, [expect.stringContaining('ENOBUFS')]]);
  closeFd(acceptCaller(listener) as number);
  closeFd(listener);
});

/** A transport with one queue, and the kicks that the hypervisor has. */
function lending() {
  const assigned = new Set<IoeventfdSpec>();
  const { log, lines } = memoryLog();
  const host = {
    name: 'disk',
    log,
    hsm: {
      ioeventfd: (spec: IoeventfdSpec, assign: boolean) => void (assign ? assigned.add(spec) : assigned.delete(spec)),
      irqfd: () => {},
    },
    queues: [queue],
    kickSpec: (_queue: Virtqueue, fd: number): IoeventfdSpec => ({ fd, space: 'pio', address: 0x10, sizeBytes: 2 }),
    messageOf: () => undefined,
    interrupt: () => {},
    service: () => {},
  };
  return { lending: new QueueLending(host), assigned, lines };
}

test('kicks that cannot be watched come by the request page: the hypervisor does not keep them', () => {
  const before = openFds();
  const { lending: kicks, assigned, lines } = lending();
  left.watches = 0;
  kicks.listen();
  expect([assigned.size, openFds(), lines.filter((line) => line.includes('request page')).length]).toEqual([
    0,
    before,
    1,
  ]);
});

test('a queue whose interrupts cannot be watched is not lent', () => {
  const before = openFds();
  const { lending: kicks, assigned, lines } = lending();
  left.watches = 0;
  const takeOver = vi.fn(() => true);
  expect(kicks.lend({ queueCount: 1, takeOver, giveBack: () => undefined })).toBe(false);
  expect(takeOver).not.toHaveBeenCalled();
  expect([assigned.size, openFds(), lines.filter((line) => line.includes('request page')).length]).toEqual([
    0,
    before,
    1,
  ]);
});

test('another VM whose doorbells cannot be watched is left to messages', () => {
  const folder = meetingFolder({ folder: directory });
  const { log, lines } = memoryLog();
  const [one, two] = [new Doorbells(silentLog), new Doorbells(log)];
  one.join(1, [], folder);
  const before = openFds();
  left.watches = 1;
  two.join(2, [1], folder);
  // The socket it listens on.
  expect(openFds()).toBe(before + 1);
  expect(lines.filter((line) => line.includes('by message'))).toHaveLength(1);
  two.leave();
  one.leave();
  expect(readdirSync(directory)).toEqual([]);
});

test('a socket that was made and is not listened on is removed', () => {
  const before = openFds();
  left.listens = 0;
  const path = join(directory, 'socket');
  expect(() => listenAt(path, 'packets')).toThrow(/listen: EADDRINUSE/);
  expect([existsSync(path), openFds()]).toEqual([false, before]);
});

/** Threads of this process that have a vCPU. */
function vcpuThreads(): number {
  const nameOf = (tid: string) => {
    try {
      return readFileSync(`/proc/self/task/${tid}/comm`, 'utf8');
    } catch {
      return '';
    }
  };
  return readdirSync('/proc/self/task').filter((tid) => nameOf(tid).startsWith('vcpu')).length;
}

test.each([
  [1, true],
  [2, true],
  [1, false],
  [3, false],
])(
  'after %i threads of four vCPUs the host has no more: those that run end (blocks: %s)',
  async (threads, blocks) => {
    const before = openFds();
    left.threads = threads;
    const make = () =>
      new ThreadedRunner({ vcpus: vcpus(4), cpus: [undefined, undefined, undefined, undefined], blocks });
    expect(make).toThrow(/no more threads/);
    const endMs = performance.now() + PATIENCE_MS;
    // One that has not begun yet has no name.
    await new Promise((resolve) => setTimeout(resolve, 500));
    while (vcpuThreads() > 0 && performance.now() < endMs) await new Promise((resolve) => setTimeout(resolve, 20));
    expect(vcpuThreads()).toBe(0);
    await vi.waitFor(() => expect(openFds()).toBeLessThanOrEqual(before), PATIENCE_MS);
  },
  2 * PATIENCE_MS,
);
