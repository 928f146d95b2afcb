/**
 * Static ELF images, by Multiboot 1 or 2, by PVH or as they are: Zephyr, test kernels, GNU Mach, a vmlinux. Specs: Multiboot
 * 0.6.96 §3.1.3 (address fields), §3.2 (machine state); elf-file.ts and pvh.ts name theirs.
 */
import type { Gpa } from '../address.ts';
import type { BootConfig } from '../config.ts';
import { ConfigError, ExitCode } from '../errors.ts';
import { type E820Input, usableLowRam } from '../firmware/e820.ts';
import type { VcpuRegs } from '../hsm/hsm.ts';
import { Layout } from '../layout.ts';
import type { Log } from '../log.ts';
import type { GuestMemory } from '../memory.ts';
import { alignUp, formatSize, KiB, MiB } from '../units.ts';
import { type ElfSegment, isElfOf64Bits, readElf } from './elf-file.ts';
import { badImage, type ImageFile, type ImageRole, withImage } from './image-file.ts';
import {
  findMultibootHeader,
  MULTIBOOT_EAX,
  MULTIBOOT_SEARCH_BYTES,
  type MultibootAddresses,
  type MultibootModule,
  writeMultibootInfo,
} from './multiboot.ts';
import { findMultiboot2Header, MULTIBOOT2_EAX, MULTIBOOT2_SEARCH_BYTES, writeMultiboot2Info } from './multiboot2.ts';
import { FLAT_CODE, FLAT_DATA, flatSegments, writeGdt } from './protected-mode.ts';
import { pvhEntry, writeStartInfo } from './pvh.ts';
import { atLeast } from './setup-header.ts';

type ElfConfig = Extract<BootConfig, { kind: 'elf' }>;

const ELF: ImageRole = { option: '-E', what: 'ELF image' };
const MODULE: ImageRole = { option: '-r', what: 'Multiboot module' };
const PAGE_BYTES = 4 * KiB;

/** The GDT's place below the top of low RAM: room for a table of the largest possible size. */
const GDT_BELOW = 64 * KiB;
/** Null, flat code (0x08), flat data (0x10). */
const GDT = [0n, FLAT_CODE, FLAT_DATA];
const Selector = { code: 0x08, data: 0x10 } as const;

/** How the image wants to be started. */
type StartKind = 'multiboot' | 'multiboot2' | 'pvh' | 'plain';

interface BootImage {
  readonly entry: Gpa;
  readonly segments: readonly ElfSegment[];
  readonly start: StartKind;
}

const bad = (file: ImageFile, why: string, hint?: string) => badImage(file.role, file.path, why, hint);

/** @throws ConfigError for what is neither ELF nor Multiboot, or whose parts lie outside of file or RAM. */
function parse(file: ImageFile, ram: E820Input): BootImage {
  const head = new Uint8Array(Math.min(file.sizeBytes, MULTIBOOT2_SEARCH_BYTES));
  file.read(head, 0);
  const view = new DataView(head.buffer);
  const image = multibootImage(file, view) ?? multiboot2Image(file, view) ?? plainImage(file, view);
  for (const { base, fileBytes, memoryBytes } of image.segments) {
    // The GDT comes over what the image has there.
    const isUnderGdt = base + fileBytes > usableLowRam(ram) - GDT_BELOW;
    if (isUnderGdt || base + memoryBytes > ram.lowRamBytes) throw tooSmall(base, memoryBytes, ram);
  }
  checkPlaces(file, image.segments, ram);
  if (!image.segments.some((s) => image.entry >= s.base && image.entry < s.base + s.memoryBytes)) {
    throw bad(file, `has its entry point, 0x${image.entry.toString(16)}, in none of its segments`);
  }
  if (image.start !== 'plain') checkInfoIsFree(file, image.segments);
  return image;
}

