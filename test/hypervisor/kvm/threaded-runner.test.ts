/**
 * Threads of vCPUs without a guest: KVM_RUN on what is no vCPU fails at once, which is an exit like any other. What needs
 * a guest to be interrupted is tested in the rig (test/rig/kvm.sh).
 */
import { readdirSync, readFileSync } from 'node:fs';
import { constants } from 'node:os';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterEach, describe, expect, test } from 'vitest';
import { Eventfd } from '../../../devicemodel/core/host/eventfd.ts';
import { RunField } from '../../../devicemodel/core/host/kvm-abi.ts';
import { ThreadedRunner } from '../../../hypervisor/kvm/threaded-runner.ts';
import type { VcpuThreadData } from '../../../hypervisor/kvm/vcpu-thread.ts';
import { FakeVcpu } from '../../support/fake-kvm.ts';

const PATIENCE_MS = 20_000;
const { ENOTTY, EINTR } = constants.errno;

class NoVcpu extends FakeVcpu {
  override readonly fd: number;
  constructor(fd: number) {
    super(0, []);
    this.fd = fd;
  }
}

const cleanUp: Array<() => void> = [];
afterEach(() => {
  for (const step of cleanUp.splice(0).reverse()) step();
});

function threads(count: number, blocks: boolean, options: { fd?: number; thread?: () => void; cpu?: number } = {}) {
  const eventfd = new Eventfd();
  cleanUp.push(() => eventfd.dispose());
  const vcpus = Array.from({ length: count }, () => new NoVcpu(options.fd ?? eventfd.fd));
  const { thread, cpu } = options;
  const runner = new ThreadedRunner({
    vcpus,
    cpus: vcpus.map(() => cpu),
    blocks,
    ...(thread === undefined ? {} : { thread }),
  });
  cleanUp.push(() => runner.dispose());
  const told: Array<readonly [number, number]> = [];
  const collect = () => runner.collect((vcpu, result) => void told.push([vcpu, result]));
  return { runner, told, collect, vcpus };
}

/** Of threads that are there now; one may end while this looks. */
function names(): string[] {
  const nameOf = (tid: string) => {
    try {
      return readFileSync(`/proc/self/task/${tid}/comm`, 'utf8').trim();
    } catch {
      return '';
    }
  };
  const all = readdirSync('/proc/self/task').map(nameOf);
  return [...new Set(all)].filter((name) => name.startsWith('vcpu')).sort();
}

test.each([true, false])('each vCPU that is resumed is told of once, and not before (blocking: %s)', async (blocks) => {
  const { runner, told, collect } = threads(3, blocks);
  for (const vcpu of [0, 2]) runner.resume(vcpu);
  while (told.length < 2) await collect();
  expect(told.sort()).toEqual([
    [0, -ENOTTY],
    [2, -ENOTTY],
  ]);
  for (let i = 0; i < 20; i++) {
    runner.resume(1);
    const before = told.length;
    while (told.length === before) await collect();
    expect(told.at(-1)).toEqual([1, -ENOTTY]);
  }
  expect(names()).toEqual(['vcpu0', 'vcpu1', 'vcpu2']);
});

// Mutation: without the compareExchange in recall, it waits for a thread that is not up.
test('a vCPU is recalled before its thread is up, and was not run', () => {
  const { runner, told, collect, vcpus } = threads(1, true);
  runner.resume(0);
  runner.recall();
  void collect();
  expect(told).toHaveLength(1);
  expect([-EINTR, -ENOTTY]).toContain(told[0]?.[1]);
  expect(vcpus[0]?.run[RunField.immediateExit]).toBe(0);
});

// Mutation: without the votes in tell, or without leave in dispose.
test('the device thread goes to the CPU of a vCPU that keeps it busy, and is free again at the end', async () => {
  const cpus = () => /^Cpus_allowed_list:\s*(\S+)/m.exec(readFileSync('/proc/thread-self/status', 'utf8'))?.[1] ?? '';
  const before = cpus();
  const cpu = Number.parseInt(before, 10);
  const { runner, told, collect } = threads(2, true, { cpu });
  for (let exit = 1; exit <= 200; exit++) {
    runner.resume(1);
    while (told.length < exit) void collect();
  }
  expect(cpus()).toBe(`${cpu}`);
  runner.dispose();
  expect(cpus()).toBe(before);
});

test('what vCPUs came back for is not told once it is forgotten', async () => {
  const { runner, told, collect } = threads(2, false);
  runner.resume(0);
  runner.recall();
  runner.forget();
  const wait = collect();
  runner.wake();
  await wait;
  expect(told).toEqual([]);
});

test('threads end when they are told to', async () => {
  const { runner, told, collect } = threads(2, true);
  runner.resume(1);
  while (told.length === 0) void collect();
  runner.dispose();
  const end = performance.now() + PATIENCE_MS;
  while (names().length > 0 && performance.now() < end) await new Promise((resolve) => setTimeout(resolve, 20));
  expect(names()).toEqual([]);
});

// Mutation: without giveBack in the thread's catch, and without takeFromTheDead, recall never returns.
describe('a thread that dies while it has the vCPU', () => {
  /** Takes the turn and ends without a word: what remains of a thread whose heap is full. */
  const dies = () => {
    const { workerData } = process.getBuiltinModule('node:worker_threads') as { workerData: VcpuThreadData };
    const { words, index, koffiPath } = workerData;
    const koffi = process.getBuiltinModule('node:module').createRequire(koffiPath)(koffiPath);
    Atomics.store(words, 16 * index + 3, koffi.load(null).func('int gettid()')());
    for (let was = 0; was !== 1; was = Atomics.compareExchange(words, 16 * index, 1, 2)) {
      if (was === 3) return;
      Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 1);
    }
    process.exit(0);
  };
  const throws = () => {
    throw new Error('no more');
  };
  const nan = 'no descriptor' as unknown as number;

  test.each([
    ['KVM_RUN throws, blocking', { fd: nan, blocks: true }],
    ['KVM_RUN throws, in the event loop', { fd: nan, blocks: false }],
    ['it ends without a word, blocking', { thread: dies, blocks: true }],
    ['it ends without a word, in the event loop', { thread: dies, blocks: false }],
    ['it never gets as far, in the event loop', { thread: throws, blocks: false }],
  ])('%s: recall returns, and the loop gets an error that says which', async (_what, { blocks, ...options }) => {
    const { runner, vcpus } = threads(2, blocks, options);
    const recallAgainAndAgain = async () => {
      // Until it is up there is nobody to die.
      for (const end = performance.now() + PATIENCE_MS; performance.now() < end; ) {
        runner.resume(1);
        await sleep(20);
        runner.recall();
        expect(vcpus[1]?.run[RunField.immediateExit]).toBe(0);
        runner.tell(() => {});
      }
    };
    await expect(recallAgainAndAgain()).rejects.toThrow(/^vcpu[01]: its thread ended by itself/);
    runner.dispose();
  });

  test.each([true, false])('nobody recalls it: whoever waits for it is told (blocking: %s)', async (blocks) => {
    const { runner, collect } = threads(1, blocks, { fd: nan });
    runner.resume(0);
    const collected = async () => {
      for (;;) await collect();
    };
    await expect(collected()).rejects.toThrow('vcpu0: its thread ended by itself');
  });
});
