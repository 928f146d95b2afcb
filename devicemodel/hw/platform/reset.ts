/** Reset control register, port 0xcf9. Spec: ICH10 datasheet §13.7.5 "RST_CNT"; the FADT's reset register. */
import { type AccessSize, allOnes } from '../../core/address.ts';
import type { IoRegion, PowerControl } from '../../core/device.ts';
import type { IoBus, Registration } from '../../core/io-bus.ts';
import type { PlatformDevice } from './platform-device.ts';

const RESET_PORT = 0xcf9;
const ResetControl = { SystemReset: 1 << 1, ResetCpu: 1 << 2, FullReset: 1 << 3 } as const;

/** The FADT's reset register, and what a guest writes there: a full reset. */
export const resetFixedHardware = {
  resetPort: RESET_PORT,
  resetValue: ResetControl.FullReset | ResetControl.ResetCpu | ResetControl.SystemReset,
} as const;

export class ResetRegister implements PlatformDevice, IoRegion {
  readonly #power: PowerControl;
  #value = 0;

  constructor(power: PowerControl) {
    this.#power = power;
  }

  attach(pio: IoBus): Registration[] {
    return [pio.register({ base: RESET_PORT, size: 1, name: 'reset' }, this)];
  }

  /**
   * Compat: the register outlives a reset, as in the C device model, so that a guest finds what it reset itself with.
   */
  reset(): void {}

  stop(): void {}

  read(_offset: number, size: AccessSize): number {
    return size === 1 ? this.#value : allOnes(size);
  }

  write(_offset: number, size: AccessSize, value: number): void {
    if (size !== 1) return;
    this.#value = value;
    if ((value & ResetControl.FullReset) !== 0) {
      this.#value = 0;
      this.#power.request({ kind: 'full-reset', reason: 'reset register, full reset' });
    } else if ((value & ResetControl.ResetCpu) !== 0) {
      this.#power.request({ kind: 'system-reset', reason: 'reset register, system reset' });
    }
  }
}
