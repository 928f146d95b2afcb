/** The board's view of the firmware tables: who contributes to them, in which order, and the ACPI tables of all of it. */
import type { ComConfig } from '../core/config.ts';
import type { AcpiInput } from '../core/firmware/acpi-tables.ts';
import type { Aml } from '../core/firmware/aml.ts';
import { type DeviceTable, isaDevice, type TableContributor } from '../core/firmware/contribution.ts';
import type { Cpu } from '../core/firmware/processor-aml.ts';
import { ecamTables, hostBridgeAml, type PciBusInput } from './pci/host-aml.ts';
import { comPortTables } from './pci/lpc.ts';
import { picTables } from './platform/pic.ts';
import { pmFixedHardware } from './platform/pm.ts';
import { elcrTables, postTables } from './platform/quiet-ports.ts';
import { resetFixedHardware } from './platform/reset.ts';

/** The devices of the board that guests are told of. */
export interface PcDevices {
  readonly i8042: TableContributor;
  readonly rtc: TableContributor;
  readonly cmosIo: TableContributor;
  readonly pirq: TableContributor;
  readonly pit: TableContributor;
  readonly pm: TableContributor;
  readonly hpet: TableContributor;
  /** Devices that options put on the board, in order. */
  readonly optional: readonly TableContributor[];
}

/** The order is that of the C device model's tables, which guests have always been shown. */
export function tableContributors(
  devices: PcDevices,
  machine: { readonly com: readonly ComConfig[]; readonly isRtvm: boolean },
): readonly TableContributor[] {
  const contributors: TableContributor[] = [
    devices.i8042,
    devices.rtc,
    ...machine.com.map(comPortTables),
    devices.cmosIo,
    {
      aml: () => [
        isaDevice(
          'SIO',
          'PNP0C02',
          contributors.flatMap((c) => c.motherboardResources?.() ?? []),
        ),
      ],
    },
    devices.pirq,
    ...(machine.isRtvm ? [] : [picTables]),
    devices.pit,
    elcrTables,
    ecamTables,
    postTables,
    devices.pm,
    devices.hpet,
    ...devices.optional,
  ];
  return contributors;
}

/** AML for inside the ISA bridge. */
export function isaAml(contributors: readonly TableContributor[]): Aml[] {
  const parts = contributors.flatMap((c) => c.aml?.() ?? []);
  return parts.filter(({ place }) => place === 'isa').map(({ aml }) => aml);
}

export interface MachineTables {
  readonly cpus: readonly Cpu[];
  readonly isRtvm: boolean;
  readonly contributors: readonly TableContributor[];
  /** Bus 0 first. */
  readonly buses: readonly PciBusInput[];
  /** Whether bus 0 has an ISA bridge, whose links the PIC-mode routing names. */
  readonly hasIsaBridge: boolean;
  /** Tables of PCI functions. */
  readonly functionTables: readonly DeviceTable[];
}

export function acpiInput(machine: MachineTables): AcpiInput {
  const { contributors } = machine;
  const bridges = machine.buses.map((bus) => ({
    place: 'system-bus' as const,
    aml: hostBridgeAml(bus, machine.hasIsaBridge && bus.bus === 0),
  }));
  return {
    cpus: machine.cpus,
    isRtvm: machine.isRtvm,
    fixedHardware: { ...pmFixedHardware, ...resetFixedHardware },
    parts: [...bridges, ...contributors.flatMap((c) => c.aml?.() ?? [])],
    tables: [...contributors.flatMap((c) => c.tables?.() ?? []), ...machine.functionTables],
    interruptOverrides: contributors.flatMap((c) => c.interruptOverrides?.() ?? []),
  };
}
