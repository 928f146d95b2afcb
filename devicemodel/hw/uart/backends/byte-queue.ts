/** Bytes waiting to go out: a ring that grows on demand up to a limit, then loses the oldest. */
export class ByteQueue {
  readonly #limitBytes: number;
  #ring: Uint8Array = new Uint8Array(256);
  #head = 0;
  #length = 0;

  /** @param limitBytes a power of two, at least 256. */
  constructor(limitBytes: number) {
    this.#limitBytes = limitBytes;
  }

  get length(): number {
    return this.#length;
  }

  /** @returns false when the oldest byte had to go. */
  push(byte: number): boolean {
    let kept = true;
    if (this.#length === this.#ring.length) {
      if (this.#length < this.#limitBytes) {
        this.#grow();
      } else {
        this.drop(1);
        kept = false;
      }
    }
    this.#ring[(this.#head + this.#length) & (this.#ring.length - 1)] = byte;
    this.#length++;
    return kept;
  }

  /** The first bytes, at most `maxBytes`, without taking them; aliases the ring, valid until the next push. */
  peek(maxBytes: number): Uint8Array {
    const end = Math.min(this.#head + Math.min(this.#length, maxBytes), this.#ring.length);
    return this.#ring.subarray(this.#head, end);
  }

  /** Take the oldest away; nothing for a count below 1. */
  drop(count: number): void {
    const dropped = Math.min(Math.max(count, 0), this.#length);
    this.#head = (this.#head + dropped) & (this.#ring.length - 1);
    this.#length -= dropped;
  }

  clear(): void {
    this.#head = 0;
    this.#length = 0;
  }

  #grow(): void {
    const larger = new Uint8Array(this.#ring.length * 2);
    const first = this.#ring.subarray(this.#head);
    larger.set(first);
    larger.set(this.#ring.subarray(0, this.#head), first.length);
    this.#ring = larger;
    this.#head = 0;
  }
}
