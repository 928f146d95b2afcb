/**
 * The ACPI tables of a User VM: built in memory and placed where the device model has always placed them, so that a
 * guest finds the same machine. Table layouts: ACPI 6.4 §5.2.
 */
import type { Gpa, Gsi, Port } from '../address.ts';
import { ConfigError } from '../errors.ts';
import { Layout } from '../layout.ts';
import { addr, bytes, struct, u8, u16, u32 } from '../struct.ts';
import { alignUp } from '../units.ts';
import { AddressSpace } from './aml-resources.ts';
import type { DeviceTable, InterruptOverride } from './contribution.ts';
import { type DsdtInput, dsdtBody } from './dsdt.ts';
import { checkLapicId } from './lapic-id.ts';
import { AcpiHeader, ascii, checksum, Gas, GasAccess, table } from './tables.ts';

/** ACPI fixed hardware, as the FADT tells of it; the registers are those of the devices that say so (hw/platform). */
export interface FixedHardware {
  readonly sciGsi: Gsi;
  readonly smiCommandPort: Port;
  readonly acpiEnable: number;
  readonly acpiDisable: number;
  readonly pm1aEventPort: Port;
  readonly pm1aControlPort: Port;
  readonly resetPort: Port;
  readonly resetValue: number;
}

/** Everything the tables tell of a machine. */
export interface AcpiInput extends DsdtInput {
  readonly isRtvm: boolean;
  readonly fixedHardware: FixedHardware;
  /** Tables of devices, in any order. */
  readonly tables: readonly DeviceTable[];
  /** Beside that of the SCI; an RTVM has none. */
  readonly interruptOverrides: readonly InterruptOverride[];
}

/** Bytes for guest memory. */
export interface PlacedTable {
  readonly signature: string;
  readonly gpa: Gpa;
  readonly bytes: Uint8Array;
}

/** Distances from {@link Layout.acpiBase}. Each table's room ends where the next begins. */
const Offset = {
  Rsdp: 0x000,
  Rsdt: 0x040,
  Xsdt: 0x080,
  Madt: 0x100,
  Fadt: 0x200,
  Hpet: 0x340,
  Mcfg: 0x380,
  Facs: 0x3c0,
  Nhlt: 0x400,
  Tpm2: 0xc00,
  Rtct: 0xf00,
  Dsdt: 0x1100,
} as const;

/** The tables end below 1 MiB. */
const ACPI_END = 0x10_0000;

/** Root System Description Pointer (§5.2.5.3). */
const Rsdp = struct(
  {
    signature: bytes(8),
    checksum: u8,
    oemId: bytes(6),
    revision: u8,
    rsdt: u32,
    length: u32,
    xsdt: addr,
    extendedChecksum: u8,
    reserved: bytes(3),
  },
  { packed: true },
);
/** The first checksum covers the ACPI 1.0 part only. */
const RSDP_V1_BYTES = 20;

function rsdp(): Uint8Array {
  const out = Rsdp.encode({
    signature: ascii('RSD PTR '),
    oemId: ascii('DM '),
    revision: 2,
    rsdt: Layout.acpiBase + Offset.Rsdt,
    length: Rsdp.size,
    xsdt: Layout.acpiBase + Offset.Xsdt,
  });
  out[Rsdp.offsets.checksum] = checksum(out.subarray(0, RSDP_V1_BYTES));
  out[Rsdp.offsets.extendedChecksum] = checksum(out);
  return out;
}

function rsdt(tables: readonly Gpa[]): Uint8Array {
  const entries = new Uint8Array(4 * tables.length);
  const view = new DataView(entries.buffer);
  for (const [i, gpa] of tables.entries()) view.setUint32(4 * i, gpa, true);
  return table({ signature: 'RSDT', revision: 1, oemTableId: 'DMRSDT  ' }, entries);
}

function xsdt(tables: readonly Gpa[]): Uint8Array {
  const entries = new Uint8Array(8 * tables.length);
  const view = new DataView(entries.buffer);
  for (const [i, gpa] of tables.entries()) addr.write(view, 8 * i, gpa);
  return table({ signature: 'XSDT', revision: 1, oemTableId: 'DMXSDT  ' }, entries);
}

// ---- MADT (§5.2.12) -------------------------------------------------------------------------------------------

