/** A serial port whose other end is the program that launched the VM: output becomes events, input comes by a call. */
import type { CharBackend } from '../devicemodel/core/char-backend.ts';
import { ByteQueue } from '../devicemodel/hw/uart/backends/byte-queue.ts';

/** Output that is kept until somebody listens, the newest; and input that the guest has not read. */
const LIMIT_BYTES = 64 * 1024;

export class EventsBackend implements CharBackend {
  readonly name = 'events';
  onReadable: (() => void) | undefined;
  readonly #emit: (data: Uint8Array) => boolean;
  readonly #output = new ByteQueue(LIMIT_BYTES);
  readonly #input = new ByteQueue(LIMIT_BYTES);

  /** @param emit returns whether somebody listened. */
  constructor(emit: (data: Uint8Array) => boolean) {
    this.#emit = emit;
  }

  /** @returns how many bytes were taken; less than all while the guest does not read. */
  type(data: Uint8Array): number {
    const taken = data.subarray(0, LIMIT_BYTES - this.#input.length);
    for (const byte of taken) this.#input.push(byte);
    this.onReadable?.();
    return taken.length;
  }

  read(): number {
    const byte = this.#input.peek(1)[0];
    if (byte === undefined) return -1;
    this.#input.drop(1);
    return byte;
  }

  write(byte: number): void {
    this.#output.push(byte);
  }

  flush(): void {
    while (this.#output.length > 0) {
      const data = this.#output.peek(LIMIT_BYTES).slice();
      if (!this.#emit(data)) return;
      this.#output.drop(data.length);
    }
  }

  start(): void {}

  stop(): void {
    this.flush();
  }
}
