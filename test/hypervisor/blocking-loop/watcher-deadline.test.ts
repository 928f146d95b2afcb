/** What the watcher is told of the event loop's timers. The loop's own answer is the test's here. */
import { createRequire } from 'node:module';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterEach, beforeEach, expect, test, vi } from 'vitest';

let timeoutMs = -1;
vi.mock('../../../devicemodel/core/host/event-loop.ts', async (original) => ({
  ...(await original<object>()),
  eventLoopTimeoutMs: () => timeoutMs,
}));
let isTimeStopped = false;
vi.mock('../../../devicemodel/core/monotonic.ts', async (original) => {
  const real = await original<typeof import('../../../devicemodel/core/monotonic.ts')>();
  return { ...real, monotonicMs: () => (isTimeStopped ? 0 : real.monotonicMs()) };
});
/** To the watcher, and to nobody else: the end of a turn is said by an object. */
let signals = 0;
vi.mock('../../../devicemodel/core/host/eventfd.ts', async (original) => {
  const real = await original<typeof import('../../../devicemodel/core/host/eventfd.ts')>();
  const signalEventfd = (fd: number) => {
    signals++;
    real.signalEventfd(fd);
  };
  return { ...real, signalEventfd };
});
const { installKickSignal } = await import('../../../devicemodel/core/host/signals.ts');
const { Wakeups } = await import('../../../hypervisor/blocking-loop/wakeups.ts');

let wakeups: InstanceType<typeof Wakeups>;
beforeEach(async () => {
  installKickSignal();
  timeoutMs = -1;
  wakeups = new Wakeups();
  wakeups.start(createRequire(import.meta.url).resolve('koffi'));
  // It kicks as soon as it is there.
  while (!wakeups.pending) await sleep(5);
});
afterEach(() => wakeups.stop());

/** Turns until nothing asks for one for a while: the watcher sleeps, and for ever. */
async function settle(): Promise<void> {
  for (let quietMs = 0; quietMs < 200; quietMs += 5) {
    if (wakeups.pending) {
      await wakeups.turn();
      quietMs = 0;
    }
    await sleep(5);
  }
  if (wakeups.pending) await settle();
}

// Mutation: without `#wakeWatcher` in #publishTimeout, the watcher sleeps by the deadline it was told before, unless the
// end of the turn, which it sees by chance, has woken it.
test('a turn that was asked for tells the watcher an earlier deadline, though it sleeps already', async () => {
  await settle();
  const before = signals;
  timeoutMs = 60_000;
  await wakeups.turn();
  expect(signals).toBe(before + 1);
  await settle();
  timeoutMs = 1000;
  const told = signals;
  await wakeups.turn();
  expect(signals).toBe(told + 1);
});

// Mutation: without the comparison with #watchedUntilMs, each turn costs the watcher a change of thread.
test('a later deadline leaves it asleep', async () => {
  timeoutMs = 60_000;
  await settle();
  const before = signals;
  timeoutMs = 120_000;
  await wakeups.turn();
  expect(signals).toBe(before);
  // Mutation: keep the earliest that it was told: it sleeps on by the later one, which the end of that turn told it.
  timeoutMs = 90_000;
  await wakeups.turn();
  expect(signals).toBe(before + 1);
});

// Mutation: without SAME_TIMER_MS, half of the turns wake it for the same timer.
test('a timer whose time to go is rounded leaves it asleep', async () => {
  isTimeStopped = true;
  try {
    timeoutMs = 60_000;
    await settle();
    const before = signals;
    for (let i = 0; i < 20; i++) {
      timeoutMs = 60_000 - (i % 2);
      await wakeups.turn();
    }
    expect(signals).toBe(before);
  } finally {
    isTimeStopped = false;
  }
});
