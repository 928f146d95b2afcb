/**
 * The running timers of a machine. There are two ways to be woken for them: by a signal to a thread that blocks in the
 * hypervisor (hypervisor/blocking-loop/system-clock.ts), or by a descriptor of the event loop where that one idles
 * (hypervisor/turn-loop/timerfd-clock.ts).
 */
import type { Clock, Timer } from './clock.ts';
import { monotonicNs } from './monotonic.ts';

class QueuedTimer implements Timer {
  dueNs: number | undefined;
  readonly onDue: () => void;
  readonly #queue: TimerQueue;

  constructor(queue: TimerQueue, onDue: () => void) {
    this.#queue = queue;
    this.onDue = onDue;
  }
  arm(dueNs: number): void {
    this.#queue.schedule(this, dueNs);
  }
  cancel(): void {
    this.#queue.schedule(this, undefined);
  }
}

export abstract class TimerQueue implements Clock {
  /** Earliest first. A machine has a dozen: a sorted array beats a heap. */
  readonly #running: QueuedTimer[] = [];
  /** For when the wake-up is set; Infinity: none is. */
  #wakeNs = Number.POSITIVE_INFINITY;

  /** Since whoever serves this clock last set it to false, a timer was armed for before the wake-up that there was. */
  hasEarlier = false;

  nowNs(): number {
    return monotonicNs();
  }

  wallMs(): number {
    return Date.now();
  }

  createTimer(onDue: () => void): Timer {
    return new QueuedTimer(this, onDue);
  }

  /** When the next timer is due; Infinity when none runs. */
  get nextDueNs(): number {
    return this.#running[0]?.dueNs ?? Number.POSITIVE_INFINITY;
  }

  /** Run what is due; the device loop calls this after every wake-up. */
  runDue(): void {
    const first = this.#running[0];
    if (first === undefined && this.#wakeNs === Number.POSITIVE_INFINITY) return;
    const now = this.nowNs();
    for (let timer = first; timer !== undefined && (timer.dueNs as number) <= now; timer = this.#running[0]) {
      this.#running.shift();
      timer.dueNs = undefined;
      timer.onDue();
    }
    // The wake-up has happened, or found nothing due: what repeats must stop, and the next timer takes its place.
    if (this.#wakeNs <= now) this.#program();
  }

  /** @internal for QueuedTimer */
  schedule(timer: QueuedTimer, dueNs: number | undefined): void {
    const running = this.#running;
    if (timer.dueNs !== undefined) running.splice(running.indexOf(timer), 1);
    timer.dueNs = dueNs;
    if (dueNs === undefined) return; // one wake-up that finds nothing due is cheaper than taking it back each time
    let at = running.length;
    while (at > 0 && ((running[at - 1] as QueuedTimer).dueNs as number) > dueNs) at--;
    running.splice(at, 0, timer);
    if (dueNs >= this.#wakeNs) return;
    this.hasEarlier = true;
    this.#program();
  }

  /** Arrange that `runDue` is called in `delayNs`; undefined: no timer runs, call the wake-up off. */
  protected abstract setWakeup(delayNs: number | undefined): void;

  /** Set the wake-up anew: how it is done has changed. */
  protected reprogram(): void {
    this.#program();
  }

  #program(): void {
    this.#wakeNs = this.nextDueNs;
    const idle = this.#wakeNs === Number.POSITIVE_INFINITY;
    this.setWakeup(idle ? undefined : Math.max(1, this.#wakeNs - this.nowNs()));
  }
}
