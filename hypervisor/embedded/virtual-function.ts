/** A PCI function the hypervisor itself emulates, as the rest of the hypervisor sees it, and what it may ask for. */
import type { AccessSize, Bdf, Gpa } from '../../devicemodel/core/address.ts';
import type { IoRegion, MsiSink } from '../../devicemodel/core/device.ts';
import type { HvVdev } from '../../devicemodel/core/hsm/vdev.ts';
import type { Log } from '../../devicemodel/core/log.ts';
import type { Irqfd } from './cpu-engine.ts';

export interface VirtualFunction {
  readonly bdf: Bdf;
  /** It passes configuration accesses on to a bus below it. */
  readonly bridge?: {
    /** Number of that bus at power-on: the functions there were made for it. */
    readonly firstSecondaryBus: number;
    /** Number of that bus as the guest has it now. */
    readonly secondaryBus: number;
  };
  /** Whether the device model answers for a register of it. */
  leaves?(offset: number): boolean;
  /** Config space, 4096 bytes; accesses that are not naturally aligned never come here. */
  readConfig(offset: number, size: AccessSize): number;
  writeConfig(offset: number, size: AccessSize, value: number): void;
  /** Take it off every bus and let go of what it holds. */
  dispose(): void;
}

/** Eventfds that the engine serves in the kernel, for a function's own. Present where it can. */
export interface FunctionEventfds {
  /** A write of these 4 bytes to the address rings the eventfd and comes to nobody else. @returns undefined: it cannot be had. */
  ring(address: Gpa, value: number, fd: number): { dispose(): void } | undefined;
  /** The eventfds interrupt the guest. @returns for each how to stop; undefined: it cannot be had. */
  interrupts(wanted: readonly Irqfd[]): readonly ({ dispose(): void } | undefined)[];
  /** The eventfd calls back. */
  watch(fd: number, onSignal: () => void): { dispose(): void };
}

/** What a function gets from its VM. */
export interface VirtualFunctionHost extends MsiSink {
  /** 1 for the first User VM of this host. */
  readonly vmid: number;
  readonly log: Log;
  readonly eventfds?: FunctionEventfds;
  /** Registers at a guest-physical range; an overlap is the guest's doing, the newest range wins. */
  addRegisters(base: Gpa, sizeBytes: number, region: IoRegion): { dispose(): void };
  /** Bytes of this process at a guest-physical range. */
  addMemory(base: Gpa, bytes: Uint8Array, hostAddress: bigint | undefined): { dispose(): void };
}

/** Make the function for a CREATE_VDEV, or undefined when the scenario has no such device for this VM. */
export type VirtualFunctionFactory = (vdev: HvVdev, host: VirtualFunctionHost) => VirtualFunction | undefined;
