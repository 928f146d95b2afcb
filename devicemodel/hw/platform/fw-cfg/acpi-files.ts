/**
 * ACPI tables for firmware that puts them where it likes: all of them in one file, the RSDP in another, and a script that
 * says where addresses and sums go. Spec: QEMU docs/specs/fw_cfg.rst; the script is that of SeaBIOS src/fw/romfile_loader.h.
 */
import type { Gpa } from '../../../core/address.ts';
import { BugError } from '../../../core/errors.ts';
import { type PlacedTable, tableChecksums, tablePointers } from '../../../core/firmware/acpi-tables.ts';
import { bytes, struct, u8, u32 } from '../../../core/struct.ts';

const RSDP_FILE = 'etc/acpi/rsdp';
const TABLES_FILE = 'etc/acpi/tables';
const LOADER_FILE = 'etc/table-loader';
const Command = { allocate: 1, addPointer: 2, addChecksum: 3 } as const;
const Zone = { high: 1, low: 2 } as const;
const NAME_BYTES = 56;
const COMMAND_BYTES = 128;
/** The FACS needs 64; the tables keep their distances. */
const TABLES_ALIGN = 64;
const RSDP_ALIGN = 16;

const Allocate = struct({ command: u32, file: bytes(NAME_BYTES), align: u32, zone: u8 }, { packed: true });
const AddPointer = struct(
  { command: u32, file: bytes(NAME_BYTES), target: bytes(NAME_BYTES), offset: u32, sizeBytes: u8 },
  { packed: true },
);
const AddChecksum = struct(
  { command: u32, file: bytes(NAME_BYTES), offset: u32, start: u32, length: u32 },
  { packed: true },
);

const nameOf = (file: string) => new TextEncoder().encode(file.padEnd(NAME_BYTES, '\0'));

/** @param tables with the RSDP, lowest address first. */
export function acpiFiles(tables: readonly PlacedTable[]): { readonly name: string; readonly content: Uint8Array }[] {
  const rsdp = tables.find(({ signature }) => signature === 'RSDP');
  const rest = tables.filter((table) => table !== rsdp);
  const last = rest.at(-1);
  if (rsdp === undefined || last === undefined) throw new BugError('ACPI tables without an RSDP');
  const base = rsdp.gpa;
  const blob = new Uint8Array(last.gpa + last.bytes.length - base);
  for (const { gpa, bytes: content } of rest) blob.set(content, gpa - base);
  const root = rsdp.bytes.slice();
  const commands = [
    Allocate.encode({ command: Command.allocate, file: nameOf(RSDP_FILE), align: RSDP_ALIGN, zone: Zone.low }),
    Allocate.encode({ command: Command.allocate, file: nameOf(TABLES_FILE), align: TABLES_ALIGN, zone: Zone.high }),
    ...rest.flatMap((table) => relocation(table, TABLES_FILE, blob, table.gpa - base, base)),
    ...relocation(rsdp, RSDP_FILE, root, 0, base),
  ];
  const loader = new Uint8Array(COMMAND_BYTES * commands.length);
  for (const [i, command] of commands.entries()) loader.set(command, COMMAND_BYTES * i);
  return [
    { name: RSDP_FILE, content: root },
    { name: TABLES_FILE, content: blob },
    { name: LOADER_FILE, content: loader },
  ];
}

/** Makes addresses in a table distances from `base`, and its sums 0. @returns what brings them back. */
function relocation(table: PlacedTable, file: string, content: Uint8Array, at: number, base: Gpa): Uint8Array[] {
  const view = new DataView(content.buffer, content.byteOffset, content.byteLength);
  const pointers = tablePointers(table).map(({ offset, sizeBytes }) => {
    // Tables are below 4 GiB: the upper half of a long address is 0.
    view.setUint32(at + offset, view.getUint32(at + offset, true) - base, true);
    const target = nameOf(TABLES_FILE);
    return AddPointer.encode({
      command: Command.addPointer,
      file: nameOf(file),
      target,
      offset: at + offset,
      sizeBytes,
    });
  });
  const sums = tableChecksums(table).map(({ offset, length }) => {
    content[at + offset] = 0;
    return AddChecksum.encode({
      command: Command.addChecksum,
      file: nameOf(file),
      offset: at + offset,
      start: at,
      length,
    });
  });
  return [...pointers, ...sums];
}
