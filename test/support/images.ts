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
  entry = 0x200_0010,
  segments = [{ base: 0x200_0000, fileBytes: 6000, memoryBytes: 8192 }] as readonly ElfSegment[],
} = {}): Uint8Array {
  const head = new Uint8Array(4096);
  const view = new DataView(head.buffer);
  head.set([0x7f, 0x45, 0x4c, 0x46, 1, 1, 1]);
  const half = (at: number, value: number) => view.setUint16(at, value, true);
  const word = (at: number, value: number) => view.setUint32(at, value, true);
  half(16, 2); // ET_EXEC
  half(18, 3); // EM_386
  word(20, 1);
  word(24, entry);
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
