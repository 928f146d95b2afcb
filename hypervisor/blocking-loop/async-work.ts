/**
 * Whether JavaScript has handed something to its own event loop: a promise was made or settled, a timer set, an immediate
 * or a tick queued. None of that shows in the loop's descriptor, so a thread that is about to block has to know. Node
 * tells who asks (async_hooks); a request that starts nothing of the kind costs nothing.
 */
import { createHook } from 'node:async_hooks';

/** What process.nextTick makes. */
const TICK = 'TickObject';

export class AsyncWork {
  /** Since it was last set to false; ticks left out. */
  isStarted = false;
  readonly #hook;

  /** @param onTick A tick was queued. Every write to a stream leaves one, which can wait a little. */
  constructor(onTick: () => void) {
    const note = () => {
      this.isStarted = true;
    };
    const init = (_asyncId: number, type: string) => {
      if (type === TICK) onTick();
      else this.isStarted = true;
    };
    this.#hook = createHook({ init, promiseResolve: note }).enable();
  }

  dispose(): void {
    this.#hook.disable();
  }
}
