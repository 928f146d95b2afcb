/** What IDENTIFY DEVICE and IDENTIFY PACKET DEVICE say (ACS-3 §7.12, §7.13): 256 words, each with its number there. */
import type { DiskImage } from '../../storage/disk-image.ts';

export const IDENTIFY_BYTES = 512;

/** The transfer mode that a drive is in. */
export interface TransferMode {
  readonly kind: 'pio' | 'mdma' | 'udma';
  readonly number: number;
}
export const POWER_ON_MODE: TransferMode = { kind: 'udma', number: 6 };

/** What the two kinds of drive have in common. */
interface Identity {
  readonly serial: string;
  readonly mode: TransferMode;
  /** Bits 7:4 of PxSSTS. */
  readonly linkSpeed: number;
}

export interface DiskIdentity extends Identity {
  readonly image: DiskImage;
  /** Sectors of READ MULTIPLE; 0: off. */
  readonly multipleSectors: number;
  readonly hasTrim: boolean;
}

/** Words 82 to 87, features (§7.12.7.39 on). */
const Feature82 = {
  PowerManagement: 1 << 3,
  Packet: 1 << 4,
  WriteCache: 1 << 5,
  LookAhead: 1 << 6,
  DeviceReset: 1 << 9,
  Nop: 1 << 14,
} as const;
const Feature83 = { Lba48: 1 << 10, Flush: 1 << 12, FlushExt: 1 << 13 } as const;
/** Bit 14 set and bit 15 clear say that a word is valid. */
const VALID = 1 << 14;
/** Word 76: generations 1 to 3 of the link. */
const SATA_GENERATIONS = 0x000e;
const NATIVE_QUEUING = 1 << 8;
/** Word 77. */
const SEND_RECEIVE_QUEUED = 1 << 6;
/** Word 69: what was trimmed reads as zeros, and always the same. */
const TRIM_READS = (1 << 5) | (1 << 14);
/** Words 119 and 120: READ LOG DMA EXT and its like. */
const LOG_DMA = 1 << 3;
/** Words 65 to 68: nanoseconds of a cycle. */
const CYCLE_NS = 120;
/** Word 80: ATA/ATAPI-4 to ACS-2. */
const MAJOR_VERSIONS = 0x03f0;
const MAX_LBA28_SECTORS = 0x0fff_ffff;
/** Word 255: the signature before the checksum. */
const CHECKSUM_SIGNATURE = 0xa5;

export function identifyDisk(id: DiskIdentity, target: Uint8Array): void {
  const { image } = id;
  const words = new Uint16Array(IDENTIFY_BYTES / 2);
  const sectors = Math.floor(image.sizeBytes / image.logicalSectorBytes);
  const geometry = geometryOf(sectors);
  words[0] = 0x0040;
  words[1] = geometry.cylinders;
  words[3] = geometry.heads;
  words[6] = geometry.sectors;
  words[47] = 0x8000 | 128;
  // DMA, LBA, IORDY.
  words[49] = (1 << 8) | (1 << 9) | (1 << 11);
  words[50] = VALID;
  words[53] = (1 << 1) | (1 << 2);
  if (id.multipleSectors !== 0) words[59] = 0x100 | id.multipleSectors;
  const sectors28 = Math.min(sectors, MAX_LBA28_SECTORS);
  words[60] = sectors28 & 0xffff;
  words[61] = sectors28 >>> 16;
  // Word 75: queue depth less one.
  words[75] = 31;
  words[76] = SATA_GENERATIONS | NATIVE_QUEUING;
  words[77] = SEND_RECEIVE_QUEUED | (id.linkSpeed >> 3);
  words[81] = 0x28;
  words[82] = Feature82.PowerManagement | Feature82.WriteCache | Feature82.LookAhead | Feature82.Nop;
  words[83] = Feature83.Lba48 | Feature83.Flush | Feature83.FlushExt | VALID;
  words[85] = words[82] as number;
  words[86] = Feature83.Lba48 | Feature83.Flush | Feature83.FlushExt | (1 << 15);
  for (let i = 0; i < 4; i++) words[100 + i] = Math.floor(sectors / 2 ** (16 * i)) & 0xffff;
  if (id.hasTrim) {
    words[69] = TRIM_READS;
    // One block of 64 ranges in a command.
    words[105] = 1;
    words[169] = 1;
  }
  setSectorSizes(words, image);
  words[119] = LOG_DMA | VALID;
  words[120] = LOG_DMA | VALID;
  finish(words, id, 'ACRN-DM SATA DISK', target);
}

