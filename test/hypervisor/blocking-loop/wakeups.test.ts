/** The thread here blocks in poll(2), as the device model does in ATTACH: the event loop runs in the turns it is given only. */
import { createRequire } from 'node:module';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { Eventfd } from '../../../devicemodel/core/host/eventfd.ts';
import { watchFd } from '../../../devicemodel/core/host/fd-watch.ts';
import { interruptibleCall } from '../../../devicemodel/core/host/libc.ts';
import { installKickSignal } from '../../../devicemodel/core/host/signals.ts';
import { Wakeups } from '../../../hypervisor/blocking-loop/wakeups.ts';

const poll = interruptibleCall<[fds: null, count: number, timeoutMs: number]>('int poll(void *, unsigned long, int)');

let wakeups: Wakeups;
let event: Eventfd;
let heard: number;
let unwatch: () => void;

beforeEach(async () => {
  installKickSignal();
  wakeups = new Wakeups();
  event = new Eventfd();
  heard = 0;
  unwatch = watchFd(event.fd, () => {
    event.take();
    heard++;
  });
  wakeups.start(createRequire(import.meta.url).resolve('koffi'));
  while (!wakeups.isWatched) await new Promise((resolve) => setTimeout(resolve, 5));
  await settle();
});
afterEach(async () => {
  unwatch();
  await wakeups.stop();
  event.dispose();
});

/** Block for at most this long. */
function pendingWithin(ms: number): boolean {
  for (const endMs = performance.now() + ms; performance.now() < endMs; poll(null, 0, 5)) {
    if (wakeups.pending) return true;
  }
  return false;
}

/** Turns until nothing has asked for one for a while. */
async function settle(): Promise<void> {
  while (pendingWithin(100)) await wakeups.turn();
}

test('what the event loop has to do makes a turn pending, and the turn does it', async () => {
  event.signal();
  expect(pendingWithin(5000)).toBe(true);
  expect(heard).toBe(0);
  await wakeups.turn();
  expect(heard).toBe(1);
});

// Mutation: without the second look of the watcher, which wakes up for the end of a turn, there are more than twice as many.
test('a turn that was asked for is one turn', async () => {
  const asked = 100;
  let turns = 0;
  for (let i = 0; i < asked; i++) {
    wakeups.requestTurn();
    for (; pendingWithin(5); turns++) await wakeups.turn();
  }
  expect(turns).toBeLessThan(1.7 * asked);
});

test('an event in the middle of a turn makes the next one pending', async () => {
  for (let i = 1; i <= 20; i++) {
    const turn = wakeups.turn();
    // Behind the poll of this turn, or in it: both must do.
    setImmediate(() => event.signal());
    await turn;
    while (heard < i && pendingWithin(5000)) await wakeups.turn();
    expect(heard).toBe(i);
  }
});

test('nothing is pending while the event loop has the thread to itself, and again afterwards', async () => {
  wakeups.rest();
  // What the watcher had seen before.
  while (pendingWithin(20)) await wakeups.turn();
  event.signal();
  expect(pendingWithin(200)).toBe(false);
  wakeups.endRest();
  await wakeups.turn();
  expect(heard).toBe(1);
  await settle();
  event.signal();
  expect(pendingWithin(5000)).toBe(true);
});

test('a watch that a device adds while it is served makes a turn pending: libuv does not look at it before', async () => {
  wakeups.rest();
  while (pendingWithin(20)) await wakeups.turn();
  expect(wakeups.pending).toBe(false);
  const another = new Eventfd();
  const unwatchAnother = watchFd(another.fd, () => {});
  expect(wakeups.pending).toBe(true);
  unwatchAnother();
  another.dispose();
});

test('a watcher at rest can be stopped', async () => {
  wakeups.rest();
  await expect(wakeups.stop()).resolves.toBeUndefined();
});
