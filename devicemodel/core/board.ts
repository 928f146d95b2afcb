/**
 * What a virtual machine needs of its board: the devices around the CPU. The board is built in hw/, which core does not
 * know; it is handed in as a factory and lives for one VM life.
 */
import type { Clock } from './clock.ts';
import type { VmConfig } from './config.ts';
import type { PciConfigAccess, PowerControl } from './device.ts';
import type { Disposer } from './disposer.ts';
import type { E820Range } from './firmware/e820.ts';
import type { Hsm } from './hsm/hsm.ts';
import type { MmioBus, PioBus } from './io-bus.ts';
import type { Log } from './log.ts';
import type { GuestMemory } from './memory.ts';
import type { EndSignals } from './power.ts';
import type { VmEventSink } from './vm-events.ts';
import type { Waits } from './waits.ts';

export interface BoardParts {
  readonly config: VmConfig;
  readonly hsm: Hsm;
  readonly memory: GuestMemory;
  readonly pio: PioBus;
  readonly mmio: MmioBus;
  readonly clock: Clock;
  readonly power: PowerControl;
  /** Where devices tell what happened to the VM. */
  readonly events: VmEventSink;
  readonly waits: Waits;
  readonly vcpuCount: number;
  /** The hypervisor's number of the VM. */
  readonly vmid?: number;
  readonly log: Log;
  /** For what takes long. */
  readonly end?: EndSignals;
  /** Everything the board acquires is undone through this. */
  readonly undo: Disposer;
}

export interface Board {
  readonly pciConfig: PciConfigAccess;
  /** Place every device, register it with the hypervisor, open what it needs on the host. */
  start(): Promise<void>;
  /** The guest runs: what ends from here on ends in good order. */
  guestStarted?(): void;
  /** MP and ACPI tables into guest memory; again after a system reset, when lines may have been routed anew. */
  writeTables(): void;
  /** What is not RAM although it may be within: for the memory map. */
  readonly reservedMemory?: { readonly gpuReserved?: E820Range; readonly softwareSram?: E820Range };
  /** Bytes that wait for the host: console output of this turn. */
  flush(): void;
  /**
   * What devices lent to others comes back: before a reset, a suspend and the end.
   * @param isFlushed and what was written is on the medium. @throws StorageHangError
   */
  settle(isFlushed: boolean): Promise<void> | undefined;
  /** First half of a reset, VM paused: devices and interrupt lines to power-on state, hypervisor devices taken away. */
  reset(): Promise<void>;
  /** Second half, VM created again: hypervisor devices registered anew. */
  restore(): void;
  /** S3, VM paused. */
  suspend(): void;
  resume(): void;
  /**
   * The host asks the guest to shut down.
   * @param isUnheardToo press it also when nobody listens: the guest finds it pressed if it looks later.
   * @returns false if the guest has not enabled the button: nobody listens.
   */
  pressPowerButton(isUnheardToo?: boolean): boolean;
  /** A `nodisk` block device gets a medium. @param argument `SLOT,PATH[,OPTIONS]`. @returns whether it has it now. */
  rescanBlockDevice(argument: string): Promise<boolean>;
  /**
   * The medium of a CD drive: taken out, whatever the guest thinks of it, or put into an empty drive.
   * @param slot `SLOT` of bus 0, or `BUS:SLOT:FUNCTION`. @param medium `PATH[,OPTIONS]`; undefined: take it out.
   * @throws ConfigError, HostError, StorageHangError
   */
  changeMedium(slot: string, port: number, medium: string | undefined): Promise<void>;
  /**
   * A disk becomes larger, or has become so on the host. @param sizeBytes undefined: look. @returns its size now.
   * @throws RefusedError, ConfigError, HostError
   */
  resizeDisk(slot: string, sizeBytes: number | undefined): Promise<number>;
  /** The cable of a network device. @throws RefusedError */
  setLink(slot: string, isUp: boolean): Promise<void>;
}

export type BoardFactory = (parts: BoardParts) => Promise<Board>;
