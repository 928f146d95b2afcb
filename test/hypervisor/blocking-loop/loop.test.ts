/**
 * The loop of a thread that blocks. The wait here is a real system call of this thread that only a signal, or the time,
 * brings to an end; "starves" is a wait that lasted to its time.
 */
import { mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, type MockInstance, test, vi } from 'vitest';
import { HostError } from '../../../devicemodel/core/errors.ts';
import { Errno } from '../../../devicemodel/core/host/errno.ts';
import { Eventfd } from '../../../devicemodel/core/host/eventfd.ts';
import { watchFd } from '../../../devicemodel/core/host/fd-watch.ts';
import { interruptibleCall } from '../../../devicemodel/core/host/libc.ts';
import { threadCpuNs } from '../../../devicemodel/core/host/scheduling.ts';
import type { Hsm } from '../../../devicemodel/core/hsm/hsm.ts';
import { silentLog } from '../../../devicemodel/core/log.ts';
import { BlockingLoop } from '../../../hypervisor/blocking-loop/loop.ts';
import { Wakeups } from '../../../hypervisor/blocking-loop/wakeups.ts';
import { makePc } from '../../support/fake-pc.ts';
import { memoryLog } from '../../support/memory-log.ts';

/** The host gives no more threads: what is tried is real otherwise. */
let isWithoutThreads = false;
vi.mock('../../../devicemodel/core/host/worker.ts', async (original) => {
  const real = await original<typeof import('../../../devicemodel/core/host/worker.ts')>();
  const startWorker: typeof real.startWorker = (code, options, what) => {
    if (isWithoutThreads) throw new HostError(`${what}: no threads here`, 11);
    return real.startWorker(code, options, what);
  };
  return { ...real, startWorker };
});

/** As if this thread had a CPU to itself and never slept, on any machine. */
let isAlwaysOnCpu = false;
vi.mock('../../../devicemodel/core/host/scheduling.ts', async (original) => {
  const real = await original<typeof import('../../../devicemodel/core/host/scheduling.ts')>();
  return { ...real, threadCpuNs: () => (isAlwaysOnCpu ? performance.now() * 1e6 : real.threadCpuNs()) };
});

const WAIT_MS = 3000;

let loop: BlockingLoop;
/** What the guest does in its n-th request; after the last one it idles. */
let requests: Array<() => void>;
let starved: boolean;
let serves: number;
let waits: number;
let flushes: number;

beforeEach(async () => {
  requests = [];
  starved = false;
  serves = 0;
  waits = 0;
  flushes = 0;
  loop = new BlockingLoop(silentLog);
  // The watcher is there, and has nothing to do.
  await new Promise<void>((resolve) => {
    loop.started(resolve);
    const timeout = setInterval(() => loop.clock.runDue(), 1);
    loop.clock.createTimer(() => clearInterval(timeout)).arm(loop.clock.nowNs() + 3e6);
  });
});
afterEach(() => loop.stop());

const poll = interruptibleCall<[fds: null, count: number, timeoutMs: number]>('int poll(void *, unsigned long, int)');
const hsm = {
  waitForIoreqs: () => {
    waits++;
    if (requests.length > 0) return 'pending';
    if (poll(null, 0, WAIT_MS) === 0) starved = true;
    return 'idle';
  },
} as unknown as Hsm;
const server = {
  serve: () => {
    serves++;
    requests.shift()?.();
  },
  flush: () => void flushes++,
};

async function runUntil(done: () => boolean): Promise<void> {
  while (!done() && !starved) {
    const turn = loop.next(hsm, server);
    if (turn !== undefined) await turn;
  }
  expect(starved).toBe(false);
}

/** The event loop has nothing any more, and the watcher knows. */
async function quiet(): Promise<void> {
  requests = Array.from({ length: 10 }, () => () => void poll(null, 0, 2));
  await runUntil(() => requests.length === 0);
}

