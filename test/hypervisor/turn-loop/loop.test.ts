/** The loop of a thread that the guest runs on, or that another thread waits for. */
import { afterEach, expect, test } from 'vitest';
import { Eventfd } from '../../../devicemodel/core/host/eventfd.ts';
import { watchFd } from '../../../devicemodel/core/host/fd-watch.ts';
import type { Hsm, WaitResult } from '../../../devicemodel/core/hsm/hsm.ts';
import { TurnLoop } from '../../../hypervisor/turn-loop/loop.ts';

/** Whoever calls `next` does it himself. */
const flush = () => {
  throw new Error('flushed by the loop');
};

const loops: TurnLoop[] = [];
afterEach(async () => {
  for (const loop of loops.splice(0)) await loop.stop();
});

/** A guest that is never idle, and how often it was run and served. */
function busyGuest(hasSlices: boolean, sliceMs: number) {
  const loop = new TurnLoop({ hasSlices });
  loops.push(loop);
  const guest = { slices: 0, onServe: () => {} };
  const hsm = {
    waitForIoreqs: (): WaitResult => {
      for (const end = performance.now() + sliceMs; performance.now() < end; );
      guest.slices++;
      return 'pending';
    },
  } as unknown as Hsm;
  const runUntil = async (done: () => boolean) => {
    while (!done() && guest.slices < 100_000) {
      const turn = loop.next(hsm, { serve: () => guest.onServe(), flush });
      if (turn !== undefined) await turn;
    }
  };
  return { loop, guest, runUntil };
}

// Mutation: `return undefined` instead of `microtasks` in TurnLoop.next: they wait for a turn that has another reason.
test('what a slice of a busy guest leaves to microtasks runs with the next one', async () => {
  const { guest, runUntil } = busyGuest(true, 0.1);
  let heard = false;
  guest.onServe = () => {
    guest.onServe = () => {};
    void Promise.resolve().then(() => {
      heard = true;
    });
  };
  await runUntil(() => guest.slices === 2);
  expect(heard).toBe(true);
});

// Mutation: without `now - this.#turnedMs > TURN_EVERY_MS` in EventLoopPoll, it never runs: it shows nowhere.
test('a tick and a microtask left by one of many short requests run, however busy the guest is', async () => {
  const { guest, runUntil } = busyGuest(false, 0);
  const heard: string[] = [];
  guest.onServe = () => {
    guest.onServe = () => {};
    void Promise.resolve().then(() => heard.push('microtask'));
    process.nextTick(() => heard.push('tick'));
  };
  await runUntil(() => heard.length === 2);
  expect(heard.sort()).toEqual(['microtask', 'tick']);
});

// Mutation: without `postpone` in TurnLoop.started, the first request waits for what the start left to the event loop.
test('where another thread waits for the guest, its first request waits for no turn; the turn comes soon', async () => {
  const { loop, guest, runUntil } = busyGuest(false, 0);
  const eventfd = new Eventfd();
  const unwatch = watchFd(eventfd.fd, () => {});
  loop.started(() => {});
  let immediates = 0;
  setImmediate(() => immediates++);
  await runUntil(() => guest.slices === 1);
  expect(immediates).toBe(0);
  await runUntil(() => immediates > 0);
  unwatch();
  eventfd.dispose();
  expect(immediates).toBe(1);
});

test('timers of devices run beside a busy guest', async () => {
  const { loop, runUntil } = busyGuest(false, 0);
  let ran = false;
  loop.clock
    .createTimer(() => {
      ran = true;
    })
    .arm(loop.clock.nowNs() + 2e6);
  await runUntil(() => ran);
  expect(ran).toBe(true);
});

// Mutation: without `this.#askedMs = this.#turnedMs` in EventLoopPoll.turn, a guest whose turn is over takes another one.
test('two busy guests on one thread both run, and so does what else the process has to do', async () => {
  const first = busyGuest(true, 1);
  const second = busyGuest(true, 1);
  let immediates = 0;
  let isOver = false;
  const others = async () => {
    while (!isOver) {
      await new Promise((resolve) => setImmediate(resolve));
      immediates++;
    }
  };
  const rest = others();
  const enough = () => first.guest.slices + second.guest.slices >= 100;
  await Promise.all([first.runUntil(enough), second.runUntil(enough)]);
  isOver = true;
  await rest;
  expect(Math.min(first.guest.slices, second.guest.slices)).toBeGreaterThan(20);
  expect(immediates).toBeGreaterThan(3);
});

test('the wait that leaves the thread ends with what it is for, and the guest is served', async () => {
  const { loop } = busyGuest(true, 0);
  let served = 0;
  const hsm = { waitForIoreqs: () => new Promise((resolve) => setTimeout(resolve, 1, 'pending')) } as unknown as Hsm;
  await loop.next(hsm, { serve: () => served++, flush });
  while (served === 0) await loop.next(hsm, { serve: () => served++, flush });
  const closed = { waitForIoreqs: () => Promise.resolve('closed') } as unknown as Hsm;
  const closing = async () => {
    for (;;) await loop.next(closed, { serve: () => {}, flush });
  };
  await expect(closing()).rejects.toThrow('closed the request client');
});
