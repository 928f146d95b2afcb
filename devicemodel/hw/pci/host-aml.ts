/**
 * What the PCI host adds to the firmware tables: a bridge per bus with its windows and interrupt routing, and where
 * configuration space is in memory. Spec: ACPI 6.4 §6.2.13 (_PRT), PCI Firmware 3.2 §4.1.2 (MCFG).
 */
import type { Gpa, Gsi, Port } from '../../core/address.ts';
import { BugError } from '../../core/errors.ts';
import { type Aml, device, eisaId, ifElse, method, name, pkg, ret } from '../../core/firmware/aml.ts';
import {
  dwordMemory,
  io,
  memory32Fixed,
  qwordMemory,
  resourceTemplate,
  wordBusNumber,
  wordIo,
} from '../../core/firmware/aml-resources.ts';
import { type PciFunctionAml, pciAddress, type TableContributor } from '../../core/firmware/contribution.ts';
import { mcfgTable } from '../../core/firmware/tables.ts';
import { Layout } from '../../core/layout.ts';
import { PIRQ_LINKS, pirqLinkName } from '../platform/ioapic.ts';

/** Ports of configuration mechanism 1. */
const CONFIG_PORTS = { base: 0xcf8, size: 8 };

/** One INTx pin of a slot that some function uses. */
export interface IntxRoute {
  readonly device: number;
  /** 1 = INTA# … 4 = INTD#. */
  readonly pin: number;
  /** Input of the IOAPIC. */
  readonly gsi: Gsi;
  /** PIRQ link of the ISA bridge, 1 = A … 8 = H. */
  readonly link: number;
}

export interface PciBusInput {
  readonly bus: number;
  /** The highest number of a bus below its bridges, or its own. */
  readonly lastBus: number;
  /** I/O ports given to BARs of this bus and of those below it. */
  readonly ioWindow: { readonly base: Port; readonly end: Port };
  /** Where firmware that places BARs itself moves them to. */
  readonly firmwareWindow?: { readonly base: Gpa; readonly end: Gpa } | undefined;
  /** In slot, then pin order. */
  readonly routes: readonly IntxRoute[];
  /** In any order; written by device and function. */
  readonly functions: readonly PciFunctionAml[];
}

function hostBridgeResources(bus: PciBusInput): Aml {
  const { pciMem32, pciMem64, pciIo } = Layout;
  const list: Aml[] = [wordBusNumber(bus.bus, bus.lastBus - bus.bus + 1)];
  if (bus.bus === 0) {
    const afterConfig = CONFIG_PORTS.base + CONFIG_PORTS.size;
    // Bus 0 decodes the configuration ports and everything around them that is below the BARs.
    list.push(io(CONFIG_PORTS.base, CONFIG_PORTS.size));
    list.push(wordIo(0, CONFIG_PORTS.base));
    list.push(wordIo(afterConfig, pciIo.base - afterConfig));
  }
  list.push(wordIo(bus.ioWindow.base, bus.ioWindow.end - bus.ioWindow.base));
  list.push(dwordMemory(pciMem32.base, pciMem32.end - pciMem32.base));
  const { firmwareWindow } = bus;
  if (firmwareWindow !== undefined)
    list.push(dwordMemory(firmwareWindow.base, firmwareWindow.end - firmwareWindow.base));
  list.push(qwordMemory(pciMem64.base, pciMem64.end - pciMem64.base));
  return resourceTemplate(list);
}

/**
 * `_PRT` (ACPI 6.4 §6.2.13): with the APIC the pin's GSI, with the PIC a link device. Which of the two the guest uses
 * it has said by `_PIC`.
 */
function interruptRouting(bus: PciBusInput, hasIsaBridge: boolean): Aml[] {
  if (bus.routes.length === 0) return [];
  const everyFunction = (route: IntxRoute) => route.device * 0x1_0000 + 0xffff;
  const byLink = (route: IntxRoute) => {
    if (!(route.link >= 1 && route.link <= PIRQ_LINKS)) throw new BugError(`there is no PIRQ link ${route.link}`);
    return pkg([everyFunction(route), route.pin - 1, `ISA.${pirqLinkName(route.link)}`, 0]);
  };
  const byGsi = (route: IntxRoute) => pkg([everyFunction(route), route.pin - 1, 0, route.gsi]);
  return [
    name('PPRT', pkg(hasIsaBridge ? bus.routes.map(byLink) : [])),
    name('APRT', pkg(bus.routes.map(byGsi))),
    method('_PRT', 0, [ifElse('PICM', [ret('APRT')], [ret('PPRT')])]),
  ];
}

/** A host bridge and what sits on its bus, for the system bus. */
export function hostBridgeAml(bus: PciBusInput, hasIsaBridge: boolean): Aml {
  const functions = [...bus.functions].sort((a, b) => pciAddress(a.bdf) - pciAddress(b.bdf));
  return device(`PCI${bus.bus.toString(16).toUpperCase()}`, [
    name('_HID', eisaId('PNP0A03')),
    method('_BBN', 0, [ret(bus.bus)]),
    name('_CRS', hostBridgeResources(bus)),
    ...interruptRouting(bus, hasIsaBridge),
    ...functions.map((f) => f.aml()),
  ]);
}

/** Enhanced configuration access: its window, and the table that names it. */
export const ecamTables: TableContributor = {
  motherboardResources: () => [memory32Fixed(Layout.ecam.base, Layout.ecam.size)],
  tables: () => [mcfgTable(Layout.ecam.base)],
};
