/** What an ELF file of either class says: where its parts go, where it begins, its notes. System V gABI, chapters 4 and 5. */
import type { Gpa } from '../address.ts';
import { addr, type Field, struct, u32, u64 } from '../struct.ts';
import { kindOf, OTHER_CPU } from './file-kind.ts';
import { badImage, type ImageFile } from './image-file.ts';

/** Offsets in the identification, the same in both classes. */
const Ident = { class: 4, data: 5 } as const;
const E_TYPE = 16;
const E_MACHINE = 18;
const ELF_MAGIC = 0x464c_457f; // "\x7fELF"
const CLASS_32 = 1;
const CLASS_64 = 2;
const DATA_LITTLE_ENDIAN = 1;
/** What an x86 CPU runs: i386, i486 (as old tools call it) and x86-64. */
const X86_MACHINES: readonly number[] = [3, 6, 62];
const OTHER_MACHINES: ReadonlyMap<number, string> = new Map([
  [2, 'SPARC'],
  [4, 'Motorola 68000'],
  [8, 'MIPS'],
  [20, 'PowerPC'],
  [21, '64-bit PowerPC'],
  [22, 'S/390'],
  [40, 'Arm'],
  [50, 'Itanium'],
  [94, 'Xtensa'],
  [183, 'AArch64'],
  [195, 'ARC'],
  [243, 'RISC-V'],
  [258, 'LoongArch'],
]);
/** Files that no loader starts, executables and those that can be put anywhere aside. */
const NOT_STARTED: ReadonlyMap<number, string> = new Map([
  [0, 'without a type'],
  [1, 'an object file'],
  [4, 'a core dump'],
]);
const PT_LOAD = 1;
const PT_NOTE = 4;
/** More would not be notes that anybody reads before the start. */
const MAX_NOTE_BYTES = 64 * 1024;

/** A 32-bit word as the 64-bit class has it. */
const word: Field<bigint> = {
  size: 4,
  align: 4,
  read: (view, at) => BigInt(view.getUint32(at, true)),
  write: (view, at, value) => view.setUint32(at, Number(value), true),
};
const Phdr32 = struct({
  type: u32,
  offset: u32,
  vaddr: word,
  paddr: u32,
  filesz: u32,
  memsz: u32,
  flags: u32,
  align: u32,
});
const Phdr64 = struct({
  type: u32,
  flags: u32,
  offset: addr,
  vaddr: u64,
  paddr: addr,
  filesz: addr,
  memsz: addr,
  align: u64,
});

/** Ehdr: where its fields are; `entry` and `phoff` are words of the class. */
const Class32 = { entry: 24, phoff: 28, phentsize: 42, phnum: 44, sizeBytes: 52, phdr: Phdr32, address: word } as const;
const Class64 = { entry: 24, phoff: 32, phentsize: 54, phnum: 56, sizeBytes: 64, phdr: Phdr64, address: u64 } as const;

export interface ElfSegment {
  /** In the file. */
  readonly offset: number;
  /** In guest memory. */
  readonly base: Gpa;
  readonly fileBytes: number;
  readonly memoryBytes: number;
}

export interface ElfNote {
  readonly name: string;
  readonly type: number;
  readonly description: Uint8Array;
}

export interface ElfFile {
  readonly is64Bit: boolean;
  /** Physical: it moves with the segment it is in. */
  readonly entry: Gpa;
  readonly segments: readonly ElfSegment[];
  readonly notes: readonly ElfNote[];
}

const bad = (file: ImageFile, why: string, hint?: string) => badImage(file.role, file.path, why, hint);

/** @param head the first bytes of a file, of whatever kind. */
export function isElfOf64Bits(head: Uint8Array): boolean {
  const view = new DataView(head.buffer, head.byteOffset, head.byteLength);
  return head.length > Ident.class && view.getUint32(0, true) === ELF_MAGIC && head[Ident.class] === CLASS_64;
}

