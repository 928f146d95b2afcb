/** `--virtio_poll`: the device looks at its queues every so often, and the driver never kicks. */
import type { Clock, Timer } from '../../../../core/clock.ts';
import type { Virtqueue } from '../ring/virtqueue.ts';

/** Polling starts this long after DRIVER_OK, so that firmware and start-up are through. */
const START_NS = 5e9;

export interface PolledDevice {
  readonly queues: readonly Virtqueue[];
  readonly isDriverOk: boolean;
  service(queue: Virtqueue): void;
}

export class Polling {
  readonly #device: PolledDevice;
  readonly #clock: Clock;
  readonly #intervalNs: number;
  readonly #timer: Timer;
  #isRunning = false;

  constructor(device: PolledDevice, clock: Clock, intervalNs: number) {
    this.#device = device;
    this.#clock = clock;
    this.#intervalNs = intervalNs;
    this.#timer = clock.createTimer(() => this.#poll());
  }

  /** The driver is ready. */
  start(): void {
    this.#timer.arm(this.#clock.nowNs() + START_NS);
  }

  /** CVE-2021-36144: nothing that runs after a reset may see the queues of before. */
  stop(): void {
    this.#timer.cancel();
    this.#isRunning = false;
  }

  /** Look at every queue that is set up, and keep the driver from kicking. */
  #poll(): void {
    const device = this.#device;
    if (!device.isDriverOk) return;
    this.#isRunning = true;
    for (const queue of device.queues) {
      if (!queue.isReady) continue;
      queue.isPolled = true;
      queue.suppressNotify();
      device.service(queue);
      // The device may have been reset or broken by what it found.
      if (!this.#isRunning || !device.isDriverOk) return;
    }
    this.#timer.arm(this.#clock.nowNs() + this.#intervalNs);
  }
}
