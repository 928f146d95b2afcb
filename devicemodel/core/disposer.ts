/**
 * The whole teardown story: every step that acquires something pushes its undo at once; `run` undoes in exact
 * reverse order, tries every step, and collects what failed.
 */
export interface Disposable {
  dispose(): void | Promise<void>;
}

export class Disposer {
  readonly #undo: Array<() => void | Promise<void>> = [];

  /** Register the undo of something just acquired. */
  defer(undo: () => void | Promise<void>): void {
    this.#undo.push(undo);
  }

  /** Register something that can dispose of itself, and hand it back. */
  add<T extends Disposable>(resource: T): T {
    this.#undo.push(() => resource.dispose());
    return resource;
  }

  get size(): number {
    return this.#undo.length;
  }

  /**
   * Undo everything, last first. May be called again: the second call finds nothing to do.
   * @throws AggregateError with every failure, after all steps were tried.
   */
  async run(): Promise<void> {
    const failures: unknown[] = [];
    for (let undo = this.#undo.pop(); undo !== undefined; undo = this.#undo.pop()) {
      try {
        await undo();
      } catch (error) {
        // Of another disposer: what it says is in its parts.
        failures.push(...(error instanceof AggregateError ? error.errors : [error]));
      }
    }
    if (failures.length > 0) throw new AggregateError(failures, 'some resources could not be released');
  }
}
