/**
 * MultiProcessor Specification table, for guests that do not read ACPI. Spec: Intel MP 1.4 chapter 4.
 */
import { Layout } from '../layout.ts';
import { bytes, struct, u8, u16, u32 } from '../struct.ts';
import type { PlacedTable } from './acpi-tables.ts';
import { checkLapicId } from './lapic-id.ts';
import { ascii, checksum } from './tables.ts';

/** An INTx pin in use. */
export interface MpRoute {
  readonly device: number;
  /** 1 = INTA# … 4 = INTD#. */
  readonly pin: number;
  /** Input of the IOAPIC. */
  readonly gsi: number;
}

export interface MpInput {
  /** Local APIC id of each vCPU; the first is the boot processor. */
  readonly lapicIds: readonly number[];
  /** With the local APIC passed through there is no IOAPIC. */
  readonly lapicPassthrough: boolean;
  /** INTx pins in use on bus 0, in slot, then pin order. The table cannot tell of a second PCI hierarchy. */
  readonly routes: readonly MpRoute[];
  /** The ISA interrupt of the SCI: a level, active low. */
  readonly sciGsi: number;
}

/** MP floating pointer structure (§4.1). */
const FloatingPointer = struct(
  { signature: bytes(4), table: u32, length: u8, specRevision: u8, checksum: u8, features: bytes(5) },
  { packed: true },
);
/** MP configuration table header (§4.2). */
const ConfigHeader = struct(
  {
    signature: bytes(4),
    length: u16,
    specRevision: u8,
    checksum: u8,
    oemId: bytes(8),
    productId: bytes(12),
    oemTable: u32,
    oemTableSize: u16,
    entryCount: u16,
    localApic: u32,
    extendedLength: u16,
    extendedChecksum: u8,
    reserved: u8,
  },
  { packed: true },
);
const Processor = struct(
  { type: u8, lapicId: u8, lapicVersion: u8, flags: u8, signature: u32, features: u32, reserved: bytes(8) },
  { packed: true },
);
const Bus = struct({ type: u8, id: u8, name: bytes(6) }, { packed: true });
const IoApic = struct({ type: u8, id: u8, version: u8, flags: u8, base: u32 }, { packed: true });
/** I/O and local interrupt assignment share one layout (§4.3.4, §4.3.5). */
const Interrupt = struct(
  {
    type: u8,
    interruptType: u8,
    flags: u16,
    sourceBus: u8,
    sourceIrq: u8,
    destination: u8,
    destinationInput: u8,
  },
  { packed: true },
);

const EntryType = { Processor: 0, Bus: 1, IoApic: 2, IoInterrupt: 3, LocalInterrupt: 4 } as const;
const InterruptType = { Vectored: 0, Nmi: 1, ExtInt: 3 } as const;
/** Polarity active low (3) and trigger level (3 << 2); 0 = as the bus specifies. */
const ACTIVE_LOW_LEVEL = 0x0f;
const ProcessorFlag = { Enabled: 1, Bootstrap: 2 } as const;

const SPEC_REVISION = 4; // 1.4
const LAPIC_VERSION = 0x10;
const IOAPIC_VERSION = 0x11;
const IOAPIC_ID = 0;
const BusId = { Pci: 0, Isa: 1 } as const;
/**
 * What guests have always been told here; they ask CPUID for the truth.
 * Compat: meant as family 6, model 26, stepping 5, but the model's fifth bit runs into the family.
 */
const CPU_SIGNATURE = 0x07a5;
const CPU_FEATURES = 0xbfeb_fbff;
const ISA_IRQS = 16;
const ALL_LAPICS = 0xff;

