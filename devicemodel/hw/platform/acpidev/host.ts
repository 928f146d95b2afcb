/** What the host says of one of its ACPI devices: /sys/bus/acpi, /proc/iomem, and the TPM2 table of its firmware. */
import { readFileSync } from 'node:fs';
import { type Gpa, hex } from '../../../core/address.ts';
import { ConfigError, ExitCode } from '../../../core/errors.ts';
import { checksum } from '../../../core/firmware/tables.ts';
import { Layout } from '../../../core/layout.ts';
import { KiB } from '../../../core/units.ts';

const PAGE_BYTES = 4 * KiB;
/** What a TPM 2.0 is called whatever its vendor's id is (TCG ACPI 1.2 §8). */
const TPM2_ID = 'MSFT0101';

/** A TPM 2.0 of the host. */
export interface HostTpm {
  readonly base: Gpa;
  readonly sizeBytes: number;
  /** Host address, 0 if the table has none. */
  readonly control: Gpa;
  readonly startMethod: number;
  /** The event log, if there is one. */
  readonly log?: { readonly base: Gpa; readonly sizeBytes: number };
}

/** Fields of the TPM2 table behind the header (TCG ACPI 1.2 §7.3, table 7). */
const Tpm2 = {
  Length: 4,
  Control: 40,
  StartMethod: 48,
  LogLength: 64,
  LogAddress: 68,
  minBytes: 52,
  withLog: 76,
} as const;
/** Start methods of devices in memory (table 8). */
const StartMethod = { Tis: 6, Crb: 7 } as const;
/** Registers of the control area, CTRL_REQ to the response buffer's address (PTP 1.05 §6.5.3). */
const CONTROL_AREA_BYTES = 0x30;

/** Name of an ACPI device of the host: `MSFT0101:00`. */
export function hostDeviceName(hid: string, uid: number): string {
  return `${hid}:${uid.toString(16).padStart(2, '0')}`;
}

/**
 * @param root of the host's files, empty for this machine's.
 * @throws ConfigError that says which of the three sources is wrong, and how.
 */
export function readHostTpm(hid: string, uid: number, root = ''): HostTpm {
  const name = hostDeviceName(hid, uid);
  const modalias = read(`${root}/sys/bus/acpi/devices/${name}/modalias`)?.toString('latin1');
  if (modalias === undefined) {
    throw new ConfigError(`this host has no ACPI device ${name}`, { hint: 'ls /sys/bus/acpi/devices shows them' });
  }
  if (!modalias.includes(TPM2_ID)) {
    throw new ConfigError(`${name} is not a TPM 2.0 (it is ${modalias.trim()})`, {
      hint: 'other devices are passed by their resources: HID,uid=N,type=memory|io_port|irq,...',
    });
  }
  const region = memoryRegion(name, root);
  const table = read(`${root}/sys/firmware/acpi/tables/TPM2`);
  if (table === undefined) throw new ConfigError('this host has no ACPI table TPM2');
  return checkTable(table, region);
}

/** The first line of /proc/iomem with the device's name. */
function memoryRegion(name: string, root: string): { readonly base: Gpa; readonly sizeBytes: number } {
  const iomem = read(`${root}/proc/iomem`)?.toString('latin1') ?? '';
  const line = iomem.split('\n').find((text) => text.split(' : ')[1]?.includes(name) === true);
  const [, start, end] = /^\s*([0-9a-f]{1,13})-([0-9a-f]{1,13})\s/i.exec(line ?? '') ?? [];
  if (start === undefined || end === undefined) throw new ConfigError(`/proc/iomem has no memory of ${name}`);
  const [base, last] = [Number.parseInt(start, 16), Number.parseInt(end, 16)];
  if (base === 0 && last === 0) {
    throw new ConfigError('/proc/iomem shows no addresses', { exitCode: ExitCode.Usage, hint: 'run as root' });
  }
  const sizeBytes = last - base + 1;
  if (base % PAGE_BYTES !== 0 || sizeBytes % PAGE_BYTES !== 0 || sizeBytes <= 0) {
    throw new ConfigError(`the memory of ${name}, ${hex(base)} to ${hex(last)}, is not whole pages`);
  }
  return { base, sizeBytes };
}

function checkTable(table: Buffer, region: { readonly base: Gpa; readonly sizeBytes: number }): HostTpm {
  const fail = (why: string): never => {
    throw new ConfigError(`the host's ACPI table TPM2 ${why}`);
  };
  if (table.length < Tpm2.minBytes || table.toString('latin1', 0, 4) !== 'TPM2') fail('is none');
  const length = table.readUInt32LE(Tpm2.Length);
  if (length < Tpm2.minBytes || length > table.length) fail(`says that it has ${length} bytes`);
  if (checksum(table.subarray(0, length)) !== 0) fail('has a wrong checksum');
  const startMethod = table.readUInt32LE(Tpm2.StartMethod);
  if (startMethod !== StartMethod.Tis && startMethod !== StartMethod.Crb) {
    fail(`has start method ${startMethod}, only 6 and 7 (registers in memory) can be passed through`);
  }
  const control = Number(table.readBigUInt64LE(Tpm2.Control));
  const end = region.base + region.sizeBytes;
  const isInside = control >= region.base && control + CONTROL_AREA_BYTES <= end;
  // A TIS device has no control area.
  if (!isInside && !(control === 0 && startMethod === StartMethod.Tis)) {
    fail(`has its control area at ${hex(control)}, outside of ${hex(region.base)} to ${hex(end - 1)}`);
  }
  const { deviceWindow } = Layout;
  if (region.base < deviceWindow.end && end > deviceWindow.base) {
    fail(`is of a TPM at ${hex(region.base)}, where guests have other devices`);
  }
  if (length < Tpm2.withLog) return { ...region, control, startMethod };
  const logBytes = table.readUInt32LE(Tpm2.LogLength);
  const logBase = Number(table.readBigUInt64LE(Tpm2.LogAddress));
  const log = logBase === 0 || logBytes === 0 ? {} : { log: { base: logBase, sizeBytes: logBytes } };
  return { ...region, control, startMethod, ...log };
}

function read(path: string): Buffer | undefined {
  try {
    return readFileSync(path);
  } catch {
    return undefined;
  }
}
