/** Work that is done one piece after the other, in the order in which it was asked for. */
export class InTurn {
  #last: Promise<unknown> = Promise.resolve();

  /** @returns as `work` does. What fails keeps nobody from the next. */
  run<T>(work: () => Promise<T>): Promise<T> {
    const done = this.#last.then(work);
    this.#last = done.catch(() => {});
    return done;
  }

  /** @returns when everything is over that was asked for by now. Never rejected. */
  idle(): Promise<unknown> {
    return this.#last;
  }
}
