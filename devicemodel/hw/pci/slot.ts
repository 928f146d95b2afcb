/** One plugged-in function as the PCI host keeps it: what was asked for, and what became of it. */
import type { BarIndex, ConfigSpace } from '../../chips/pci-config-space.ts';
import { type Bdf, bdfToNumber, formatBdf, type Gpa, type Port } from '../../core/address.ts';
import type { PciSlotConfig } from '../../core/config.ts';
import type { IoRegion } from '../../core/device.ts';
import { BugError, ConfigError } from '../../core/errors.ts';
import type { Registration } from '../../core/io-bus.ts';
import type { PlacedBar } from './bar-allocator.ts';
import type { SecondaryBus } from './buses.ts';
import type { PciDriver } from './driver.ts';
import type { PciFunction, PciPlacement } from './function.ts';
import type { IntxLine } from './intx.ts';

export interface BarSlot {
  readonly owner: Slot;
  readonly placed: PlacedBar;
  readonly region: IoRegion;
  registration: Registration | undefined;
  /** Where the guest put it when it could not be decoded there. */
  blockedAt: number | undefined;
}

export interface Slot extends PciPlacement {
  readonly bdf: Bdf;
  readonly driver: PciDriver;
  readonly options: unknown;
  function: PciFunction | undefined;
  config: ConfigSpace | undefined;
  line: IntxLine | undefined;
  /** The bus below it. */
  bus: SecondaryBus | undefined;
  bars: BarSlot[];
  /** Of what it decodes without a BAR. */
  legacy: Registration[];
  romAddress: Gpa | undefined;
}

/** @throws ConfigError for an address that no PCI function can have. */
export function newSlot({ bdf, options }: PciSlotConfig, driver: PciDriver): Slot {
  const { bus, device, function: fn } = bdf;
  if (!(bus >= 0 && bus < 256 && device >= 0 && device < 32 && fn >= 0 && fn < 8)) {
    throw new ConfigError(`PCI address ${bus}:${device}.${fn} does not exist: device is 0..31, function 0..7`);
  }
  return {
    bdf,
    driver,
    options,
    function: undefined,
    config: undefined,
    line: undefined,
    bus: undefined,
    bars: [],
    legacy: [],
    romAddress: undefined,
    barAddress(index: BarIndex): Gpa | Port {
      return this.config?.barAddress(index) ?? 0;
    },
  };
}

export function functionOf(slot: Slot): PciFunction {
  if (slot.function === undefined) throw new BugError(`pci ${formatBdf(slot.bdf)} is not configured`);
  return slot.function;
}

export function configOf(slot: Slot): ConfigSpace {
  if (slot.config === undefined) throw new BugError(`pci ${formatBdf(slot.bdf)} is not configured`);
  return slot.config;
}

/** For sorting: by bus, device and function. */
export function byAddress(a: { readonly bdf: Bdf }, b: { readonly bdf: Bdf }): number {
  return bdfToNumber(a.bdf) - bdfToNumber(b.bdf);
}
