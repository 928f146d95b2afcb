/**
 * The host's clocks. Device timers share one POSIX timer that signals the device thread itself (SIGEV_THREAD_ID), so a
 * thread blocked in an ioctl wakes on time without another thread or any polling. See wakeups.ts for the signal.
 */
import type { Clock, Timer } from '../clock.ts';
import { HostError } from '../errors.ts';
import { describeErrno, lastErrno, libc, native } from './libc.ts';
import { KICK_SIGNAL } from './wakeups.ts';

const CLOCK_MONOTONIC = 1;
const SIGEV_THREAD_ID = 4;
const SIGEVENT_BYTES = 64;
/** A signal that came just before the thread blocked is lost: repeat until the timer was served. */
const REPEAT_NS = 200_000;
const NS_PER_S = 1_000_000_000;

class ClockTimer implements Timer {
  dueNs: number | undefined;
  readonly #clock: SystemClock;
  readonly onDue: () => void;

  constructor(clock: SystemClock, onDue: () => void) {
    this.#clock = clock;
    this.onDue = onDue;
  }
  arm(dueNs: number): void {
    this.#clock.schedule(this, dueNs);
  }
  cancel(): void {
    this.#clock.schedule(this, undefined);
  }
}

export class SystemClock implements Clock {
  /** Running timers, earliest first. A machine has a dozen: a sorted array beats a heap. */
  readonly #running: ClockTimer[] = [];
  readonly #timerId: number;
  readonly #setting = new DataView(new ArrayBuffer(32));
  readonly #settingBytes = new Uint8Array(this.#setting.buffer);
  readonly #settime = native('int timer_settime(uintptr_t, int, const void *, void *)');
  /** What the POSIX timer is set to; Infinity: not running. */
  #armedNs = Number.POSITIVE_INFINITY;
  #disposed = false;

  constructor() {
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

  nowNs(): number {
    return Math.round(performance.now() * 1e6);
  }

  wallMs(): number {
    return Date.now();
  }

  createTimer(onDue: () => void): Timer {
    return new ClockTimer(this, onDue);
  }

  /** When the next timer is due; Infinity when none runs. */
  get nextDueNs(): number {
    return this.#running[0]?.dueNs ?? Number.POSITIVE_INFINITY;
  }

  /** Run what is due; called by the device loop after every wake-up. */
  runDue(): void {
    if (this.#running.length === 0) return;
    const now = this.nowNs();
    for (
      let timer = this.#running[0];
      timer !== undefined && (timer.dueNs as number) <= now;
      timer = this.#running[0]
    ) {
      this.#running.shift();
      timer.dueNs = undefined;
      timer.onDue();
    }
    // Served (or not yet due): what repeats must stop, and the next one takes its place.
    if (this.#armedNs <= now) this.#program();
  }

  dispose(): void {
    if (!this.#disposed) native('int timer_delete(uintptr_t)')(this.#timerId);
    this.#disposed = true;
  }

  /** @internal for ClockTimer */
  schedule(timer: ClockTimer, dueNs: number | undefined): void {
    const running = this.#running;
    if (timer.dueNs !== undefined) running.splice(running.indexOf(timer), 1);
    timer.dueNs = dueNs;
    if (dueNs === undefined) return; // a wake-up that finds nothing due is cheaper than taking it back
    let at = running.length;
    while (at > 0 && ((running[at - 1] as ClockTimer).dueNs as number) > dueNs) at--;
    running.splice(at, 0, timer);
    if (at === 0 && dueNs < this.#armedNs) this.#program();
  }

  #program(): void {
    if (this.#disposed) return;
    const next = this.nextDueNs;
    this.#armedNs = next;
    const idle = next === Number.POSITIVE_INFINITY;
    const delayNs = idle ? 0 : Math.max(1, next - this.nowNs());
    const s = this.#setting;
    s.setBigInt64(0, 0n, true);
    s.setBigInt64(8, idle ? 0n : BigInt(REPEAT_NS), true);
    s.setBigInt64(16, BigInt(Math.floor(delayNs / NS_PER_S)), true);
    s.setBigInt64(24, BigInt(delayNs % NS_PER_S), true);
    this.#settime(this.#timerId, 0, this.#settingBytes, null);
  }
}
