/**
 * What a device adds to the firmware tables. The builders are here in core/firmware; what they are given to build stands
 * with each device, PCI function or part of the board, and the board collects it in one visible order.
 */
import type { Bdf, Gsi } from '../address.ts';
import { type Aml, device, eisaId, name } from './aml.ts';
import { resourceTemplate } from './aml-resources.ts';

/**
 * Where a piece of AML goes: `root`: first in the DSDT; `system-bus`: into the scope of the host bridges; `isa`: into the
 * ISA bridge, lost without one; `system`: behind all buses, with scopes of its own.
 */
export type AmlPlace = 'root' | 'system-bus' | 'isa' | 'system';

export interface DeviceAml {
  readonly place: AmlPlace;
  readonly aml: Aml;
}

/** A whole ACPI table, checksum included. */
export interface DeviceTable {
  readonly signature: string;
  readonly bytes: Uint8Array;
}

/** An ISA interrupt, or a line of a passed-through device, that is not edge triggered and active high (MADT type 2). */
export interface InterruptOverride {
  readonly irq: number;
  readonly gsi: Gsi;
  /** MPS INTI flags (ACPI 6.4 §5.2.12.5). */
  readonly flags: number;
}

/** Called at every writing of the tables, when all devices have their places. */
export interface TableContributor {
  aml?(): readonly DeviceAml[];
  /** Ports and memory where nothing else may be put: descriptors for the motherboard device of the ISA bridge. */
  motherboardResources?(): readonly Aml[];
  tables?(): readonly DeviceTable[];
  interruptOverrides?(): readonly InterruptOverride[];
}

/** AML that a PCI function adds to the scope of its bus. */
export interface PciFunctionAml {
  readonly bdf: Bdf;
  aml(): Aml;
}

/** `_ADR` of a PCI function: device in the high word (ACPI 6.4 §6.1.1). */
export function pciAddress(bdf: Bdf): number {
  return bdf.device * 0x1_0000 + bdf.function;
}

/** A device that is only an id and resources. @param id EISA id, `PNP0303` */
export function plainDevice(object: string, id: string, resources: readonly Aml[], ...more: Aml[]): Aml {
  return device(object, [name('_HID', eisaId(id)), ...more, name('_CRS', resourceTemplate(resources))]);
}

/** As {@link plainDevice}, behind the ISA bridge. */
export function isaDevice(object: string, id: string, resources: readonly Aml[], ...more: Aml[]): DeviceAml {
  return { place: 'isa', aml: plainDevice(object, id, resources, ...more) };
}
