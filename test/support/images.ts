/** Small boot images, made on the spot: the content is meaningless but the same everywhere. */
import { createHash } from 'node:crypto';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { onTestFinished } from 'vitest';

/** `length` bytes that depend on `tag` alone: SHA-256 of `tag:0`, `tag:1`, … in a row. */
export function noise(tag: string, length: number): Uint8Array {
  const out = new Uint8Array(length);
  for (let i = 0; 32 * i < length; i++) {
    const block = createHash('sha256').update(`${tag}:${i}`).digest();
    out.set(block.subarray(0, Math.min(32, length - 32 * i)), 32 * i);
  }
  return out;
}

/** A kernel that is a setup header and noise. `setupSects` as the header says it: 0 means 4. */
export function bzImage({ setupSects = 7, bodyBytes = 100_000, tag = 'bz' } = {}): Uint8Array {
  const setup = noise(`${tag}-setup`, ((setupSects || 4) + 1) * 512);
  const view = new DataView(setup.buffer);
  view.setUint8(0x1f1, setupSects);
  view.setUint16(0x1fe, 0xaa55, true);
  setup.set(new TextEncoder().encode('HdrS'), 0x202);
  view.setUint16(0x206, 0x020f, true);
  view.setUint8(0x210, 0);
  view.setUint8(0x211, 1);
  view.setUint32(0x214, 0x10_0000, true);
  for (const at of [0x218, 0x21c, 0x228]) view.setUint32(at, 0, true);
  return concat([setup, noise(`${tag}-body`, bodyBytes)]);
}

export interface ElfSegment {
  readonly base: number;
  /** p_paddr; default: `base`. */
  readonly physical?: number;
  readonly fileBytes: number;
  readonly memoryBytes: number;
}

/** A static 32-bit ELF file; with a Multiboot header at the start of the first segment if flags are given. */
export function elf32({
  multibootFlags = undefined as number | undefined,
  entry = undefined as number | undefined,
  segments = [{ base: 0x200_0000, fileBytes: 6000, memoryBytes: 8192 }] as readonly ElfSegment[],
} = {}): Uint8Array {
  const head = new Uint8Array(Math.ceil((52 + 32 * segments.length) / 4096) * 4096);
  const view = new DataView(head.buffer);
  head.set([0x7f, 0x45, 0x4c, 0x46, 1, 1, 1]);
  const half = (at: number, value: number) => view.setUint16(at, value, true);
  const word = (at: number, value: number) => view.setUint32(at, value, true);
  half(16, 2); // ET_EXEC
  half(18, 3); // EM_386
  word(20, 1);
  word(24, entry ?? (segments[0]?.base ?? 0) + 0x10);
  word(28, 52); // e_phoff
  half(40, 52);
  half(42, 32); // e_phentsize
  half(44, segments.length);
  half(46, 40);
  const parts = [head];
  let offset = head.length;
  for (const [i, segment] of segments.entries()) {
    const fields = [
      1,
      offset,
      segment.base,
      segment.physical ?? segment.base,
      segment.fileBytes,
      segment.memoryBytes,
      7,
      4096,
    ];
    for (const [j, value] of fields.entries()) word(52 + 32 * i + 4 * j, value);
    const data = new Uint8Array(Math.ceil(segment.fileBytes / 4096) * 4096);
    data.set(noise(`elf${i}`, segment.fileBytes));
    if (i === 0 && multibootFlags !== undefined) {
      const magic = 0x1bad_b002;
      const dataView = new DataView(data.buffer);
      for (const [j, value] of [magic, multibootFlags, -(magic + multibootFlags)].entries()) {
        dataView.setUint32(4 * j, value, true);
      }
    }
    parts.push(data);
    offset += data.length;
  }
  return concat(parts);
}

/**
 * A static 64-bit ELF file linked high, as kernels are: the first segment is at `physical` and begins with a Multiboot
 * header if flags are given; `note` is an ELF note of Xen's.
 */
export function elf64({
  multibootFlags = undefined as number | undefined,
  note = undefined as { readonly type: number; readonly description: Uint8Array } | undefined,
  physical = 0x10_0000,
  fileBytes = 5000,
  memoryBytes = 9000,
} = {}): Uint8Array {
  const high = 0xffff_ffff_8000_0000n;
  const head = new Uint8Array(4096);
  const view = new DataView(head.buffer);
  head.set([0x7f, 0x45, 0x4c, 0x46, 2, 1, 1]);
  view.setUint16(16, 2, true); // ET_EXEC
  view.setUint16(18, 62, true); // EM_X86_64
  view.setBigUint64(24, high + BigInt(physical) + 0x20n, true);
  view.setBigUint64(32, 64n, true);
  view.setUint16(54, 56, true);
  view.setUint16(56, note === undefined ? 1 : 2, true);
  const header = (index: number, type: number, words: readonly bigint[]) => {
    view.setUint32(64 + 56 * index, type, true);
    for (const [i, word] of words.entries()) view.setBigUint64(72 + 56 * index + 8 * i, word, true);
  };
  header(0, 1, [4096n, high + BigInt(physical), BigInt(physical), BigInt(fileBytes), BigInt(memoryBytes), 4096n]);
  if (note !== undefined) {
    const at = 512;
    const { description, type } = note;
    for (const [i, word] of [4, description.length, type].entries()) view.setUint32(at + 4 * i, word, true);
    head.set(new TextEncoder().encode('Xen'), at + 12);
    head.set(description, at + 16);
    header(1, 4, [BigInt(at), 0n, 0n, BigInt(16 + description.length), 0n, 4n]);
  }
  const data = noise('elf64', fileBytes);
  if (multibootFlags !== undefined) {
    const magic = 0x1bad_b002;
    const words = new DataView(data.buffer);
    for (const [i, word] of [magic, multibootFlags, -(magic + multibootFlags)].entries())
      words.setUint32(4 * i, word, true);
  }
  return concat([head, data]);
}

function concat(parts: readonly Uint8Array[]): Uint8Array {
  const out = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    out.set(part, at);
    at += part.length;
  }
  return out;
}

/** A directory for one test, gone when it is over. */
export function temporaryDirectory(): string {
  const dir = mkdtempSync(join(tmpdir(), 'acrn-dm-test-'));
  onTestFinished(() => rmSync(dir, { recursive: true, force: true }));
  return dir;
}

/** Write a file into a directory. @returns its path. */
export function file(dir: string, name: string, content: Uint8Array | string): string {
  const path = join(dir, name);
  writeFileSync(path, content);
  return path;
}
