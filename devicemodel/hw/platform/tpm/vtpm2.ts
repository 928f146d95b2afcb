/** `--vtpm2`, the device: a command response buffer whose TPM is swtpm. In S3 the TPM keeps its power. */
import type { Gpa } from '../../../core/address.ts';
import type { IoBus, Registration } from '../../../core/io-bus.ts';
import type { PlatformEnv } from '../driver.ts';
import type { PlatformDevice } from '../platform-device.ts';
import { tpmTables } from '../tpm-tables.ts';
import { CRB_BYTES, Crb } from './crb.ts';
import { Swtpm } from './swtpm.ts';

export class VirtualTpm implements PlatformDevice {
  readonly #base: Gpa;
  readonly #swtpm: Swtpm;
  readonly #crb: Crb;
  readonly #tables: ReturnType<typeof tpmTables>;

  constructor(path: string, { keep, log, window }: PlatformEnv) {
    this.#base = window.allocate(CRB_BYTES, '--vtpm2');
    // Compat: C tells swtpm to end with each life, and later lives have no TPM. Here it is the VM's, as a chip is.
    this.#swtpm = keep('swtpm', () => new Swtpm(path, log));
    this.#crb = new Crb(this.#base, this.#swtpm);
    this.#tables = tpmTables({ base: this.#base, sizeBytes: CRB_BYTES });
  }

  aml() {
    return this.#tables.aml();
  }

  tables() {
    return this.#tables.tables();
  }

  attach(_pio: IoBus, mmio: IoBus): Registration[] {
    return [mmio.register({ base: this.#base, size: CRB_BYTES, name: 'TPM' }, this.#crb)];
  }

  /** Compat: C starts without a TPM when there is no swtpm. @throws HostError */
  start(): Promise<void> {
    return this.#swtpm.powerOn();
  }

  /** Compat: C resets neither, so that a guest measures its second boot on top of the first. */
  reset(): void {
    this.#crb.reset();
    this.#swtpm.powerCycle();
  }
}
