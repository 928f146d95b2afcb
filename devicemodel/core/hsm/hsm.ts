/**
 * The seam between the device model and whatever runs the guest: one VM on one hypervisor, one method per HSM ioctl,
 * typed at both ends. Back ends: acrn (/dev/acrn_hsm), soft (embedded, software CPU), fake (unit tests); another
 * implementation of this interface is all a further hypervisor needs.
 */
import type { Bdf, Gpa, Gsi, Port } from '../address.ts';
import type { MsiMessage } from '../device.ts';
import type { RamChunk } from '../memory.ts';
import type { ThreadPulse } from '../thread-pulses.ts';
import type { HvVdev } from './vdev.ts';

export type HsmBackend = 'acrn' | 'soft' | 'kvm' | 'fake';

/** Guest flags, acrn_common.h GUEST_FLAG_*. */
export const GuestFlag = {
  SecureWorldEnabled: 1n << 0n,
  LapicPassthrough: 1n << 1n,
  IoCompletionPolling: 1n << 2n,
  HideMtrr: 1n << 3n,
  Rt: 1n << 4n,
  PmuPassthrough: 1n << 11n,
} as const;

export interface VmSpec {
  /** 1..15 bytes; must be the scenario's name if the hypervisor has one for this VM. */
  readonly name: string;
  readonly flags: bigint;
  /** Bit n = physical CPU n; 0 = what the scenario says. */
  readonly cpuAffinity: bigint;
}

/** struct acrn_regs by name; what is left out is 0. */
export interface VcpuRegs {
  readonly rax?: bigint;
  readonly rcx?: bigint;
  readonly rdx?: bigint;
  readonly rbx?: bigint;
  readonly rsp?: bigint;
  readonly rbp?: bigint;
  readonly rsi?: bigint;
  readonly rdi?: bigint;
  readonly rip: bigint;
  readonly cr0: bigint;
  readonly cr3?: bigint;
  readonly cr4?: bigint;
  readonly efer?: bigint;
  readonly rflags?: bigint;
  readonly gdt?: { readonly base: bigint; readonly limit: number };
  readonly idt?: { readonly base: bigint; readonly limit: number };
  readonly cs: {
    readonly selector: number;
    readonly base: bigint;
    readonly limit: number;
    readonly attributes: number;
  };
  readonly ss?: number;
  readonly ds?: number;
  readonly es?: number;
  readonly fs?: number;
  readonly gs?: number;
  readonly ldt?: number;
  readonly tr?: number;
}

/** Memory of this process that becomes guest RAM at `gpa`. */
export interface RamMapping {
  readonly gpa: Gpa;
  readonly sizeBytes: number;
  /** The bytes themselves, of more than 1 GiB the first; an engine that cannot map host memory serves the range from them. */
  readonly bytes: Uint8Array;
  /** Their address in this process. */
  readonly hostAddress: bigint;
  readonly writable: boolean;
  /** Default true; shared memory of a device is not for code. */
  readonly executable?: boolean;
}

/** Physical device memory mapped into the guest (passthrough). */
export interface MmioMapping {
  readonly gpa: Gpa;
  readonly physicalAddress: Gpa;
  readonly sizeBytes: number;
}

export type IrqLineOp = 'high' | 'low' | 'rising-pulse' | 'falling-pulse';

/**
 * What ended one wait for the guest. `pending`: look at the request page. `idle`: nothing to serve (a kick, a signal, a
 * spurious wake-up, the end of a CPU slice). `closed`: the client is gone, leave the loop.
 */
export type WaitResult = 'pending' | 'idle' | 'closed';

export interface IoeventfdSpec {
  readonly fd: number;
  readonly address: Gpa;
  readonly space: 'pio' | 'mmio';
  readonly sizeBytes: 1 | 2 | 4 | 8;
  /** Only writes of this value count; undefined = any. */
  readonly dataMatch?: bigint;
  /** Fork kernels: deliver through the asyncio page. */
  readonly asyncio?: boolean;
}

