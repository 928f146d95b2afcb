/** Output appended to a file or a named pipe; nothing to read. */
import { closeSync } from 'node:fs';
import { isPollable, streamOverFd } from '../../../core/host/fd-stream.ts';
import { openOutput } from '../../../core/host/output-file.ts';
import { type CharBackendEnv, StreamBackend } from './stream-backend.ts';
import { reason } from './tty.ts';

/** What a guest prints is not for everybody. */
const MODE = 0o640;

export class FileBackend extends StreamBackend {
  readonly name: string;
  readonly #path: string;
  #fd: number | undefined;

  constructor(path: string, env: CharBackendEnv) {
    super(env);
    this.name = `file ${path}`;
    this.#path = path;
  }

  /** @throws HostError */
  start(): void {
    if (this.isAttached) return;
    const fd = openOutput(this.#path, MODE);
    if (isPollable(fd)) {
      // A named pipe's reader may be slow: output waits in the queue.
      this.attachOutput(streamOverFd(fd, this.name, { readable: false, writable: true }));
    } else {
      this.#fd = fd;
      this.attachDirectOutput(fd);
    }
  }

  protected override close(): void {
    if (this.#fd !== undefined) closeSync(this.#fd);
    this.#fd = undefined;
  }

  protected override onClosed(_direction: 'input' | 'output', error: Error | undefined): void {
    this.env.log.warn(`${this.env.user}: ${this.name} was closed${reason(error)}, output is dropped`);
  }
}
