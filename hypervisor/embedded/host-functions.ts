/**
 * Functions of the host given to the guest: ASSIGN_PCIDEV and its relatives, for whoever can do it below. The function is
 * the hypervisor's: its configuration space and registers are answered here, as ACRN's hypervisor does it.
 */
import { constants } from 'node:os';
import { type Bdf, bdfToNumber, formatBdf, type Gpa, type Gsi, type Port } from '../../devicemodel/core/address.ts';
import type { IoRegion } from '../../devicemodel/core/device.ts';
import { BugError } from '../../devicemodel/core/errors.ts';
import { HsmError } from '../../devicemodel/core/hsm/errors.ts';
import type { HostFunctionAbility, PcidevAssignment, PtdevIntx, RamMapping } from '../../devicemodel/core/hsm/hsm.ts';
import { describePcidev } from '../../devicemodel/core/hsm/ptdev.ts';
import type { CpuEngine } from './cpu-engine.ts';
import type { AccessRouter } from './guest-bus.ts';
import { whereGuestPutIt } from './guest-placed.ts';
import type { VirtualFunction, VirtualFunctionHost } from './virtual-function.ts';
import type { VmLife } from './vm-state.ts';

const E = constants.errno;

/** A function of the host, in the guest. `dispose` gives it back. */
export interface HostFunction extends VirtualFunction {
  /** Its INTx line is this input of the guest's IOAPIC. @returns 0 or an errno. */
  connectLine(gsi: Gsi): number;
  disconnectLine(): void;
  /** The guest's interrupt controllers were reset: an end of interrupt that was awaited does not come any more. */
  rearmLine(): void;
}

/** What a function of the host gets from its VM, beside what all functions get. */
export interface HostFunctionHost extends VirtualFunctionHost {
  /** A group of VFIO, by its descriptor, is this VM's, until it leaves: before that is closed. */
  joinGroup(groupFd: number): { dispose(): void };
  /** Registers at I/O ports; the newest range wins. */
  addPorts(base: Port, count: number, region: IoRegion): { dispose(): void };
  /** Registers of a device, mapped in this process: the guest has them without anybody between. */
  addDeviceMemory(base: Gpa, sizeBytes: number, hostAddress: bigint): { dispose(): void };
  /** The eventfd asserts a line; the guest's end of interrupt takes that back and rings the other. @returns how to stop, or an errno. */
  line(fd: number, gsi: Gsi, resampleFd: number): { dispose(): void } | number;
}

/** Who has the host's functions. */
export interface HostFunctionProvider {
  /** The driver of the host that a function has to be bound to. */
  readonly driver: string;
  /** @throws HostError that says what is in the way. */
  assign(assignment: PcidevAssignment, host: HostFunctionHost): HostFunction;
  /** Functions may read and write this memory, those that come later, too. @throws HostError */
  mapRam(mapping: RamMapping): void;
  unmapRam(mapping: RamMapping): void;
  /** After every function. Safe twice. */
  dispose(): void;
}

export interface HostFunctionsParts {
  readonly provider: HostFunctionProvider;
  readonly life: VmLife;
  readonly router: AccessRouter;
  readonly host: HostFunctionHost;
  /** Input pins of the guest's IOAPIC. */
  readonly gsiCount: number;
}

/** @throws BugError for an engine that cannot. */
export function hostFunctionHost(engine: CpuEngine, router: AccessRouter, host: VirtualFunctionHost): HostFunctionHost {
  const { hostFunctions } = engine;
  if (hostFunctions === undefined) throw new BugError('this engine has no place for functions of the host');
  return {
    ...host,
    get vmid() {
      return host.vmid;
    },
    joinGroup: (groupFd) => hostFunctions.joinGroup(groupFd),
    addPorts: (base, count, region) => router.addPorts(base, count, region),
    addDeviceMemory: (base, sizeBytes, hostAddress) =>
      whereGuestPutIt(host.log, () => hostFunctions.mapMemory(base, sizeBytes, hostAddress)),
    line: (fd, gsi, resampleFd) => hostFunctions.line(fd, gsi, resampleFd),
  };
}

export class HostFunctions implements HostFunctionAbility {
  readonly #parts: HostFunctionsParts;
  /** By the guest's address. */
  readonly #assigned = new Map<number, HostFunction>();

  constructor(parts: HostFunctionsParts) {
    this.#parts = parts;
  }

  assignPcidev(assignment: PcidevAssignment): void {
    const { life, router, provider, host } = this.#parts;
    const what = describePcidev(assignment);
    life.need('ASSIGN_PCIDEV');
    if (life.state !== 'created') {
      throw new HsmError('ASSIGN_PCIDEV', E.EINVAL, { what, hint: `the VM is ${life.state}, not created` });
    }
    if (router.functionAt(assignment.virtualBdf) !== undefined) {
      throw new HsmError('ASSIGN_PCIDEV', E.EINVAL, { what, hint: 'the hypervisor has a device there already' });
    }
    const fn = provider.assign(assignment, host);
    this.#assigned.set(bdfToNumber(assignment.virtualBdf), fn);
    router.addFunction(fn);
  }

  deassignPcidev(assignment: PcidevAssignment): void {
    const { life, router } = this.#parts;
    life.need('DEASSIGN_PCIDEV');
    const fn = this.#at('DEASSIGN_PCIDEV', assignment.virtualBdf);
    if (life.state === 'running') throw new HsmError('DEASSIGN_PCIDEV', E.EINVAL, { what: describePcidev(assignment) });
    this.#assigned.delete(bdfToNumber(assignment.virtualBdf));
    router.removeFunction(fn);
  }

  setPtdevIntx({ virtualBdf, virtualPin }: PtdevIntx): void {
    const { life, gsiCount } = this.#parts;
    life.need('SET_PTDEV_INTR');
    const what = `of ${formatBdf(virtualBdf)} to line ${virtualPin}`;
    if (virtualPin >= gsiCount) {
      const hint = `the guest's IOAPIC has ${gsiCount} pins here: put fewer devices with a legacy interrupt into the VM`;
      throw new HsmError('SET_PTDEV_INTR', E.EINVAL, { what, hint });
    }
    const errno = this.#at('SET_PTDEV_INTR', virtualBdf).connectLine(virtualPin);
    if (errno !== 0) throw new HsmError('SET_PTDEV_INTR', errno, { what });
  }

  resetPtdevIntx({ virtualBdf }: PtdevIntx): void {
    this.#parts.life.need('RESET_PTDEV_INTR');
    this.#at('RESET_PTDEV_INTR', virtualBdf).disconnectLine();
  }

  /** RESET_VM: functions stay (S3). */
  reset(): void {
    for (const fn of this.#assigned.values()) fn.rearmLine();
  }

  mapRam(mapping: RamMapping): void {
    this.#parts.provider.mapRam(mapping);
  }

  unmapRam(mapping: RamMapping): void {
    this.#parts.provider.unmapRam(mapping);
  }

  /** The functions themselves went with the router's. */
  dispose(): void {
    this.#assigned.clear();
    this.#parts.provider.dispose();
  }

  #at(ioctl: string, virtualBdf: Bdf): HostFunction {
    const fn = this.#assigned.get(bdfToNumber(virtualBdf));
    if (fn === undefined) {
      const what = formatBdf(virtualBdf);
      throw new HsmError(ioctl, E.EINVAL, { what, hint: 'no function of the host is there' });
    }
    return fn;
  }
}