/** @param view the first bytes of the file. @throws ConfigError for what is no executable ELF file, or a damaged one. */
export function readElf(file: ImageFile, view: DataView): ElfFile {
  if (view.byteLength < Class32.sizeBytes || view.getUint32(0, true) !== ELF_MAGIC) {
    throw notElf(file, view);
  }
  checkIdentity(file, view);
  const is64Bit = view.getUint8(Ident.class) === CLASS_64;
  if (is64Bit && view.byteLength < Class64.sizeBytes) throw bad(file, 'is not an ELF file');
  const layout = is64Bit ? Class64 : Class32;
  const headers = programHeaders(file, view, layout);
  const loads = headers.filter((header) => header.type === PT_LOAD && header.memsz > 0);
  for (const load of loads) {
    if (load.filesz > load.memsz || load.offset + load.filesz > file.sizeBytes) {
      throw bad(file, `is damaged: a segment (${load.filesz} bytes at ${load.offset}) is not within the file`);
    }
  }
  if (loads.length === 0) throw bad(file, 'has nothing to load (no PT_LOAD segment)', 'link it as an executable');
  // Physical addresses count, unless the linker left them all at 0.
  const hasPhysical = loads.some((load) => load.paddr !== 0);
  const segments = loads.map((load) => ({
    offset: load.offset,
    base: hasPhysical ? load.paddr : Number(load.vaddr),
    fileBytes: load.filesz,
    memoryBytes: load.memsz,
  }));
  const entry = layout.address.read(view, layout.entry);
  const within = loads.findLastIndex((load) => entry >= load.vaddr && entry < load.vaddr + BigInt(load.memsz));
  if (entry === 0n && within < 0) {
    throw bad(file, 'has no entry point (e_entry is 0)', 'is it an object file or a library?');
  }
  checkOverlap(file, segments);
  const home = loads[within];
  // The entry is a virtual address, paging is off: it moves with the segment it is in.
  const moved = home === undefined ? 0n : BigInt((segments[within] as ElfSegment).base) - home.vaddr;
  const notes = headers.filter((header) => header.type === PT_NOTE).flatMap((header) => notesIn(file, header));
  return { is64Bit, entry: Number(entry + moved), segments, notes };
}

function notElf(file: ImageFile, view: DataView) {
  const kind = kindOf(new Uint8Array(view.buffer, view.byteOffset, view.byteLength));
  // Of an ELF file there is too little.
  if (kind === undefined || kind.name === 'an ELF file') return bad(file, 'is not an ELF file');
  return bad(file, `is not an ELF file: it is ${kind.name}`, kind.hint);
}

/** @throws ConfigError for what no x86 CPU can be started with. */
function checkIdentity(file: ImageFile, view: DataView): void {
  const elfClass = view.getUint8(Ident.class);
  if (view.getUint8(Ident.data) !== DATA_LITTLE_ENDIAN) throw bad(file, 'is a big-endian ELF file', OTHER_CPU);
  const machine = view.getUint16(E_MACHINE, true);
  if (!X86_MACHINES.includes(machine)) {
    throw bad(file, `is for another CPU: ${OTHER_MACHINES.get(machine) ?? `machine ${machine}`}`, OTHER_CPU);
  }
  if (elfClass !== CLASS_32 && elfClass !== CLASS_64) throw bad(file, `is damaged: ELF class ${elfClass}`);
  const type = NOT_STARTED.get(view.getUint16(E_TYPE, true));
  if (type !== undefined) throw bad(file, `is ${type}, not an executable`, 'link it as an executable');
}

/**
 * Of two parts at one place one is lost, unless it is zeros: old linker scripts have a .bss that reaches into what is
 * loaded after it. One sweep upwards through memory: a file may have 65,535 segments, and all of them at one place.
 * @param segments in the order they are loaded. @throws ConfigError
 */