function isaInterrupt(pin: number, sciGsi: number): Uint8Array {
  const common = {
    type: EntryType.IoInterrupt,
    sourceBus: BusId.Isa,
    destination: IOAPIC_ID,
    destinationInput: pin,
  };
  switch (pin) {
    case 0:
      return Interrupt.encode({ ...common, interruptType: InterruptType.ExtInt });
    case 2:
      // IRQ 0, the timer, comes in at pin 2.
      return Interrupt.encode({ ...common, interruptType: InterruptType.Vectored, sourceIrq: 0 });
    case sciGsi:
      return Interrupt.encode({
        ...common,
        interruptType: InterruptType.Vectored,
        flags: ACTIVE_LOW_LEVEL,
        sourceIrq: pin,
      });
    default:
      return Interrupt.encode({ ...common, interruptType: InterruptType.Vectored, sourceIrq: pin });
  }
}

function pciInterrupt(route: MpRoute): Uint8Array {
  return Interrupt.encode({
    type: EntryType.IoInterrupt,
    interruptType: InterruptType.Vectored,
    sourceBus: BusId.Pci,
    // §4.3.4: device number in bits 6:2, pin in bits 1:0.
    sourceIrq: (route.device << 2) | (route.pin - 1),
    destination: IOAPIC_ID,
    destinationInput: route.gsi,
  });
}

function localInterrupt(interruptType: number, lint: number): Uint8Array {
  return Interrupt.encode({
    type: EntryType.LocalInterrupt,
    interruptType,
    destination: ALL_LAPICS,
    destinationInput: lint,
  });
}

function entries(input: MpInput): Uint8Array[] {
  const list = input.lapicIds.map((lapicId, cpu) => {
    checkLapicId(lapicId);
    return Processor.encode({
      type: EntryType.Processor,
      lapicId,
      lapicVersion: LAPIC_VERSION,
      flags: ProcessorFlag.Enabled | (cpu === 0 ? ProcessorFlag.Bootstrap : 0),
      signature: CPU_SIGNATURE,
      features: CPU_FEATURES,
    });
  });
  list.push(Bus.encode({ type: EntryType.Bus, id: BusId.Pci, name: ascii('PCI   ') }));
  list.push(Bus.encode({ type: EntryType.Bus, id: BusId.Isa, name: ascii('ISA   ') }));
  if (!input.lapicPassthrough) {
    list.push(
      IoApic.encode({
        type: EntryType.IoApic,
        id: IOAPIC_ID,
        version: IOAPIC_VERSION,
        flags: 1,
        base: Layout.ioapicBase,
      }),
    );
    for (let pin = 0; pin < ISA_IRQS; pin++) list.push(isaInterrupt(pin, input.sciGsi));
    list.push(...input.routes.map(pciInterrupt));
  }
  list.push(localInterrupt(InterruptType.ExtInt, 0), localInterrupt(InterruptType.Nmi, 1));
  return list;
}

/** The floating pointer and the configuration table right behind it. Pure. */
export function buildMpTable(input: MpInput): readonly PlacedTable[] {
  const list = entries(input);
  const tableGpa = Layout.mpTableBase + FloatingPointer.size;
  const length = list.reduce((sum, entry) => sum + entry.length, ConfigHeader.size);

  const table = new Uint8Array(length);
  table.set(
    ConfigHeader.encode({
      signature: ascii('PCMP'),
      length,
      specRevision: SPEC_REVISION,
      oemId: ascii('BHyVe   '),
      productId: ascii('Hypervisor  '),
      entryCount: list.length,
      localApic: Layout.lapicBase,
    }),
  );
  let at = ConfigHeader.size;
  for (const entry of list) {
    table.set(entry, at);
    at += entry.length;
  }
  table[ConfigHeader.offsets.checksum] = checksum(table);

  const pointer = FloatingPointer.encode({
    signature: ascii('_MP_'),
    table: tableGpa,
    length: FloatingPointer.size / 16,
    specRevision: SPEC_REVISION,
  });
  pointer[FloatingPointer.offsets.checksum] = checksum(pointer);
  return [
    { signature: 'MPFP', gpa: Layout.mpTableBase, bytes: pointer },
    { signature: 'MPTABLE', gpa: tableGpa, bytes: table },
  ];
}
