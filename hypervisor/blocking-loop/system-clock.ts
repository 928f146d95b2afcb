/**
 * Timers for a thread that blocks in the hypervisor: one POSIX timer signals that very thread (SIGEV_THREAD_ID), so it
 * wakes on time without another thread or any polling. See wakeups.ts for the signal.
 */
import { KICK_SIGNAL } from '../../devicemodel/core/host/signals.ts';
import { ThreadTimer } from '../../devicemodel/core/host/timers.ts';
import { TimerQueue } from '../../devicemodel/core/timer-queue.ts';

/** A signal that came just before the thread blocked is lost: repeat until the timer was served. */
const REPEAT_NS = 200_000;
const NS_PER_MS = 1_000_000;

export class SystemClock extends TimerQueue {
  /** Belongs to the calling thread. */
  readonly #timer = new ThreadTimer(KICK_SIGNAL);

  #isResting = false;
  #isDisposed = false;
  #timeout: NodeJS.Timeout | undefined;

  /** The event loop has the thread, which a signal does not bring back to it: it keeps the time until {@link endRest}. */
  rest(): void {
    this.#signalIn(undefined);
    this.#isResting = true;
    this.reprogram();
  }

  endRest(): void {
    clearTimeout(this.#timeout);
    this.#isResting = false;
    this.reprogram();
  }

  dispose(): void {
    this.#isDisposed = true;
    clearTimeout(this.#timeout);
    this.#timer.dispose();
  }

  protected override setWakeup(delayNs: number | undefined): void {
    if (this.#isResting) this.#timeoutIn(delayNs);
    else this.#signalIn(delayNs);
  }

  #timeoutIn(delayNs: number | undefined): void {
    clearTimeout(this.#timeout);
    if (delayNs === undefined || this.#isDisposed) return;
    const onTimeout = () => {
      this.runDue();
      // It may have come a little early.
      this.reprogram();
    };
    this.#timeout = setTimeout(onTimeout, Math.ceil(delayNs / NS_PER_MS));
  }

  #signalIn(delayNs: number | undefined): void {
    this.#timer.arm(delayNs ?? 0, delayNs === undefined ? 0 : REPEAT_NS);
  }
}
