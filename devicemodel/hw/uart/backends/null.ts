/** Nothing is connected: output goes nowhere, nothing ever arrives. */
import type { CharBackend } from '../../../core/char-backend.ts';

export class NullBackend implements CharBackend {
  readonly name = 'null';
  onReadable: (() => void) | undefined;

  read(): number {
    return -1;
  }
  write(): void {}
  flush(): void {}
  start(): void {}
  stop(): void {}
}