const MadtFixed = struct({ localApic: u32, flags: u32 }, { packed: true });
const PCAT_COMPAT = 1;
const LocalApic = struct({ type: u8, length: u8, processor: u8, lapicId: u8, flags: u32 }, { packed: true });
const IoApic = struct({ type: u8, length: u8, id: u8, reserved: u8, base: u32, gsiBase: u32 }, { packed: true });
const SourceOverride = struct({ type: u8, length: u8, bus: u8, source: u8, gsi: u32, flags: u16 }, { packed: true });
const LocalNmi = struct({ type: u8, length: u8, processor: u8, flags: u16, lint: u8 }, { packed: true });

const MadtType = { LocalApic: 0, IoApic: 1, SourceOverride: 2, LocalNmi: 4 } as const;
const LAPIC_ENABLED = 1;
/** MPS INTI flags (§5.2.12.5): polarity active high with edge or level trigger. */
export const Inti = { ActiveHighEdge: 0x5, ActiveHighLevel: 0xd } as const;

function madt(input: AcpiInput): Uint8Array {
  const entries: Uint8Array[] = input.cpus.map((cpu, processor) => {
    checkLapicId(cpu.lapicId);
    return LocalApic.encode({
      type: MadtType.LocalApic,
      length: LocalApic.size,
      processor,
      lapicId: cpu.lapicId,
      flags: LAPIC_ENABLED,
    });
  });
  entries.push(IoApic.encode({ type: MadtType.IoApic, length: IoApic.size, base: Layout.ioapicBase }));
  if (!input.isRtvm) {
    for (const { irq, gsi, flags } of input.interruptOverrides) {
      const common = { type: MadtType.SourceOverride, length: SourceOverride.size };
      entries.push(SourceOverride.encode({ ...common, source: irq, gsi, flags }));
    }
  }
  entries.push(
    // NMI at LINT1 of all processors.
    LocalNmi.encode({
      type: MadtType.LocalNmi,
      length: LocalNmi.size,
      processor: 0xff,
      flags: Inti.ActiveHighEdge,
      lint: 1,
    }),
  );
  return table(
    { signature: 'APIC', revision: 1, oemTableId: 'DMMADT  ' },
    MadtFixed.encode({ localApic: Layout.lapicBase, flags: PCAT_COMPAT }),
    ...entries,
  );
}

// ---- FADT (§5.2.9) --------------------------------------------------------------------------------------------

const Fadt = struct(
  {
    facs: u32,
    dsdt: u32,
    model: u8,
    pmProfile: u8,
    sciInterrupt: u16,
    smiCommand: u32,
    acpiEnable: u8,
    acpiDisable: u8,
    s4BiosRequest: u8,
    pStateControl: u8,
    pm1aEventBlock: u32,
    pm1bEventBlock: u32,
    pm1aControlBlock: u32,
    pm1bControlBlock: u32,
    pm2ControlBlock: u32,
    pmTimerBlock: u32,
    gpe0Block: u32,
    gpe1Block: u32,
    pm1EventLength: u8,
    pm1ControlLength: u8,
    pm2ControlLength: u8,
    pmTimerLength: u8,
    gpe0Length: u8,
    gpe1Length: u8,
    gpe1Base: u8,
    cStateControl: u8,
    c2Latency: u16,
    c3Latency: u16,
    flushSize: u16,
    flushStride: u16,
    dutyOffset: u8,
    dutyWidth: u8,
    dayAlarm: u8,
    monthAlarm: u8,
    century: u8,
    bootFlags: u16,
    reserved: u8,
    flags: u32,
    resetRegister: Gas,
    resetValue: u8,
    armBootFlags: u16,
    minorRevision: u8,
    xFacs: addr,
    xDsdt: addr,
    xPm1aEventBlock: Gas,
    xPm1bEventBlock: Gas,
    xPm1aControlBlock: Gas,
    xPm1bControlBlock: Gas,
    xPm2ControlBlock: Gas,
    xPmTimerBlock: Gas,
    xGpe0Block: Gas,
    xGpe1Block: Gas,
    sleepControl: Gas,
    sleepStatus: Gas,
  },
  { packed: true },
);

