/**
 * Static 32-bit ELF images and Multiboot images: Zephyr, test kernels, GNU Mach. Specs: System V gABI chapters 4 and 5;
 * Multiboot 0.6.96 §3.1.3 (address fields), §3.2 (machine state).
 */
import type { Gpa } from '../address.ts';
import type { BootConfig } from '../config.ts';
import { ConfigError, ExitCode } from '../errors.ts';
import { type E820Input, usableLowRam } from '../firmware/e820.ts';
import type { VcpuRegs } from '../hsm/hsm.ts';
import { Layout } from '../layout.ts';
import type { Log } from '../log.ts';
import type { GuestMemory } from '../memory.ts';
import { struct, u32 } from '../struct.ts';
import { alignUp, formatSize, KiB, MiB } from '../units.ts';
import { badImage, type ImageFile, type ImageRole, withImage } from './image-file.ts';
import {
  findMultibootHeader,
  MULTIBOOT_EAX,
  MULTIBOOT_SEARCH_BYTES,
  type MultibootAddresses,
  type MultibootModule,
  writeMultibootInfo,
} from './multiboot.ts';
import { FLAT_CODE, FLAT_DATA, flatSegments, writeGdt } from './protected-mode.ts';

type ElfConfig = Extract<BootConfig, { kind: 'elf' }>;

const ELF: ImageRole = { option: '-E', what: 'ELF image' };
const MODULE: ImageRole = { option: '-r', what: 'Multiboot module' };
const PAGE_BYTES = 4 * KiB;

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
  readonly entry: Gpa;
  readonly segments: readonly Segment[];
  /** It has a Multiboot header. */
  readonly isMultiboot: boolean;
}

const bad = (file: ImageFile, why: string, hint?: string) => badImage(file.role, file.path, why, hint);

/** @throws ConfigError for what is neither a 32-bit ELF file nor Multiboot, or whose parts lie outside of file or RAM. */
function parse(file: ImageFile, ram: E820Input): ElfImage {
  const head = new Uint8Array(Math.min(file.sizeBytes, MULTIBOOT_SEARCH_BYTES));
  file.read(head, 0);
  const view = new DataView(head.buffer);
  const multiboot = findMultibootHeader(view);
  if (multiboot !== undefined && multiboot.unsupported !== 0) {
    throw bad(
      file,
      `asks for Multiboot features 0x${multiboot.unsupported.toString(16)}`,
      'of what a header can insist on, only page alignment (bit 0) and memory information (bit 1) are served',
    );
  }
  const isMultiboot = multiboot !== undefined;
  const image =
    multiboot?.addresses !== undefined
      ? placedByHeader(file, multiboot.offset, multiboot.addresses)
      : placedByElf(file, view);
  for (const segment of image.segments) {
    if (segment.base + segment.memoryBytes > ram.lowRamBytes) throw tooSmall(segment.base, segment.memoryBytes, ram);
  }
  if (isMultiboot) checkInfoIsFree(file, image.segments);
  return { ...image, isMultiboot };
}

type Placed = Omit<ElfImage, 'isMultiboot'>;

/** Multiboot §3.1.3: where the header has addresses they count, whatever the format of the file. */
function placedByHeader(file: ImageFile, headerOffset: number, at: MultibootAddresses): Placed {
  const offset = headerOffset - (at.headerAddress - at.loadAddress);
  const fileEnd = at.loadEndAddress === 0 ? file.sizeBytes : offset + (at.loadEndAddress - at.loadAddress);
  const fileBytes = fileEnd - offset;
  const memoryBytes = at.bssEndAddress === 0 ? fileBytes : at.bssEndAddress - at.loadAddress;
  if (offset < 0 || fileEnd > file.sizeBytes || fileBytes <= 0 || memoryBytes < fileBytes) {
    throw bad(file, 'has a Multiboot header whose addresses contradict each other or the file');
  }
  return { entry: at.entry, segments: [{ offset, base: at.loadAddress, fileBytes, memoryBytes }] };
}

function placedByElf(file: ImageFile, view: DataView): Placed {
  if (view.byteLength < Ehdr.sizeBytes || view.getUint32(0, true) !== ELF_MAGIC) throw bad(file, 'is not an ELF file');
  if (view.getUint8(Ehdr.class) !== CLASS_32)
    throw bad(file, 'is a 64-bit ELF file', 'only 32-bit ELF images can be started');
  if (view.getUint8(Ehdr.data) !== DATA_LITTLE_ENDIAN) throw bad(file, 'is a big-endian ELF file');
  const loads = loadHeaders(file, view);
  // Physical addresses count, unless the linker left them all at 0.
  const hasPhysical = loads.some((ph) => ph.paddr !== 0);
  const segments = loads.map((ph) => ({
    offset: ph.offset,
    base: hasPhysical ? ph.paddr : ph.vaddr,
    fileBytes: ph.filesz,
    memoryBytes: ph.memsz,
  }));
  const entry = view.getUint32(Ehdr.entry, true);
  const within = loads.findIndex((ph) => entry >= ph.vaddr && entry < ph.vaddr + ph.memsz);
  if (entry === 0 && within < 0)
    throw bad(file, 'has no entry point (e_entry is 0)', 'is it an object file or a library?');
  const home = loads[within];
  // The entry is a virtual address, paging is off: it moves with the segment it is in.
  const moved = home === undefined ? 0 : (segments[within] as Segment).base - home.vaddr;
  return { entry: entry + moved, segments };
}

