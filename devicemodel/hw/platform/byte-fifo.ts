/** A bounded queue of bytes, without allocation after construction. */
export class ByteFifo {
  readonly #bytes: Uint8Array;
  #head = 0;
  #length = 0;

  constructor(capacity: number) {
    this.#bytes = new Uint8Array(capacity);
  }

  get length(): number {
    return this.#length;
  }

  get room(): number {
    return this.#bytes.length - this.#length;
  }

  clear(): void {
    this.#head = 0;
    this.#length = 0;
  }

  /** @returns false, and drops the byte, if there is no room. */
  push(byte: number): boolean {
    if (this.#length === this.#bytes.length) return false;
    this.#bytes[(this.#head + this.#length) % this.#bytes.length] = byte;
    this.#length++;
    return true;
  }

  /** All of `bytes`, or none if there is no room for all. */
  pushAll(bytes: readonly number[]): boolean {
    if (bytes.length > this.room) return false;
    for (const byte of bytes) this.push(byte);
    return true;
  }

  /** The oldest byte, or -1. */
  shift(): number {
    if (this.#length === 0) return -1;
    const byte = this.#bytes[this.#head] as number;
    this.#head = (this.#head + 1) % this.#bytes.length;
    this.#length--;
    return byte;
  }
}