/** Have the guest make one request, and wait for what it started. @returns how often the guest was waited for meanwhile. */
async function waitsUntil(request: () => void, done: () => boolean): Promise<number> {
  await quiet();
  requests = [request];
  let before = 0;
  await runUntil(() => {
    if (requests.length > 0) before = waits + 1; // the wait that brings it
    return done();
  });
  return waits - before;
}

// Mutation: without `this.#work.isStarted` in `next`, the guest's next wait comes first and lasts.
test('what a request leaves to microtasks, however deep, runs before the thread blocks again', async () => {
  for (let round = 0; round < 5; round++) {
    let depth = 0;
    const chain = async () => {
      for (; depth < 20; depth++) await undefined;
    };
    expect(await waitsUntil(chain, () => depth === 20)).toBe(0);
  }
});

// Mutation: without `promiseResolve` in async-work.ts, the reaction waits for the next event.
test('a request that settles a promise made long before wakes whoever waits for it', async () => {
  for (let round = 0; round < 5; round++) {
    let settle: () => void = () => {};
    let heard = false;
    const answered = new Promise<void>((resolve) => {
      settle = resolve;
    });
    void answered.then(() => {
      heard = true;
    });
    expect(await waitsUntil(settle, () => heard)).toBe(0);
  }
});

test('an immediate of a busy guest runs, without any event on a descriptor', async () => {
  let ran = false;
  requests = Array.from({ length: 1000 }, () => () => {});
  requests[10] = () =>
    setImmediate(() => {
      ran = true;
    });
  await runUntil(() => ran);
  expect(serves).toBeLessThan(100);
});

// Mutation: without `onTick` in async-work.ts, it waits for the next event.
test('a tick that a request leaves wakes a thread that blocks', async () => {
  for (let round = 0; round < 5; round++) {
    let heard = false;
    const request = () =>
      process.nextTick(() => {
        heard = true;
      });
    // At most until the timer for it.
    expect(await waitsUntil(request, () => heard)).toBeLessThan(3);
  }
});

// Mutation: `this.isStarted = true` for ticks, too.
test('a guest that leaves a tick with each request does not pay a turn for each', async () => {
  await quiet();
  requests = Array.from({ length: 500 }, () => () => process.nextTick(() => {}));
  let turns = 0;
  while (requests.length > 0) {
    const turn = loop.next(hsm, server);
    if (turn === undefined) continue;
    turns++;
    await turn;
  }
  expect(turns).toBeLessThan(250);
});

test('a timer set by a request wakes a thread that blocks, though the watcher was asleep for longer', async () => {
  await quiet();
  let ran = false;
  requests = [() => void setTimeout(() => (ran = true), 20)];
  await runUntil(() => ran);
});

test('a signal of the process is heard while the thread blocks', async () => {
  await quiet();
  let heard = false;
  const listener = () => {
    heard = true;
  };
  process.on('SIGWINCH', listener);
  requests = [() => void process.kill(process.pid, 'SIGWINCH')];
  try {
    await runUntil(() => heard);
  } finally {
    process.off('SIGWINCH', listener);
  }
});

test('a timer of a device wakes a thread that blocks', async () => {
  let ran = false;
  loop.clock.createTimer(() => (ran = true)).arm(loop.clock.nowNs() + 5e6);
  await runUntil(() => ran);
});

test('a request that starts nothing costs no turn', async () => {
  await quiet();
  requests = Array.from({ length: 100 }, () => () => {});
  let turns = 0;
  for (; requests.length > 0; ) {
    const turn = loop.next(hsm, server);
    if (turn === undefined) continue;
    turns++;
    await turn;
  }
  expect(turns).toBeLessThan(50);
});

