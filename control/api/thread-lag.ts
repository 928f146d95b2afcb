/**
 * How late the device thread comes to what waits for it, be it a client, a console or a timer of a device: looked at a few
 * times a second, for as long as somebody asks. A VM whose figures nobody reads pays nothing for them.
 */

/** Upper ends of what is counted together, in seconds. A timer here is a millisecond late by itself. */
export const LAG_BOUNDS_S = [0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1] as const;
const PERIOD_MS = 250;
/** Who reads figures does so every minute, or oftener. */
const QUIET_MS = 5 * 60_000;
const MS_PER_S = 1000;

export interface LagHistogram {
  /** How many looks were at most as late as each of {@link LAG_BOUNDS_S}: each has those before it in it. */
  readonly atMost: readonly number[];
  readonly count: number;
  readonly sumS: number;
}

export class ThreadLag {
  readonly #counts: number[] = LAG_BOUNDS_S.map(() => 0);
  #count = 0;
  #sumS = 0;
  #dueMs = 0;
  #askedMs = 0;
  #timer: NodeJS.Timeout | undefined;

  /** What was seen so far; from now on it is looked at again. */
  ask(): LagHistogram {
    this.#askedMs = performance.now();
    if (this.#timer === undefined) this.#arm();
    let sum = 0;
    const atMost = this.#counts.map((count) => {
      sum += count;
      return sum;
    });
    return { atMost, count: this.#count, sumS: this.#sumS };
  }

  close(): void {
    clearTimeout(this.#timer);
    this.#timer = undefined;
  }

  #arm(): void {
    this.#dueMs = performance.now() + PERIOD_MS;
    this.#timer = setTimeout(() => this.#look(), PERIOD_MS);
    this.#timer.unref();
  }

  #look(): void {
    const nowMs = performance.now();
    const lateS = Math.max(0, nowMs - this.#dueMs) / MS_PER_S;
    this.#count++;
    this.#sumS += lateS;
    const at = LAG_BOUNDS_S.findIndex((bound) => lateS <= bound);
    // Later than the last of them: in the count alone.
    if (at >= 0) this.#counts[at] = (this.#counts[at] as number) + 1;
    this.#timer = undefined;
    if (nowMs - this.#askedMs < QUIET_MS) this.#arm();
  }
}
