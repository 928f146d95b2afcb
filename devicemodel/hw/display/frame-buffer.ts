/** A picture in memory that the guest writes without a word: what changed is found by comparing with what was there. */
import type { Picture } from './display.ts';
import type { FrameBufferFormat } from './frame-buffer-formats.ts';
import type { Rect, Size } from './rect.ts';

/** Rows compared at once. */
const BAND_ROWS = 16;

export class FrameBufferPicture implements Picture {
  readonly width: number;
  readonly height: number;
  readonly #bytes: Uint8Array;
  readonly #strideBytes: number;
  readonly #format: FrameBufferFormat;
  /** As it was at the last look; made at the first one. */
  #seen: Uint8Array | undefined;

  /** @param memory begins with the first pixel and holds all rows of `strideBytes` */
  constructor(memory: Uint8Array, { width, height }: Size, strideBytes: number, format: FrameBufferFormat) {
    this.width = width;
    this.height = height;
    this.#bytes = memory;
    this.#strideBytes = strideBytes;
    this.#format = format;
  }

  read(rect: Rect, into: Uint8Array, at: number, strideBytes: number): void {
    for (let row = 0; row < rect.height; row++) {
      const source = (rect.y + row) * this.#strideBytes + rect.x * this.#format.pixelBytes;
      this.#format.copy(this.#bytes, source, into, at + row * strideBytes, rect.width);
    }
  }

  poll(damaged: (rect: Rect) => void): void {
    const hasNewColors = this.#format.hasNewColors();
    if (this.#seen === undefined || hasNewColors) {
      this.#seen = this.#bytes.slice(0, this.height * this.#strideBytes);
      damaged({ x: 0, y: 0, width: this.width, height: this.height });
      return;
    }
    for (let y = 0; y < this.height; y += BAND_ROWS) {
      const height = Math.min(BAND_ROWS, this.height - y);
      const start = y * this.#strideBytes;
      const end = start + (height - 1) * this.#strideBytes + this.width * this.#format.pixelBytes;
      const now = this.#bytes.subarray(start, end);
      if (Buffer.compare(now, this.#seen.subarray(start, end)) === 0) continue;
      this.#seen.set(now, start);
      damaged({ x: 0, y, width: this.width, height });
    }
  }
}
