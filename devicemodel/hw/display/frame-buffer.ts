/** A picture in memory that the guest writes without a word: what changed is found by comparing with what was there. */
import { PIXEL_BYTES, type Picture } from './display.ts';
import { BGRX, type PixelMemory, readPixels } from './formats.ts';
import type { Rect, Size } from './rect.ts';

/** Rows compared at once. */
const BAND_ROWS = 16;

export class FrameBufferPicture implements Picture {
  readonly width: number;
  readonly height: number;
  readonly #memory: PixelMemory;
  /** As it was at the last look; made at the first one. */
  #seen: Uint8Array | undefined;

  /** @param memory begins with the first pixel and holds all rows of `strideBytes` */
  constructor(memory: Uint8Array, { width, height }: Size, strideBytes: number) {
    this.width = width;
    this.height = height;
    this.#memory = { bytes: memory, offset: 0, strideBytes, format: BGRX };
  }

  read(rect: Rect, into: Uint8Array, at: number, strideBytes: number): void {
    readPixels(this.#memory, rect, into, at, strideBytes);
  }

  poll(damaged: (rect: Rect) => void): void {
    const { bytes, strideBytes } = this.#memory;
    if (this.#seen === undefined) {
      this.#seen = bytes.slice(0, this.height * strideBytes);
      damaged({ x: 0, y: 0, width: this.width, height: this.height });
      return;
    }
    for (let y = 0; y < this.height; y += BAND_ROWS) {
      const height = Math.min(BAND_ROWS, this.height - y);
      const start = y * strideBytes;
      const end = start + (height - 1) * strideBytes + this.width * PIXEL_BYTES;
      const now = bytes.subarray(start, end);
      if (Buffer.compare(now, this.#seen.subarray(start, end)) === 0) continue;
      this.#seen.set(now, start);
      damaged({ x: 0, y, width: this.width, height });
    }
  }
}
