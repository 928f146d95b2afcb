/** A TPM 2.0 of the host in the guest: at the same address, with its event log where there is room. */
import { ConfigError } from '../../../core/errors.ts';
import type { DeviceAml, DeviceTable } from '../../../core/firmware/contribution.ts';
import type { MmiodevAssignment } from '../../../core/hsm/hsm.ts';
import type { IoBus, Registration } from '../../../core/io-bus.ts';
import { alignDown, alignUp, KiB } from '../../../core/units.ts';
import type { PlatformEnv } from '../driver.ts';
import { HostMmio } from '../host-devices.ts';
import type { PlatformDevice } from '../platform-device.ts';
import { type TpmPlace, tpmTables } from '../tpm-tables.ts';
import { type HostTpm, readHostTpm } from './host.ts';

const PAGE_BYTES = 4 * KiB;

/** Where the guest finds it, and what the hypervisor is to map for that. */
function place(tpm: HostTpm, window: PlatformEnv['window']): { place: TpmPlace; assignment: MmiodevAssignment } {
  const { base, sizeBytes, startMethod, control, log } = tpm;
  const own = { gpa: base, hostPhysical: base, sizeBytes };
  // Compat: C tells the guest of start method 7 and offset 0x40 whatever the host has.
  const tables = { base, sizeBytes, control: { gpa: control, startMethod } };
  if (log === undefined) return { place: tables, assignment: { name: 'tpm2', resources: [own] } };
  // Compat: C hands over a log that does not begin with a page as it is, which the hypervisor refuses.
  const firstPage = alignDown(log.base, PAGE_BYTES);
  const mappedBytes = alignUp(log.base + log.sizeBytes, PAGE_BYTES) - firstPage;
  const gpa = window.allocate(mappedBytes, '--acpidev_pt: the event log');
  return {
    place: { ...tables, log: { gpa: gpa + (log.base - firstPage), sizeBytes: log.sizeBytes } },
    assignment: { name: 'tpm2', resources: [own, { gpa, hostPhysical: firstPage, sizeBytes: mappedBytes }] },
  };
}

export class HostTpmDevice implements PlatformDevice {
  readonly #mmio: HostMmio | undefined;
  readonly #tables: ReturnType<typeof tpmTables> | undefined;
  readonly #problem: ConfigError | undefined;

  constructor(hid: string, uid: number, env: PlatformEnv) {
    try {
      const placed = place(readHostTpm(hid, uid, env.hostRoot), env.window);
      this.#mmio = new HostMmio(env.hsm, placed.assignment);
      this.#tables = tpmTables(placed.place);
    } catch (error) {
      if (!(error instanceof ConfigError)) throw error;
      // A machine is also described where this TPM is not.
      this.#problem = error;
    }
  }

  aml(): readonly DeviceAml[] {
    return this.#tables?.aml() ?? [];
  }

  tables(): readonly DeviceTable[] {
    return this.#tables?.tables() ?? [];
  }

  attach(pio: IoBus, mmio: IoBus): Registration[] {
    return this.#mmio?.attach(pio, mmio) ?? [];
  }

  start(): void {
    if (this.#problem !== undefined) throw this.#problem;
    this.#mmio?.start();
  }

  stop(): void {
    this.#mmio?.stop();
  }

  reset(): void {}
}
