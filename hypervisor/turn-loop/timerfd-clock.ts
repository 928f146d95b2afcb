/** Timers for a thread whose event loop runs while the guest idles: a timerfd the loop polls, exact to about 50 us. */

import { libc, native, watchFd } from '../../devicemodel/core/host/libc.ts';
import { TimerQueue } from '../../devicemodel/core/timer-queue.ts';

const CLOCK_MONOTONIC = 1;
const TFD_NONBLOCK = 0o4000;
const TFD_CLOEXEC = 0o2000000;
const NS_PER_S = 1_000_000_000;

export class TimerfdClock extends TimerQueue {
  readonly #fd: number;
  readonly #unwatch: () => void;
  /** struct itimerspec: interval { s, ns }, value { s, ns }. */
  readonly #setting = new DataView(new ArrayBuffer(32));
  readonly #settingBytes = new Uint8Array(this.#setting.buffer);
  readonly #expirations = new Uint8Array(8);
  readonly #settime = native('int timerfd_settime(int, int, const void *, void *)');
  #disposed = false;

  /** @throws HostError */
  constructor() {
    super();
    this.#fd = libc.timerfd(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    this.#unwatch = watchFd(this.#fd, () => {
      native('int64_t read(int, void *, size_t)')(this.#fd, this.#expirations, 8);
      this.runDue();
    });
  }

  dispose(): void {
    if (this.#disposed) return;
    this.#disposed = true;
    this.#unwatch();
    libc.close(this.#fd);
  }

  protected override setWakeup(delayNs: number | undefined): void {
    if (this.#disposed) return;
    const s = this.#setting;
    s.setBigInt64(16, BigInt(Math.floor((delayNs ?? 0) / NS_PER_S)), true);
    s.setBigInt64(24, BigInt((delayNs ?? 0) % NS_PER_S), true);
    this.#settime(this.#fd, 0, this.#settingBytes, null);
  }
}
