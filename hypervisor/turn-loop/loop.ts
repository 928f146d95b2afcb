/**
 * The loop of a thread that is free while the guest idles: an engine runs the guest on it in slices, or another thread
 * waits for the guest. Only a guest that is busy keeps the event loop from running; then it has a turn now and then.
 */
import type { Timer } from '../../devicemodel/core/clock.ts';
import { checkNotClosed, type GuestLoop, type RequestServer } from '../../devicemodel/core/guest-loop.ts';
import type { Hsm, WaitResult } from '../../devicemodel/core/hsm/hsm.ts';
import { EventLoopPoll } from './event-loop-poll.ts';
import { TimerfdClock } from './timerfd-clock.ts';

/** The guest runs first; control sockets and the like are started this much later. */
const AFTER_START_NS = 2_000_000;

/** Awaiting it gives microtasks their chance. */
const microtasks = Promise.resolve();

export interface TurnLoopOptions {
  /** Each step of {@link TurnLoop.next} runs the guest for milliseconds, rather than serving a request or two. */
  readonly hasSlices: boolean;
}

export class TurnLoop implements GuestLoop {
  readonly clock: TimerfdClock;
  readonly #poll: EventLoopPoll;
  readonly #hasSlices: boolean;
  readonly #quiet: Timer;
  #onQuiet: () => void = () => {};

  /** @throws HostError */
  constructor({ hasSlices }: TurnLoopOptions) {
    this.clock = new TimerfdClock();
    this.#poll = hasSlices ? new EventLoopPoll(1) : new EventLoopPoll();
    this.#hasSlices = hasSlices;
    this.#quiet = this.clock.createTimer(() => this.#onQuiet());
  }

  next(hsm: Hsm, server: RequestServer): undefined | Promise<void> {
    if (this.#poll.pending) return this.#poll.turn();
    const waited = hsm.waitForIoreqs(server.serve);
    if (waited instanceof Promise) return waited.then((result) => this.#serve(result, server));
    this.#serve(waited, server);
    return this.#hasSlices ? microtasks : undefined;
  }

  requestTurn(): void {
    this.#poll.requestTurn();
  }

  started(onQuiet: () => void): void {
    this.#onQuiet = onQuiet;
    // The first request waits for no turn: another thread waits for it, and this one is the event loop's meanwhile.
    if (!this.#hasSlices) this.#poll.postpone();
    this.#quiet.arm(this.clock.nowNs() + AFTER_START_NS);
  }

  /** The event loop has the thread whenever the guest is not served, and the timers are its own already. */
  ended(): void {}

  rest<T>(work: Promise<T>): Promise<T> {
    return work;
  }

  stopNow(): void {}

  async stop(): Promise<void> {
    this.#quiet.cancel();
    this.#poll.dispose();
    this.clock.dispose();
  }

  #serve(result: WaitResult, server: RequestServer): void {
    checkNotClosed(result);
    server.serve();
    this.clock.runDue();
  }
}
