/** Chance that comes again with its seed. */

/** Numbers at which widths, signs and limits change. */
const EDGES = [
  0, 1, 2, 3, 0x7f, 0x80, 0xff, 0x100, 0xfff, 0x1000, 0x7fff, 0x8000, 0xffff, 0x1_0000, 0x7fff_ffff, 0x8000_0000,
  0xffff_fffe, 0xffff_ffff,
] as const;

/** mulberry32: small, and the same everywhere. */
export class Random {
  #state: number;

  constructor(seed: number) {
    this.#state = seed >>> 0;
  }

  u32(): number {
    this.#state = (this.#state + 0x6d2b79f5) >>> 0;
    let t = this.#state;
    t = Math.imul(t ^ (t >>> 15), t | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return (t ^ (t >>> 14)) >>> 0;
  }

  /** 0 to `limit` - 1. */
  below(limit: number): number {
    return this.u32() % limit;
  }

  /** True once in `n`. */
  oneIn(n: number): boolean {
    return this.u32() % n === 0;
  }

  pick<T>(values: readonly T[]): T {
    return values[this.below(values.length)] as T;
  }

  /** 32 bits that tend to hurt. */
  value(): number {
    switch (this.below(4)) {
      case 0:
        return this.u32();
      case 1:
        return this.below(256);
      case 2:
        return this.pick(EDGES);
      default:
        return (this.u32() >>> this.below(32)) >>> 0;
    }
  }

  /** An address or length of up to 64 bits, as far as a number holds it. */
  wide(): number {
    return this.value() + (this.oneIn(3) ? this.value() * 0x1_0000_0000 : 0);
  }
}
