/**
 * Exact conversion between nanoseconds and ticks of a fixed-frequency counter. Guests calibrate their clocks against
 * these counters, so nothing may be lost to rounding: whole seconds are split off and the fraction is reduced, which
 * keeps every product below 2^53.
 */
const NS_PER_S = 1_000_000_000;

function gcd(a: number, b: number): number {
  return b === 0 ? a : gcd(b, a % b);
}

export class TickRate {
  readonly hz: number;
  /** hz / 10^9 in lowest terms. */
  readonly #numerator: number;
  readonly #denominator: number;

  /** @param hz whole number of ticks a second, below 2^32. */
  constructor(hz: number) {
    this.hz = hz;
    const common = gcd(hz, NS_PER_S);
    this.#numerator = hz / common;
    this.#denominator = NS_PER_S / common;
  }

  /** Whole ticks in `ns` nanoseconds, rounded down; a negative time counts as none. */
  ticksIn(ns: number): number {
    if (ns <= 0) return 0;
    const seconds = Math.floor(ns / NS_PER_S);
    const rest = ns - seconds * NS_PER_S;
    return seconds * this.hz + Math.floor((rest * this.#numerator) / this.#denominator);
  }

  /** The earliest time, in nanoseconds from the start, at which `ticks` ticks have passed. */
  nsFor(ticks: number): number {
    const seconds = Math.floor(ticks / this.hz);
    const rest = ticks - seconds * this.hz;
    return seconds * NS_PER_S + Math.ceil((rest * this.#denominator) / this.#numerator);
  }
}
