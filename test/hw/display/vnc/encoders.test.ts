/** Rectangles in every form a viewer may ask for, decoded again by RFC 6143 alone. */
import { constants, createInflate, type Inflate } from 'node:zlib';
import * as fc from 'fast-check';
import { expect, test } from 'vitest';
import { Encoders } from '../../../../devicemodel/hw/display/vnc/encoders.ts';
import { decodeFormat, PixelWriter } from '../../../../devicemodel/hw/display/vnc/pixel-format.ts';

const [RAW, ZLIB, ZRLE] = [0, 6, 16];
const colors = ['red', 'green', 'blue'] as const;
type Color = (typeof colors)[number];

interface Format {
  readonly bits: 8 | 16 | 32;
  readonly depth: number;
  readonly isBigEndian: boolean;
  readonly max: Record<Color, number>;
  readonly shift: Record<Color, number>;
}

/** The message a viewer sends, byte by byte (§7.4). */
function messageOf({ bits, depth, isBigEndian, max, shift }: Format): Uint8Array {
  const maxima = colors.flatMap((color) => [max[color] >> 8, max[color] & 0xff]);
  return Uint8Array.of(bits, depth, isBigEndian ? 1 : 0, 1, ...maxima, ...colors.map((c) => shift[c]), 0, 0, 0);
}

/** What a viewer expects a pixel of the display to be. */
function expectedValue(format: Format, pixel: number): number {
  const shares = { red: (pixel >>> 16) & 0xff, green: (pixel >>> 8) & 0xff, blue: pixel & 0xff };
  return colors.reduce(
    (sum, color) => sum + Math.round((shares[color] * format.max[color]) / 255) * 2 ** format.shift[color],
    0,
  );
}

/** §7.7.5; where both ends of a pixel would do, viewers take that which comes first in memory. */
function compactOf({ bits, depth, isBigEndian, max, shift }: Format): { bytes: number; factor: number } {
  const ends = colors.map((color) => max[color] * 2 ** shift[color]);
  const fitsLow = ends.every((end) => end < 2 ** 24);
  const fitsHigh = colors.every((color) => shift[color] >= 8);
  if (bits !== 32 || depth > 24 || !(fitsLow || fitsHigh)) return { bytes: bits / 8, factor: 1 };
  const isHigh = isBigEndian ? fitsHigh : !fitsLow;
  return { bytes: 3, factor: isHigh ? 256 : 1 };
}

class Viewer {
  readonly #streams = new Map<number, { inflate: Inflate; chunks: Buffer[] }>();

  async decode(encoding: number, body: Buffer, format: Format, width: number, height: number): Promise<number[]> {
    if (encoding === RAW) return values(body, format.bits / 8, format.isBigEndian);
    expect(body.readUInt32BE(0)).toBe(body.length - 4);
    const bytes = await this.#inflated(encoding, body.subarray(4));
    if (encoding === ZLIB) return values(bytes, format.bits / 8, format.isBigEndian);
    return tiles(bytes, format, width, height);
  }

  async #inflated(encoding: number, data: Buffer): Promise<Buffer> {
    let stream = this.#streams.get(encoding);
    if (stream === undefined) {
      stream = { inflate: createInflate({ finishFlush: constants.Z_SYNC_FLUSH }), chunks: [] };
      this.#streams.set(encoding, stream);
      const { chunks } = stream;
      stream.inflate.on('data', (chunk: Buffer) => chunks.push(chunk));
    }
    const { inflate, chunks } = stream;
    inflate.write(data);
    await new Promise<void>((resolve) => inflate.flush(constants.Z_SYNC_FLUSH, () => resolve()));
    return Buffer.concat(chunks.splice(0));
  }

  close(): void {
    for (const { inflate } of this.#streams.values()) inflate.destroy();
  }
}

function values(bytes: Buffer, size: number, isBigEndian: boolean): number[] {
  expect(bytes.length % size).toBe(0);
  return Array.from({ length: bytes.length / size }, (_, i) =>
    isBigEndian ? bytes.readUIntBE(i * size, size) : bytes.readUIntLE(i * size, size),
  );
}

