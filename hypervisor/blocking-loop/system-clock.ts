/**
 * Timers for a thread that blocks in the hypervisor: one POSIX timer signals that very thread (SIGEV_THREAD_ID), so it
 * wakes on time without another thread or any polling. See wakeups.ts for the signal.
 */
import { HostError } from '../../devicemodel/core/errors.ts';
import { describeErrno, lastErrno, libc, native } from '../../devicemodel/core/host/libc.ts';
import { TimerQueue } from '../../devicemodel/core/timer-queue.ts';
import { KICK_SIGNAL } from './wakeups.ts';

const CLOCK_MONOTONIC = 1;
const SIGEV_THREAD_ID = 4;
const SIGEVENT_BYTES = 64;
/** A signal that came just before the thread blocked is lost: repeat until the timer was served. */
const REPEAT_NS = 200_000n;
const NS_PER_S = 1_000_000_000;

export class SystemClock extends TimerQueue {
  readonly #timerId: number;
  /** struct itimerspec: interval { s, ns }, value { s, ns }. */
  readonly #setting = new DataView(new ArrayBuffer(32));
  readonly #settingBytes = new Uint8Array(this.#setting.buffer);
  readonly #settime = native('int timer_settime(uintptr_t, int, const void *, void *)');
  #disposed = false;

  /** The timer belongs to the calling thread. @throws HostError */
  constructor() {
    super();
    const event = new DataView(new ArrayBuffer(SIGEVENT_BYTES));
    event.setInt32(8, KICK_SIGNAL, true);
    event.setInt32(12, SIGEV_THREAD_ID, true);
    event.setInt32(16, libc.gettid(), true);
    const id = new BigUint64Array(1);
    if (native('int timer_create(int, void *, void *)')(CLOCK_MONOTONIC, new Uint8Array(event.buffer), id) !== 0) {
      const errno = lastErrno();
      throw new HostError(`timer_create: ${describeErrno(errno)}`, errno);
    }
    this.#timerId = Number(id[0]);
  }

  dispose(): void {
    if (!this.#disposed) native('int timer_delete(uintptr_t)')(this.#timerId);
    this.#disposed = true;
  }

  protected override setWakeup(delayNs: number | undefined): void {
    if (this.#disposed) return;
    const s = this.#setting;
    s.setBigInt64(8, delayNs === undefined ? 0n : REPEAT_NS, true);
    s.setBigInt64(16, BigInt(Math.floor((delayNs ?? 0) / NS_PER_S)), true);
    s.setBigInt64(24, BigInt((delayNs ?? 0) % NS_PER_S), true);
    this.#settime(this.#timerId, 0, this.#settingBytes, null);
  }
}
