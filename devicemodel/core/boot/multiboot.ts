/**
 * Multiboot 1: the header of an image and the information it finds in EBX. Spec: Multiboot 0.6.96 §3.1 (header), §3.3
 * (information).
 */
import type { Gpa } from '../address.ts';
import { buildE820, type E820Input } from '../firmware/e820.ts';
import { Layout } from '../layout.ts';
import type { GuestMemory } from '../memory.ts';
import { addr, struct, u32 } from '../struct.ts';
import { KiB, MiB } from '../units.ts';

/** The header is in the first 8 KiB, aligned to 4 bytes. */
export const MULTIBOOT_SEARCH_BYTES = 8 * KiB;
const MAGIC = 0x1bad_b002;
/** What an image finds in EAX. */
export const MULTIBOOT_EAX = 0x2bad_b002n;
/** Header flags (§3.1.2). 0 and 1 ask for what is given anyway; 2..15 must be understood or the image refused. */
const HAS_ADDRESSES = 1 << 16;
const MUST_UNDERSTAND = 0xfffc;

/** The address fields of a header that has them (§3.1.3). */
export interface MultibootAddresses {
  /** Physical address of the header itself. */
  readonly headerAddress: Gpa;
  readonly loadAddress: Gpa;
  /** 0: everything up to the end of the file. */
  readonly loadEndAddress: Gpa;
  /** 0: nothing to clear. */
  readonly bssEndAddress: Gpa;
  readonly entry: Gpa;
}

export interface MultibootHeader {
  readonly flags: number;
  /** Where in the file it is. */
  readonly offset: number;
  /** Requests that an image makes a condition of its start, and that are not served. */
  readonly unsupported: number;
  readonly addresses: MultibootAddresses | undefined;
}

/**
 * The header of an image, or undefined without one. The first magic number decides: if magic, flags and checksum do not
 * sum up to zero it is no header.
 * @param head the first bytes of the file.
 */
export function findMultibootHeader(head: DataView): MultibootHeader | undefined {
  for (let offset = 0; offset + 12 <= head.byteLength; offset += 4) {
    if (head.getUint32(offset, true) !== MAGIC) continue;
    const flags = head.getUint32(offset + 4, true);
    if ((MAGIC + flags + head.getUint32(offset + 8, true)) % 2 ** 32 !== 0) return undefined;
    const hasAddresses = (flags & HAS_ADDRESSES) !== 0 && offset + 32 <= head.byteLength;
    const word = (i: number) => head.getUint32(offset + 4 * i, true);
    return {
      flags,
      offset,
      unsupported: flags & MUST_UNDERSTAND,
      addresses: hasAddresses
        ? {
            headerAddress: word(3),
            loadAddress: word(4),
            loadEndAddress: word(5),
            bssEndAddress: word(6),
            entry: word(7),
          }
        : undefined,
    };
  }
  return undefined;
}

/** §3.3; what is not listed stays zero. */
const Info = struct({
  flags: u32,
  memLowerKib: u32,
  memUpperKib: u32,
  bootDevice: u32,
  cmdline: u32,
  modsCount: u32,
  modsAddr: u32,
  syms0: u32,
  syms1: u32,
  syms2: u32,
  syms3: u32,
  mmapLength: u32,
  mmapAddr: u32,
  drivesLength: u32,
  drivesAddr: u32,
  configTable: u32,
  bootLoaderName: u32,
  apmTable: u32,
});
const InfoFlag = {
  Memory: 1 << 0,
  Cmdline: 1 << 2,
  Modules: 1 << 3,
  MemoryMap: 1 << 6,
  BootLoaderName: 1 << 9,
} as const;
const Module = struct({ start: u32, end: u32, string: u32, reserved: u32 });
/** `size` does not count itself. */
const MapEntry = struct({ size: u32, base: addr, length: addr, type: u32 }, { packed: true });
const BOOT_LOADER_NAME = 'acrn-dm';

export interface MultibootModule {
  readonly at: Gpa;
  readonly sizeBytes: number;
  readonly string: string;
}

/** Write information, memory map, module list and strings at {@link Layout.multiboot.base}. @returns its address. */
export function writeMultibootInfo(
  memory: GuestMemory,
  ram: E820Input,
  cmdline: string,
  modules: readonly MultibootModule[],
): Gpa {
  const { base } = Layout.multiboot;
  let at = base + Info.size;
  const put = (bytes: Uint8Array): Gpa => {
    const place = at;
    memory.write(place, bytes);
    at += Math.ceil(bytes.length / 4) * 4;
    return place;
  };
  const text = (value: string) => put(new TextEncoder().encode(`${value}\0`));
  const map = buildE820(ram).filter((entry) => entry.size > 0);
  const low = map.find((entry) => entry.base === 0)?.size ?? 0;
  const upper = map.find((entry) => entry.base === MiB)?.size ?? 0;
  const entries = map.map(({ base, size, type }) =>
    MapEntry.encode({ size: MapEntry.size - 4, base, length: size, type }),
  );
  const mmapAddr = put(Buffer.concat(entries));
  const list = modules.map((m) => Module.encode({ start: m.at, end: m.at + m.sizeBytes, string: text(m.string) }));
  const modsAddr = list.length > 0 ? put(Buffer.concat(list)) : 0;
  const info = Info.encode({
    flags:
      InfoFlag.Memory |
      InfoFlag.Cmdline |
      InfoFlag.MemoryMap |
      InfoFlag.BootLoaderName |
      (list.length > 0 ? InfoFlag.Modules : 0),
    memLowerKib: low / KiB,
    memUpperKib: Math.floor(upper / KiB),
    cmdline: text(cmdline),
    modsCount: list.length,
    modsAddr,
    mmapLength: MapEntry.size * entries.length,
    mmapAddr,
    bootLoaderName: text(BOOT_LOADER_NAME),
  });
  memory.write(base, info);
  return base;
}
