/** A device that turns out to have much to do gets a data thread while it runs, until the driver resets it. */
import type { Clock } from '../../../../core/clock.ts';
import type { Log } from '../../../../core/log.ts';
import type { QueueOwner, VirtioDevice } from './device.ts';
import type { QueueLending } from './queue-lending.ts';

/**
 * A device that serves this many requests within this time gets a data thread. One costs 30 ms of a CPU to start, as much
 * as 3000 kicks through the request page on a fast machine; on a slow one it halves the time of each frame long before
 * that. Firmware and a driver that only looks around never get there.
 */
const BUSY_REQUESTS = 300;
const BUSY_WINDOW_NS = 2e9;

export interface BusyDevice {
  readonly device: VirtioDevice;
  readonly log: Log;
  readonly isDriverOk: boolean;
  /** Without MSI-X every interrupt needs the device thread, for the ISR. */
  readonly isMsixEnabled: boolean;
  /** The driver is not served by anybody any more: look at the queues. */
  serviceAll(): void;
}

export class HandOver {
  readonly #host: BusyDevice;
  readonly #lending: QueueLending;
  readonly #clock: Clock;
  #isAllowed = false;
  /** The driver's time with the device, by number: what began in another must not end in this. */
  #session = 0;
  #worked = 0;
  #sinceNs = 0;

  constructor(host: BusyDevice, lending: QueueLending, clock: Clock) {
    this.#host = host;
    this.#lending = lending;
    this.#clock = clock;
  }

  /** A driver began, or ended: a thread that still comes up is not for the next one. */
  newSession(): void {
    this.#session++;
    this.#isAllowed = false;
  }

  get session(): number {
    return this.#session;
  }

  /** From now on, in this session. */
  allow(): void {
    this.#isAllowed = true;
    this.#worked = 0;
    this.#sinceNs = this.#clock.nowNs();
  }

  /** So many requests were served on the device thread, which is between two of them. */
  worked(requests: number): void {
    if (!this.#isAllowed) return;
    this.#worked += requests;
    if (this.#worked < BUSY_REQUESTS) return;
    const nowNs = this.#clock.nowNs();
    const isBusy = nowNs - this.#sinceNs < BUSY_WINDOW_NS;
    this.#worked = 0;
    this.#sinceNs = nowNs;
    if (isBusy && this.#host.isMsixEnabled) this.#getThread();
  }

  /** A thread that is there is given the queues at once, one that has to come up when it is there. */
  #getThread(): void {
    this.#isAllowed = false;
    const { device, log } = this.#host;
    const session = this.#session;
    const isWanted = () => session === this.#session && this.#host.isDriverOk && !this.#lending.isLent;
    const lend = (owner: QueueOwner) => {
      if (isWanted() && this.#lending.lend(owner)) log.debug(`${device.name}: busy, served by a data thread`);
      else this.#host.serviceAll();
    };
    const handOver = (owner: QueueOwner | undefined) => {
      if (owner === undefined || !isWanted()) return;
      const settled = device.settle?.();
      if (settled === undefined) lend(owner);
      else void settled.then(() => lend(owner));
    };
    const owner = device.startDataThread?.();
    if (!(owner instanceof Promise)) {
      handOver(owner);
      return;
    }
    owner.then(handOver, (error: Error) => {
      log.rationed('warn', () => `${error.message}: ${device.name} goes on without it`);
    });
  }
}
