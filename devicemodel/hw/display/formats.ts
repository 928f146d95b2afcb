/** Pixels of four bytes in any order, as front ends want them: blue, green, red and one that means nothing. */
import { PIXEL_BYTES } from './display.ts';
import type { Rect } from './rect.ts';

/** Which byte of a pixel is which colour. */
export interface PixelFormat {
  readonly blue: number;
  readonly green: number;
  readonly red: number;
  /** Undefined: opaque. */
  readonly alpha: number | undefined;
}

export const BGRX: PixelFormat = { blue: 0, green: 1, red: 2, alpha: undefined };

/** Pixels in memory, row by row. */
export interface PixelMemory {
  readonly bytes: Uint8Array;
  /** Of the first pixel. */
  readonly offset: number;
  readonly strideBytes: number;
  readonly format: PixelFormat;
}

/** As Picture.read. The caller has checked that all of it is in memory. */
export function readPixels(from: PixelMemory, rect: Rect, into: Uint8Array, at: number, strideBytes: number): void {
  const rowBytes = rect.width * PIXEL_BYTES;
  for (let row = 0; row < rect.height; row++) {
    const source = from.offset + (rect.y + row) * from.strideBytes + rect.x * PIXEL_BYTES;
    copyPixels(from.bytes, source, from.format, into, at + row * strideBytes, rowBytes, false);
  }
}

/** @param hasAlpha the fourth byte is to be alpha, opaque where the format has none; otherwise it is anything. */
export function copyPixels(
  from: Uint8Array,
  source: number,
  format: PixelFormat,
  into: Uint8Array,
  at: number,
  lengthBytes: number,
  hasAlpha: boolean,
): void {
  const { blue, green, red, alpha } = format;
  if (blue === 0 && green === 1 && red === 2) {
    into.set(from.subarray(source, source + lengthBytes), at);
    if (hasAlpha && alpha === undefined) for (let i = 3; i < lengthBytes; i += PIXEL_BYTES) into[at + i] = 0xff;
    return;
  }
  for (let i = 0; i < lengthBytes; i += PIXEL_BYTES) {
    const pixel = source + i;
    into[at + i] = from[pixel + blue] as number;
    into[at + i + 1] = from[pixel + green] as number;
    into[at + i + 2] = from[pixel + red] as number;
    into[at + i + 3] = alpha === undefined ? 0xff : (from[pixel + alpha] as number);
  }
}
