/** ACPI tables for firmware: what a loader makes of the script is what the machine has, at other addresses. */
import { expect, test } from 'vitest';
import { buildAcpi, type PlacedTable } from '../../../../devicemodel/core/firmware/acpi-tables.ts';
import { acpiFiles } from '../../../../devicemodel/hw/platform/fw-cfg/acpi-files.ts';
import { tpmTables } from '../../../../devicemodel/hw/platform/tpm-tables.ts';
import { pcAcpiInput } from '../../../support/pc-tables.ts';

const sum = (bytes: Uint8Array) => bytes.reduce((a, b) => a + b, 0) & 0xff;
const signatureAt = (bytes: Uint8Array, at: number) => Buffer.from(bytes.subarray(at, at + 4)).toString('latin1');

/** As SeaBIOS and OVMF do it (QEMU docs/specs/fw_cfg.rst). */
function carryOut(tables: readonly PlacedTable[], addresses: Readonly<Record<string, number>>) {
  const files = new Map(acpiFiles(tables).map(({ name, content }) => [name, content.slice()]));
  const script = files.get('etc/table-loader') as Uint8Array;
  expect(script.length % 128).toBe(0);
  const allocated: string[] = [];
  for (let at = 0; at < script.length; at += 128) {
    const view = new DataView(script.buffer, script.byteOffset + at, 128);
    const name = (offset: number) =>
      Buffer.from(script.subarray(at + offset, at + offset + 56))
        .toString()
        .replace(/\0+$/, '');
    const target = files.get(name(4)) as Uint8Array;
    const bytes = new DataView(target.buffer, target.byteOffset);
    switch (view.getUint32(0, true)) {
      case 1: {
        const align = view.getUint32(60, true);
        expect((addresses[name(4)] as number) % align).toBe(0);
        allocated.push(name(4));
        break;
      }
      case 2: {
        const offset = view.getUint32(116, true);
        const size = view.getUint8(120);
        const base = addresses[name(60)] as number;
        if (size === 8) bytes.setBigUint64(offset, bytes.getBigUint64(offset, true) + BigInt(base), true);
        else bytes.setUint32(offset, bytes.getUint32(offset, true) + base, true);
        break;
      }
      case 3: {
        const [offset, start, length] = [60, 64, 68].map((field) => view.getUint32(field, true)) as [
          number,
          number,
          number,
        ];
        // OVMF takes the byte as it is into the sum: it has to be zero before.
        expect(target[offset]).toBe(0);
        target[offset] = -sum(target.subarray(start, start + length)) & 0xff;
        break;
      }
      default:
        expect.unreachable();
    }
  }
  expect(allocated).toEqual(['etc/acpi/rsdp', 'etc/acpi/tables']);
  return { root: files.get('etc/acpi/rsdp') as Uint8Array, blob: files.get('etc/acpi/tables') as Uint8Array };
}

test('every table is found from the RSDP at its new place, adds up to zero, and is otherwise the same', () => {
  const tables = buildAcpi(pcAcpiInput({ devices: [tpmTables({ base: 0xf000_0000, sizeBytes: 0x5000 })] }));
  const base = 0x7ff_e000;
  const { root, blob } = carryOut(tables, { 'etc/acpi/rsdp': 0xf_5a40, 'etc/acpi/tables': base });
  expect([sum(root.subarray(0, 20)), sum(root)]).toEqual([0, 0]);
  const view = new DataView(blob.buffer, blob.byteOffset);
  const list = (at: number, size: 4 | 8) => {
    const length = view.getUint32(at + 4, true);
    expect(sum(blob.subarray(at, at + length))).toBe(0);
    return Array.from({ length: (length - 36) / size }, (_, i) => view.getUint32(at + 36 + i * size, true) - base);
  };
  const rootView = new DataView(root.buffer, root.byteOffset);
  const rsdt = list(rootView.getUint32(16, true) - base, 4);
  expect(list(Number(rootView.getBigUint64(24, true)) - base, 8)).toEqual(rsdt);
  const found = rsdt.map((at) => signatureAt(blob, at));
  const expected = tables
    .map(({ signature }) => signature)
    .filter((s) => !['RSDP', 'RSDT', 'XSDT', 'FACS', 'DSDT'].includes(s));
  expect(found.sort()).toEqual(expected.sort());
  const fadt = rsdt.find((at) => signatureAt(blob, at) === 'FACP') as number;
  for (const [offset, signature] of [
    [36, 'FACS'],
    [40, 'DSDT'],
    [132, 'FACS'],
    [140, 'DSDT'],
  ] as const) {
    const at = view.getUint32(fadt + offset, true) - base;
    const table = tables.find((t) => t.signature === signature) as PlacedTable;
    expect(Buffer.compare(blob.subarray(at, at + table.bytes.length), table.bytes)).toBe(0);
  }
  // The firmware waking vector has to be on a boundary of 64 bytes (ACPI 6.4 §5.2.10).
  expect(view.getUint32(fadt + 36, true) % 64).toBe(0);
});
