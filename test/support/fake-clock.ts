/** A clock that stands still until it is told to move. */
import type { Clock, Timer } from '../../devicemodel/core/clock.ts';

class FakeTimer implements Timer {
  readonly onDue: () => void;
  dueNs: number | undefined;
  /** Among timers due at the same time the one armed first runs first. */
  order = 0;
  readonly #clock: FakeClock;

  constructor(clock: FakeClock, onDue: () => void) {
    this.#clock = clock;
    this.onDue = onDue;
  }

  arm(dueNs: number): void {
    this.dueNs = dueNs;
    this.order = this.#clock.nextOrder();
  }

  cancel(): void {
    this.dueNs = undefined;
  }
}

export class FakeClock implements Clock {
  #nowNs: number;
  #wallOffsetMs: number;
  #order = 0;
  /** How many times a timer ran: an idle device keeps this still. */
  wakeUps = 0;
  readonly #timers: FakeTimer[] = [];

  /** @param wallMs wall clock at the start; default 2024-02-29 12:34:56 UTC, a leap day. */
  constructor(wallMs = Date.UTC(2024, 1, 29, 12, 34, 56), nowNs = 1_000_000_000) {
    this.#nowNs = nowNs;
    this.#wallOffsetMs = wallMs - nowNs / 1e6;
  }

  nowNs(): number {
    return this.#nowNs;
  }

  /** Moves with `nowNs`, plus every jump. */
  wallMs(): number {
    return this.#wallOffsetMs + this.#nowNs / 1e6;
  }

  createTimer(onDue: () => void): Timer {
    const timer = new FakeTimer(this, onDue);
    this.#timers.push(timer);
    return timer;
  }

  nextOrder(): number {
    return this.#order++;
  }

  /** The administrator sets the host's wall clock. */
  jumpWall(deltaMs: number): void {
    this.#wallOffsetMs += deltaMs;
  }

  /** How many timers are armed: what would wake an idle host. */
  get armed(): number {
    return this.#timers.filter((t) => t.dueNs !== undefined).length;
  }

  /** When the next timer is due, or undefined. */
  get nextDueNs(): number | undefined {
    return this.#next()?.dueNs;
  }

  /** Move time on; timers due on the way run in order, each seeing the time it was armed for. */
  advance(ns: number): void {
    const end = this.#nowNs + ns;
    for (let timer = this.#next(); timer !== undefined && (timer.dueNs as number) <= end; timer = this.#next()) {
      this.#nowNs = Math.max(this.#nowNs, timer.dueNs as number);
      this.#fire(timer);
    }
    this.#nowNs = end;
  }

  /** Time passes while the host is too busy to run timers; they run late, all at the end. */
  advanceLate(ns: number): void {
    this.#nowNs += ns;
    this.advance(0);
  }

  #fire(timer: FakeTimer): void {
    timer.dueNs = undefined;
    this.wakeUps++;
    timer.onDue();
  }

  #next(): FakeTimer | undefined {
    let next: FakeTimer | undefined;
    for (const timer of this.#timers) {
      if (timer.dueNs === undefined) continue;
      if (next === undefined || timer.dueNs < (next.dueNs as number)) next = timer;
      else if (timer.dueNs === next.dueNs && timer.order < next.order) next = timer;
    }
    return next;
  }
}
