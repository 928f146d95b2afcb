/**
 * The PVH entry that kernels name in an ELF note: Linux, FreeBSD, Xen's and many small ones start there. Spec: Xen,
 * docs/misc/pvh.pandoc (state of the CPU) and public/arch-x86/hvm/start_info.h (what EBX points to).
 */
import type { Gpa } from '../address.ts';
import { buildE820, type E820Input } from '../firmware/e820.ts';
import { Layout } from '../layout.ts';
import type { GuestMemory } from '../memory.ts';
import { addr, struct, u32 } from '../struct.ts';
import type { ElfFile } from './elf-file.ts';

/** XEN_ELFNOTE_PHYS32_ENTRY. */
const ENTRY_NOTE = { name: 'Xen', type: 18 } as const;
const MAGIC = 0x336e_c578;
/** With a memory map. */
const VERSION = 1;

const StartInfo = struct({
  magic: u32,
  version: u32,
  flags: u32,
  moduleCount: u32,
  modulesAt: addr,
  cmdlineAt: addr,
  rsdpAt: addr,
  memmapAt: addr,
  memmapEntries: u32,
  reserved: u32,
});
const Module = struct({ at: addr, sizeBytes: addr, cmdlineAt: addr, reserved: addr });
const MapEntry = struct({ base: addr, size: addr, type: u32, reserved: u32 });

/** @returns the physical address to start at, or undefined without such a note. */
export function pvhEntry({ notes }: Pick<ElfFile, 'notes'>): Gpa | undefined {
  const note = notes.find(({ name, type }) => name === ENTRY_NOTE.name && type === ENTRY_NOTE.type);
  if (note === undefined) return undefined;
  const { description } = note;
  const view = new DataView(description.buffer, description.byteOffset, description.byteLength);
  // The note may be of either width, the address has 32 bits.
  if (view.byteLength < 4 || (view.byteLength >= 8 && view.getUint32(4, true) !== 0)) return undefined;
  return view.getUint32(0, true);
}

/** Write the start information, memory map, module and command line. @returns its address, for EBX. */
export function writeStartInfo(
  memory: GuestMemory,
  ram: E820Input,
  cmdline: string,
  module: { readonly at: Gpa; readonly sizeBytes: number } | undefined,
): Gpa {
  const { base } = Layout.multiboot;
  let at = base + StartInfo.size;
  const put = (bytes: Uint8Array): Gpa => {
    const place = at;
    memory.write(place, bytes);
    at += Math.ceil(bytes.length / 8) * 8;
    return place;
  };
  const map = buildE820(ram).filter((entry) => entry.size > 0);
  const memmapAt = put(Buffer.concat(map.map((entry) => MapEntry.encode({ ...entry, reserved: 0 }))));
  const modulesAt = module === undefined ? 0 : put(Module.encode({ ...module }));
  const cmdlineAt = put(new TextEncoder().encode(`${cmdline}\0`));
  memory.write(
    base,
    StartInfo.encode({
      magic: MAGIC,
      version: VERSION,
      moduleCount: module === undefined ? 0 : 1,
      modulesAt,
      cmdlineAt,
      rsdpAt: Layout.acpiBase,
      memmapAt,
      memmapEntries: map.length,
    }),
  );
  return base;
}