/** P-state or C-state question of PM_GET_CPU_STATE. */
export interface CpuStateQuery {
  readonly vcpu: number;
  readonly state: number;
  readonly type: 'px-count' | 'px-data' | 'cx-count' | 'cx-data';
}

/** What some hypervisors can do, known before there is a VM. Looked up, never stubbed. */
export interface HypervisorOffers {
  /** A virtual root port need not stand for one of the host: a machine can have one by itself. */
  readonly ownRootPorts?: true;
  /** PCI functions of the host can be given to a guest; {@link Hsm.hostFunctions} is there. */
  readonly givesHostFunctions?: true;
  /** Memory of other devices of the host can be given to a guest; {@link Hsm.passthrough} is there. */
  readonly givesDeviceMemory?: true;
  /** The driver of the host that such a function has to be bound to; absent: any that leaves it alone. */
  readonly hostFunctionDriver?: string;
}

export interface Hsm extends HypervisorOffers {
  readonly backend: HsmBackend;
  /** The 4096-byte request page, struct acrn_io_request_buffer. Valid from `createVm` on. */
  readonly ioreqPage: Uint8Array;

  /** @param ending gives up waiting for a VM that cannot be had yet; then the signal's reason is thrown. */
  createVm(spec: VmSpec, ending?: AbortSignal): Promise<{ readonly vmid: number; readonly vcpuCount: number }>;
  startVm(): void;
  pauseVm(): void;
  resetVm(): void;
  destroyVm(): void;
  setVcpuRegs(vcpu: number, regs: VcpuRegs): void;

  mapRam(mapping: RamMapping): void;
  setIrqLine(gsi: Gsi, op: IrqLineOp): void;
  injectMsi(message: MsiMessage): void;

  createIoreqClient(): void;
  destroyIoreqClient(): void;
  clearIoreqs(): void;
  /**
   * The only call that blocks (acrn: sits in ATTACH; soft: runs the CPU for a slice). `serve` looks at the whole
   * request page and serves what is pending; an engine whose CPU runs on this very thread calls it from inside.
   * A promise is returned only by engines that have nothing to run until something else happens on the event loop.
   * @param goesOn asked after each access by an engine that runs its one vCPU on this thread, in steps of an access: whether the
   * guest may have the thread again at once, rather than by the next call. Default: it may not.
   */
  waitForIoreqs(serve: () => void, goesOn?: () => boolean): WaitResult | Promise<WaitResult>;
  /**
   * What vCPUs ask comes onto the page now, without a wait: for when none is possible, since a device makes another vCPU
   * wait. Absent: it does so by itself (the kernel's driver), or there is no other vCPU.
   */
  pollIoreqs?(): void;
  /** Registers of each vCPU of a VM that is paused, a line each. Absent: the hypervisor does not show them. */
  describeVcpus?(): readonly string[];
  /** End the wait under way with `idle`; from inside `serve`, no more of the guest is run than cannot be helped. */
  interruptWait(): void;
  notifyIoreqDone(vcpu: number): void;

  createVdev(vdev: HvVdev): void;
  destroyVdev(vdev: HvVdev): void;

  ioeventfd(spec: IoeventfdSpec, assign: boolean): void;
  irqfd(fd: number, message: MsiMessage, assign: boolean): void;

  /** @returns the raw answer (up to 48 bytes), or undefined when the hypervisor has none. */
  getCpuState(query: CpuStateQuery): Uint8Array | undefined;

  /** The descriptor is closed; the object is done. Safe twice. */
  close(): void;

