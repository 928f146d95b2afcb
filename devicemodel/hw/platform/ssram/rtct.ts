/**
 * The real-time configuration table of a guest with software SRAM. Spec: Intel, RTCT version 2; entries are u16 size,
 * u16 format, u32 type, data.
 */
import type { CacheHierarchy, SsramBuffer } from './buffers.ts';

const HEADER_BYTES = 36;
const CHECKSUM_AT = 9;
const ENTRY_BYTES = 8;
const Entry = { Compatibility: 0, SsramWayMask: 6, Ssram: 7, MemoryLatency: 8 } as const;

function entry(type: number, format: number, words: readonly number[]): Buffer {
  const bytes = Buffer.alloc(ENTRY_BYTES + 4 * words.length);
  bytes.writeUInt16LE(bytes.length, 0);
  bytes.writeUInt16LE(format, 2);
  bytes.writeUInt32LE(type, 4);
  words.forEach((word, i) => {
    bytes.writeUInt32LE(word, ENTRY_BYTES + 4 * i);
  });
  return bytes;
}

/** Entries of a table of the host. */
function* entriesOf(table: Uint8Array): Generator<Buffer> {
  const bytes = Buffer.from(table);
  if (bytes.length < HEADER_BYTES) return;
  const end = Math.min(bytes.readUInt32LE(4), bytes.length);
  for (let at = HEADER_BYTES; at + ENTRY_BYTES <= end; ) {
    const sizeBytes = bytes.readUInt16LE(at);
    if (sizeBytes < ENTRY_BYTES || at + sizeBytes > end) return;
    yield bytes.subarray(at, at + sizeBytes);
    at += sizeBytes;
  }
}

const typeOf = (bytes: Buffer) => bytes.readUInt32LE(4);

/** Whether the host's table is of the version whose latencies can be handed on. */
export function isVersion2(table: Uint8Array): boolean {
  const [compatibility] = [...entriesOf(table)].filter((each) => typeOf(each) === Entry.Compatibility);
  return compatibility !== undefined && compatibility.length >= 12 && compatibility.readUInt32LE(ENTRY_BYTES) === 2;
}

/** @param ways by buffer. @param host its table, for the latencies of its memory. */
export function guestRtct(
  buffers: readonly SsramBuffer[],
  ways: ReadonlyMap<SsramBuffer, number>,
  { isL3Inclusive }: CacheHierarchy,
  host: Uint8Array,
): Uint8Array {
  const entries = [entry(Entry.Compatibility, 1, [2, 0, 0, 0])];
  for (const buffer of buffers) {
    const { level, cacheId, sizeBytes, gpa } = buffer;
    const below = isL3Inclusive && level === 3 ? buffer.inclusiveBytes : 0;
    entries.push(
      entry(Entry.SsramWayMask, 1, [level, cacheId, ways.get(buffer) ?? 0]),
      entry(Entry.Ssram, 2, [level, cacheId, gpa - below, 0, sizeBytes + below, 0]),
    );
  }
  for (const each of entriesOf(host)) if (typeOf(each) === Entry.MemoryLatency) entries.push(each);
  const header = Buffer.alloc(HEADER_BYTES);
  const table = Buffer.concat([header, ...entries]);
  table.write('RTCT', 0, 'latin1');
  table.writeUInt32LE(table.length, 4);
  table[8] = 1;
  table.write('INTEL', 10, 'latin1');
  table.write('EDK2', 16, 'latin1');
  table.writeUInt32LE(5, 24);
  table.write('INTL', 28, 'latin1');
  table.writeUInt32LE(0x0100_000d, 32);
  table[CHECKSUM_AT] = -table.reduce((sum, byte) => sum + byte, 0) & 0xff;
  return table;
}
