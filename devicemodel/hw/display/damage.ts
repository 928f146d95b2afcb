/** What of the desktop a client has not got yet, by tiles: as much to remember however often a guest draws. */
import { intersection, type Rect, type Size } from './rect.ts';

const TILE = 64;

export class DamageMap {
  readonly #size: Size;
  readonly #columns: number;
  readonly #rows: number;
  readonly #tiles: Uint8Array;
  #count = 0;
  /** Where the next look begins, so that no part of the desktop waits for ever for another that changes all the time. */
  #nextRow = 0;

  constructor(size: Size) {
    this.#size = size;
    this.#columns = Math.ceil(size.width / TILE);
    this.#rows = Math.ceil(size.height / TILE);
    this.#tiles = new Uint8Array(this.#columns * this.#rows);
  }

  get isEmpty(): boolean {
    return this.#count === 0;
  }

  markAll(): void {
    this.#tiles.fill(1);
    this.#count = this.#tiles.length;
  }

  mark(rect: Rect): void {
    const part = intersection(rect, { x: 0, y: 0, ...this.#size });
    if (part === undefined) return;
    const lastColumn = Math.floor((part.x + part.width - 1) / TILE);
    const lastRow = Math.floor((part.y + part.height - 1) / TILE);
    for (let row = Math.floor(part.y / TILE); row <= lastRow; row++) {
      for (let column = Math.floor(part.x / TILE); column <= lastColumn; column++) {
        const at = row * this.#columns + column;
        if (this.#tiles[at] === 0) this.#count++;
        this.#tiles[at] = 1;
      }
    }
  }

  /**
   * What is damaged, which it is not any more then. Runs of tiles of one row are one rectangle.
   * @param enoughPixels with as many there is an end, after whole rows of tiles
   */
  take(enoughPixels = Number.POSITIVE_INFINITY): Rect[] {
    const rects: Rect[] = [];
    let pixels = 0;
    for (let n = 0; n < this.#rows && pixels < enoughPixels; n++) {
      const row = this.#nextRow;
      this.#nextRow = (row + 1) % this.#rows;
      for (let column = 0; column < this.#columns; column++) {
        const first = column;
        while (column < this.#columns && this.#tiles[row * this.#columns + column] === 1) column++;
        if (column === first) continue;
        const rect = this.#rectOf(row, first, column);
        rects.push(rect);
        pixels += rect.width * rect.height;
        this.#tiles.fill(0, row * this.#columns + first, row * this.#columns + column);
        this.#count -= column - first;
      }
    }
    return rects;
  }

  #rectOf(row: number, first: number, end: number): Rect {
    const [x, y] = [first * TILE, row * TILE];
    return {
      x,
      y,
      width: Math.min(end * TILE, this.#size.width) - x,
      height: Math.min(y + TILE, this.#size.height) - y,
    };
  }
}
