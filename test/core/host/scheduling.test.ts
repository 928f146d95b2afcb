/** The CPUs of the device thread, and of threads that it starts. */
import { readFileSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { afterEach, expect, test } from 'vitest';
import {
  pinDeviceThread,
  pinThread,
  startUnpinned,
  unpinDeviceThread,
} from '../../../devicemodel/core/host/scheduling.ts';
import { startWorker } from '../../../devicemodel/core/host/worker.ts';

afterEach(() => unpinDeviceThread());

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

test('one that cannot be started leaves the device thread where it was', () => {
  const cpu = Number.parseInt(cpus(), 10);
  pinDeviceThread(cpu);
  const fails = () => {
    throw new Error('no thread');
  };
  expect(() => startUnpinned(fails)).toThrow('no thread');
  expect(cpus()).toBe(`${cpu}`);
});