// Mutation: without `clock.rest()`, the signal of a timer comes to a thread that is in the event loop, and changes nothing.
// The guest is on this thread and asks for one thing after the other: the hypervisor does not come back for each.
describe('whether the guest has the thread again at once', () => {
  let goesOn: () => boolean;
  const staying = {
    waitForIoreqs: (_serve: () => void, asked: () => boolean) => {
      goesOn = asked;
      return 'idle';
    },
  } as unknown as Hsm;
  /** `then` is what comes to pass while the guest has the thread. */
  async function whileWaiting(then: () => void): Promise<void> {
    await quiet();
    for (let turn = loop.next(staying, server); turn !== undefined; turn = loop.next(staying, server)) await turn;
    then();
    for (let turn = loop.next(staying, server); turn !== undefined; turn = loop.next(staying, server)) await turn;
  }

  test('it has, some thirty times: timers have their turn then', async () => {
    await whileWaiting(() => {
      let accesses = 1;
      while (goesOn()) accesses++;
      expect([accesses, flushes]).toEqual([32, 31]);
      let rang = 0;
      loop.clock.createTimer(() => rang++).arm(loop.clock.nowNs());
      expect([loop.next(staying, server), rang]).toEqual([undefined, 1]);
      expect(goesOn()).toBe(true);
    });
  });

  test.each([
    ['a promise that a request settles', () => void Promise.resolve()],
    ['an immediate', () => void setImmediate(() => {})],
    ['what the event loop is to be told of', () => loop.requestTurn()],
    ['a timer that is due at once', () => loop.clock.createTimer(() => {}).arm(loop.clock.nowNs())],
  ])('not after %s', async (_name, request) => {
    await whileWaiting(() => {
      expect(goesOn()).toBe(true);
      request();
      expect(goesOn()).toBe(false);
    });
  });
});

test('timers go on while the guest stands still, also one that is armed meanwhile', async () => {
  let isOver: () => void = () => {};
  const work = new Promise<void>((resolve) => {
    isOver = resolve;
  });
  const late = loop.clock.createTimer(() => isOver());
  const early = loop.clock.createTimer(() => late.arm(loop.clock.nowNs() + 2e6));
  early.arm(loop.clock.nowNs() + 2e6);
  await loop.rest(work);
  // And by signals again afterwards.
  let ran = false;
  loop.clock.createTimer(() => (ran = true)).arm(loop.clock.nowNs() + 5e6);
  await runUntil(() => ran);
});

/** Signals to this thread within some 40 ms. */
function interruptions(): number {
  let count = 0;
  for (let i = 0; i < 20; i++) if (poll(null, 0, 2) === -Errno.EINTR) count++;
  return count;
}

