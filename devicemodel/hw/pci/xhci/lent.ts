/**
 * What the devices of a controller have: transfers, and their bytes. Each is of one life of the controller, which ends
 * with a reset of the VM, or when nobody waits any longer for what does not come back. What comes back later is of a life
 * that is over: nobody is told, and only the room that it took is there again.
 */

/** Of all endpoints together. */
const MAX_BYTES = 16 * 1024 * 1024;
/** With what is left of lives that are over: a guest that resets without end would lend more each time. */
const MAX_BYTES_OF_ALL_LIVES = 2 * MAX_BYTES;

interface Share {
  bytes: number;
  transfers: number;
}

export class Lent {
  #life: Share = { bytes: 0, transfers: 0 };
  readonly #all: Share = { bytes: 0, transfers: 0 };
  #whenBack: Array<() => void> = [];
  readonly #onBack: () => void;

  /** @param onBack something came back: there is more room. */
  constructor(onBack: () => void) {
    this.#onBack = onBack;
  }

  /** One transfer more. @returns to be called when it came back; undefined: too much is lent. */
  take(bytes: number): (() => void) | undefined {
    const life = this.#life;
    const all = this.#all;
    if (life.bytes + bytes > MAX_BYTES || all.bytes + bytes > MAX_BYTES_OF_ALL_LIVES) return undefined;
    for (const share of [life, all]) {
      share.bytes += bytes;
      share.transfers++;
    }
    return () => {
      for (const share of [life, all]) {
        share.bytes -= bytes;
        share.transfers--;
      }
      this.#onBack();
      if (life === this.#life && life.transfers === 0) this.#tellBack();
    };
  }

  /** @returns when all of this life came back, or its life is over; undefined: it has. */
  back(): Promise<void> | undefined {
    if (this.#life.transfers === 0) return undefined;
    return new Promise((resolve) => this.#whenBack.push(resolve));
  }

  /** A new life begins. @returns how many transfers of the last one did not come back. */
  endLife(): number {
    const { transfers } = this.#life;
    this.#life = { bytes: 0, transfers: 0 };
    this.#tellBack();
    return transfers;
  }

  #tellBack(): void {
    for (const resolve of this.#whenBack.splice(0)) resolve();
  }

  /** Of all lives. */
  get transfers(): number {
    return this.#all.transfers;
  }
}