  // Optional abilities: looked up, never stubbed.
  /** Take a mapping of `mapRam` away again, for device memory that moves. ACRN keeps RAM until the VM is destroyed. */
  unmapRam?(mapping: RamMapping): void;
  readonly engineRam?: EngineRam;
  readonly freezing?: FreezeAbility;
  /** A thread of this process that answers for the hypervisor's devices, from CREATE_VM on. */
  readonly thread?: ThreadPulse;
  readonly hostFunctions?: HostFunctionAbility;
  readonly passthrough?: PassthroughAbility;
  readonly vmEvents?: VmEventAbility;
  readonly asyncio?: AsyncioAbility;
  readonly intrMonitor?: IntrMonitorAbility;
}

/**
 * The guest stands still and goes on where it stood. ACRN has no such call: START_VM is refused after PAUSE_VM until the VM
 * was reset (hypervisor/common/hypercall.c, hcall_start_vm).
 */
export interface FreezeAbility {
  /** No instruction of the guest is carried out when this returns, or soon after; twice is once. */
  freeze(): void;
  thaw(): void;
}

/** An engine that owns guest RAM and hands it out (v86's WebAssembly memory). */
export interface EngineRam {
  allocate(regions: readonly { readonly base: Gpa; readonly size: number }[]): readonly RamChunk[];
}

export interface PcidevAssignment {
  readonly virtualBdf: Bdf;
  readonly physicalBdf: Bdf;
  readonly interruptLine: number;
  readonly interruptPin: number;
  readonly bars: readonly number[];
  /** ACRN_PTDEV_QUIRK_ASSIGN. */
  readonly quirk?: boolean;
}

export interface PtdevIntx {
  readonly virtualBdf: Bdf;
  readonly physicalBdf: Bdf;
  readonly virtualPin: number;
  readonly physicalPin: number;
  readonly isPicPin: boolean;
}

export interface MmiodevAssignment {
  readonly name: string;
  readonly resources: readonly {
    readonly gpa: Gpa;
    readonly hostPhysical: Gpa;
    readonly sizeBytes: number;
    readonly memoryType?: number;
  }[];
}

/** I/O ports of a host device. */
export interface PioRegion {
  readonly name: string;
  readonly port: Port;
  readonly sizeBytes: number;
}

/** Device addresses of what is no PCI function: all ones. [ACRN_PTDEV_NON_PCI_BDF] */
export const NON_PCI_BDF: Bdf = { bus: 0xff, device: 0x1f, function: 7 };

/** PCI functions of the host in the guest. */
export interface HostFunctionAbility {
  assignPcidev(assignment: PcidevAssignment): void;
  deassignPcidev(assignment: PcidevAssignment): void;
  setPtdevIntx(intx: PtdevIntx): void;
  resetPtdevIntx(intx: PtdevIntx): void;
}

/** And whatever else the host has, by its physical address: only what runs below the host can give it. */
export interface PassthroughAbility extends HostFunctionAbility {
  assignMmiodev(assignment: MmiodevAssignment): void;
  deassignMmiodev(assignment: MmiodevAssignment): void;
  /** Drivers other than that of ACRN release 3.3 answer ENOTTY. */
  assignPioRegion(region: PioRegion): void;
  deassignPioRegion(region: PioRegion): void;
  mapMmio(mapping: MmioMapping): void;
  unmapMmio(mapping: MmioMapping): void;
}

/** Fork kernels: a ring of hypervisor events and the eventfd that announces them. */
export interface VmEventAbility {
  /** @returns false when the kernel has no such ioctl. */
  setup(ringAddress: bigint, eventfd: number): boolean;
}

/** Fork kernels: doorbells of ioeventfds with `asyncio` come through this page. */
export interface AsyncioAbility {
  setup(pageAddress: bigint): boolean;
}

export interface IntrMonitorAbility {
  /** Reads the per-line interrupt counts into `buffer` (struct acrn_intr_monitor, 392 bytes) or sends a delay order. */
  intrMonitor(bufferAddress: bigint): void;
}

/** Opens one VM life on the hypervisor; called again for every full reset. */
export type HsmOpener = () => Promise<Hsm>;
