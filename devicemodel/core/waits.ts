/** What a device needs that has to wait for something outside of this thread: for storage, in the first place. */
import { IoPatience } from './io-patience.ts';
import { RequestHolds } from './request-holds.ts';
import { ThreadPulses } from './thread-pulses.ts';

const DEFAULT_TIMEOUT_MS = 60_000;

export interface Waits {
  /** Who waits: the vCPU whose access it is. */
  readonly holds: RequestHolds;
  /** How long. */
  readonly patience: IoPatience;
  /** Threads of devices that are to answer. */
  readonly threads: ThreadPulses;
  /** And what then: the VM cannot go on, it is paused and ends with this error. */
  giveUp(error: Error): void;
}

/** @param timeoutMs `--io-timeout` */
export function newWaits(giveUp: (error: Error) => void, timeoutMs = DEFAULT_TIMEOUT_MS): Waits {
  return { holds: new RequestHolds(), patience: new IoPatience(timeoutMs), threads: new ThreadPulses(), giveUp };
}
