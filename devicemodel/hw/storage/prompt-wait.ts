/**
 * Whether this thread waits for what the kernel's threads copy to the host's cache. That takes microseconds, and to be fetched
 * out of another wait for it takes a quarter of a millisecond; but where the host makes writers wait for the medium, waiting
 * costs more than it gains: then there is a rest, longer each time until a wait helps.
 */
import type { Clock } from '../../core/clock.ts';

/** As long as this thread may copy by itself between two kicks. */
export const PROMPT_NS = 1_000_000;
/** In vain so often, and nobody waits for a while. */
const LATE_COUNTS = 4;
const MIN_REST_NS = 20_000_000;
const MAX_REST_NS = 1_000_000_000;

export class PromptWait {
  readonly #clock: Pick<Clock, 'nowNs'>;
  readonly #limitNs: number;
  #sinceNs = 0;
  #late = 0;
  #restNs = MIN_REST_NS;
  #restsUntilNs = 0;

  /** @param limitNs of one wait. */
  constructor(clock: Pick<Clock, 'nowNs'>, limitNs = PROMPT_NS) {
    this.#clock = clock;
    this.#limitNs = limitNs;
  }

  /** A wait would begin. @returns how long it may take; 0: not now. */
  begin(): number {
    this.#sinceNs = this.#clock.nowNs();
    return this.#sinceNs < this.#restsUntilNs ? 0 : this.#limitNs;
  }

  /** @param isWhole what was waited for is complete. A signal may have ended the wait before its time, which says nothing. */
  end(isWhole: boolean): void {
    if (isWhole) {
      this.#late = 0;
      this.#restNs = MIN_REST_NS;
      return;
    }
    const nowNs = this.#clock.nowNs();
    if (nowNs - this.#sinceNs < this.#limitNs || ++this.#late < LATE_COUNTS) return;
    this.#late = 0;
    this.#restsUntilNs = nowNs + this.#restNs;
    this.#restNs = Math.min(2 * this.#restNs, MAX_REST_NS);
  }
}
