/** Firmware tables of a PC whose devices contribute what they always do: for tests that need a whole DSDT. */
import type { Bdf } from '../../devicemodel/core/address.ts';
import type { ComConfig } from '../../devicemodel/core/config.ts';
import { type AcpiInput, buildAcpi } from '../../devicemodel/core/firmware/acpi-tables.ts';
import type { DeviceTable, PciFunctionAml, TableContributor } from '../../devicemodel/core/firmware/contribution.ts';
import type { Cpu } from '../../devicemodel/core/firmware/processor-aml.ts';
import { acpiInput, isaAml, tableContributors } from '../../devicemodel/hw/firmware-tables.ts';
import type { IntxRoute } from '../../devicemodel/hw/pci/host-aml.ts';
import { isaBridgeAml } from '../../devicemodel/hw/pci/lpc.ts';
import { CmosIo } from '../../devicemodel/hw/platform/cmos-io.ts';
import { Hpet } from '../../devicemodel/hw/platform/hpet.ts';
import { I8042 } from '../../devicemodel/hw/platform/i8042.ts';
import { PirqRouter } from '../../devicemodel/hw/platform/ioapic.ts';
import { Pit } from '../../devicemodel/hw/platform/pit.ts';
import { AcpiPm } from '../../devicemodel/hw/platform/pm.ts';
import { Rtc } from '../../devicemodel/hw/platform/rtc.ts';
import { FakeClock } from './fake-clock.ts';
import { FakeLine } from './fake-line.ts';

export interface PcTables {
  readonly cpus?: readonly Cpu[];
  readonly isRtvm?: boolean;
  readonly com?: readonly ComConfig[];
  /** Where the ISA bridge is, or none. */
  readonly lpc?: Bdf;
  readonly routes?: readonly IntxRoute[];
  /** Highest number of a bus below a bridge. */
  readonly lastBus?: number;
  readonly ioWindow?: { readonly base: number; readonly end: number };
  readonly functions?: readonly PciFunctionAml[];
  readonly functionTables?: readonly DeviceTable[];
  /** Beside the devices every PC has. */
  readonly devices?: readonly TableContributor[];
}

/** A machine with one CPU and no PCI function, unless told otherwise. */
export function pcAcpiInput(pc: PcTables = {}): AcpiInput {
  const clock = new FakeClock();
  const power = { request: () => {} };
  const nothing = { pulse: () => {}, set: () => {}, signal: () => {} };
  const contributors = tableContributors(
    {
      i8042: new I8042({ keyboardIrq: new FakeLine(1), auxIrq: new FakeLine(12), power }),
      rtc: new Rtc({ clock, irq: new FakeLine(8), lowMemoryBytes: 0, highMemoryBytes: 0 }),
      cmosIo: new CmosIo(),
      pirq: new PirqRouter(),
      pit: new Pit({ clock, irq: new FakeLine(2) }),
      pm: new AcpiPm({ sci: new FakeLine(9), power }),
      hpet: new Hpet({ clock, ioapic: nothing, msi: nothing }),
      optional: pc.devices ?? [],
    },
    { com: pc.com ?? [], isRtvm: pc.isRtvm ?? false },
  );
  const bridge = pc.lpc === undefined ? [] : [isaBridgeAml(pc.lpc, () => isaAml(contributors))];
  return acpiInput({
    cpus: pc.cpus ?? [{ lapicId: 0, pStates: undefined, cStates: [] }],
    isRtvm: pc.isRtvm ?? false,
    contributors,
    hasIsaBridge: pc.lpc !== undefined,
    buses: [
      {
        bus: 0,
        lastBus: pc.lastBus ?? 0,
        ioWindow: pc.ioWindow ?? { base: 0x2000, end: 0x2020 },
        routes: pc.routes ?? [],
        functions: [...bridge, ...(pc.functions ?? [])],
      },
    ],
    functionTables: pc.functionTables ?? [],
  });
}

/** Bytes of one of the tables. */
export function pcTable(signature: string, pc: PcTables = {}): Uint8Array {
  const found = buildAcpi(pcAcpiInput(pc)).find((table) => table.signature === signature);
  if (found === undefined) throw new Error(`there is no ${signature}`);
  return found.bytes;
}
