/** The form of pixels that a client asks for (RFC 6143 §7.4). */

export const PIXEL_FORMAT_BYTES = 16;

export interface ClientPixelFormat {
  readonly bitsPerPixel: 8 | 16 | 32;
  readonly depth: number;
  readonly isBigEndian: boolean;
  readonly max: { readonly red: number; readonly green: number; readonly blue: number };
  readonly shift: { readonly red: number; readonly green: number; readonly blue: number };
}

/** Pixels of a rectangle, row by row: blue | green << 8 | red << 16. */
export interface PixelBlock {
  readonly width: number;
  readonly height: number;
  readonly pixels: Uint32Array;
}

/** As the display has them: nothing is to be converted. */
export const SERVER_FORMAT: ClientPixelFormat = {
  bitsPerPixel: 32,
  depth: 24,
  isBigEndian: false,
  max: { red: 255, green: 255, blue: 255 },
  shift: { red: 16, green: 8, blue: 0 },
};

export function encodeFormat(format: ClientPixelFormat): Uint8Array {
  const bytes = new Uint8Array(PIXEL_FORMAT_BYTES);
  const view = new DataView(bytes.buffer);
  bytes.set([format.bitsPerPixel, format.depth, format.isBigEndian ? 1 : 0, 1]);
  view.setUint16(4, format.max.red);
  view.setUint16(6, format.max.green);
  view.setUint16(8, format.max.blue);
  bytes.set([format.shift.red, format.shift.green, format.shift.blue], 10);
  return bytes;
}

/** @returns undefined for one that is none, or has a colour map. */
export function decodeFormat(bytes: Uint8Array): ClientPixelFormat | undefined {
  const view = new DataView(bytes.buffer, bytes.byteOffset, PIXEL_FORMAT_BYTES);
  const bitsPerPixel = view.getUint8(0);
  if (bitsPerPixel !== 8 && bitsPerPixel !== 16 && bitsPerPixel !== 32) return undefined;
  const max = { red: view.getUint16(4), green: view.getUint16(6), blue: view.getUint16(8) };
  const shift = { red: view.getUint8(10), green: view.getUint8(11), blue: view.getUint8(12) };
  const isInPixel = (['red', 'green', 'blue'] as const).every(
    (color) => max[color] > 0 && shift[color] < 32 && max[color] * 2 ** shift[color] < 2 ** bitsPerPixel,
  );
  if (view.getUint8(3) === 0 || !isInPixel) return undefined;
  return { bitsPerPixel, depth: view.getUint8(1), isBigEndian: view.getUint8(2) !== 0, max, shift };
}

/** Writes pixels in the client's form. Pixels come as blue | green << 8 | red << 16. */
export class PixelWriter {
  readonly format: ClientPixelFormat;
  readonly pixelBytes: number;
  /** §7.7.5: of a CPIXEL, which leaves out a byte that is always 0. */
  readonly compactBytes: number;
  readonly #red: Uint32Array;
  readonly #green: Uint32Array;
  readonly #blue: Uint32Array;
  /** Which byte of a pixel of 32 bits a CPIXEL begins with, least significant first. */
  readonly #compactShift: number;

  constructor(format: ClientPixelFormat) {
    this.format = format;
    this.pixelBytes = format.bitsPerPixel / 8;
    const scaled = (max: number, shift: number) =>
      Uint32Array.from({ length: 256 }, (_, value) => Math.round((value * max) / 255) * 2 ** shift);
    this.#red = scaled(format.max.red, format.shift.red);
    this.#green = scaled(format.max.green, format.shift.green);
    this.#blue = scaled(format.max.blue, format.shift.blue);
    const used = [this.#red, this.#green, this.#blue].reduce((bits, table) => (bits | (table[255] as number)) >>> 0, 0);
    const isNarrow = format.bitsPerPixel === 32 && format.depth <= 24;
    const fitsLow = isNarrow && used < 0x100_0000;
    const fitsHigh = isNarrow && (used & 0xff) === 0;
    // Where either would do the RFC leaves it open. Viewers take what is first in memory.
    const isHigh = fitsHigh && (format.isBigEndian || !fitsLow);
    this.compactBytes = fitsLow || fitsHigh ? 3 : this.pixelBytes;
    this.#compactShift = isHigh ? 8 : 0;
  }

  /** Pixels are as the display has them. */
  get isPlain(): boolean {
    const { max, shift, bitsPerPixel, isBigEndian } = this.format;
    const isWide = bitsPerPixel === 32 && !isBigEndian && max.red === 255 && max.green === 255 && max.blue === 255;
    return isWide && shift.red === 16 && shift.green === 8 && shift.blue === 0;
  }

  /** @returns where the next one goes. */
  put(into: Uint8Array, at: number, pixel: number): number {
    return this.#putBytes(into, at, this.#value(pixel), this.pixelBytes);
  }

  /** A CPIXEL. @returns where the next one goes. */
  putCompact(into: Uint8Array, at: number, pixel: number): number {
    return this.#putBytes(into, at, this.#value(pixel) >>> this.#compactShift, this.compactBytes);
  }

  #value(pixel: number): number {
    const red = this.#red[(pixel >>> 16) & 0xff] as number;
    return (red | (this.#green[(pixel >>> 8) & 0xff] as number) | (this.#blue[pixel & 0xff] as number)) >>> 0;
  }

  #putBytes(into: Uint8Array, at: number, value: number, count: number): number {
    for (let i = 0; i < count; i++) {
      into[at + i] = value >>> (8 * (this.format.isBigEndian ? count - 1 - i : i));
    }
    return at + count;
  }
}