function checkOverlap(file: ImageFile, segments: readonly ElfSegment[]): void {
  /**
   * Segments that reach up to where the sweep is: those with bytes of the file, first loaded first; and all, last
   * loaded first.
   */
  const withBytes = new Heap<LoadedSegment>((a, b) => a.order < b.order);
  const all = new Heap<LoadedSegment>((a, b) => a.order > b.order);
  const loaded = segments.map((segment, order): LoadedSegment => ({ ...segment, order }));
  for (const segment of loaded.toSorted((a, b) => a.base - b.base)) {
    const { base, order, fileBytes } = segment;
    const first = withBytes.topWhile((other) => other.base + other.fileBytes > base);
    const last = all.topWhile((other) => other.base + other.memoryBytes > base);
    const losesOther = first !== undefined && first.order < order;
    const isLost = fileBytes > 0 && last !== undefined && last.order > order;
    if (losesOther || isLost) {
      throw bad(file, `has two segments at one place, 0x${base.toString(16)} (p_paddr)`, 'link it anew');
    }
    if (fileBytes > 0) withBytes.push(segment);
    all.push(segment);
  }
}

interface LoadedSegment extends ElfSegment {
  readonly order: number;
}

/** A binary heap that forgets what has gone by when it comes to the top. */
class Heap<T> {
  readonly #items: T[] = [];
  readonly #isBefore: (a: T, b: T) => boolean;

  constructor(isBefore: (a: T, b: T) => boolean) {
    this.#isBefore = isBefore;
  }

  push(item: T): void {
    const items = this.#items;
    let at = items.length;
    while (at > 0) {
      const parent = (at - 1) >> 1;
      if (!this.#isBefore(item, items[parent] as T)) break;
      items[at] = items[parent] as T;
      at = parent;
    }
    items[at] = item;
  }

  /** The first of those that are still there; what is not is dropped. */
  topWhile(isThere: (item: T) => boolean): T | undefined {
    while (this.#items.length > 0 && !isThere(this.#items[0] as T)) this.#dropTop();
    return this.#items[0];
  }

  #dropTop(): void {
    const items = this.#items;
    const last = items.pop() as T;
    if (items.length === 0) return;
    let at = 0;
    for (let child = 1; child < items.length; child = 2 * at + 1) {
      if (child + 1 < items.length && this.#isBefore(items[child + 1] as T, items[child] as T)) child++;
      if (!this.#isBefore(items[child] as T, last)) break;
      items[at] = items[child] as T;
      at = child;
    }
    items[at] = last;
  }
}

function programHeaders(file: ImageFile, view: DataView, layout: typeof Class32 | typeof Class64) {
  const phoff = Number(layout.address.read(view, layout.phoff));
  const stride = view.getUint16(layout.phentsize, true);
  const count = view.getUint16(layout.phnum, true);
  if (count > 0 && (stride < layout.phdr.size || !(phoff + count * stride <= file.sizeBytes))) {
    throw bad(file, 'has program headers that are not in the file');
  }
  const bytes = new Uint8Array(count * stride);
  file.read(bytes, phoff);
  return Array.from({ length: count }, (_, i) => layout.phdr.decode(bytes.subarray(i * stride)));
}

/** gABI, "Note Section": name and description are padded to words. Damaged ones end the list. */
function notesIn(file: ImageFile, { offset, filesz }: { readonly offset: number; readonly filesz: number }): ElfNote[] {
  if (filesz > MAX_NOTE_BYTES || offset + filesz > file.sizeBytes) return [];
  const bytes = new Uint8Array(filesz);
  file.read(bytes, offset);
  const view = new DataView(bytes.buffer);
  const padded = (length: number) => Math.ceil(length / 4) * 4;
  const notes: ElfNote[] = [];
  for (let at = 0; at + 12 <= filesz; ) {
    const [nameBytes, descriptionBytes] = [view.getUint32(at, true), view.getUint32(at + 4, true)];
    const nameAt = at + 12;
    const descriptionAt = nameAt + padded(nameBytes);
    const end = descriptionAt + descriptionBytes;
    if (end > filesz) break;
    notes.push({
      name: Buffer.from(bytes.subarray(nameAt, nameAt + nameBytes))
        .toString('latin1')
        .replace(/\0+$/, ''),
      type: view.getUint32(at + 8, true),
      description: bytes.subarray(descriptionAt, end),
    });
    at = padded(end);
  }
  return notes;
}
