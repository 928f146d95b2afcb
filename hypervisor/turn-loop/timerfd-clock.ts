/** Timers for a thread whose event loop runs while the guest idles: a timerfd the loop polls, exact to about 50 us. */
import { watchFd } from '../../devicemodel/core/host/fd-watch.ts';
import { Timerfd } from '../../devicemodel/core/host/timers.ts';
import { TimerQueue } from '../../devicemodel/core/timer-queue.ts';

export class TimerfdClock extends TimerQueue {
  readonly #timer: Timerfd;
  readonly #unwatch: () => void;
  #disposed = false;

  /** @throws HostError */
  constructor() {
    super();
    this.#timer = new Timerfd();
    try {
      this.#unwatch = watchFd(this.#timer.fd, () => {
        this.#timer.acknowledge();
        this.runDue();
      });
    } catch (error) {
      this.#timer.dispose();
      throw error;
    }
  }

  dispose(): void {
    if (this.#disposed) return;
    this.#disposed = true;
    this.#unwatch();
    this.#timer.dispose();
  }

  protected override setWakeup(delayNs: number | undefined): void {
    this.#timer.arm(delayNs ?? 0);
  }
}
