/**
 * How one thread shares itself between the guest and the host. Each hypervisor brings its own loop, because it depends
 * on what the thread waits in: hypervisor/blocking-loop (a system call that a signal ends) or hypervisor/turn-loop (the
 * guest runs on this thread, or waits on another one, and the event loop is free while it idles).
 *
 * Whose the thread is: the event loop's, from the loop's making on; the guest's from `started` to `ended`, but for the time
 * of a `rest`. Only a thread that is the guest's is fetched out of its calls: what builds a VM, or takes it down, makes calls
 * that a signal would cut short, and nothing would answer the signal.
 */
import type { Clock } from './clock.ts';
import { HostError } from './errors.ts';
import type { Hsm, WaitResult } from './hsm/hsm.ts';

/** What a loop knows of the device model: the request page is to be looked at. */
export interface RequestServer {
  /** Serve every pending request once. May be handed on to the hypervisor: it needs no `this`. */
  readonly serve: () => unknown;
  /** What serving left for the host goes out; whoever comes back from {@link GuestLoop.next} does so by himself. */
  readonly flush: () => void;
}

export interface GuestLoop {
  /** Time for devices. Its timers run on this thread, between two requests. */
  readonly clock: Clock;
  /**
   * One step. The event loop has its turn first, if anything is due there: microtasks and immediates included. Otherwise
   * wait for the guest, serve it, and run the timers that are due.
   * @returns a promise only when the thread is given away: a request that needs no turn costs none.
   * @throws HostError when the hypervisor closed the request client.
   */
  next(hsm: Hsm, server: RequestServer): undefined | Promise<void>;
  /** Something was handed to the event loop that its descriptor does not show yet: a turn comes before the next wait. */
  requestTurn(): void;
  /**
   * The guest runs, and `next` is called from now on: bring up what it does not need at once. `onQuiet` is called when its
   * first moments are over, for others who can wait that long. Another call replaces the earlier one.
   */
  started(onQuiet: () => void): void;
  /** Nobody calls `next` any more until the guest has `started` again. Safe without that, and twice. */
  ended(): void;
  /** The guest stands still until `work` has settled: the event loop has the thread, and timers go on. May be nested. */
  rest<T>(work: Promise<T>): Promise<T>;
  /** The process is about to go: let no thread of ours keep it. Synchronous. */
  stopNow(): void;
  /** Give everything back. Safe twice. */
  stop(): Promise<void>;
}

/** @throws HostError if the wait ended for good. */
export function checkNotClosed(result: WaitResult): void {
  if (result === 'closed') throw new HostError('the hypervisor closed the request client while the VM ran', 0);
}