function tiles(bytes: Buffer, format: Format, width: number, height: number): number[] {
  const compact = compactOf(format);
  const pixels = new Array<number>(width * height).fill(-1);
  let at = 0;
  const color = () => {
    const part = bytes.subarray(at, at + compact.bytes);
    at += compact.bytes;
    return (values(part, compact.bytes, format.isBigEndian)[0] as number) * compact.factor;
  };
  for (let top = 0; top < height; top += 64) {
    for (let left = 0; left < width; left += 64) {
      const across = Math.min(64, width - left);
      const count = across * Math.min(64, height - top);
      const tile: number[] = [];
      const kind = bytes.readUInt8(at++);
      if (kind === 0) while (tile.length < count) tile.push(color());
      else if (kind === 1) tile.push(...new Array<number>(count).fill(color()));
      else if (kind === 128) {
        while (tile.length < count) {
          const value = color();
          let length = 1;
          for (let more = 255; more === 255; length += more) more = bytes.readUInt8(at++);
          tile.push(...new Array<number>(length).fill(value));
        }
      } else {
        expect(kind).toBeLessThanOrEqual(16);
        const palette = Array.from({ length: kind }, color);
        const bits = kind === 2 ? 1 : kind <= 4 ? 2 : 4;
        while (tile.length < count) {
          const row = Array.from({ length: Math.ceil((across * bits) / 8) }, () => bytes.readUInt8(at++));
          for (let x = 0; x < across; x++) {
            const byte = row[(x * bits) >> 3] as number;
            tile.push(palette[(byte >> (8 - bits - ((x * bits) & 7))) & ((1 << bits) - 1)] as number);
          }
        }
      }
      expect(tile).toHaveLength(count);
      for (const [i, value] of tile.entries()) {
        pixels[(top + Math.floor(i / across)) * width + left + (i % across)] = value;
      }
    }
  }
  expect(at).toBe(bytes.length);
  return pixels;
}

/** Colours beside each other in any order, with bits between them that mean nothing. */
const format: fc.Arbitrary<Format> = fc
  .record({
    bits: fc.constantFrom(8, 16, 32),
    depth: fc.constantFrom(3, 8, 15, 16, 24, 24, 30, 32),
    isBigEndian: fc.boolean(),
    order: fc.shuffledSubarray([...colors], { minLength: 3, maxLength: 3 }),
    widths: fc.tuple(fc.integer({ min: 1, max: 10 }), fc.integer({ min: 1, max: 10 }), fc.integer({ min: 1, max: 10 })),
    gaps: fc.tuple(fc.nat(8), fc.nat(2), fc.nat(2)),
  })
  .map(({ bits, depth, isBigEndian, order, widths, gaps }) => {
    const max = { red: 1, green: 1, blue: 1 };
    const shift = { red: 0, green: 0, blue: 0 };
    let at = Math.min(gaps[0], bits - 3);
    for (const [i, color] of order.entries()) {
      const width = Math.max(1, Math.min(widths[i] as number, bits - at - (2 - i)));
      max[color] = 2 ** width - 1;
      shift[color] = at;
      at += width + Math.min(gaps[i] as number, Math.max(0, bits - at - width - (2 - i)) >> 1);
    }
    return { bits: bits as 8 | 16 | 32, depth, isBigEndian, max, shift };
  });
const block = fc
  .record({
    width: fc.integer({ min: 1, max: 150 }),
    height: fc.integer({ min: 1, max: 80 }),
    colorCount: fc.constantFrom(1, 2, 3, 4, 5, 15, 16, 17, 40, 100_000),
    longestRun: fc.constantFrom(1, 2, 30, 300, 5000),
    seed: fc.nat(),
  })
  .map(({ width, height, colorCount, longestRun, seed }) => {
    let state = seed;
    const next = (below: number) => {
      state = (Math.imul(state, 1_103_515_245) + 12_345) >>> 0;
      return (state >>> 8) % below;
    };
    const pixels = new Uint32Array(width * height);
    for (let i = 0; i < pixels.length; ) {
      const value = Math.imul(next(colorCount) + 1, 0x9e3779) & 0xffffff;
      for (let run = 1 + next(longestRun); run > 0 && i < pixels.length; run--) pixels[i++] = value;
    }
    return { width, height, pixels };
  });

test('pixels of any format, in any encoding, are what a viewer expects', { timeout: 120_000 }, async () => {
  await fc.assert(
    fc.asyncProperty(
      format,
      fc.array(fc.record({ block, encoding: fc.constantFrom(RAW, ZLIB, ZRLE) }), { minLength: 1, maxLength: 3 }),
      async (asked, rectangles) => {
        const decoded = decodeFormat(messageOf(asked));
        if (decoded === undefined) throw new Error(`${JSON.stringify(asked)} is refused`);
        const writer = new PixelWriter(decoded);
        const encoders = new Encoders(1);
        const viewer = new Viewer();
        for (const { block: shown, encoding } of rectangles) {
          const body = Buffer.from(await encoders.encode(encoding, shown, writer));
          const seen = await viewer.decode(encoding, body, asked, shown.width, shown.height);
          expect(seen).toEqual([...shown.pixels].map((pixel) => expectedValue(asked, pixel)));
        }
        encoders.close();
        viewer.close();
      },
    ),
    { numRuns: 200 },
  );
});
