/**
 * After a request was served, the next one is often only microseconds away: looking at the request page a little longer
 * saves putting the thread to sleep and waking it. How long is learnt as KVM learns it for halted vCPUs (halt polling):
 * longer when the guest came back soon, not at all when it did not, and never on a single CPU, where looking would keep
 * the guest from running.
 */
import { availableParallelism } from 'node:os';

const MAX_NS = 200_000;
const START_NS = 10_000;

export class Linger {
  readonly #maxNs: number;
  #budgetNs = 0;
  #waitingSinceNs = 0;

  /** @param maxNs 0 switches it off. */
  constructor(maxNs: number = availableParallelism() > 1 ? MAX_NS : 0) {
    this.#maxNs = maxNs;
  }

  /** Look until something is pending or the time is up. @returns whether something is. */
  look(hasPending: () => boolean): boolean {
    if (this.#budgetNs === 0) return false;
    const untilMs = performance.now() + this.#budgetNs / 1e6;
    do {
      if (hasPending()) return true;
    } while (performance.now() < untilMs);
    return false;
  }

  /** The thread goes to sleep. */
  sleeping(): void {
    this.#waitingSinceNs = performance.now() * 1e6;
  }

  /** It woke, and there was something to serve: was it worth the sleep? */
  woken(): void {
    const sleptNs = performance.now() * 1e6 - this.#waitingSinceNs;
    this.#budgetNs = sleptNs > this.#maxNs ? 0 : Math.min(this.#maxNs, Math.max(START_NS, this.#budgetNs * 2));
  }
}
