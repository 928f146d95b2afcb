/**
 * A PCI function says what it is and what it needs; the PCI host places it, writes its header and routes accesses.
 */

import type { BarIndex, BarSpec, ConfigSpace, PciIdentity } from '../../chips/pci-config-space.ts';
import type { AccessSize, Bdf, Gpa, Port } from '../../core/address.ts';
import type { Device } from '../../core/device.ts';
import type { DeviceTable, PciFunctionAml } from '../../core/firmware/contribution.ts';
import type { HvVdev } from '../../core/hsm/vdev.ts';
import type { AccessGate } from '../../core/request-holds.ts';

export type { PciIdentity };

/** Where the host put the function. BAR addresses are read live: the guest may move them. */
export interface PciPlacement {
  readonly bdf: Bdf;
  barAddress(index: BarIndex): Gpa | Port;
}

interface PciFunctionBase {
  readonly identity: PciIdentity;
  readonly bars: readonly BarSpec[];
  /** Default 256; 4096 with extended capabilities. */
  readonly configBytes?: 256 | 4096;
}

/** A function emulated here. */
export interface EmulatedPciFunction extends PciFunctionBase, Device {
  readonly backing: 'device-model';
  /** For a function that may have to make a vCPU wait: while it is closed no access to BARs or configuration gets here. */
  readonly gate?: AccessGate;
  /** Called once when the header is written and BARs are placed, before the guest runs: add capabilities, special registers. */
  configure?(config: ConfigSpace, placement: PciPlacement): void;
  readBar(index: BarIndex, offset: number, size: AccessSize): number;
  writeBar(index: BarIndex, offset: number, size: AccessSize, value: number): void;
  /** 64-bit BAR accesses that must not tear. */
  readBarU64?(index: BarIndex, offset: number): bigint;
  writeBarU64?(index: BarIndex, offset: number, value: bigint): void;
  /** A BAR got a new address, or decoding was switched on (address) or off (undefined). */
  barMoved?(index: BarIndex, address: Gpa | Port | undefined): void;
  /** All INTx pins have their PIRQ links now; part of the power-on state. */
  interruptsRouted?(): void;
  /**
   * Hypervisor calls the function needs before the guest runs, such as mapping memory of its own; in device order
   * among the CREATE_VDEVs. May be called again after `detach`.
   */
  attach?(): void;
  /** Undo `attach`. Safe twice, and without it. */
  detach?(): void;
  /**
   * What the function adds to the DSDT: called when BARs are placed, at every writing of the tables.
   * @param ordinal how many functions of the same driver come before it, by address.
   */
  aml?: ((at: PciPlacement, ordinal: number) => PciFunctionAml) | undefined;
  /** ACPI tables of its own: called with `aml`. */
  tables?(at: PciPlacement): readonly DeviceTable[];
}

/** A function the hypervisor emulates: it is only described. */
export interface HypervisorPciFunction extends PciFunctionBase {
  readonly backing: 'hypervisor';
  /** Pure: options + placement → what CREATE_VDEV needs. */
  describe(at: PciPlacement): HvVdev;
  /** What this model answers where the hypervisor passes an access on to it. Default: all ones. */
  readBar?(index: BarIndex, offset: number, size: AccessSize): number;
}

export type PciFunction = EmulatedPciFunction | HypervisorPciFunction;
