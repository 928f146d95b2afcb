/** While the watcher thread is still coming up, which takes seconds on a machine that is slow or busy. Here it never does. */
import { afterEach, beforeEach, expect, test, vi } from 'vitest';
import { interruptibleCall } from '../../../devicemodel/core/host/libc.ts';
import type { Hsm } from '../../../devicemodel/core/hsm/hsm.ts';
import { silentLog } from '../../../devicemodel/core/log.ts';

vi.mock('../../../hypervisor/blocking-loop/watcher-thread.ts', async (original) => ({
  ...(await original<object>()),
  watcherThread: () => {},
}));
const { BlockingLoop } = await import('../../../hypervisor/blocking-loop/loop.ts');

const WAIT_MS = 3000;
const poll = interruptibleCall<[fds: null, count: number, timeoutMs: number]>('int poll(void *, unsigned long, int)');

let loop: InstanceType<typeof BlockingLoop>;
let requests: Array<() => void>;
let starved: boolean;
const hsm = {
  waitForIoreqs: () => {
    if (requests.length > 0) return 'pending';
    if (poll(null, 0, WAIT_MS) === 0) starved = true;
    return 'idle';
  },
} as unknown as Hsm;
const server = { serve: () => void requests.shift()?.(), flush: () => {} };

beforeEach(() => {
  requests = [];
  starved = false;
  loop = new BlockingLoop(silentLog);
});
afterEach(() => loop.stop());

async function runUntil(done: () => boolean): Promise<void> {
  while (!done() && !starved) {
    const turn = loop.next(hsm, server);
    if (turn !== undefined) await turn;
  }
  expect(starved).toBe(false);
}

const MOMENTS = {
  'as soon as the guest runs': 0,
  'when the watcher was started': 10,
  'some time later': 100,
} as const;

// Mutation: without the turns before the watcher is up, the signal ends a wait, and the next one lasts.
test.each(Object.entries(MOMENTS))('a signal of the process is heard %s', async (_, afterMs) => {
  let heard = false;
  const listener = () => {
    heard = true;
  };
  process.on('SIGWINCH', listener);
  loop.started(() => {});
  const send = () => void process.kill(process.pid, 'SIGWINCH');
  if (afterMs === 0) requests = [send];
  else loop.clock.createTimer(send).arm(loop.clock.nowNs() + afterMs * 1e6);
  try {
    await runUntil(() => heard);
  } finally {
    process.off('SIGWINCH', listener);
  }
});
