/**
 * What is to become of the VM: asked by the guest, by the operator, or by whoever embeds it. It belongs to the VM and not
 * to one of its lives, so that the wish to end counts before the first life, while one is built, between two, and in S3.
 */
import type { PowerControl, PowerEvent } from './device.ts';

/** Thrown where a VM is being built or rebuilt and was told to end: the way out to {@link PowerState.event}. */
export class PowerOffRequested extends Error {
  constructor(reason: string) {
    super(reason);
    this.name = 'PowerOffRequested';
  }
}

/** How waiting for something slow ends early. Their reasons are {@link PowerOffRequested}. */
export interface EndSignals {
  /** Aborted once the VM is to end. */
  readonly ending: AbortSignal;
  /** Aborted once it is to end whatever is not finished: also what its end waits for. */
  readonly forcing: AbortSignal;
}

export class PowerState implements PowerControl, EndSignals {
  readonly #ending = new AbortController();
  readonly #forcing = new AbortController();
  #event: PowerEvent | undefined;
  #forced: PowerEvent | undefined;
  /** Whether a guest runs that could be reset or suspended. */
  isGuestRunning = false;
  /** Why the guest was asked to shut down: then it need not come up again, and a reset of its own accord is the end. */
  shutdownReason: string | undefined;
  /** `--on-reboot`: nobody wants the guest to start anew. */
  endsAtReset = false;
  /** Called after every request that counts. */
  onRequest: ((event: PowerEvent) => void) | undefined;
  /** The end is not to wait for storage; called once. */
  onForce: (() => void) | undefined;

  /**
   * The first event counts, but power-off overrides what is not under way yet, and is never taken back. Resets and
   * suspends count only while the guest runs: there is nothing else to which they could be done.
   */
  request(asked: PowerEvent): void {
    const event = this.#inShutdown(asked);
    if (event.kind === 'poweroff' && event.isForced === true && this.#forced === undefined) {
      this.#forced = event;
      this.#forcing.abort(new PowerOffRequested(event.reason));
      this.onForce?.();
    }
    if (this.#event?.kind === 'poweroff') return;
    if (event.kind !== 'poweroff' && (this.#event !== undefined || !this.isGuestRunning)) return;
    this.#event = event;
    if (event.kind === 'poweroff') this.#ending.abort(new PowerOffRequested(event.reason));
    this.onRequest?.(event);
  }

  #inShutdown(event: PowerEvent): PowerEvent {
    if (event.kind !== 'full-reset' && event.kind !== 'system-reset') return event;
    const by = event.kind === 'system-reset' && event.by === 'watchdog' ? { by: event.by } : {};
    if (this.shutdownReason !== undefined)
      return { kind: 'poweroff', reason: `${this.shutdownReason}, and the guest reset itself`, ...by };
    if (!this.endsAtReset) return event;
    return { kind: 'poweroff', reason: `${event.reason}, which --on-reboot makes the end`, instead: 'reset', ...by };
  }

  /** What is to be done next. */
  get event(): PowerEvent | undefined {
    return this.#event;
  }

  /** The end that was asked for by force, beside {@link event}. */
  get forced(): PowerEvent | undefined {
    return this.#forced;
  }

  get isEnding(): boolean {
    return this.#ending.signal.aborted;
  }

  get ending(): AbortSignal {
    return this.#ending.signal;
  }

  get forcing(): AbortSignal {
    return this.#forcing.signal;
  }

  /** The reset or suspend that was asked for is under way. */
  begin(): void {
    this.isGuestRunning = false;
    if (this.#event?.kind !== 'poweroff') this.#event = undefined;
  }

  /** A place where work that takes long looks whether it is still wanted. @throws PowerOffRequested */
  checkWanted(): void {
    this.ending.throwIfAborted();
  }
}

/** @throws the reason of the end, which comes before the work is done; that goes on. */
export function unlessEnding<T>(work: Promise<T>, ending: AbortSignal | undefined): Promise<T> {
  if (ending === undefined) return work;
  return new Promise((resolve, reject) => {
    const onEnd = () => reject(ending.reason);
    ending.addEventListener('abort', onEnd, { once: true });
    work.then(resolve, reject).finally(() => ending.removeEventListener('abort', onEnd));
  });
}
