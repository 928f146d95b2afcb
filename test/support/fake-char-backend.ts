/** The other end of a serial line: `type` what the guest receives, look at `output` for what it sent. */
import type { CharBackend } from '../../devicemodel/core/char-backend.ts';

export class FakeCharBackend implements CharBackend {
  readonly name: string;
  onReadable: (() => void) | undefined;
  readonly #input: number[] = [];
  readonly written: number[] = [];
  starts = 0;
  stops = 0;

  constructor(name = 'fake') {
    this.name = name;
  }

  /** The device is told once, however many bytes there are. */
  type(text: string): void {
    this.#input.push(...Buffer.from(text, 'latin1'));
    this.onReadable?.();
  }
  get output(): string {
    return Buffer.from(this.written).toString('latin1');
  }
  /** Bytes nobody has taken yet. */
  get waiting(): number {
    return this.#input.length;
  }

  read(): number {
    return this.#input.shift() ?? -1;
  }
  write(byte: number): void {
    this.written.push(byte);
  }
  flush(): void {}
  start(): void {
    this.starts++;
  }
  stop(): void {
    this.stops++;
  }
}
