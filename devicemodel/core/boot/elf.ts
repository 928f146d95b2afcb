/**
 * Static 32-bit ELF images, Multiboot or not: Zephyr and the like. Specs: System V gABI chapters 4 and 5; Multiboot
 * 0.6.96 §3.1 (header), §3.2 (machine state), §3.3 (information).
 */
import type { BootConfig } from '../config.ts';
import { ConfigError, ExitCode } from '../errors.ts';
import type { E820Input } from '../firmware/e820.ts';
import type { VcpuRegs } from '../hsm/hsm.ts';
import { Layout } from '../layout.ts';
import type { Log } from '../log.ts';
import type { GuestMemory } from '../memory.ts';
import { struct, u32 } from '../struct.ts';
import { formatSize, KiB } from '../units.ts';
import { badImage, type ImageFile, type ImageRole, withImage } from './image-file.ts';
import { FLAT_CODE, FLAT_DATA, flatSegments, writeGdt } from './protected-mode.ts';

type ElfConfig = Extract<BootConfig, { kind: 'elf' }>;

const ELF: ImageRole = { option: '-E', what: 'ELF image' };

/** Elf32_Ehdr offsets. */
const Ehdr = { class: 4, data: 5, entry: 24, phoff: 28, phentsize: 42, phnum: 44, sizeBytes: 52 } as const;
const ELF_MAGIC = 0x464c_457f; // "\x7fELF"
const CLASS_32 = 1;
const DATA_LITTLE_ENDIAN = 1;
/** Elf32_Phdr. */
const Phdr = struct({
  type: u32,
  offset: u32,
  vaddr: u32,
  paddr: u32,
  filesz: u32,
  memsz: u32,
  flags: u32,
  align: u32,
});
const PT_LOAD = 1;

/** The Multiboot header is in the first 8 KiB, aligned to 4 bytes. */
const MULTIBOOT_SEARCH_BYTES = 8 * KiB;
const MULTIBOOT_MAGIC = 0x1bad_b002;
/** What a Multiboot image finds in EAX. */
const MULTIBOOT_EAX = 0x2bad_b002n;
/** Flags of the image: it wants to know its memory. The only request that is served. */
const WANTS_MEMORY = 1 << 1;
/** Multiboot information (§3.3); of it only the memory fields are filled. */
const MultibootInfo = struct({ flags: u32, memLowerKib: u32, memUpperKib: u32 });
const MULTIBOOT_INFO_BYTES = 72;
const HAS_MEMORY = 1 << 0;

/** The GDT's place below the top of low RAM: room for a table of the largest possible size. */
const GDT_BELOW = 64 * KiB;
/** Null, flat code (0x08), flat data (0x10). */
const GDT = [0n, FLAT_CODE, FLAT_DATA];
const Selector = { code: 0x08, data: 0x10 } as const;

interface Segment {
  readonly offset: number;
  readonly base: number;
  readonly fileBytes: number;
  readonly memoryBytes: number;
}

interface ElfImage {
  readonly entry: number;
  readonly segments: readonly Segment[];
  /** It has a Multiboot header. */
  readonly isMultiboot: boolean;
}

/**
 * Flags of the Multiboot header, or undefined without one. The first magic number decides: if magic, flags and checksum
 * do not sum up to zero it is no header.
 */
export function multibootFlags(head: DataView): number | undefined {
  for (let at = 0; at + 12 <= head.byteLength; at += 4) {
    if (head.getUint32(at, true) !== MULTIBOOT_MAGIC) continue;
    const flags = head.getUint32(at + 4, true);
    const sum = (MULTIBOOT_MAGIC + flags + head.getUint32(at + 8, true)) % 2 ** 32;
    return sum === 0 ? flags : undefined;
  }
  return undefined;
}

