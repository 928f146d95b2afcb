/** ZRLE (RFC 6143 §7.7.6) before its zlib stream: tiles, each in the form that is shortest for it. */
import type { PixelBlock, PixelWriter } from './pixel-format.ts';

const TILE = 64;
/** Subencodings. 2 to 16: packed palette of so many colours. */
const Tile = { Raw: 0, Solid: 1, PlainRle: 128 } as const;
const MAX_PALETTE = 16;

/** Bytes that the tiles of a block need at most. */
export function tilesBound({ width, height, pixels }: PixelBlock, compactBytes: number): number {
  return Math.ceil(width / TILE) * Math.ceil(height / TILE) + pixels.length * compactBytes;
}

/** @param into has room for {@link tilesBound}. @returns how many bytes it took */
export function encodeTiles(block: PixelBlock, writer: PixelWriter, into: Uint8Array): number {
  const tile = new TilePixels();
  let at = 0;
  for (let y = 0; y < block.height; y += TILE) {
    for (let x = 0; x < block.width; x += TILE) {
      tile.load(block, x, y);
      at = encodeTile(tile, writer, into, at);
    }
  }
  return at;
}

/** The pixels of one tile, and what they are like. */
class TilePixels {
  readonly pixels = new Uint32Array(TILE * TILE);
  width = 0;
  count = 0;
  /** Of equal pixels one after the other. */
  runs = 0;
  readonly palette = new Uint32Array(MAX_PALETTE);
  /** More than {@link MAX_PALETTE}: there are more. */
  colors = 0;

  load(block: PixelBlock, x: number, y: number): void {
    this.width = Math.min(TILE, block.width - x);
    const height = Math.min(TILE, block.height - y);
    this.count = this.width * height;
    for (let row = 0; row < height; row++) {
      const from = (y + row) * block.width + x;
      this.pixels.set(block.pixels.subarray(from, from + this.width), row * this.width);
    }
    this.#inspect();
  }

  #inspect(): void {
    this.runs = 0;
    this.colors = 0;
    let last = -1;
    for (let i = 0; i < this.count; i++) {
      const pixel = this.pixels[i] as number;
      if (pixel === last) continue;
      last = pixel;
      this.runs++;
      if (this.colors <= MAX_PALETTE && this.indexOf(pixel) < 0) {
        if (this.colors < MAX_PALETTE) this.palette[this.colors] = pixel;
        this.colors++;
      }
    }
  }

  indexOf(pixel: number): number {
    for (let i = 0; i < this.colors && i < MAX_PALETTE; i++) if (this.palette[i] === pixel) return i;
    return -1;
  }
}

function encodeTile(tile: TilePixels, writer: PixelWriter, into: Uint8Array, start: number): number {
  let at = start;
  if (tile.colors === 1) {
    into[at++] = Tile.Solid;
    return writer.putCompact(into, at, tile.pixels[0] as number);
  }
  const rawBytes = tile.count * writer.compactBytes;
  const bits = tile.colors <= 2 ? 1 : tile.colors <= 4 ? 2 : 4;
  const packedBytes =
    tile.colors * writer.compactBytes + Math.ceil((tile.width * bits) / 8) * (tile.count / tile.width);
  const isPacked = tile.colors <= MAX_PALETTE && packedBytes < rawBytes;
  // A run of n pixels takes a byte more for each 255 of them.
  const runBytes = tile.runs * (writer.compactBytes + 1) + Math.ceil(tile.count / 255);
  if (runBytes < (isPacked ? packedBytes : rawBytes)) return encodeRuns(tile, writer, into, at);
  if (isPacked) return encodePacked(tile, bits, writer, into, at);
  into[at++] = Tile.Raw;
  for (let i = 0; i < tile.count; i++) at = writer.putCompact(into, at, tile.pixels[i] as number);
  return at;
}

function encodePacked(tile: TilePixels, bits: number, writer: PixelWriter, into: Uint8Array, start: number): number {
  let at = start;
  into[at++] = tile.colors;
  for (let i = 0; i < tile.colors; i++) at = writer.putCompact(into, at, tile.palette[i] as number);
  for (let row = 0; row < tile.count; row += tile.width) {
    let byte = 0;
    let free = 8;
    for (let x = 0; x < tile.width; x++) {
      free -= bits;
      byte |= tile.indexOf(tile.pixels[row + x] as number) << free;
      if (free > 0) continue;
      into[at++] = byte;
      byte = 0;
      free = 8;
    }
    if (free < 8) into[at++] = byte;
  }
  return at;
}

function encodeRuns(tile: TilePixels, writer: PixelWriter, into: Uint8Array, start: number): number {
  let at = start;
  into[at++] = Tile.PlainRle;
  for (let i = 0; i < tile.count; ) {
    const pixel = tile.pixels[i] as number;
    let length = 1;
    while (i + length < tile.count && tile.pixels[i + length] === pixel) length++;
    i += length;
    at = writer.putCompact(into, at, pixel);
    for (length--; length >= 255; length -= 255) into[at++] = 255;
    into[at++] = length;
  }
  return at;
}
