/** What the two GPIO devices have in common: lines of the host that are the device's from `start` to `stop`. */
import type { GpioLine } from '../../../../core/host/gpio.ts';
import type { Log } from '../../../../core/log.ts';
import type { VirtioTransport } from '../transport/device.ts';
import type { GpioPin } from './pin.ts';

export abstract class GpioDevice<P extends GpioPin> {
  readonly name = 'virtio-gpio';
  protected readonly log: Log;
  protected pins: readonly P[] = [];
  protected transport: VirtioTransport | undefined;
  readonly #open: () => GpioLine[];

  /** @param open takes the lines at `start`. */
  constructor(open: () => GpioLine[], log: Log) {
    this.#open = open;
    this.log = log;
  }

  protected abstract makePin(line: GpioLine, index: number): P;

  /** Levels and directions outlive the driver: what hangs on the lines is not to notice. */
  abstract reset(): void;

  attach(transport: VirtioTransport): void {
    this.transport = transport;
  }

  /** @throws HostError */
  start(): void {
    this.pins = this.#open().map((line, index) => this.makePin(line, index));
  }

  stop(): void {
    for (const pin of this.pins) pin.close();
    this.pins = [];
  }

  driverLeft(): void {
    this.reset();
  }
}
