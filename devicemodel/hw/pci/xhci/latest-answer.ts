/**
 * What a device answers when it is through, which may be never: a device that hangs gives the same promise to everybody who
 * asks, and a guest may ask without end. So each promise is listened to once, and told to whoever asked last.
 */
export class LatestAnswer<T> {
  readonly #listened = new WeakSet<Promise<T>>();
  #awaited: { readonly answer: Promise<T>; readonly told: (value: T) => void } | undefined;

  /** Whoever asked before is not told any more. @param answer never rejected */
  listen(answer: Promise<T>, told: (value: T) => void): void {
    this.#awaited = { answer, told };
    if (this.#listened.has(answer)) return;
    this.#listened.add(answer);
    void answer.then((value) => {
      this.#listened.delete(answer);
      if (this.#awaited?.answer !== answer) return;
      const { told: tell } = this.#awaited;
      this.#awaited = undefined;
      tell(value);
    });
  }

  /** Nobody is told. */
  forget(): void {
    this.#awaited = undefined;
  }
}
