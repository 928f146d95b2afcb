/**
 * The memory map as a PC's firmware tells it (INT 15h function E820; ACPI 6.4 §15.1). It goes into the zero page of a
 * Linux kernel, or into a block that OVMF looks for.
 */
import type { Gpa } from '../address.ts';
import { BugError } from '../errors.ts';
import { Layout } from '../layout.ts';
import { addr } from '../struct.ts';
import { GiB, KiB, MiB } from '../units.ts';

/** ACPI 6.4 table 15.1. */
export const E820Type = { Ram: 1, Reserved: 2, AcpiReclaimable: 3, AcpiNvs: 4, Unusable: 5 } as const;

export interface E820Entry {
  readonly base: Gpa;
  readonly size: number;
  readonly type: number;
}

export interface E820Range {
  readonly base: Gpa;
  readonly size: number;
}

export interface E820Input {
  /** RAM from 0, at most {@link Layout.lowRamLimit}. */
  readonly lowRamBytes: number;
  /** RAM from 4 GiB on. */
  readonly highRamBytes: number;
  /** Stolen memory of a passed-through GPU: inside the low range, identity mapped. */
  readonly gpuReserved?: E820Range;
  /** Software SRAM; below the GPU's. */
  readonly softwareSram?: E820Range;
}

/** Where low RAM that images may be put into ends. */
export function usableLowRam({ lowRamBytes, gpuReserved, softwareSram }: E820Input): Gpa {
  return Math.min(lowRamBytes, gpuReserved?.base ?? lowRamBytes, softwareSram?.base ?? lowRamBytes);
}

/** One entry: base u64, size u64, type u32. */
export const E820_ENTRY_BYTES = 20;

/** Memory that guests treat as the video adapter's begins here. */
const VIDEO_BASE = 640 * KiB;

/**
 * The map, lowest address first.
 *
 * Compat: without high RAM the C device model ends its map with a reserved entry of no length at 4 GiB. Guests skip
 * it; it is kept, so that what the guest finds is the same to the byte.
 */
export function buildE820(input: E820Input): readonly E820Entry[] {
  const { lowRamLimit, highRamBase, ecam } = Layout;
  const gpu = input.gpuReserved ?? { base: lowRamLimit, size: 0 };
  const sram = input.softwareSram ?? { base: gpu.base, size: 0 };
  // RAM stops below the first hole, and goes on behind the last.
  const firstEnd = Math.min(input.lowRamBytes, sram.base);
  const secondBase = gpu.base + gpu.size;
  const second = Math.max(0, input.lowRamBytes - secondBase);
  const entries: E820Entry[] = [
    { base: 0, size: VIDEO_BASE, type: E820Type.Ram },
    { base: 1 * MiB, size: firstEnd - 1 * MiB, type: E820Type.Ram },
    { ...sram, type: E820Type.Reserved },
    { ...gpu, type: E820Type.Reserved },
    { base: secondBase, size: input.lowRamBytes > sram.base ? second : 0, type: E820Type.Ram },
    { base: ecam.base, size: 4 * GiB - ecam.base, type: E820Type.Reserved },
  ];
  const high: E820Entry = {
    base: highRamBase,
    size: input.highRamBytes,
    type: input.highRamBytes > 0 ? E820Type.Ram : E820Type.Reserved,
  };
  return [...entries.filter((entry) => entry.size > 0), high];
}

/** Entries the C device model's table has room for. */
const TABLE_SLOTS = 7;

/**
 * Entries as firmware and kernels read them.
 *
 * Compat: C squeezes empty entries out of a table of seven, which leaves copies of the last one behind the end. The
 * count says how many are meant; the copies are made here too, so that guest memory is the same to the byte.
 */
export function encodeE820(entries: readonly E820Entry[]): Uint8Array {
  const slots = Math.max(TABLE_SLOTS, entries.length);
  const out = new Uint8Array(slots * E820_ENTRY_BYTES);
  const view = new DataView(out.buffer);
  for (let i = 0; i < slots; i++) {
    const entry = entries[Math.min(i, entries.length - 1)];
    if (entry === undefined) throw new BugError('e820: the map is empty');
    addr.write(view, i * E820_ENTRY_BYTES, entry.base);
    addr.write(view, i * E820_ENTRY_BYTES + 8, entry.size);
    view.setUint32(i * E820_ENTRY_BYTES + 16, entry.type, true);
  }
  return out;
}

/** What OVMF reads at {@link Layout.ovmfE820Base}: `820` and a NUL, the number of entries, the entries. */
export function ovmfE820Block(entries: readonly E820Entry[]): Uint8Array {
  const map = encodeE820(entries);
  const out = new Uint8Array(8 + map.length);
  out.set([0x38, 0x32, 0x30, 0x00]);
  new DataView(out.buffer).setUint32(4, entries.length, true);
  out.set(map, 8);
  return out;
}
