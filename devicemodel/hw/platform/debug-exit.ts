/** Debug exit, port 0xf4 (--debugexit): any write ends the VM. For unit tests of guests. */
import { type AccessSize, allOnes, hex } from '../../core/address.ts';
import type { IoRegion, PowerControl } from '../../core/device.ts';
import type { IoBus, Registration } from '../../core/io-bus.ts';
import type { PlatformDevice } from './platform-device.ts';

const DEBUG_EXIT_PORT = 0xf4;

export class DebugExit implements PlatformDevice, IoRegion {
  readonly #power: PowerControl;

  constructor(power: PowerControl) {
    this.#power = power;
  }

  attach(pio: IoBus): Registration[] {
    return [pio.register({ base: DEBUG_EXIT_PORT, size: 1, name: 'debug exit' }, this)];
  }

  reset(): void {}

  stop(): void {}

  /** Compat: 16 bits of ones, whatever the width: a 32-bit read gives 0xffff. */
  read(_offset: number, size: AccessSize): number {
    return size === 4 ? 0xffff : allOnes(size);
  }

  write(_offset: number, _size: AccessSize, value: number): void {
    this.#power.request({ kind: 'poweroff', reason: `debug exit, value ${hex(value)}` });
  }
}