/** IA-PC boot architecture flags (§5.2.9.3). */
const BootFlag = { VgaNotPresent: 1 << 2, AspmNotSupported: 1 << 4 } as const;
/** Fixed feature flags (§5.2.9, table 5.10). */
const FadtFlag = {
  Wbinvd: 1 << 0,
  C1Supported: 1 << 2,
  SleepButtonIsControlMethod: 1 << 5,
  PmTimerIs32Bit: 1 << 8,
  ResetRegister: 1 << 10,
  Headless: 1 << 12,
} as const;
/** CMOS index of the century. */
const RTC_CENTURY = 0x32;

const ioBlock = (address: number, bitWidth: number, accessSize: number) => ({
  space: AddressSpace.SystemIo,
  bitWidth,
  bitOffset: 0,
  accessSize,
  address,
});

function fadt(hw: FixedHardware): Uint8Array {
  const facs = Layout.acpiBase + Offset.Facs;
  const dsdt = Layout.acpiBase + Offset.Dsdt;
  return table(
    { signature: 'FACP', revision: 5, oemTableId: 'DMFACP  ' },
    Fadt.encode({
      facs,
      dsdt,
      model: 1,
      sciInterrupt: hw.sciGsi,
      smiCommand: hw.smiCommandPort,
      acpiEnable: hw.acpiEnable,
      acpiDisable: hw.acpiDisable,
      pm1aEventBlock: hw.pm1aEventPort,
      pm1aControlBlock: hw.pm1aControlPort,
      pm1EventLength: 4,
      pm1ControlLength: 2,
      // There is no PM timer: length 0, and the address below is 0.
      century: RTC_CENTURY,
      bootFlags: BootFlag.VgaNotPresent | BootFlag.AspmNotSupported,
      flags:
        FadtFlag.Wbinvd |
        FadtFlag.C1Supported |
        FadtFlag.SleepButtonIsControlMethod |
        FadtFlag.PmTimerIs32Bit |
        FadtFlag.ResetRegister |
        FadtFlag.Headless,
      resetRegister: ioBlock(hw.resetPort, 8, GasAccess.Byte),
      resetValue: hw.resetValue,
      minorRevision: 1,
      xFacs: facs,
      xDsdt: dsdt,
      xPm1aEventBlock: ioBlock(hw.pm1aEventPort, 32, GasAccess.Word),
      xPm1bEventBlock: ioBlock(0, 0, GasAccess.Undefined),
      xPm1aControlBlock: ioBlock(hw.pm1aControlPort, 16, GasAccess.Word),
      xPm1bControlBlock: ioBlock(0, 0, GasAccess.Undefined),
      xPm2ControlBlock: ioBlock(0, 8, GasAccess.Undefined),
      xPmTimerBlock: ioBlock(0, 32, GasAccess.DWord),
      xGpe0Block: ioBlock(0, 0, GasAccess.Byte),
      xGpe1Block: ioBlock(0, 0, GasAccess.Undefined),
      sleepControl: ioBlock(0, 8, GasAccess.Byte),
      sleepStatus: ioBlock(0, 8, GasAccess.Byte),
    }),
  );
}

// ---- FACS, DSDT ------------------------------------------------------------------------------------------------

/** Firmware ACPI Control Structure: no common header, no checksum (§5.2.10). */
const Facs = struct(
  {
    signature: bytes(4),
    length: u32,
    hardwareSignature: u32,
    wakingVector: u32,
    globalLock: u32,
    flags: u32,
    xWakingVector: addr,
    version: u8,
    reserved: bytes(3),
    ospmFlags: u32,
    reserved2: bytes(24),
  },
  { packed: true },
);

function facs(): Uint8Array {
  return Facs.encode({ signature: ascii('FACS'), length: Facs.size, version: 2 });
}

function dsdt(input: AcpiInput): Uint8Array {
  return table({ signature: 'DSDT', revision: 2, oemTableId: 'DMDSDT  ' }, Uint8Array.from(dsdtBody(input)));
}

/** Where a table says the address of another one. */
export interface TablePointer {
  readonly offset: number;
  readonly sizeBytes: 4 | 8;
}