/** Words 106, 117, 118, 209. */
function setSectorSizes(words: Uint16Array, { logicalSectorBytes, physicalSectorBytes }: DiskImage): void {
  words[106] = VALID;
  words[209] = VALID;
  if (physicalSectorBytes > logicalSectorBytes) {
    words[106] |= 0x2000 | Math.floor(Math.log2(physicalSectorBytes / logicalSectorBytes));
  }
  if (logicalSectorBytes > 512) {
    words[106] |= 0x1000;
    words[117] = (logicalSectorBytes / 2) & 0xffff;
    words[118] = (logicalSectorBytes / 2) >>> 16;
  }
}

export function identifyPacket(id: Identity, target: Uint8Array): void {
  const words = new Uint16Array(IDENTIFY_BYTES / 2);
  // ATAPI, CD-ROM, removable, answers within 50 us, commands of 12 bytes.
  words[0] = (2 << 14) | (5 << 8) | (1 << 7) | (2 << 5);
  words[49] = (1 << 9) | (1 << 8);
  words[50] = VALID | 1;
  words[53] = (1 << 2) | (1 << 1);
  words[62] = 0x3f;
  words[76] = SATA_GENERATIONS;
  words[77] = id.linkSpeed >> 3;
  // Asynchronous notification.
  words[78] = 1 << 5;
  words[82] = Feature82.PowerManagement | Feature82.Packet | Feature82.DeviceReset | Feature82.Nop;
  words[83] = VALID;
  words[85] = words[82] as number;
  finish(words, id, 'ACRN-DM SATA DVD ROM', target);
}

/** What both say in the same words; names and checksum. */
function finish(words: Uint16Array, { serial, mode }: Identity, model: string, target: Uint8Array): void {
  words[63] = 0x7 | (mode.kind === 'mdma' ? 1 << (mode.number + 8) : 0);
  words[64] = 0x3;
  words.fill(CYCLE_NS, 65, 69);
  words[80] = MAJOR_VERSIONS;
  words[84] = VALID;
  words[87] = VALID;
  words[88] = 0x7f | (mode.kind === 'udma' ? 1 << (mode.number + 8) : 0);
  words[222] = 0x1020;
  words[255] = CHECKSUM_SIGNATURE;
  for (let i = 0; i < words.length; i++) {
    target[2 * i] = (words[i] as number) & 0xff;
    target[2 * i + 1] = (words[i] as number) >>> 8;
  }
  putString(target, 10, serial, 20);
  putString(target, 23, '001', 8);
  putString(target, 27, model, 40);
  setChecksum(target);
}

/** ASCII with the bytes of each word swapped (§3.3.9), filled with spaces. */
function putString(target: Uint8Array, word: number, text: string, length: number): void {
  for (let i = 0; i < length; i++) target[2 * word + (i ^ 1)] = i < text.length ? text.charCodeAt(i) : 0x20;
}

/** The last byte makes the sum of all of them zero. */
export function setChecksum(block: Uint8Array): void {
  let sum = 0;
  for (let i = 0; i < IDENTIFY_BYTES - 1; i++) sum += block[i] as number;
  block[IDENTIFY_BYTES - 1] = -sum & 0xff;
}

/**
 * Cylinders, heads and sectors as virtual disks have them (the algorithm of the VHD specification, appendix): what old
 * systems go by. Compat: C counts as it does, so that they find their partitions again.
 */
export function geometryOf(sectors: number): { cylinders: number; heads: number; sectors: number } {
  const total = Math.min(sectors, 65535 * 16 * 255);
  if (total >= 65536 * 16 * 63) return { cylinders: Math.floor(Math.floor(total / 255) / 16), heads: 16, sectors: 255 };
  let perTrack = 17;
  let tracks = Math.floor(total / perTrack);
  let heads = Math.max(4, Math.floor((tracks + 1023) / 1024));
  if (tracks >= heads * 1024 || heads > 16) {
    perTrack = 31;
    heads = 16;
    tracks = Math.floor(total / perTrack);
  }
  if (tracks >= heads * 1024) {
    perTrack = 63;
    heads = 16;
    tracks = Math.floor(total / perTrack);
  }
  return { cylinders: Math.floor(tracks / heads), heads, sectors: perTrack };
}
