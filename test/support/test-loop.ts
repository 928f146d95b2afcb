/**
 * A loop for VMs on the fake hypervisor: its wait never blocks, and the event loop has a turn after each step, or none
 * while the guest keeps it busy.
 */
import type { Clock } from '../../devicemodel/core/clock.ts';
import { checkNotClosed, type GuestLoop, type RequestServer } from '../../devicemodel/core/guest-loop.ts';
import type { Hsm, WaitResult } from '../../devicemodel/core/hsm/hsm.ts';
import { TimerQueue } from '../../devicemodel/core/timer-queue.ts';

/** Timers by the event loop: exact to a millisecond. */
export class EventLoopClock extends TimerQueue {
  #timeout: NodeJS.Timeout | undefined;

  protected override setWakeup(delayNs: number | undefined): void {
    clearTimeout(this.#timeout);
    if (delayNs === undefined) return;
    this.#timeout = setTimeout(
      () => {
        this.runDue();
        // Node counts in milliseconds: a wake-up may come too early, and find nothing due.
        this.reprogram();
      },
      Math.ceil(delayNs / 1e6),
    );
  }

  dispose(): void {
    clearTimeout(this.#timeout);
  }
}

export interface TestLoopOptions {
  readonly clock?: Clock & { runDue?(): void };
  /** Default true. */
  readonly hasTurns?: boolean;
}

export class TestLoop implements GuestLoop {
  readonly clock: Clock & { runDue?(): void };
  readonly #hasTurns: boolean;
  /** What was given to the event loop for the time of a reset or S3, and is not over. */
  resting = 0;
  /** Between {@link started} and {@link ended}. */
  hasGuest = false;

  constructor({ clock = new EventLoopClock(), hasTurns = true }: TestLoopOptions = {}) {
    this.clock = clock;
    this.#hasTurns = hasTurns;
  }

  next(hsm: Hsm, server: RequestServer): undefined | Promise<void> {
    const waited = hsm.waitForIoreqs(server.serve);
    if (waited instanceof Promise) return waited.then((result) => this.#served(result, server));
    this.#served(waited, server);
    return this.#hasTurns ? new Promise((resolve) => setImmediate(resolve)) : undefined;
  }

  requestTurn(): void {}

  started(onQuiet: () => void): void {
    this.hasGuest = true;
    onQuiet();
  }

  ended(): void {
    this.hasGuest = false;
  }

  async rest<T>(work: Promise<T>): Promise<T> {
    this.resting++;
    try {
      return await work;
    } finally {
      this.resting--;
    }
  }

  stopNow(): void {}

  async stop(): Promise<void> {}

  #served(result: WaitResult, server: RequestServer): void {
    checkNotClosed(result);
    server.serve();
    this.clock.runDue?.();
  }
}
