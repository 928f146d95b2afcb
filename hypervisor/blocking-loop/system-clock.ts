/**
 * Timers for a thread that blocks in the hypervisor: one POSIX timer signals that very thread (SIGEV_THREAD_ID), so it
 * wakes on time without another thread or any polling. See wakeups.ts for the signal.
 */
import { KICK_SIGNAL } from '../../devicemodel/core/host/signals.ts';
import { ThreadTimer } from '../../devicemodel/core/host/timers.ts';
import { TimerQueue } from '../../devicemodel/core/timer-queue.ts';

/** A signal that came just before the thread blocked is lost: repeat until the timer was served. */
const REPEAT_NS = 200_000;

export class SystemClock extends TimerQueue {
  /** Belongs to the calling thread. */
  readonly #timer = new ThreadTimer(KICK_SIGNAL);

  dispose(): void {
    this.#timer.dispose();
  }

  protected override setWakeup(delayNs: number | undefined): void {
    this.#timer.arm(delayNs ?? 0, delayNs === undefined ? 0 : REPEAT_NS);
  }
}