/** Pointers to other tables in a table of {@link buildAcpi}, none of them 0. */
export function tablePointers({ signature, bytes }: PlacedTable): TablePointer[] {
  const list = (sizeBytes: 4 | 8) =>
    Array.from({ length: (bytes.length - AcpiHeader.size) / sizeBytes }, (_, i) => ({
      offset: AcpiHeader.size + i * sizeBytes,
      sizeBytes,
    }));
  const at = (offset: number, sizeBytes: 4 | 8) => ({ offset, sizeBytes });
  switch (signature) {
    case 'RSDP':
      return [at(Rsdp.offsets.rsdt, 4), at(Rsdp.offsets.xsdt, 8)];
    case 'RSDT':
      return list(4);
    case 'XSDT':
      return list(8);
    case 'FACP': {
      const { facs, dsdt, xFacs, xDsdt } = Fadt.offsets;
      return [at(facs, 4), at(dsdt, 4), at(xFacs, 8), at(xDsdt, 8)].map((p) => ({
        ...p,
        offset: AcpiHeader.size + p.offset,
      }));
    }
    default:
      return [];
  }
}

/** Sums in a table of {@link buildAcpi}: where each is, and over how many of the first bytes. */
export function tableChecksums({ signature, bytes }: PlacedTable): { offset: number; length: number }[] {
  if (signature === 'FACS') return [];
  if (signature !== 'RSDP') return [{ offset: AcpiHeader.offsets.checksum, length: bytes.length }];
  return [
    { offset: Rsdp.offsets.checksum, length: RSDP_V1_BYTES },
    { offset: Rsdp.offsets.extendedChecksum, length: Rsdp.size },
  ];
}

/** Tables that devices may bring, with their fixed places; others go behind the DSDT. */
const DEVICE_TABLES: Readonly<Record<string, number>> = {
  HPET: Offset.Hpet,
  MCFG: Offset.Mcfg,
  NHLT: Offset.Nhlt,
  TPM2: Offset.Tpm2,
  RTCT: Offset.Rtct,
};
const TABLE_ALIGN = 16;

/** Where a guest finds a device's table that has a fixed place, for AML that names it. */
export function tableGpa(signature: 'NHLT'): Gpa {
  return Layout.acpiBase + (DEVICE_TABLES[signature] as number);
}

/**
 * All tables of a machine, ready to be copied into guest memory. Pure: the same input gives the same bytes.
 * @throws ConfigError if a table does not fit the room it has (tables of the host and a DSDT full of device AML can be
 * too long), or if two devices bring the same one.
 */
export function buildAcpi(input: AcpiInput): readonly PlacedTable[] {
  const base = Layout.acpiBase;
  const body = dsdt(input);
  let free = alignUp(Offset.Dsdt + body.length, TABLE_ALIGN);
  const devices = input.tables.map((table) => {
    const offset = DEVICE_TABLES[table.signature] ?? free;
    if (offset === free) free = alignUp(free + table.bytes.length, TABLE_ALIGN);
    return { ...table, offset };
  });
  devices.sort((a, b) => a.offset - b.offset);
  const listed = [Offset.Madt, Offset.Fadt, ...devices.map(({ offset }) => offset)].map((offset) => base + offset);

  const { Rsdp, Rsdt, Xsdt, Madt, Fadt, Facs, Dsdt } = Offset;
  const places = [Rsdp, Rsdt, Xsdt, Madt, Fadt, Facs, Dsdt, ...devices.map(({ offset }) => offset)].sort(
    (a, b) => a - b,
  );
  const placed: PlacedTable[] = [];
  const place = (signature: string, offset: number, data: Uint8Array) => {
    if (placed.some((other) => other.gpa === base + offset)) throw new ConfigError(`ACPI: two tables ${signature}`);
    // A table may run into the places of tables that are not there.
    const next = places.find((o) => o > offset) ?? ACPI_END - base;
    if (offset + data.length > next) {
      throw new ConfigError(
        `ACPI: ${signature} takes ${data.length} bytes, there is room for ${Math.max(next - offset, 0)}`,
      );
    }
    placed.push({ signature, gpa: base + offset, bytes: data });
  };
  place('RSDP', Offset.Rsdp, rsdp());
  place('RSDT', Offset.Rsdt, rsdt(listed));
  place('XSDT', Offset.Xsdt, xsdt(listed));
  place('APIC', Offset.Madt, madt(input));
  place('FACP', Offset.Fadt, fadt(input.fixedHardware));
  place('FACS', Offset.Facs, facs());
  place('DSDT', Offset.Dsdt, body);
  for (const { signature, offset, bytes } of devices) place(signature, offset, bytes);
  return placed.sort((a, b) => a.gpa - b.gpa);
}
