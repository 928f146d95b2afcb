/**
 * The ACPI tables of a User VM: built in memory and placed where the device model has always placed them, so that a
 * guest finds the same machine. Table layouts: ACPI 6.4 §5.2; HPET: IA-PC HPET 1.0a §3.2.4; MCFG: PCI Firmware 3.2
 * §4.1.2; TPM2: TCG ACPI 1.2 §7.3.
 */
import type { Gpa } from '../address.ts';
import { BugError, ConfigError } from '../errors.ts';
import { Layout } from '../layout.ts';
import { addr, bytes, struct, u8, u16, u32 } from '../struct.ts';
import { AddressSpace } from './aml-resources.ts';
import { type DsdtInput, dsdtBody } from './dsdt.ts';

/** Everything the tables tell of a machine. */
export interface AcpiInput extends DsdtInput {
  /** NHLT of the host, for a passed-through audio device; its header is replaced. */
  readonly nhlt?: Uint8Array;
  /** Real-time configuration table for software SRAM, whole. */
  readonly rtct?: Uint8Array;
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

/** `FACS.32-bit firmware waking vector`: where a guest leaves its resume address for S3 (ACPI 6.4 §5.2.10). */
export const WAKING_VECTOR_GPA: Gpa = Layout.acpiBase + Offset.Facs + 12;

/** ACPI fixed hardware (arch PM block); the devices behind them live in hw/platform. */
export const FixedHardware = {
  sciGsi: 9,
  smiCommandPort: 0xb2,
  acpiEnable: 0xa0,
  acpiDisable: 0xa1,
  pm1aEventPort: 0x400,
  pm1aControlPort: 0x404,
  resetPort: 0xcf9,
  resetValue: 0x0e,
} as const;

/** System description table header (ACPI 6.4 §5.2.6). */
const Header = struct(
  {
    signature: bytes(4),
    length: u32,
    revision: u8,
    checksum: u8,
    oemId: bytes(6),
    oemTableId: bytes(8),
    oemRevision: u32,
    creatorId: bytes(4),
    creatorRevision: u32,
  },
  { packed: true },
);

/** Who made the tables: this program, not a compiler. */
const CREATOR_ID = 'ADMT';
const CREATOR_REVISION = 1;

const ascii = (text: string): Uint8Array => Uint8Array.from(text, (c) => c.charCodeAt(0));

/** The byte that makes `bytes` sum up to zero, if it is zero now. */
function checksum(table: Uint8Array): number {
  let sum = 0;
  for (let i = 0; i < table.length; i++) sum += table[i] as number;
  return -sum & 0xff;
}

interface HeaderFields {
  readonly signature: string;
  readonly revision: number;
  readonly oemTableId: string;
  readonly oemId?: string;
  readonly oemRevision?: number;
}

function table(fields: HeaderFields, ...parts: readonly Uint8Array[]): Uint8Array {
  const length = Header.size + parts.reduce((sum, part) => sum + part.length, 0);
  const out = new Uint8Array(length);
  out.set(
    Header.encode({
      signature: ascii(fields.signature),
      length,
      revision: fields.revision,
      oemId: ascii(fields.oemId ?? 'DM '),
      oemTableId: ascii(fields.oemTableId),
      oemRevision: fields.oemRevision ?? 1,
      creatorId: ascii(CREATOR_ID),
      creatorRevision: CREATOR_REVISION,
    }),
  );
  let at = Header.size;
  for (const part of parts) {
    out.set(part, at);
    at += part.length;
  }
  out[Header.offsets.checksum] = checksum(out);
  return out;
}

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
const Inti = { ActiveHighEdge: 0x5, ActiveHighLevel: 0xd } as const;

function madt(input: AcpiInput): Uint8Array {
  const entries: Uint8Array[] = input.cpus.map((cpu, processor) => {
    if (cpu.lapicId > 0xff) throw new BugError(`local APIC id ${cpu.lapicId} does not fit a local APIC entry`);
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
    const override = (source: number, gsi: number, flags: number) =>
      SourceOverride.encode({ type: MadtType.SourceOverride, length: SourceOverride.size, source, gsi, flags });
    // The timer's IRQ 0 arrives at pin 2; the SCI is a level.
    entries.push(override(0, 2, Inti.ActiveHighEdge));
    entries.push(override(FixedHardware.sciGsi, FixedHardware.sciGsi, Inti.ActiveHighLevel));
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

/** Generic address structure (§5.2.3.2). */
const Gas = struct({ space: u8, bitWidth: u8, bitOffset: u8, accessSize: u8, address: addr }, { packed: true });
const GasAccess = { Undefined: 0, Byte: 1, Word: 2, DWord: 3 } as const;

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

function fadt(): Uint8Array {
  const facs = Layout.acpiBase + Offset.Facs;
  const dsdt = Layout.acpiBase + Offset.Dsdt;
  const hw = FixedHardware;
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

// ---- HPET, MCFG, FACS, TPM2, NHLT -----------------------------------------------------------------------------

const Hpet = struct(
  { blockId: u32, address: Gas, sequence: u8, minimumTicks: u16, pageProtection: u8 },
  { packed: true },
);
/** Vendor 8086, 8 timers, 32-bit counter, revision 1: the low half of the HPET's capability register. */
export const HPET_BLOCK_ID = 0x8086_0701;

function hpet(): Uint8Array {
  return table(
    { signature: 'HPET', revision: 1, oemTableId: 'DMHPET  ' },
    Hpet.encode({
      blockId: HPET_BLOCK_ID,
      address: {
        space: AddressSpace.SystemMemory,
        bitWidth: 0,
        bitOffset: 0,
        accessSize: 0,
        address: Layout.hpet.base,
      },
      pageProtection: 1, // nothing else in its 4 KiB page
    }),
  );
}

const Mcfg = struct(
  { reserved: bytes(8), base: addr, segment: u16, firstBus: u8, lastBus: u8, reserved2: u32 },
  { packed: true },
);

function mcfg(): Uint8Array {
  return table(
    { signature: 'MCFG', revision: 1, oemTableId: 'DMMCFG  ' },
    Mcfg.encode({ base: Layout.ecam.base, firstBus: 0, lastBus: 0xff }),
  );
}

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

const Tpm2 = struct(
  {
    platformClass: u16,
    reserved: u16,
    control: addr,
    startMethod: u32,
    parameters: bytes(12),
    logLength: u32,
    log: addr,
  },
  { packed: true },
);
/** CRB control area, from the base of the device (TCG PC Client PTP, CRB registers). */
const CRB_CONTROL_REQUEST = 0x40;
const START_METHOD_CRB = 7;

function tpm2(tpm: NonNullable<AcpiInput['tpm']>): Uint8Array {
  return table(
    { signature: 'TPM2', revision: 0, oemId: 'ACRNDM', oemTableId: 'DMTPM2  ', oemRevision: 0 },
    Tpm2.encode({
      control: tpm.base + CRB_CONTROL_REQUEST,
      startMethod: START_METHOD_CRB,
      logLength: tpm.logLength ?? 0,
      log: tpm.logAddress ?? 0,
    }),
  );
}

function nhlt(host: Uint8Array): Uint8Array {
  if (host.length < Header.size) throw new ConfigError(`the host's NHLT has ${host.length} bytes: not an ACPI table`);
  return table(
    { signature: 'NHLT', revision: 0, oemId: 'INTEL ', oemTableId: 'NHLT-GPA', oemRevision: 3 },
    host.subarray(Header.size),
  );
}

function dsdt(input: AcpiInput): Uint8Array {
  return table({ signature: 'DSDT', revision: 2, oemTableId: 'DMDSDT  ' }, Uint8Array.from(dsdtBody(input)));
}

/**
 * All tables of a machine, ready to be copied into guest memory. Pure: the same input gives the same bytes.
 * @throws ConfigError if a table does not fit the room it has (only NHLT, RTCT and a DSDT full of device AML can).
 */
export function buildAcpi(input: AcpiInput): readonly PlacedTable[] {
  const base = Layout.acpiBase;
  const listed: Gpa[] = [base + Offset.Madt, base + Offset.Fadt, base + Offset.Hpet, base + Offset.Mcfg];
  if (input.nhlt !== undefined) listed.push(base + Offset.Nhlt);
  if (input.tpm !== undefined) listed.push(base + Offset.Tpm2);
  if (input.rtct !== undefined) listed.push(base + Offset.Rtct);

  const placed: PlacedTable[] = [];
  const place = (signature: string, offset: number, data: Uint8Array) => {
    const next = Object.values(Offset).find((o) => o > offset) ?? ACPI_END - base;
    if (offset + data.length > next) {
      throw new ConfigError(`ACPI: ${signature} takes ${data.length} bytes, there is room for ${next - offset}`);
    }
    placed.push({ signature, gpa: base + offset, bytes: data });
  };
  place('RSDP', Offset.Rsdp, rsdp());
  place('RSDT', Offset.Rsdt, rsdt(listed));
  place('XSDT', Offset.Xsdt, xsdt(listed));
  place('APIC', Offset.Madt, madt(input));
  place('FACP', Offset.Fadt, fadt());
  place('HPET', Offset.Hpet, hpet());
  place('MCFG', Offset.Mcfg, mcfg());
  place('FACS', Offset.Facs, facs());
  if (input.nhlt !== undefined) place('NHLT', Offset.Nhlt, nhlt(input.nhlt));
  if (input.tpm !== undefined) place('TPM2', Offset.Tpm2, tpm2(input.tpm));
  if (input.rtct !== undefined) place('RTCT', Offset.Rtct, input.rtct);
  place('DSDT', Offset.Dsdt, dsdt(input));
  return placed;
}