/** Of an image with headers of both kinds the older one counts, as with C. */
function multibootImage(file: ImageFile, head: DataView): BootImage | undefined {
  const searched = new DataView(head.buffer, 0, Math.min(head.byteLength, MULTIBOOT_SEARCH_BYTES));
  const header = findMultibootHeader(searched);
  if (header === undefined) return undefined;
  if (header.unsupported !== 0) {
    throw bad(
      file,
      `asks for Multiboot features 0x${header.unsupported.toString(16)}`,
      'of what a header can insist on, only page alignment (bit 0) and memory information (bit 1) are served',
    );
  }
  const { addresses, offset } = header;
  const placed = addresses === undefined ? readElf(file, head) : placedByHeader(file, offset, addresses);
  return { entry: placed.entry, segments: placed.segments, start: 'multiboot' };
}

function multiboot2Image(file: ImageFile, head: DataView): BootImage | undefined {
  const header = findMultiboot2Header(head);
  if (header === undefined) return undefined;
  const { unsupported, addresses, entry, offset } = header;
  if (unsupported !== undefined) throw bad(file, `insists on Multiboot 2 ${unsupported}, which it cannot have here`);
  if (addresses === undefined) {
    const elf = readElf(file, head);
    return { entry: entry ?? elf.entry, segments: elf.segments, start: 'multiboot2' };
  }
  if (entry === undefined) throw bad(file, 'has a Multiboot 2 header with addresses and without an entry');
  return { ...placedByHeader(file, offset, { ...addresses, entry }), start: 'multiboot2' };
}

/** Multiboot §3.1.3: where the header has addresses they count, whatever the format of the file. */
function placedByHeader(file: ImageFile, headerOffset: number, at: MultibootAddresses) {
  const offset = headerOffset - (at.headerAddress - at.loadAddress);
  const fileEnd = at.loadEndAddress === 0 ? file.sizeBytes : offset + (at.loadEndAddress - at.loadAddress);
  const fileBytes = fileEnd - offset;
  const memoryBytes = at.bssEndAddress === 0 ? fileBytes : at.bssEndAddress - at.loadAddress;
  if (offset < 0 || fileEnd > file.sizeBytes || fileBytes <= 0 || memoryBytes < fileBytes) {
    throw bad(file, 'has a Multiboot header whose addresses contradict each other or the file');
  }
  const segments = [{ offset, base: at.loadAddress, fileBytes, memoryBytes }];
  return { entry: at.entry, segments };
}

/** Without a Multiboot header: by PVH, or, with 32 bits, as it is. */
function plainImage(file: ImageFile, head: DataView): BootImage {
  const elf = readElf(file, head);
  const { entry, segments } = elf;
  const pvh = pvhEntry(elf);
  if (pvh !== undefined) return { entry: pvh, segments, start: 'pvh' };
  if (elf.is64Bit) {
    throw bad(
      file,
      'is a 64-bit ELF file that does not say how it starts: it has no Multiboot header and no PVH entry',
      'a Linux kernel has the latter with CONFIG_PVH; its bzImage starts with -k',
    );
  }
  return { entry, segments, start: 'plain' };
}

/** What every PC has there, and not RAM: zeros as well would go over the tables that are written for the guest. */
const FIRMWARE_AREA = { base: 640 * KiB, end: MiB };
/** Zeros may lie where a later segment goes; filled again and again they would be nothing but a long wait. */
const MAX_FILLS = 2;

/** @throws ConfigError for segments where no RAM is, or of which there are far more than RAM. */
function checkPlaces(file: ImageFile, segments: readonly ElfSegment[], ram: E820Input): void {
  const { base, end } = FIRMWARE_AREA;
  const hidden = segments.find((s) => s.base < end && s.base + s.memoryBytes > base);
  if (hidden !== undefined) {
    throw bad(
      file,
      `has a segment at 0x${hidden.base.toString(16)} (${formatSize(hidden.memoryBytes)}) in video memory and firmware's ` +
        `tables, 0x${base.toString(16)} to 0x${end.toString(16)}`,
      'link it to lie below, or from 0x100000 on',
    );
  }
  const totalBytes = segments.reduce((sum, { memoryBytes }) => sum + memoryBytes, 0);
  if (totalBytes > MAX_FILLS * ram.lowRamBytes) {
    throw bad(
      file,
      `has ${segments.length} segments of ${formatSize(totalBytes)} in all, one over another in ` +
        `${formatSize(ram.lowRamBytes)} of memory`,
      'link it anew',
    );
  }
}