function loadHeaders(file: ImageFile, view: DataView) {
  const phoff = view.getUint32(Ehdr.phoff, true);
  const stride = view.getUint16(Ehdr.phentsize, true);
  const count = view.getUint16(Ehdr.phnum, true);
  if (count > 0 && (stride < Phdr.size || phoff + count * stride > file.sizeBytes)) {
    throw bad(file, 'has program headers that are not in the file');
  }
  const bytes = new Uint8Array(count * stride);
  file.read(bytes, phoff);
  const headers = Array.from({ length: count }, (_, i) => Phdr.decode(bytes.subarray(i * stride)));
  const loads = headers.filter((ph) => ph.type === PT_LOAD && ph.memsz > 0);
  for (const ph of loads) {
    if (ph.filesz > ph.memsz || ph.offset + ph.filesz > file.sizeBytes) {
      throw bad(file, `is damaged: a segment (${ph.filesz} bytes at ${ph.offset}) is not within the file`);
    }
  }
  if (loads.length === 0) throw bad(file, 'has nothing to load (no PT_LOAD segment)', 'link it as an executable');
  return loads;
}

function checkInfoIsFree(file: ImageFile, segments: readonly Segment[]): void {
  const { base } = Layout.multiboot;
  const end = base + Layout.multiboot.size;
  if (segments.some((s) => s.base < end && s.base + s.memoryBytes > base)) {
    throw bad(
      file,
      `has a segment where the Multiboot information goes (0x${base.toString(16)} to 0x${end.toString(16)})`,
    );
  }
}

function tooSmall(base: number, sizeBytes: number, ram: E820Input): ConfigError {
  return new ConfigError(
    `-E: a segment of ${formatSize(sizeBytes)} at 0x${base.toString(16)} does not fit ` +
      `${formatSize(ram.lowRamBytes)} of guest memory`,
    { hint: 'give the VM more memory with -m', exitCode: ExitCode.DataError },
  );
}

/** A module lies below the GDT, on a page of its own. @throws ConfigError if it does not fit above the image. */
function moduleAddress(image: ElfImage, module: ImageFile, ram: E820Input): Gpa {
  const gdtAt = usableLowRam(ram) - GDT_BELOW;
  const at = gdtAt - alignUp(module.sizeBytes, PAGE_BYTES);
  const imageEnd = Math.max(...image.segments.map((s) => s.base + s.memoryBytes));
  if (at < Math.max(imageEnd, MiB)) throw tooSmall(at, module.sizeBytes, ram);
  return at;
}

/** Open image and, where given, module. */
function withImages<T>(boot: ElfConfig, use: (image: ImageFile, module: ImageFile | undefined) => T): T {
  return withImage(boot.imagePath, ELF, (image) =>
    boot.ramdiskPath === undefined
      ? use(image, undefined)
      : withImage(boot.ramdiskPath, MODULE, (module) => use(image, module)),
  );
}

function checkModule(image: ElfImage, module: ImageFile | undefined, ram: E820Input): Gpa | undefined {
  if (module === undefined) return undefined;
  if (!image.isMultiboot) {
    throw new ConfigError(`-r: ${module.path} is given to an image without a Multiboot header, which cannot find it`, {
      hint: 'leave it out',
    });
  }
  return moduleAddress(image, module, ram);
}

/** Everything that can be wrong with the files, before anything is created. @throws ConfigError */
export function checkElf(boot: ElfConfig, ram: E820Input): void {
  withImages(boot, (file, module) => checkModule(parse(file, ram), module, ram));
}

/**
 * Put the image's segments, a GDT and, for Multiboot images, module and information into guest memory.
 * @returns how the boot CPU starts.
 * @throws ConfigError if a file is of no use or does not fit.
 */
export function loadElf(boot: ElfConfig, memory: GuestMemory, ram: E820Input, log: Log): VcpuRegs {
  return withImages(boot, (file, module) => {
    const image = parse(file, ram);
    const moduleAt = checkModule(image, module, ram);
    for (const segment of image.segments) loadSegment(file, segment, memory);
    const regs: VcpuRegs = {
      ...flatSegments(Selector.code, 0xcf9b, Selector.data),
      fs: Selector.data,
      gs: Selector.data,
      gdt: writeGdt(memory, usableLowRam(ram) - GDT_BELOW, GDT),
      rip: BigInt(image.entry),
      rax: MULTIBOOT_EAX,
    };
    log.info(`ELF image ${boot.imagePath}: ${image.segments.length} segments, entry 0x${image.entry.toString(16)}`);
    if (!image.isMultiboot) return regs;
    const modules: MultibootModule[] = [];
    if (module !== undefined && moduleAt !== undefined) {
      module.readToGuest(memory, moduleAt, module.sizeBytes);
      modules.push({ at: moduleAt, sizeBytes: module.sizeBytes, string: module.path });
    }
    // GRUB's way, which kernels expect: the first word is the image's own name.
    const cmdline = [boot.imagePath, boot.bootargs].filter((word) => word !== undefined).join(' ');
    return { ...regs, rbx: BigInt(writeMultibootInfo(memory, ram, cmdline, modules)) };
  });
}

function loadSegment(file: ImageFile, segment: Segment, memory: GuestMemory): void {
  file.readToGuest(memory, segment.base, segment.fileBytes, segment.offset);
  for (const piece of memory.pieces(segment.base + segment.fileBytes, segment.memoryBytes - segment.fileBytes)) {
    piece.fill(0);
  }
}