/** @throws ConfigError for anything but a 32-bit little-endian ELF file whose segments lie within the file and in RAM. */
function parse(file: ImageFile, ram: E820Input): ElfImage {
  const bad = (why: string, hint?: string) => badImage(file.role, file.path, why, hint);
  const head = new Uint8Array(Math.min(file.sizeBytes, MULTIBOOT_SEARCH_BYTES));
  file.read(head, 0);
  const view = new DataView(head.buffer);
  if (head.length < Ehdr.sizeBytes || view.getUint32(0, true) !== ELF_MAGIC) throw bad('is not an ELF file');
  if (view.getUint8(Ehdr.class) !== CLASS_32)
    throw bad('is a 64-bit ELF file', 'only 32-bit ELF images can be started');
  if (view.getUint8(Ehdr.data) !== DATA_LITTLE_ENDIAN) throw bad('is a big-endian ELF file');

  const flags = multibootFlags(view);
  if (flags !== undefined && flags !== WANTS_MEMORY) {
    throw bad(
      `asks for Multiboot features 0x${flags.toString(16)}`,
      'only memory information (flags 2) is provided; build the image for that',
    );
  }

  const phoff = view.getUint32(Ehdr.phoff, true);
  const stride = view.getUint16(Ehdr.phentsize, true);
  const count = view.getUint16(Ehdr.phnum, true);
  if (count > 0 && (stride < Phdr.size || phoff + count * stride > file.sizeBytes)) {
    throw bad('has program headers that are not in the file');
  }
  const headers = new Uint8Array(count * stride);
  file.read(headers, phoff);
  const segments: Segment[] = [];
  for (let i = 0; i < count; i++) {
    const ph = Phdr.decode(headers.subarray(i * stride));
    if (ph.type !== PT_LOAD) continue;
    if (ph.filesz > ph.memsz || ph.offset + ph.filesz > file.sizeBytes) {
      throw bad(`is damaged: segment ${i} (${ph.filesz} bytes at ${ph.offset}) is not within the file`);
    }
    if (ph.vaddr + ph.memsz > ram.lowRamBytes) throw tooSmall(ph.vaddr, ph.memsz, ram);
    // By virtual address, as the C device model does: paging is off, so for these images it is the physical one.
    segments.push({ offset: ph.offset, base: ph.vaddr, fileBytes: ph.filesz, memoryBytes: ph.memsz });
  }
  return { entry: view.getUint32(Ehdr.entry, true), segments, isMultiboot: flags !== undefined };
}

function tooSmall(base: number, sizeBytes: number, ram: E820Input): ConfigError {
  return new ConfigError(
    `-E: a segment of ${formatSize(sizeBytes)} at 0x${base.toString(16)} does not fit ` +
      `${formatSize(ram.lowRamBytes)} of guest memory`,
    { hint: 'give the VM more memory with -m', exitCode: ExitCode.DataError },
  );
}

/** Everything that can be wrong with the file, before anything is created. @throws ConfigError */
export function checkElf(boot: ElfConfig, ram: E820Input): void {
  withImage(boot.imagePath, ELF, (file) => parse(file, ram));
}

/**
 * Put the image's segments, a GDT and (for Multiboot images) the memory information into guest memory.
 * @returns how the boot CPU starts.
 * @throws ConfigError if the file is no usable ELF image or does not fit.
 */
export function loadElf(boot: ElfConfig, memory: GuestMemory, ram: E820Input, log: Log): VcpuRegs {
  const image = withImage(boot.imagePath, ELF, (file) => {
    const parsed = parse(file, ram);
    for (const segment of parsed.segments) loadSegment(file, segment, memory);
    return parsed;
  });
  const gdtAt = ram.lowRamBytes - GDT_BELOW;
  const regs: VcpuRegs = {
    ...flatSegments(Selector.code, 0xcf9b, Selector.data),
    fs: Selector.data,
    gs: Selector.data,
    gdt: writeGdt(memory, gdtAt, GDT),
    rip: BigInt(image.entry),
    rax: MULTIBOOT_EAX,
  };
  log.info(`ELF image ${boot.imagePath}: ${image.segments.length} segments, entry 0x${image.entry.toString(16)}`);
  if (!image.isMultiboot) return regs;
  const info = memory.bytes(Layout.multibootInfoBase, MULTIBOOT_INFO_BYTES);
  info.fill(0);
  // Compat: as in C, "upper" memory is counted from 0 and ends at the GDT.
  info.set(MultibootInfo.encode({ flags: HAS_MEMORY, memLowerKib: 0, memUpperKib: gdtAt / KiB }));
  return { ...regs, rbx: BigInt(Layout.multibootInfoBase) };
}

function loadSegment(file: ImageFile, segment: Segment, memory: GuestMemory): void {
  file.readToGuest(memory, segment.base, segment.fileBytes, segment.offset);
  for (const piece of memory.pieces(segment.base + segment.fileBytes, segment.memoryBytes - segment.fileBytes)) {
    piece.fill(0);
  }
}
