/**
 * Turns of the event loop for a thread that leaves it free while the guest idles: only a guest that is busy keeps it from
 * running. Then its descriptor is asked now and then, which costs a microsecond, where a turn costs dozens.
 */
import { eventLoopFd, freshEventLoopTimeoutMs } from '../../devicemodel/core/host/event-loop.ts';
import { onWatchAdded } from '../../devicemodel/core/host/fd-watch.ts';
import { PollSet } from '../../devicemodel/core/host/poll.ts';
import { monotonicMs } from '../../devicemodel/core/monotonic.ts';

/** Requests between two looks at the clock, where each is a short one. */
const LOOK_EVERY = 32;
const ASK_EVERY_MS = 2;
/** Microtasks and ticks show nowhere: a turn without a reason, that often. */
const TURN_EVERY_MS = 10;

export class EventLoopPoll {
  readonly #poll = new PollSet(1);
  readonly #unlisten: () => void;
  readonly #lookEvery: number;
  #looks = 0;
  #askedMs = 0;
  #turnedMs = 0;
  #turnRequested = false;

  /** @param lookEvery how many times {@link pending} is asked for one look at the clock. */
  constructor(lookEvery: number = LOOK_EVERY) {
    this.#lookEvery = lookEvery;
    this.#poll.watch(0, eventLoopFd());
    this.#unlisten = onWatchAdded(() => this.requestTurn());
  }

  get pending(): boolean {
    if (this.#turnRequested) return true;
    if (++this.#looks < this.#lookEvery) return false;
    this.#looks = 0;
    const now = monotonicMs();
    if (now - this.#askedMs < ASK_EVERY_MS) return false;
    this.#askedMs = now;
    if (now - this.#turnedMs > TURN_EVERY_MS || this.#poll.wait(1, 0) > 0) return true;
    // Node's own timers and immediates do not show in the descriptor, but in the time the loop would sleep.
    return freshEventLoopTimeoutMs() === 0;
  }

  /** Something was handed to the event loop that its descriptor does not show yet. */
  requestTurn(): void {
    this.#turnRequested = true;
  }

  /** What was asked for so far has its turn no later than any other work. */
  postpone(): void {
    this.#turnRequested = false;
    this.#turned();
  }

  async turn(): Promise<void> {
    this.#turnRequested = false;
    await new Promise((resolve) => setImmediate(resolve));
    // Whatever else is always busy in this process: the guest has its share between two turns.
    this.#turned();
  }

  #turned(): void {
    this.#turnedMs = monotonicMs();
    this.#askedMs = this.#turnedMs;
  }

  dispose(): void {
    this.#unlisten();
  }
}
