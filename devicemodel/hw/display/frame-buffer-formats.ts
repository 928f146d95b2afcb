/** Pixels of a frame buffer by their depth, as front ends want them: blue, green, red and one that means nothing. */
import { PIXEL_BYTES } from './display.ts';

export interface FrameBufferFormat {
  readonly pixelBytes: number;
  /** Convert `count` pixels. */
  copy(from: Uint8Array, source: number, into: Uint8Array, at: number, count: number): void;
  /** Whether all pixels may look different since the last call, although nothing was written. */
  hasNewColors(): boolean;
}

const never = () => false;

const trueColor: FrameBufferFormat = {
  pixelBytes: PIXEL_BYTES,
  copy: (from, source, into, at, count) => into.set(from.subarray(source, source + count * PIXEL_BYTES), at),
  hasNewColors: never,
};

const threeBytes: FrameBufferFormat = {
  pixelBytes: 3,
  copy: (from, source, into, at, count) => {
    for (let i = 0; i < count; i++) {
      const pixel = source + 3 * i;
      const to = at + PIXEL_BYTES * i;
      into[to] = from[pixel] as number;
      into[to + 1] = from[pixel + 1] as number;
      into[to + 2] = from[pixel + 2] as number;
    }
  },
  hasNewColors: never,
};

/** Red, green and blue in a word, from its upper bits on. The highest bits fill up the lower ones, so that white is white. */
function highColor(greenBits: 5 | 6): FrameBufferFormat {
  const wide = (value: number, bits: number) => (value << (8 - bits)) | (value >> (2 * bits - 8));
  return {
    pixelBytes: 2,
    copy: (from, source, into, at, count) => {
      for (let i = 0; i < count; i++) {
        const pixel = source + 2 * i;
        const word = ((from[pixel + 1] as number) << 8) | (from[pixel] as number);
        const to = at + PIXEL_BYTES * i;
        into[to] = wide(word & 0x1f, 5);
        into[to + 1] = wide((word >> 5) & ((1 << greenBits) - 1), greenBits);
        into[to + 2] = wide((word >> (5 + greenBits)) & 0x1f, 5);
      }
    },
    hasNewColors: never,
  };
}

/** A byte is an entry of the VGA's palette. */
function indexed(palette: () => Uint32Array): FrameBufferFormat {
  let colors: Uint32Array | undefined;
  return {
    pixelBytes: 1,
    copy: (from, source, into, at, count) => {
      colors ??= palette();
      for (let i = 0; i < count; i++) {
        const color = colors[from[source + i] as number] ?? 0;
        const to = at + PIXEL_BYTES * i;
        into[to] = color & 0xff;
        into[to + 1] = (color >> 8) & 0xff;
        into[to + 2] = (color >> 16) & 0xff;
      }
    },
    hasNewColors: () => {
      const now = palette();
      const isNew = colors === undefined || now.some((color, i) => color !== colors?.[i]);
      colors = now;
      return isNew;
    },
  };
}

/** @param palette colours as 32-bit pixels. @returns undefined for a depth that there is not */
export function frameBufferFormat(bitsPerPixel: number, palette: () => Uint32Array): FrameBufferFormat | undefined {
  switch (bitsPerPixel) {
    case 8:
      return indexed(palette);
    case 15:
      return highColor(5);
    case 16:
      return highColor(6);
    case 24:
      return threeBytes;
    case 32:
      return trueColor;
    default:
      return undefined;
  }
}
