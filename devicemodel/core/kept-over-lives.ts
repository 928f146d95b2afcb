/**
 * What devices have outside and keep over the lives of their VM: a full reset ends a life, and nobody outside is to
 * notice more of it than of a reset button.
 */

interface Kept {
  /** The VM is over. Bounded in time; never throws. */
  close(): Promise<void>;
}

export class KeptOverLives {
  readonly #kept = new Map<string, Kept>();

  /** What was made under this name in an earlier life, or what `make` gives now. */
  readonly keep = <T extends Kept>(name: string, make: () => T): T => {
    const earlier = this.#kept.get(name);
    // A name stands for one thing of one type.
    if (earlier !== undefined) return earlier as T;
    const made = make();
    this.#kept.set(name, made);
    return made;
  };

  /** Safe twice. */
  async close(): Promise<void> {
    const all = [...this.#kept.values()];
    this.#kept.clear();
    await Promise.all(all.map((each) => each.close()));
  }
}
