/**
 * Builders of single ACPI tables. Table layouts: ACPI 6.4 §5.2; HPET: IA-PC HPET 1.0a §3.2.4; MCFG: PCI Firmware 3.2
 * §4.1.2; TPM2: TCG ACPI 1.2 §7.3.
 */
import type { Gpa } from '../address.ts';
import { ConfigError } from '../errors.ts';
import { addr, bytes as byteField, struct, u8, u16, u32 } from '../struct.ts';
import { AddressSpace } from './aml-resources.ts';
import type { DeviceTable } from './contribution.ts';

/** System description table header (ACPI 6.4 §5.2.6). */
export const AcpiHeader = struct(
  {
    signature: byteField(4),
    length: u32,
    revision: u8,
    checksum: u8,
    oemId: byteField(6),
    oemTableId: byteField(8),
    oemRevision: u32,
    creatorId: byteField(4),
    creatorRevision: u32,
  },
  { packed: true },
);

/** Who made the tables: this program, not a compiler. */
const CREATOR_ID = 'ADMT';
const CREATOR_REVISION = 1;

export const ascii = (text: string): Uint8Array => Uint8Array.from(text, (c) => c.charCodeAt(0));

/** Two sums of bytes in one number, each modulo 256. */
const LANES = 0x00ff_00ff;

/**
 * The byte that makes `table` sum up to zero, if it is zero now. Four bytes at a time: byte by byte the tables of a start
 * are just enough for V8 to think this function worth optimizing, and its compiler costs 3 MB and 10 ms.
 */
export function checksum(table: Uint8Array): number {
  const { buffer, byteOffset, length } = table;
  const words = byteOffset % 4 === 0 ? length >> 2 : 0;
  const view = new Uint32Array(buffer, words === 0 ? 0 : byteOffset, words);
  let lanes = 0;
  for (let i = 0; i < words; i++) {
    const word = view[i] as number;
    lanes = (lanes + (word & LANES) + ((word >>> 8) & LANES)) & LANES;
  }
  let sum = lanes + (lanes >>> 16);
  for (let i = words * 4; i < length; i++) sum += table[i] as number;
  return -sum & 0xff;
}

export interface HeaderFields {
  readonly signature: string;
  readonly revision: number;
  readonly oemTableId: string;
  readonly oemId?: string;
  readonly oemRevision?: number;
}

/** A table around its contents, with its checksum. */
export function table(fields: HeaderFields, ...parts: readonly Uint8Array[]): Uint8Array {
  const length = AcpiHeader.size + parts.reduce((sum, part) => sum + part.length, 0);
  const out = new Uint8Array(length);
  out.set(
    AcpiHeader.encode({
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
  let at = AcpiHeader.size;
  for (const part of parts) {
    out.set(part, at);
    at += part.length;
  }
  out[AcpiHeader.offsets.checksum] = checksum(out);
  return out;
}

/** Generic address structure (§5.2.3.2). */
export const Gas = struct({ space: u8, bitWidth: u8, bitOffset: u8, accessSize: u8, address: addr }, { packed: true });
export const GasAccess = { Undefined: 0, Byte: 1, Word: 2, DWord: 3 } as const;

const Hpet = struct(
  { blockId: u32, address: Gas, sequence: u8, minimumTicks: u16, pageProtection: u8 },
  { packed: true },
);
/** @param blockId the low half of the HPET's capability register. */
export function hpetTable(blockId: number, base: Gpa): DeviceTable {
  const bytes = table(
    { signature: 'HPET', revision: 1, oemTableId: 'DMHPET  ' },
    Hpet.encode({
      blockId,
      address: {
        space: AddressSpace.SystemMemory,
        bitWidth: 0,
        bitOffset: 0,
        accessSize: 0,
        address: base,
      },
      pageProtection: 1, // nothing else in its 4 KiB page
    }),
  );
  return { signature: 'HPET', bytes };
}

const Mcfg = struct(
  { reserved: byteField(8), base: addr, segment: u16, firstBus: u8, lastBus: u8, reserved2: u32 },
  { packed: true },
);

/** @param base of bus 0 of segment 0; there are 256. */
export function mcfgTable(base: Gpa): DeviceTable {
  const bytes = table(
    { signature: 'MCFG', revision: 1, oemTableId: 'DMMCFG  ' },
    Mcfg.encode({ base, firstBus: 0, lastBus: 0xff }),
  );
  return { signature: 'MCFG', bytes };
}

const Tpm2 = struct(
  {
    platformClass: u16,
    reserved: u16,
    control: addr,
    startMethod: u32,
    parameters: byteField(12),
    logLength: u32,
    log: addr,
  },
  { packed: true },
);

export interface TpmTableInput {
  /** Guest address of the control area. */
  readonly control: Gpa;
  readonly startMethod: number;
  readonly logLength?: number;
  readonly logAddress?: Gpa;
}

export function tpm2Table(tpm: TpmTableInput): DeviceTable {
  const bytes = table(
    { signature: 'TPM2', revision: 0, oemId: 'ACRNDM', oemTableId: 'DMTPM2  ', oemRevision: 0 },
    Tpm2.encode({
      control: tpm.control,
      startMethod: tpm.startMethod,
      logLength: tpm.logLength ?? 0,
      log: tpm.logAddress ?? 0,
    }),
  );
  return { signature: 'TPM2', bytes };
}

/** The host's table with a header of ours. @throws ConfigError if it is no table */
export function nhltTable(host: Uint8Array): DeviceTable {
  if (host.length < AcpiHeader.size)
    throw new ConfigError(`the host's NHLT has ${host.length} bytes: not an ACPI table`);
  const bytes = table(
    { signature: 'NHLT', revision: 0, oemId: 'INTEL ', oemTableId: 'NHLT-GPA', oemRevision: 3 },
    host.subarray(AcpiHeader.size),
  );
  return { signature: 'NHLT', bytes };
}

/** What is wrong with a table of the host or of a file, to go on after its name; undefined: nothing. */
export function checkAcpiTable(table: Uint8Array, signature: string): string | undefined {
  if (table.length < AcpiHeader.size) return `has ${table.length} bytes`;
  const header = AcpiHeader.decode(table);
  if (String.fromCharCode(...header.signature) !== signature) return `is no ${signature}`;
  if (header.length < AcpiHeader.size || header.length > table.length) return `says that it has ${header.length} bytes`;
  return checksum(table.subarray(0, header.length)) === 0 ? undefined : 'has a wrong checksum';
}
