/**
 * Whether JavaScript has handed something to its own event loop: a promise was made or settled, a timer set, an immediate
 * or a tick queued. None of that shows in the loop's descriptor, so a thread that is about to block has to know. Node
 * tells who asks (async_hooks); a request that starts nothing of the kind costs nothing.
 */
import { createHook } from 'node:async_hooks';

export class AsyncWork {
  /** Since it was last set to false. */
  isStarted = false;
  readonly #hook;

  constructor() {
    const note = () => {
      this.isStarted = true;
    };
    this.#hook = createHook({ init: note, promiseResolve: note }).enable();
  }

  dispose(): void {
    this.#hook.disable();
  }
}