describe('while no guest is served', () => {
  let event: Eventfd;
  let unwatch: () => void;
  let heard: string[];
  beforeEach(() => {
    heard = [];
    event = new Eventfd();
    unwatch = watchFd(event.fd, () => {
      event.take();
      heard.push('descriptor');
    });
  });
  afterEach(() => {
    unwatch();
    event.dispose();
  });
  /** What makes kicks: a timer of a device that is due, a tick, a descriptor. */
  function stir(of: BlockingLoop): void {
    of.clock.createTimer(() => heard.push('timer')).arm(of.clock.nowNs());
    process.nextTick(() => heard.push('tick'));
    event.signal();
  }
  const ALL = ['descriptor', 'tick', 'timer'];
  async function allHeard(): Promise<void> {
    for (let i = 0; heard.length < ALL.length && i < 1000; i++) await new Promise((resolve) => setTimeout(resolve, 5));
    expect(heard.toSorted()).toEqual(ALL);
  }

  // Mutation: without `#giveThread` in the constructor, the tick's turn is a signal each 200 us, which nobody answers.
  test('before the first one, no signal cuts a call of this thread short; the event loop does what there is', async () => {
    // It has a guest, and the same event loop.
    await loop.stop();
    const fresh = new BlockingLoop(silentLog);
    try {
      stir(fresh);
      expect(interruptions()).toBe(0);
      await allHeard();
      expect(interruptions()).toBe(0);
    } finally {
      await fresh.stop();
    }
  });

  // Mutation: without `#giveThread` in `ended`.
  test('between two, no signal cuts a call of this thread short; and a thread that blocks wakes up again for the next', async () => {
    await quiet();
    stir(loop);
    expect(interruptions()).toBeGreaterThan(0);
    loop.ended();
    loop.ended();
    await allHeard();
    heard = [];
    stir(loop);
    expect(interruptions()).toBe(0);
    await allHeard();
    heard = [];
    loop.started(() => {});
    stir(loop);
    await runUntil(() => heard.length === ALL.length);
  });

  // Mutation: `#takeThread` without the count.
  test('in a rest, neither after one within it', async () => {
    await quiet();
    const inner = Promise.resolve();
    await loop.rest(
      loop.rest(inner).then(async () => {
        stir(loop);
        expect(interruptions()).toBe(0);
        await allHeard();
      }),
    );
    heard = [];
    stir(loop);
    await runUntil(() => heard.length === ALL.length);
  });

  // Mutation: without `loop.ended()` in Vm.#serve.
  test('nothing cuts short what the lives of a VM are built with that resets itself', async () => {
    await loop.stop();
    const fresh = new BlockingLoop(silentLog);
    const cuts: number[] = [];
    const pc = makePc(
      [],
      (hsm, life) => {
        stir(fresh);
        cuts.push(interruptions());
        if (life < 4) void hsm.guest.outb(0xcf9, 0x0e);
        else pc.vm.power.request({ kind: 'poweroff', reason: 'end of test' });
      },
      { loop: fresh },
    );
    try {
      expect((await pc.vm.run()).kind).toBe('poweroff');
      expect(cuts).toEqual([0, 0, 0, 0]);
    } finally {
      await pc.dispose();
      await fresh.stop();
    }
  });

  // Mutation: without the cancels in `ended`, the watcher is made in the middle of the end.
  test('what waits for the first moments of a guest that is gone waits for the next guest', async () => {
    const start = vi.spyOn(Wakeups.prototype, 'start');
    const fresh = new BlockingLoop(silentLog);
    try {
      let quiets = 0;
      fresh.started(() => quiets++);
      fresh.ended();
      await new Promise((resolve) => setTimeout(resolve, 50));
      expect({ quiets, starts: start.mock.calls.length }).toEqual({ quiets: 0, starts: 0 });
    } finally {
      start.mockRestore();
      await fresh.stop();
    }
  });
});

// Mutation: make the watcher's thread in `started`, or at its first look whatever the guest does.
test('the watcher, whose thread takes milliseconds to make, waits until the guest has a pause; turns come meanwhile', async () => {
  const fresh = new BlockingLoop(silentLog);
  const start = vi.spyOn(Wakeups.prototype, 'start');
  try {
    let isBusy = true;
    const busyHsm = {
      waitForIoreqs: () => {
        poll(null, 0, 1);
        return isBusy ? 'pending' : 'idle';
      },
    } as unknown as Hsm;
    let hasHadTurn = false;
    let isQuiet = false;
    const from = fresh.clock.nowNs();
    fresh.started(() => {
      isQuiet = true;
    });
    setTimeout(() => {
      hasHadTurn = true;
    }, 5);
    while (!isQuiet || !hasHadTurn) {
      const turn = fresh.next(busyHsm, server);
      if (turn !== undefined) await turn;
    }
    // On a machine that is too busy to tell, it is made by now in any case.
    if (fresh.clock.nowNs() - from < 200e6) expect(start).not.toHaveBeenCalled();
    isBusy = false;
    for (let i = 0; i < 1000 && start.mock.calls.length === 0; i++) {
      const turn = fresh.next(busyHsm, server);
      if (turn !== undefined) await turn;
    }
    expect(start).toHaveBeenCalledTimes(1);
  } finally {
    start.mockRestore();
    await fresh.stop();
  }
});

