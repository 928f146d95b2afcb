/**
 * How long the machine waits for storage that was told to give back what it was lent: as long as `--io-timeout` says,
 * and hardly at all once the VM is ended by force.
 */

/** What a forced stop leaves to storage that is well. */
const FORCED_MS = 500;

interface Wait {
  readonly atMostMs: number;
  timeout: NodeJS.Timeout;
  readonly onOver: () => void;
}

export class IoPatience {
  readonly #timeoutMs: number;
  readonly #waits = new Set<Wait>();
  #isForced = false;

  constructor(timeoutMs: number) {
    this.#timeoutMs = timeoutMs;
  }

  get limitMs(): number {
    return this.#isForced ? Math.min(FORCED_MS, this.#timeoutMs) : this.#timeoutMs;
  }

  /**
   * Begin to wait. @param onOver it took too long. @param atMostMs where the limit is too long.
   * @returns to be called when what is waited for has come.
   */
  start(onOver: () => void, atMostMs = Number.POSITIVE_INFINITY): () => void {
    const wait: Wait = {
      timeout: setTimeout(() => this.#over(wait), Math.min(this.limitMs, atMostMs)),
      onOver,
      atMostMs,
    };
    this.#waits.add(wait);
    return () => {
      clearTimeout(wait.timeout);
      this.#waits.delete(wait);
    };
  }

  /**
   * Wait for work that never fails.
   * @param hung what to fail with when it takes too long.
   * @throws what `hung` made, asynchronously: the work may still go on.
   */
  wait(work: Promise<unknown>, hung: (limitMs: number) => Error): Promise<void> {
    const { limitMs } = this;
    return new Promise((resolve, reject) => {
      const end = this.start(() => reject(hung(limitMs)));
      void work.then(() => {
        end();
        resolve();
      });
    });
  }

  /**
   * Wait for work that never fails, and go on without it when it takes too long. @param atMostMs where the limit is too long.
   * @returns whether it came
   */
  within(work: Promise<unknown>, atMostMs?: number): Promise<boolean> {
    return new Promise((resolve) => {
      const end = this.start(() => resolve(false), atMostMs);
      void work.then(() => {
        end();
        resolve(true);
      });
    });
  }

  /** The VM is ended by force: waits under way are cut short. */
  force(): void {
    if (this.#isForced) return;
    this.#isForced = true;
    for (const wait of this.#waits) {
      clearTimeout(wait.timeout);
      wait.timeout = setTimeout(() => this.#over(wait), Math.min(this.limitMs, wait.atMostMs));
    }
  }

  #over(wait: Wait): void {
    this.#waits.delete(wait);
    wait.onOver();
  }
}
