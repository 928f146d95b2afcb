/**
 * Turns of the event loop for a thread that leaves it free while the guest idles: only a guest that is busy keeps it from
 * running. Then its descriptor is asked now and then, which costs a microsecond, where a turn costs dozens.
 */
import { native, onWatchAdded } from '../../devicemodel/core/host/libc.ts';

const POLLIN = 1;
/** Requests between two looks at the clock, where each is a short one. */
const LOOK_EVERY = 32;
const ASK_EVERY_MS = 2;
/** Node's own timers do not show in the descriptor. */
const TURN_EVERY_MS = 50;

export class EventLoopPoll {
  readonly #poll = native('int poll(void *, unsigned long, int)');
  /** struct pollfd { int fd; short events; short revents; } */
  readonly #pollfd = new Uint8Array(8);
  readonly #lookEvery: number;
  #looks = 0;
  #askedMs = 0;
  #turnedMs = 0;
  #turnRequested = false;

  /** @param lookEvery how many times {@link pending} is asked for one look at the clock. */
  constructor(lookEvery: number = LOOK_EVERY) {
    this.#lookEvery = lookEvery;
    const loop = (native('uintptr_t uv_default_loop()') as () => unknown)();
    const view = new DataView(this.#pollfd.buffer);
    view.setInt32(0, native('int uv_backend_fd(uintptr_t)')(loop), true);
    view.setInt16(4, POLLIN, true);
    onWatchAdded(() => this.requestTurn());
  }

  get pending(): boolean {
    if (this.#turnRequested) return true;
    if (++this.#looks < this.#lookEvery) return false;
    this.#looks = 0;
    const now = performance.now();
    if (now - this.#askedMs < ASK_EVERY_MS) return false;
    this.#askedMs = now;
    return now - this.#turnedMs > TURN_EVERY_MS || this.#poll(this.#pollfd, 1, 0) > 0;
  }

  /** Something was handed to the event loop that its descriptor does not show yet. */
  requestTurn(): void {
    this.#turnRequested = true;
  }

  async turn(): Promise<void> {
    this.#turnRequested = false;
    await new Promise((resolve) => setImmediate(resolve));
    this.#turnedMs = performance.now();
  }
}
