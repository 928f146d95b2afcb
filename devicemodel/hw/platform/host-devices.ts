/** What the devices of the host that an option passes through have in common. */
import { type AccessSize, allOnes } from '../../core/address.ts';
import type { PlatformDeviceConfig } from '../../core/config.ts';
import { ConfigError, ExitCode, HostError } from '../../core/errors.ts';
import type { Hsm, HypervisorOffers, MmiodevAssignment, PassthroughAbility } from '../../core/hsm/hsm.ts';
import type { AddressRange, IoBus, Registration } from '../../core/io-bus.ts';
import type { PlatformDevice } from './platform-device.ts';

/** Devices in memory of one VM. [MAX_MMIO_DEV_NUM] */
const MAX_MMIO_DEVICES = 2;
/** [MAX_ACPI_DEV_NUM], release 3.3. */
const MAX_ACPI_DEVICES = 8;

/** @throws ConfigError if there are more than the hypervisor has room for. */
export function assertRoomForHostDevices(all: readonly PlatformDeviceConfig[]): void {
  const isByResources = ({ options }: PlatformDeviceConfig) =>
    (options as { readonly resources?: readonly unknown[] }).resources?.length !== 0;
  const acpi = all.filter(({ driver }) => driver === 'acpidev_pt');
  const byResources = acpi.filter(isByResources).length;
  const mmio = all.filter(({ driver }) => driver === 'mmiodev_pt').length + acpi.length - byResources;
  if (mmio > MAX_MMIO_DEVICES) {
    throw new ConfigError(`--mmiodev_pt: a VM has at most ${MAX_MMIO_DEVICES} of them, a TPM by --acpidev_pt included`);
  }
  if (byResources > MAX_ACPI_DEVICES) {
    throw new ConfigError(`--acpidev_pt: a VM has at most ${MAX_ACPI_DEVICES} devices passed by their resources`);
  }
}

const REFUSAL = 'the embedded hypervisor gives a guest no devices of the host but PCI functions on KVM';
const refused = { exitCode: ExitCode.Unavailable, hint: 'leave it out, or run on ACRN' };

/** @throws ConfigError if the hypervisor cannot pass devices through. */
export function checkGivesDevices({ givesDeviceMemory }: HypervisorOffers): void {
  if (givesDeviceMemory !== true) throw new ConfigError(REFUSAL, refused);
}

/** @throws HostError if this hypervisor cannot pass devices through. */
export function passthroughOf(hsm: Hsm, what: string): PassthroughAbility {
  if (hsm.passthrough !== undefined) return hsm.passthrough;
  throw new HostError(`${what}: ${REFUSAL}`, 0, refused);
}

/** What the hypervisor maps, a guest must not put a BAR on. */
export function keepFree(mmio: IoBus, ranges: readonly Omit<AddressRange, 'name'>[], name: string): Registration[] {
  const nothing = { read: (_offset: number, size: AccessSize) => allOnes(size), write: () => {} };
  return ranges
    .filter(({ base, size }) => mmio.findOverlap(base, size) === undefined)
    .map((range) => mmio.register({ ...range, name }, nothing));
}

/**
 * Memory of a host device in the guest, from start to stop. A reset of the VM leaves it alone: the hypervisor keeps it,
 * and the device is nobody's to reset.
 */
export class HostMmio implements PlatformDevice {
  readonly #hsm: Hsm;
  readonly #assignment: MmiodevAssignment;
  #isAssigned = false;

  constructor(hsm: Hsm, assignment: MmiodevAssignment) {
    this.#hsm = hsm;
    this.#assignment = assignment;
  }

  attach(_pio: IoBus, mmio: IoBus): Registration[] {
    const ranges = this.#assignment.resources.map(({ gpa, sizeBytes }) => ({ base: gpa, size: sizeBytes }));
    return keepFree(mmio, ranges, 'memory of a host device');
  }

  start(): void {
    passthroughOf(this.#hsm, 'device memory').assignMmiodev(this.#assignment);
    this.#isAssigned = true;
  }

  /** Compat: C also takes back what it was refused. */
  stop(): void {
    if (!this.#isAssigned) return;
    this.#isAssigned = false;
    this.#hsm.passthrough?.deassignMmiodev(this.#assignment);
  }

  reset(): void {}
}
