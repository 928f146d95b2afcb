import { createRequire } from 'node:module';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { Eventfd } from '../../../devicemodel/core/host/eventfd.ts';
import { watchFd } from '../../../devicemodel/core/host/fd-watch.ts';
import { installKickSignal } from '../../../devicemodel/core/host/signals.ts';
import { Wakeups } from '../../../hypervisor/blocking-loop/wakeups.ts';

let wakeups: Wakeups;

beforeEach(() => {
  installKickSignal();
  wakeups = new Wakeups();
  wakeups.start(createRequire(import.meta.url).resolve('koffi'));
});
afterEach(() => wakeups.stop());

/** Timers of the event loop make the watcher kick. */
async function pendingWithin(ms: number): Promise<boolean> {
  for (const endMs = performance.now() + ms; performance.now() < endMs; ) {
    if (wakeups.pending) return true;
    await sleep(5);
  }
  return false;
}

test('what the event loop has to do makes a turn pending', async () => {
  expect(await pendingWithin(5000)).toBe(true);
  await wakeups.turn();
  expect(await pendingWithin(5000)).toBe(true);
});

test('nothing is pending while the event loop has the thread to itself, and again afterwards', async () => {
  await pendingWithin(5000);
  wakeups.rest();
  await wakeups.turn();
  expect(await pendingWithin(200)).toBe(false);
  wakeups.endRest();
  await wakeups.turn();
  expect(await pendingWithin(5000)).toBe(true);
});

test('a watch that a device adds while it is served makes a turn pending: libuv does not look at it before', async () => {
  await pendingWithin(5000);
  wakeups.rest();
  await wakeups.turn();
  expect(wakeups.pending).toBe(false);
  const eventfd = new Eventfd();
  const unwatch = watchFd(eventfd.fd, () => {});
  expect(wakeups.pending).toBe(true);
  unwatch();
  eventfd.dispose();
});

test('a watcher at rest can be stopped', async () => {
  wakeups.rest();
  await expect(wakeups.stop()).resolves.toBeUndefined();
});
