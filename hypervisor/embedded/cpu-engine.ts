/**
 * The seam inside the embedded hypervisor: what runs the guest's instructions plugs in here. Everything else (VM states,
 * the request page, the hypervisor's own devices, eventfds) is the same for every engine and lives in embedded-hsm.ts.
 *
 * An engine that runs its CPU on the device thread fills slot 0 and calls `submit` and `serve` from inside `run`; one
 * whose vCPUs run in threads of their own fills their slots there, wakes the device thread, and calls both from `run`.
 */
import type { Gpa, Gsi } from '../../devicemodel/core/address.ts';
import type { MsiMessage } from '../../devicemodel/core/device.ts';
import type {
  EngineRam,
  FreezeAbility,
  Hsm,
  HsmBackend,
  IoeventfdSpec,
  VcpuRegs,
} from '../../devicemodel/core/hsm/hsm.ts';
import type { IoreqPage } from '../../devicemodel/core/ioreq-page.ts';

/** What the hypervisor gives an engine to put guest accesses through. Called on the device thread only. */
export interface GuestBus {
  readonly page: IoreqPage;
  /**
   * Take the PENDING request of a slot as the hypervisor and the HSM driver do.
   * @returns true when it was completed in here (a vdev, an ioeventfd, CF8): the slot is COMPLETE and holds the value.
   * Otherwise it is PROCESSING, and waits for the device model.
   */
  submit(vcpu: number): boolean;
  /** Let the device model look at the page now. Only inside `run`. */
  serve(): void;
  /**
   * Take the slot back: COMPLETE becomes FREE.
   * @returns false while the device model has not answered: the vCPU stays where it is (a reset or S3 is under way).
   */
  retire(vcpu: number): boolean;
  /** The guest is lost: triple fault, shutdown. The engine has stopped the vCPU. Only inside `run`. */
  tripleFault(vcpu: number): void;
}

/** Guest-physical memory served from bytes of this process; `dispose` takes it away again. */
export interface MemoryWindow {
  dispose(): void;
}

/** An eventfd that sends a message when it is rung. */
export interface Irqfd {
  readonly fd: number;
  readonly message: MsiMessage;
}

/** Eventfds that the engine serves without this process: a write of the guest rings one, or one that is rung interrupts. */
export interface EngineEventfds {
  /** @returns 0 or an errno; whatever it does not take comes to the bus. */
  ioeventfd(spec: IoeventfdSpec, assign: boolean): number;
  /** Many cost hardly more than one. @returns for each how to stop, or an errno. */
  irqfds(wanted: readonly Irqfd[]): readonly ({ dispose(): void } | number)[];
}

/** What functions of the host need. */
export interface EngineHostFunctions {
  /** The engine knows of a group of VFIO, by its descriptor, until it leaves: before that is closed. */
  joinGroup(groupFd: number): { dispose(): void };
  /** Registers of a device that this process has mapped become guest memory. */
  mapMemory(gpa: Gpa, sizeBytes: number, hostAddress: bigint): MemoryWindow;
  /** `fd` asserts a line; the guest's end of interrupt takes that back and rings `resampleFd`. @returns how to stop, or an errno. */
  line(fd: number, gsi: Gsi, resampleFd: number): { dispose(): void } | number;
}

export interface CpuEngine {
  readonly backend: HsmBackend;
  /** Interrupt input pins, 0 up; a line beyond them cannot be raised. */
  readonly gsiCount: number;
  /** Present when guest RAM is the engine's own memory and cannot be given to it. */
  readonly ram?: EngineRam;
  /** Present when the engine serves eventfds itself. */
  readonly eventfds?: EngineEventfds;
  /** Present when its vCPUs can stand still and go on. */
  readonly freezing?: FreezeAbility;

  /** Make the vCPUs, stopped. @returns how many there are. */
  create(bus: GuestBus, cpuAffinity: bigint): Promise<number>;
  /** Start state of a stopped vCPU. */
  setRegs(vcpu: number, regs: VcpuRegs): void;
  /** Bytes become guest memory at `gpa`: RAM from mapRam, or the shared memory of an ivshmem BAR. */
  mapMemory(gpa: Gpa, bytes: Uint8Array, hostAddress: bigint | undefined, writable: boolean): MemoryWindow;
  /** Present where functions of the host can be given to the guest. */
  readonly hostFunctions?: EngineHostFunctions;

  /** vCPUs may run, inside `run`, from the state `setRegs` gave (after create or reset). */
  start(): void;
  /** vCPUs stand still when this returns. May be called from inside `serve`. */
  stop(): void;
  /** vCPUs and interrupt controllers as after create; RAM is kept. Only while stopped. */
  reset(): void;
  /** Free everything. Safe twice. */
  destroy(): void;

  /** Registers of a stopped vCPU in one line, for a log. */
  describeVcpu(vcpu: number): string;

  /** The level of an input of the IOAPIC; whether it asserts is a matter of the guest's redirection entry. */
  setLine(gsi: Gsi, isHigh: boolean): void;
  injectMsi(message: MsiMessage): void;

  /**
   * Let the guest run for a bounded time, or wait for its requests. Returns at once when the VM does not run.
   * @param goesOn as of {@link Hsm.waitForIoreqs}.
   * @returns a promise when no vCPU has anything to do until an interrupt, a timer or `wake`.
   */
  run(goesOn?: () => boolean): undefined | Promise<void>;
  /** As `run`, without a wait and without `serve`: what vCPUs ask is put through, and those that were answered go on. */
  poll?(): void;
  /** End the wait of `run`, if any. */
  wake(): void;
  /** End `run` soon, whether it waits or the guest runs: called from inside `serve`, too. */
  interrupt(): void;
}
