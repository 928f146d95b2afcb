/** A signal that ends the watcher's poll leaves in its descriptors what the poll before has found. */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { expect, onTestFinished, test, vi } from 'vitest';
import { interruptibleCall } from '../../../devicemodel/core/host/libc.ts';

let timeoutMs = -1;
vi.mock('../../../devicemodel/core/host/event-loop.ts', async (original) => ({
  ...(await original<object>()),
  eventLoopTimeoutMs: () => timeoutMs,
}));
const { Eventfd } = await import('../../../devicemodel/core/host/eventfd.ts');
const { watchFd } = await import('../../../devicemodel/core/host/fd-watch.ts');
const { installKickSignal } = await import('../../../devicemodel/core/host/signals.ts');
const { Wakeups } = await import('../../../hypervisor/blocking-loop/wakeups.ts');

const block = interruptibleCall<[fds: null, count: number, timeoutMs: number]>('int poll(void *, unsigned long, int)');

/** Native calls of which each poll behind a message of this thread is interrupted. */
function interruptedKoffi(dir: string): string {
  const path = join(dir, 'koffi.cjs');
  const koffi = JSON.stringify(createRequire(import.meta.url).resolve('koffi'));
  writeFileSync(
    path,
    `const real = require(${koffi}).load(null);
     const CONTROL_REVENTS = 14;
     const interrupted = (poll) => {
       let isNext = false;
       return (fds, count, timeoutMs) => {
         if (count < 2) return poll(fds, count, timeoutMs);
         if (isNext) {
           isNext = false;
           return -1;
         }
         const ready = poll(fds, count, timeoutMs);
         isNext = fds[CONTROL_REVENTS] !== 0;
         return ready;
       };
     };
     module.exports = { load: () => ({ func: (p) => (p.startsWith('int poll(') ? interrupted(real.func(p)) : real.func(p)) }) };`,
  );
  return path;
}

// Mutation: without `ready > 0`, the watcher waits for a message that it has read already, and hears nothing else.
test('a poll that is interrupted behind a message finds no message', async () => {
  const dir = mkdtempSync(join(tmpdir(), 'watcher-'));
  installKickSignal();
  const wakeups = new Wakeups();
  const event = new Eventfd();
  let heard = 0;
  const unwatch = watchFd(event.fd, () => {
    event.take();
    heard++;
  });
  onTestFinished(async () => {
    unwatch();
    await wakeups.stop();
    event.dispose();
    rmSync(dir, { recursive: true });
  });
  wakeups.start(interruptedKoffi(dir));
  /** Block for at most this long: what the event loop has to do waits for a turn. */
  const pendingWithin = (ms: number) => {
    for (const endMs = performance.now() + ms; performance.now() < endMs; block(null, 0, 5)) {
      if (wakeups.pending) return true;
    }
    return false;
  };
  while (!wakeups.isWatched) await sleep(5);
  while (pendingWithin(100)) await wakeups.turn();
  // Earlier than it was told: that is a message.
  timeoutMs = 60_000;
  await wakeups.turn();
  while (pendingWithin(100)) await wakeups.turn();
  event.signal();
  expect(pendingWithin(5000)).toBe(true);
  expect(heard).toBe(0);
  await wakeups.turn();
  expect(heard).toBe(1);
});