describe('a guest that computes on this very thread', () => {
  /** Has its CPU for a millisecond, and asks for nothing. */
  const computing = {
    waitForIoreqs: () => {
      for (const from = threadCpuNs(); threadCpuNs() - from < 1e6; );
      return 'idle';
    },
  } as unknown as Hsm;
  let start: MockInstance<Wakeups['start']>;
  let fresh: BlockingLoop;
  beforeEach(() => {
    start = vi.spyOn(Wakeups.prototype, 'start');
    fresh = new BlockingLoop(silentLog, () => true);
  });
  afterEach(() => {
    start.mockRestore();
    return fresh.stop();
  });

  async function run(guest: Hsm, isOver: (ranMs: number) => boolean): Promise<void> {
    for (const from = performance.now(); !isOver(performance.now() - from); ) {
      const turn = fresh.next(guest, server);
      if (turn !== undefined) await turn;
    }
  }

  // Mutation: without #isComputing the thread that watches is made at once, and has half of a single CPU while it starts.
  test('is left alone until it has a pause; what comes from outside is heard', async () => {
    let isHeard = false;
    const onSignal = () => {
      isHeard = true;
    };
    process.on('SIGWINCH', onSignal);
    // On a machine that is busy itself it would not compute for most of each moment.
    isAlwaysOnCpu = true;
    try {
      process.kill(process.pid, 'SIGWINCH');
      fresh.started(() => {});
      await run(computing, (ranMs) => isHeard && ranMs > 400);
    } finally {
      isAlwaysOnCpu = false;
      process.off('SIGWINCH', onSignal);
    }
    expect(start).not.toHaveBeenCalled();
    await run(hsm, () => start.mock.calls.length > 0 || starved);
    expect(start).toHaveBeenCalledTimes(1);
  });

  // Mutation: without #runsGuest, a guest that keeps the device thread busy has its watcher after twenty seconds.
  test('is another matter than one that runs elsewhere and asks for much', async () => {
    const asking = {
      waitForIoreqs: () => {
        computing.waitForIoreqs(() => {});
        return 'pending';
      },
    } as unknown as Hsm;
    await fresh.stop();
    isAlwaysOnCpu = true;
    fresh = new BlockingLoop(silentLog);
    fresh.started(() => {});
    await run(asking, (ranMs) => start.mock.calls.length > 0 || ranMs > 5000);
    isAlwaysOnCpu = false;
    expect(start).toHaveBeenCalledTimes(1);
  });

  // Mutation: begin at nothing after each look that found nothing.
  test('is not, when the event loop mostly has something to do', async () => {
    let looks = 0;
    const look = vi.spyOn(Wakeups.prototype, 'look').mockImplementation(() => ++looks % 3 !== 0);
    isAlwaysOnCpu = true;
    try {
      fresh.started(() => {});
      await run(computing, (ranMs) => start.mock.calls.length > 0 || ranMs > 15_000);
    } finally {
      isAlwaysOnCpu = false;
      look.mockRestore();
    }
    expect(start).toHaveBeenCalledTimes(1);
  });

  // Mutation: without #hostWork, packets come by the clock until it has a pause.
  test('is not, when the event loop has much to do', async () => {
    const ticking = setInterval(() => {}, 2);
    fresh.started(() => {});
    await run(computing, (ranMs) => start.mock.calls.length > 0 || ranMs > 15_000);
    clearInterval(ticking);
    expect(start).toHaveBeenCalledTimes(1);
  });
});

/** The package of native calls, for a thread whose call goes wrong. */
function brokenKoffi(dir: string, prototype: string, calls: number): string {
  const path = join(dir, 'koffi.cjs');
  const koffi = JSON.stringify(createRequire(import.meta.url).resolve('koffi'));
  writeFileSync(
    path,
    `const real = require(${koffi}).load(null);
     const broken = (fn) => { let left = ${calls}; return (...args) => { if (left-- <= 0) throw new Error('broken'); return fn(...args); }; };
     module.exports = { load: () => ({ func: (p) => (p.includes('${prototype}') ? broken(real.func(p)) : real.func(p)) }) };
     if ('${prototype}' === '') throw new Error('cannot be loaded');`,
  );
  return path;
}

