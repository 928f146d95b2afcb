/**
 * Multiboot 2: the header of an image and the information it finds in EBX. Spec: Multiboot2 2.0 §3.1 (header), §3.6
 * (information).
 */
import type { Gpa } from '../address.ts';
import { buildE820, type E820Input } from '../firmware/e820.ts';
import { Layout } from '../layout.ts';
import type { GuestMemory } from '../memory.ts';
import { addr, struct, u32 } from '../struct.ts';
import { KiB, MiB } from '../units.ts';
import type { MultibootAddresses, MultibootModule } from './multiboot.ts';

/** The header is in the first 32 KiB, aligned to 8 bytes. */
export const MULTIBOOT2_SEARCH_BYTES = 32 * KiB;
const MAGIC = 0xe852_50d6;
/** Protected mode of i386. */
const ARCHITECTURE = 0;
/** What an image finds in EAX. */
export const MULTIBOOT2_EAX = 0x36d7_6289n;
const HEADER_BYTES = 16;
const TAG_ALIGNMENT = 8;
/** A tag the loader may ignore. */
const OPTIONAL = 1;
/** The image is loaded from the start of the file. */
const FROM_FILE_START = 0xffff_ffff;

/** Tags of the header (§3.1.3 on). Those of a screen and of EFI ask for what an image has to do without here. */
const HeaderTag = { end: 0, request: 1, addresses: 2, entry: 3, lastKnown: 10 } as const;
/** Tags of the information. */
const InfoTag = { end: 0, cmdline: 1, loaderName: 2, module: 3, memory: 4, map: 6, newRsdp: 15 } as const;
const PROVIDED: readonly number[] = Object.values(InfoTag);
const BOOT_LOADER_NAME = 'acrn-dm';
/** ACPI 6.5 §5.2.5.3: the root pointer of version 2. */
const RSDP_BYTES = 36;
const MapEntry = struct({ base: addr, size: addr, type: u32, reserved: u32 });

export interface Multiboot2Header {
  /** Where in the file it is. */
  readonly offset: number;
  /** What an image makes a condition of its start and does not get: `tag 77`, `information 12`. */
  readonly unsupported: string | undefined;
  readonly addresses: Omit<MultibootAddresses, 'entry'> | undefined;
  /** Without: that of the ELF file. */
  readonly entry: Gpa | undefined;
}

/** @param head the first bytes of the file. */
export function findMultiboot2Header(head: DataView): Multiboot2Header | undefined {
  for (let offset = 0; offset + HEADER_BYTES <= head.byteLength; offset += TAG_ALIGNMENT) {
    if (head.getUint32(offset, true) !== MAGIC || head.getUint32(offset + 4, true) !== ARCHITECTURE) continue;
    const length = head.getUint32(offset + 8, true);
    const sum = MAGIC + ARCHITECTURE + length + head.getUint32(offset + 12, true);
    if (sum % 2 ** 32 === 0) return tagsOf(head, offset, Math.min(offset + length, head.byteLength));
  }
  return undefined;
}

function tagsOf(head: DataView, offset: number, end: number): Multiboot2Header {
  let unsupported: string | undefined;
  let addresses: Omit<MultibootAddresses, 'entry'> | undefined;
  let entry: Gpa | undefined;
  for (let at = offset + HEADER_BYTES; at + 8 <= end; ) {
    const type = head.getUint16(at, true);
    const size = head.getUint32(at + 4, true);
    if (type === HeaderTag.end || size < 8 || at + size > end) break;
    const word = (index: number) => head.getUint32(at + 8 + 4 * index, true);
    const isOptional = (head.getUint16(at + 2, true) & OPTIONAL) !== 0;
    if (type === HeaderTag.request && !isOptional) {
      const wanted = Array.from({ length: Math.floor((size - 8) / 4) }, (_, i) => word(i));
      const missing = wanted.find((info) => !PROVIDED.includes(info));
      if (missing !== undefined) unsupported ??= `information ${missing}`;
    } else if (type === HeaderTag.addresses && size >= 24) {
      const [headerAddress, loadAddress, loadEndAddress, bssEndAddress] = [word(0), word(1), word(2), word(3)];
      const fromStart = headerAddress - offset;
      const load = loadAddress === FROM_FILE_START ? fromStart : loadAddress;
      addresses = { headerAddress, loadAddress: load, loadEndAddress, bssEndAddress };
    } else if (type === HeaderTag.entry && size >= 12) {
      entry = word(0);
    } else if (type > HeaderTag.lastKnown && !isOptional) {
      unsupported ??= `tag ${type}`;
    }
    at += Math.ceil(size / TAG_ALIGNMENT) * TAG_ALIGNMENT;
  }
  return { offset, unsupported, entry, addresses };
}

/** Write the information at {@link Layout.multiboot.base}. @returns its address. */
export function writeMultiboot2Info(
  memory: GuestMemory,
  ram: E820Input,
  cmdline: string,
  modules: readonly MultibootModule[],
): Gpa {
  const { base } = Layout.multiboot;
  const map = buildE820(ram).filter((entry) => entry.size > 0);
  const low = map.find((entry) => entry.base === 0)?.size ?? 0;
  const upper = map.find((entry) => entry.base === MiB)?.size ?? 0;
  const entries = map.map((entry) => MapEntry.encode({ ...entry, reserved: 0 }));
  const tags = [
    tag(InfoTag.cmdline, text(cmdline)),
    tag(InfoTag.loaderName, text(BOOT_LOADER_NAME)),
    ...modules.map((m) => tag(InfoTag.module, words(m.at, m.at + m.sizeBytes), text(m.string))),
    tag(InfoTag.memory, words(low / KiB, Math.floor(upper / KiB))),
    tag(InfoTag.map, words(MapEntry.size, 0), ...entries),
    tag(InfoTag.newRsdp, memory.read(Layout.acpiBase, RSDP_BYTES)),
    tag(InfoTag.end),
  ];
  const total = 8 + tags.reduce((sum, bytes) => sum + bytes.length, 0);
  memory.write(base, Buffer.concat([words(total, 0), ...tags]));
  return base;
}

function words(...values: number[]): Uint8Array {
  const view = new DataView(new ArrayBuffer(4 * values.length));
  for (const [i, value] of values.entries()) view.setUint32(4 * i, value, true);
  return new Uint8Array(view.buffer);
}

function text(value: string): Uint8Array {
  return new TextEncoder().encode(`${value}\0`);
}

/** Padded for the next one; the padding does not count. */
function tag(type: number, ...parts: readonly Uint8Array[]): Uint8Array {
  const size = 8 + parts.reduce((sum, part) => sum + part.length, 0);
  const out = new Uint8Array(Math.ceil(size / TAG_ALIGNMENT) * TAG_ALIGNMENT);
  out.set(Buffer.concat([words(type, size), ...parts]));
  return out;
}