function checkInfoIsFree(file: ImageFile, segments: readonly ElfSegment[]): void {
  const { base } = Layout.multiboot;
  const end = base + Layout.multiboot.size;
  if (segments.some((s) => s.base < end && s.base + s.memoryBytes > base)) {
    throw bad(file, `has a segment where the boot information goes (0x${base.toString(16)} to 0x${end.toString(16)})`);
  }
}

function tooSmall(base: number, sizeBytes: number, ram: E820Input): ConfigError {
  return new ConfigError(
    `-E: a segment of ${formatSize(sizeBytes)} at 0x${base.toString(16)} does not fit ` +
      `${formatSize(ram.lowRamBytes)} of guest memory`,
    { hint: atLeast(base + sizeBytes + GDT_BELOW), exitCode: ExitCode.DataError },
  );
}

/** A module lies below the GDT, on a page of its own. @throws ConfigError if it does not fit above the image. */
function moduleAddress(image: BootImage, module: ImageFile, ram: E820Input): Gpa {
  const gdtAt = usableLowRam(ram) - GDT_BELOW;
  const at = gdtAt - alignUp(module.sizeBytes, PAGE_BYTES);
  const imageEnd = Math.max(...image.segments.map((s) => s.base + s.memoryBytes));
  const from = Math.max(imageEnd, MiB);
  if (at < from) {
    throw new ConfigError(
      `-r: a module of ${formatSize(module.sizeBytes)} does not fit between the image, which ends at ` +
        `0x${from.toString(16)}, and the end of memory`,
      { hint: atLeast(from + alignUp(module.sizeBytes, PAGE_BYTES) + GDT_BELOW), exitCode: ExitCode.DataError },
    );
  }
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

function checkModule(image: BootImage, module: ImageFile | undefined, ram: E820Input): Gpa | undefined {
  if (module === undefined) return undefined;
  // As C: scripts have it left over.
  if (image.start === 'plain') return undefined;
  return moduleAddress(image, module, ram);
}

/** Whether it is built for a CPU of 64 bits. @throws ConfigError if it cannot be read. */
export function isElf64Bit(imagePath: string): boolean {
  return withImage(imagePath, ELF, (file) => {
    const head = new Uint8Array(Math.min(file.sizeBytes, MULTIBOOT_SEARCH_BYTES));
    file.read(head, 0);
    return isElfOf64Bits(head);
  });
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
    if (image.start === 'plain') {
      if (module !== undefined)
        log.warn(`-r ${module.path} is ignored: the image has no Multiboot header, and could not find it`);
      return regs;
    }
    const placed =
      module === undefined || moduleAt === undefined ? undefined : { at: moduleAt, sizeBytes: module.sizeBytes };
    if (placed !== undefined) module?.readToGuest(memory, placed.at, placed.sizeBytes);
    if (image.start === 'pvh') {
      return { ...regs, rax: 0n, rbx: BigInt(writeStartInfo(memory, ram, boot.bootargs ?? '', placed)) };
    }
    const modules: MultibootModule[] = placed === undefined ? [] : [{ ...placed, string: module?.path ?? '' }];
    // GRUB's way, which kernels expect: the first word is the image's own name.
    const cmdline = [boot.imagePath, boot.bootargs].filter((word) => word !== undefined).join(' ');
    if (image.start === 'multiboot2') {
      return {
        ...regs,
        rax: MULTIBOOT2_EAX,
        rbx: BigInt(writeMultiboot2Info(memory, ram, boot.bootargs ?? '', modules)),
      };
    }
    return { ...regs, rbx: BigInt(writeMultibootInfo(memory, ram, cmdline, modules)) };
  });
}

function loadSegment(file: ImageFile, segment: ElfSegment, memory: GuestMemory): void {
  file.readToGuest(memory, segment.base, segment.fileBytes, segment.offset);
  for (const piece of memory.pieces(segment.base + segment.fileBytes, segment.memoryBytes - segment.fileBytes)) {
    piece.fill(0);
  }
}