// Mutation: without the catch in the watcher's thread, or without replaceWatcher, the thread blocks and nobody wakes it.
test.each([
  ['is loaded', '', 0],
  ['polls first', 'int poll(', 0],
  ['polls a third time', 'int poll(', 2],
  ['polls a twentieth time', 'int poll(', 19],
  ['takes a message', 'int64_t read(', 0],
  ['takes a third message', 'int64_t read(', 2],
])('a watcher that dies when it %s: turns go on, and there is another one', async (_when, prototype, calls) => {
  const dir = mkdtempSync(join(tmpdir(), 'watcher-'));
  const starts: string[] = [];
  const { start } = Wakeups.prototype;
  const spy = vi.spyOn(Wakeups.prototype, 'start').mockImplementation(function (this: Wakeups, path) {
    starts.push(path);
    start.call(this, starts.length === 1 ? brokenKoffi(dir, prototype, calls) : path);
  });
  const { log, lines } = memoryLog();
  const fresh = new BlockingLoop(log);
  try {
    let ticks = 0;
    // Further away than the watcher is told of.
    const ticking = setInterval(() => ticks++, 12);
    fresh.started(() => {});
    const isBack = () => starts.length > 1 && ticks > 100 && lines.length > 0;
    for (let round = 0; !isBack() && !starved; round++) {
      // What is armed anew has the watcher told of an earlier time.
      if (round % 5 === 0) setTimeout(() => {}, 1);
      const turn = fresh.next(hsm, server);
      if (turn !== undefined) await turn;
    }
    clearInterval(ticking);
    expect({ starved, starts: starts.length }).toEqual({ starved: false, starts: 2 });
    expect(lines).toEqual([
      expect.stringMatching(/^warn: the thread that watches descriptors ended: .*(broken|cannot be)/),
    ]);
  } finally {
    spy.mockRestore();
    await fresh.stop();
    rmSync(dir, { recursive: true });
  }
});

test('a guest that never pauses has its watcher all the same', async () => {
  const fresh = new BlockingLoop(silentLog);
  const start = vi.spyOn(Wakeups.prototype, 'start');
  try {
    const busyHsm = {
      waitForIoreqs: () => {
        poll(null, 0, 1);
        return 'pending';
      },
    } as unknown as Hsm;
    fresh.started(() => {});
    const until = performance.now() + 5000;
    while (start.mock.calls.length === 0 && performance.now() < until) {
      const turn = fresh.next(busyHsm, server);
      if (turn !== undefined) await turn;
    }
    expect(start).toHaveBeenCalledTimes(1);
  } finally {
    start.mockRestore();
    await fresh.stop();
  }
});

// Mutation: without the catch in startWatcher the VM ends; without the one in Wakeups.start each try leaves a descriptor.
test('a watcher that the host has no thread for is tried again, said once; the event loop has its turns meanwhile', async () => {
  // Its watcher comes up when it likes, and has descriptors.
  await loop.stop();
  const { log, lines } = memoryLog();
  const fresh = new BlockingLoop(log);
  const start = vi.spyOn(Wakeups.prototype, 'start');
  const tries = () => start.mock.results.filter(({ type }) => type === 'throw').length;
  const descriptors = () => readdirSync('/proc/self/fd').length;
  const run = async (done: () => boolean) => {
    while (!done() && !starved) {
      const turn = fresh.next(hsm, server);
      if (turn !== undefined) await turn;
    }
  };
  try {
    isWithoutThreads = true;
    let ticks = 0;
    const ticking = setInterval(() => ticks++, 3);
    fresh.started(() => {});
    await run(() => tries() === 1);
    const before = descriptors();
    await run(() => tries() === 3);
    expect(descriptors()).toBe(before);
    expect(ticks).toBeGreaterThan(10);
    expect(lines).toEqual([expect.stringMatching(/^warn: the thread that watches descriptors: no threads here; /)]);
    isWithoutThreads = false;
    await run(() => start.mock.results.length > 3);
    clearInterval(ticking);
    expect({ starved, tries: tries() }).toEqual({ starved: false, tries: 3 });
  } finally {
    isWithoutThreads = false;
    start.mockRestore();
    await fresh.stop();
  }
});
