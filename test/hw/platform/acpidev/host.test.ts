/** What is read of a TPM of the host: every source that lies is named in one line. */
import { rmSync } from 'node:fs';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { readHostTpm } from '../../../../devicemodel/hw/platform/acpidev/host.ts';
import { hostWithTpm, tpm2HostTable } from '../../../support/host-acpi.ts';

interface Host {
  readonly modalias?: string | undefined;
  readonly iomem?: string;
  readonly table?: Uint8Array | undefined;
}

const IOMEM = [
  '00001000-0009ffff : System RAM',
  'fed40000-fed44fff : MSFT0101:00',
  '  fed40000-fed44fff : MSFT0101:00',
  'fed98000-fed9bfff : MSFT0101:01',
].join('\n');

function hostWith({
  modalias = 'acpi:MSFT0101:MSFT0101:\n',
  iomem = IOMEM,
  table = tpm2HostTable(),
}: Host = {}): string {
  return hostWithTpm({
    'sys/bus/acpi/devices/MSFT0101:00/modalias': modalias,
    'sys/bus/acpi/devices/MSFT0101:01/modalias': modalias,
    'proc/iomem': iomem,
    'sys/firmware/acpi/tables/TPM2': table,
  });
}

test('region, control area and start method', () => {
  expect(readHostTpm('MSFT0101', 0, hostWith())).toEqual({
    base: 0xfed40000,
    sizeBytes: 0x5000,
    control: 0xfed40040,
    startMethod: 7,
  });
});

test('the second of two', () => {
  const table = tpm2HostTable({ control: 0xfed98040 });
  expect(readHostTpm('MSFT0101', 1, hostWith({ table }))).toMatchObject({ base: 0xfed98000, sizeBytes: 0x4000 });
});

test('the event log', () => {
  const table = tpm2HostTable({ log: { base: 0x7a000123, sizeBytes: 0x10000 } });
  expect(readHostTpm('MSFT0101', 0, hostWith({ table })).log).toEqual({ base: 0x7a000123, sizeBytes: 0x10000 });
  const none = tpm2HostTable({ log: { base: 0, sizeBytes: 0x10000 } });
  expect(readHostTpm('MSFT0101', 0, hostWith({ table: none })).log).toBeUndefined();
});

test('a FIFO device has no control area', () => {
  const table = tpm2HostTable({ control: 0, startMethod: 6 });
  expect(readHostTpm('MSFT0101', 0, hostWith({ table }))).toMatchObject({ control: 0, startMethod: 6 });
});

const short = tpm2HostTable().subarray(0, 40);
const otherSignature = tpm2HostTable({ signature: 'TCPA' });
const badSum = tpm2HostTable();
badSum[60] = 1;
const longer = tpm2HostTable();
longer[4] = 0xff;

test.each<[string, Host, string]>([
  ['another device', { modalias: 'acpi:INTC1055:\n' }, 'MSFT0101:00 is not a TPM 2.0 (it is acpi:INTC1055:)'],
  ['not in /proc/iomem', { iomem: 'fed40000-fed44fff : pnp 00:05\n' }, '/proc/iomem has no memory of MSFT0101:00'],
  ['an odd /proc/iomem', { iomem: 'zz : MSFT0101:00\n' }, '/proc/iomem has no memory of MSFT0101:00'],
  ['not root', { iomem: '00000000-00000000 : MSFT0101:00\n' }, '/proc/iomem shows no addresses'],
  ['less than a page', { iomem: 'fed40000-fed4002f : MSFT0101:00\n' }, 'is not whole pages'],
  ['a short table', { table: short }, 'TPM2 is none'],
  ['another table', { table: otherSignature }, 'TPM2 is none'],
  ['a bad sum', { table: badSum }, 'has a wrong checksum'],
  ['a length beyond the end', { table: longer }, 'says that it has 255 bytes'],
  ['another start method', { table: tpm2HostTable({ startMethod: 2 }) }, 'has start method 2'],
  ['no control area', { table: tpm2HostTable({ control: 0 }) }, 'has its control area at 0x0'],
  ['a control area outside', { table: tpm2HostTable({ control: 0xfed44fd1 }) }, 'outside of 0xfed40000 to 0xfed44fff'],
  [
    'a region where guests have others',
    { iomem: 'f0000000-f0004fff : MSFT0101:00\n', table: tpm2HostTable({ control: 0xf0000040 }) },
    'where guests have other devices',
  ],
])('%s', (_what, host, message) => {
  expect(() => readHostTpm('MSFT0101', 0, hostWith(host))).toThrow(message);
});

test('no such device, no table', () => {
  const root = hostWith();
  expect(() => readHostTpm('MSFT0101', 2, root)).toThrow('this host has no ACPI device MSFT0101:02');
  rmSync(join(root, 'sys/firmware'), { recursive: true });
  expect(() => readHostTpm('MSFT0101', 0, root)).toThrow('this host has no ACPI table TPM2');
});
