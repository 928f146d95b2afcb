/**
 * What a device does not have in its hands: queues that are lent, and work that goes on beside this thread. Until it is
 * back the vCPU whose access needs it waits, and who else comes to the device; everybody else is served.
 */
import type { IoPatience } from '../../../../core/io-patience.ts';
import type { AccessGate } from '../../../../core/request-holds.ts';
import type { VirtioDevice } from './device.ts';
import type { QueueLending } from './queue-lending.ts';

export interface ReturningHost {
  readonly device: VirtioDevice;
  readonly gate: AccessGate;
  readonly patience: IoPatience;
  /** It does not come back: the VM cannot go on. */
  giveUp(error: Error): void;
}

export class Returning {
  readonly #host: ReturningHost;
  readonly #lending: QueueLending;

  constructor(host: ReturningHost, lending: QueueLending) {
    this.#host = host;
    this.#lending = lending;
  }

  /** Everybody stands still, and keeps what is lent. @throws StorageHangError, asynchronously */
  settled(): Promise<void> | undefined {
    return both(this.#settleDevice(), this.#lending.settle());
  }

  /** Nothing is lent any more, and the device has nothing under way. @throws StorageHangError, asynchronously */
  back(): Promise<void> | undefined {
    return both(this.#settleDevice(), this.#lending.end());
  }

  /** Go on when everything is back. */
  whenBack(goOn: () => void): void {
    const wait = this.back();
    if (wait === undefined) goOn();
    else this.#holdUntil(wait, goOn);
  }

  /** The access being served is over when `work` is. */
  hold(work: Promise<unknown>): void {
    this.#holdUntil(this.#patiently(work), () => {});
  }

  #settleDevice(): Promise<void> | undefined {
    const settled = this.#host.device.settle?.();
    return settled === undefined ? undefined : this.#patiently(settled);
  }

  #patiently(work: Promise<unknown>): Promise<void> {
    const { device, patience } = this.#host;
    return patience.wait(work, (limitMs) => device.hung?.(limitMs) ?? new Error(`${device.name} does not come back`));
  }

  #holdUntil(wait: Promise<void>, goOn: () => void): void {
    const { gate } = this.#host;
    gate.close();
    wait.then(
      () => {
        goOn();
        gate.open();
      },
      (error: Error) => this.#host.giveUp(error),
    );
  }
}

/** When both are. */
function both(a: Promise<void> | undefined, b: Promise<void> | undefined): Promise<void> | undefined {
  if (a === undefined || b === undefined) return a ?? b;
  return Promise.all([a, b]).then(() => {});
}
