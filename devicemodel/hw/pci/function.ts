/**
 * A PCI function says what it is and what it needs; the PCI host places it, writes its header and routes accesses.
 */
import type { BarIndex, BarSpec, ConfigSpace, PciIdentity } from '../../chips/pci-config-space.ts';
import type { AccessSize, Bdf, Gpa, Port } from '../../core/address.ts';
import type { Device, IoRegion } from '../../core/device.ts';
import type { DeviceTable, PciFunctionAml } from '../../core/firmware/contribution.ts';
import type { HvVdev } from '../../core/hsm/vdev.ts';
import type { AddressRange } from '../../core/io-bus.ts';
import type { AccessGate } from '../../core/request-holds.ts';

export type { PciIdentity };

/** Where the host put the function. BAR addresses are read live: the guest may move them. */
export interface PciPlacement {
  readonly bdf: Bdf;
  barAddress(index: BarIndex): Gpa | Port;
  /** Of the expansion ROM, if it has one. */
  readonly romAddress?: Gpa | undefined;
}

interface PciFunctionBase {
  readonly identity: PciIdentity;
  readonly bars: readonly BarSpec[];
  /** Default 256; 4096 with extended capabilities. */
  readonly configBytes?: 256 | 4096;
}

/** Addresses that a function has without a BAR: those of the ISA device it is compatible with. */
export interface LegacyRange extends AddressRange {
  readonly space: 'pio' | 'mmio';
  readonly region: IoRegion;
}

/** A function emulated here. */
export interface EmulatedPciFunction extends PciFunctionBase, Device {
  readonly backing: 'device-model';
  /** For the host bridge of firmware that takes I/O BARs without their upper 16 bits for larger ones than there are ports. */
  readonly needsWideIoBars?: boolean;
  /** Decoded whenever its space is, if nothing else is there. Not gated. */
  readonly legacyRanges?: readonly LegacyRange[];
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

/** A function of the host that the hypervisor gives to the guest: its registers and BARs are the device's own. */
export interface PassthroughPciFunction extends PciFunctionBase, Device {
  readonly backing: 'passthrough';
  /** Size of its expansion ROM's BAR. */
  readonly romBytes?: number | undefined;
  /** Guest memory that is not to be used as RAM. */
  readonly reservedMemory?: { readonly base: Gpa; readonly size: number } | undefined;
  /** @param config what the guest's header would be: BARs as placed, interrupt pin. The guest does not see it. */
  configure?(config: ConfigSpace, placement: PciPlacement): void;
  readConfig(offset: number, size: AccessSize): number;
  writeConfig(offset: number, size: AccessSize, value: number): void;
  /** Hand it to the hypervisor. @throws HsmError; `detach` then gives back what was taken. May be called again after it. */
  attach(): void;
  /** Its INTx pin is routed and idle. @throws HsmError */
  connectInterrupt?(): void;
  /** Undo `connectInterrupt`, before `detach`. Never throws; safe twice, and without it. */
  disconnectInterrupt?(): void;
  /**
   * Take it back from the hypervisor. Never throws; safe twice, and without `attach`.
   * @param isOrderly in the order of the C device model; otherwise in reverse of what was done
   */
  detach(isOrderly: boolean): void;
  /** The device itself to its power-on state, during a system reset. */
  resetHost?(): Promise<void>;
  /** As of an emulated function. */
  aml?: ((at: PciPlacement, ordinal: number) => PciFunctionAml) | undefined;
  /** As of an emulated function. */
  tables?: ((at: PciPlacement) => readonly DeviceTable[]) | undefined;
  /** For people: what it is on the host. */
  describeHost(): PassthroughReport;
}

/** Where a passed-through function comes from. */
export interface PassthroughReport {
  /** As `0000:02:00.0`. */
  readonly physical: string;
  /** The host that was looked at has no such function; the rest says nothing then. */
  readonly isAbsent?: boolean;
  readonly driver?: string | undefined;
  readonly iommuGroup?: string | undefined;
  /** On the host. */
  readonly bars: readonly {
    readonly index: BarIndex;
    readonly kind: string;
    readonly address: number;
    readonly sizeBytes: number;
  }[];
  /** `MSI-X`, `MSI`. */
  readonly interrupts: readonly string[];
  /** Line of the physical INTx pin, where the guest gets one. */
  readonly physicalPin?: number | undefined;
  readonly hasReset: boolean;
  /** The virtual root port it is put behind. */
  readonly rootPort?: { readonly endpoint: string; readonly vdev: HvVdev } | undefined;
  readonly reservedMemory?: { readonly base: Gpa; readonly sizeBytes: number } | undefined;
  readonly hasAml?: boolean;
  /** What a person should know of the options. */
  readonly notes: readonly string[];
}

export type PciFunction = EmulatedPciFunction | HypervisorPciFunction | PassthroughPciFunction;
