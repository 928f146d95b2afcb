/** The CPUs of the device thread, and of threads that it starts. */
import { readFileSync } from 'node:fs';
import { availableParallelism, constants } from 'node:os';
import { afterEach, describe, expect, test, vi } from 'vitest';
import { hostCall } from '../../../devicemodel/core/host/libc.ts';
import {
  keepDeviceThreadOn,
  pinDeviceThread,
  pinThread,
  startUnpinned,
  unpinDeviceThread,
} from '../../../devicemodel/core/host/scheduling.ts';
import { VhostFd } from '../../../devicemodel/core/host/vhost.ts';
import { startWorker } from '../../../devicemodel/core/host/worker.ts';

/** Where this thread was at each call that another one makes. */
const aside = vi.hoisted(() => ({ cpusAtCall: [] as string[], look: (): string => '' }));
vi.mock('../../../devicemodel/core/host/libc.ts', async (original) => {
  const real = await original<typeof import('../../../devicemodel/core/host/libc.ts')>();
  const asyncCall: typeof real.asyncCall = (prototype) => {
    const call = real.asyncCall(prototype);
    return (...args) => {
      aside.cpusAtCall.push(aside.look());
      return call(...args);
    };
  };
  return { ...real, asyncCall };
});

const { EINVAL } = constants.errno;

afterEach(() => void unpinDeviceThread());

/** Of the calling thread, as Linux lists them. */
function cpus(): string {
  return /^Cpus_allowed_list:\s*(\S+)/m.exec(readFileSync('/proc/thread-self/status', 'utf8'))?.[1] ?? '';
}

const code = `
const status = require('node:fs').readFileSync('/proc/thread-self/status', 'utf8');
require('node:worker_threads').parentPort.postMessage(/^Cpus_allowed_list:\\s*(\\S+)/m.exec(status)[1]);
`;

function cpusOfWorker(): Promise<string> {
  const worker = startWorker(code, { eval: true, execArgv: ['--input-type=commonjs'] }, 'thread');
  return new Promise((resolve, reject) => {
    worker.once('message', resolve);
    worker.once('error', reject);
  });
}

// Mutation: without startUnpinned in startWorker the thread shares the one CPU.
test.skipIf(availableParallelism() < 2)(
  'a thread that the pinned device thread starts is not pinned with it',
  async () => {
    const before = cpus();
    const cpu = Number.parseInt(before, 10);
    expect(pinDeviceThread(cpu)).toBe(0);
    expect(cpus()).toBe(`${cpu}`);
    const started = await cpusOfWorker();
    expect([started, cpus()]).toEqual([before, `${cpu}`]);
    unpinDeviceThread();
    unpinDeviceThread();
    expect(cpus()).toBe(before);
  },
);

// Mutation: without startPool, Node's threads are started by the first read of a disk, in there.
test.skipIf(availableParallelism() < 2)('threads of the pool are there before it is pinned, once', async () => {
  vi.resetModules();
  const fresh = await import('../../../devicemodel/core/host/scheduling.ts');
  const before = cpus();
  aside.look = cpus;
  aside.cpusAtCall.length = 0;
  for (let i = 0; i < 2; i++) {
    fresh.pinDeviceThread(Number.parseInt(before, 10));
    fresh.unpinDeviceThread();
  }
  expect(aside.cpusAtCall).toEqual([before]);
});

// Mutation: without startUnpinned in setOwner.
test.skipIf(availableParallelism() < 2)('a vhost device has its thread made where there are more CPUs', () => {
  const before = cpus();
  const seen: string[] = [];
  class Vhost extends VhostFd {
    protected override order(name: string): void {
      seen.push(name, cpus());
    }
  }
  const cpu = Number.parseInt(before, 10);
  pinDeviceThread(cpu);
  new Vhost('/dev/fake').setOwner();
  expect([...seen, cpus()]).toEqual(['VHOST_SET_OWNER', before, `${cpu}`]);
});

// Mutation: look where it may run the first time only.
test.skipIf(availableParallelism() < 2)('it goes back to where somebody has moved it meanwhile', () => {
  const [first, second] = [/^\d+/, /\d+$/].map((at) => Number(at.exec(cpus())?.[0])) as [number, number];
  try {
    pinDeviceThread(first);
    unpinDeviceThread();
    expect(pinThread([second])).toBe(0);
    pinDeviceThread(first);
    unpinDeviceThread();
    expect(cpus()).toBe(`${second}`);
  } finally {
    pinThread(Array.from({ length: 1024 }, (_, cpu) => cpu));
  }
});

const setscheduler = hostCall<[tid: number, policy: number, priority: Int32Array]>(
  'int sched_setscheduler(int, int, const void *)',
);
const Policy = { other: 0, fifo: 1, rr: 2 } as const;

describe.skipIf(availableParallelism() < 2)('a thread that is kept where it may be', () => {
  const everywhere = () => pinThread(Array.from({ length: 1024 }, (_, cpu) => cpu));
  const [first, second] = [/^\d+/, /\d+$/].map((at) => Number(at.exec(cpus())?.[0])) as [number, number];
  afterEach(everywhere);

  test('is on that CPU alone, until it is not kept there', () => {
    const before = cpus();
    expect([keepDeviceThreadOn(second), cpus()]).toEqual([true, `${second}`]);
    unpinDeviceThread();
    expect(cpus()).toBe(before);
  });

  // Mutation: without isIn.
  test('does not leave the CPUs that its user has given it', () => {
    pinThread([first]);
    expect([keepDeviceThreadOn(second), cpus()]).toEqual([false, `${first}`]);
  });

  // Mutation: without isSame.
  test('stays where somebody moves it meanwhile, also when it starts another', () => {
    expect(keepDeviceThreadOn(first)).toBe(true);
    pinThread([second]);
    expect([startUnpinned(cpus), cpus()]).toEqual([`${second}`, `${second}`]);
    unpinDeviceThread();
    expect(cpus()).toBe(`${second}`);
  });

  // Mutation: without REALTIME_POLICIES.
  test.each(['fifo', 'rr'] as const)('is not kept anywhere under SCHED_%s', (policy) => {
    const before = cpus();
    // A user without the right to such a policy has no such thread either.
    if (setscheduler(0, Policy[policy], Int32Array.of(1)) < 0) return;
    try {
      expect([keepDeviceThreadOn(first), cpus()]).toEqual([false, before]);
    } finally {
      setscheduler(0, Policy.other, Int32Array.of(0));
    }
  });
});

// Mutation: take it to be pinned, with CPUs to go back to that were never read.
test('one that is sent to a CPU that does not exist is nowhere else afterwards', () => {
  const before = cpus();
  expect(pinDeviceThread(8000)).toBe(-EINVAL);
  expect([startUnpinned(cpus), cpus()]).toEqual([before, before]);
});

test('one that cannot be started leaves the device thread where it was', () => {
  const cpu = Number.parseInt(cpus(), 10);
  pinDeviceThread(cpu);
  const fails = () => {
    throw new Error('no thread');
  };
  expect(() => startUnpinned(fails)).toThrow('no thread');
  expect(cpus()).toBe(`${cpu}`);
});
