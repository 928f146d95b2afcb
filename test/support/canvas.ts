/** A picture of a screen that a test draws. */
import type { Picture } from '../../devicemodel/hw/display/display.ts';
import { BGRX, readPixels } from '../../devicemodel/hw/display/formats.ts';
import type { Rect, Size } from '../../devicemodel/hw/display/rect.ts';

/** Blue, green, red, anything, that the test writes. */
export class Canvas implements Picture {
  readonly width: number;
  readonly height: number;
  readonly bytes: Uint8Array;

  constructor({ width, height }: Size) {
    this.width = width;
    this.height = height;
    this.bytes = new Uint8Array(4 * width * height);
  }

  read(rect: Rect, into: Uint8Array, at: number, strideBytes: number): void {
    const memory = { bytes: this.bytes, offset: 0, strideBytes: 4 * this.width, format: BGRX };
    readPixels(memory, rect, into, at, strideBytes);
  }

  /** One colour; what is outside is nothing. */
  fill(rect: Rect, color: number): void {
    const words = new Uint32Array(this.bytes.buffer);
    for (let y = rect.y; y < Math.min(this.height, rect.y + rect.height); y++) {
      const end = Math.min(this.width, rect.x + rect.width);
      words.fill(color, y * this.width + rect.x, y * this.width + end);
    }
  }

  /** As a viewer has it. */
  get rgb(): Uint8Array {
    const rgb = new Uint8Array(3 * this.width * this.height);
    for (let i = 0; i < this.width * this.height; i++) {
      const [blue, green, red] = this.bytes.subarray(4 * i, 4 * i + 3) as unknown as [number, number, number];
      rgb.set([red, green, blue], 3 * i);
    }
    return rgb;
  }
}
