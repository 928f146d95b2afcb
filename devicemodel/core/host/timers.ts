/** The kernel's timers on the monotonic clock: one that a descriptor shows, one that signals a thread. */
import { closeFd, readBytes } from './files.ts';
import { hostCall, must } from './libc.ts';
import { threadId } from './scheduling.ts';

const CLOCK_MONOTONIC = 1;
const TFD_NONBLOCK = 0o4000;
const TFD_CLOEXEC = 0o2000000;
const SIGEV_THREAD_ID = 4;
const SIGEVENT_BYTES = 64;
const NS_PER_S = 1_000_000_000;

const timerfdCreate = hostCall<[clock: number, flags: number]>('int timerfd_create(int, int)');
const timerfdSettime = hostCall<[fd: number, flags: number, setting: Uint8Array, old: null]>(
  'int timerfd_settime(int, int, const void *, void *)',
);
const timerCreate = hostCall<[clock: number, event: Uint8Array, id: BigUint64Array]>(
  'int timer_create(int, void *, void *)',
);
const timerSettime = hostCall<[id: number, flags: number, setting: Uint8Array, old: null]>(
  'int timer_settime(uintptr_t, int, const void *, void *)',
);
const timerDelete = hostCall<[id: number]>('int timer_delete(uintptr_t)');

/** struct itimerspec: interval { s, ns }, value { s, ns }; a value of 0 stops the timer. */
class Setting {
  readonly #view = new DataView(new ArrayBuffer(32));
  readonly bytes = new Uint8Array(this.#view.buffer);

  set(delayNs: number, intervalNs: number): Uint8Array {
    const view = this.#view;
    view.setBigInt64(0, BigInt(Math.floor(intervalNs / NS_PER_S)), true);
    view.setBigInt64(8, BigInt(intervalNs % NS_PER_S), true);
    view.setBigInt64(16, BigInt(Math.floor(delayNs / NS_PER_S)), true);
    view.setBigInt64(24, BigInt(delayNs % NS_PER_S), true);
    return this.bytes;
  }
}

/** Readable once it expired. */
export class Timerfd {
  readonly fd: number;
  readonly #setting = new Setting();
  readonly #expirations = new Uint8Array(8);
  #open = true;

  /** @throws HostError */
  constructor() {
    this.fd = must(timerfdCreate(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC), 'timerfd_create', 'timer');
  }

  /** Expire once, so long from now; 0 stops it. */
  arm(delayNs: number): void {
    if (this.#open) timerfdSettime(this.fd, 0, this.#setting.set(delayNs, 0), null);
  }

  /** Not readable any more until it expires again. */
  acknowledge(): void {
    readBytes(this.fd, this.#expirations, this.#expirations.length);
  }

  dispose(): void {
    if (this.#open) closeFd(this.fd);
    this.#open = false;
  }
}

/** Signals the thread that made it. */
export class ThreadTimer {
  readonly #id: number;
  readonly #setting = new Setting();
  #open = true;

  /** @throws HostError */
  constructor(signal: number) {
    const event = new DataView(new ArrayBuffer(SIGEVENT_BYTES));
    event.setInt32(8, signal, true);
    event.setInt32(12, SIGEV_THREAD_ID, true);
    event.setInt32(16, threadId(), true);
    const id = new BigUint64Array(1);
    must(timerCreate(CLOCK_MONOTONIC, new Uint8Array(event.buffer), id), 'timer_create', 'timer');
    this.#id = Number(id[0]);
  }

  /** Signal so long from now and then in this interval; 0 stops it. */
  arm(delayNs: number, intervalNs: number): void {
    if (this.#open) timerSettime(this.#id, 0, this.#setting.set(delayNs, intervalNs), null);
  }

  dispose(): void {
    if (this.#open) timerDelete(this.#id);
    this.#open = false;
  }
}
