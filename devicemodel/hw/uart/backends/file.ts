/** Output appended to a file or a named pipe; nothing to read. */
import { closeSync, constants, openSync } from 'node:fs';
import { constants as os } from 'node:os';
import { HostError } from '../../../core/errors.ts';
import { isPollable, streamOverFd } from '../../../core/host/fd-stream.ts';
import { type CharBackendEnv, StreamBackend } from './stream-backend.ts';
import { reason } from './tty.ts';

const { O_WRONLY, O_CREAT, O_APPEND, O_NONBLOCK, O_NOCTTY } = constants;

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
    const fd = openForAppend(this.#path);
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

function openForAppend(path: string): number {
  try {
    return openSync(path, O_WRONLY | O_CREAT | O_APPEND | O_NONBLOCK | O_NOCTTY, 0o666);
  } catch (error) {
    const { errno, code } = error as NodeJS.ErrnoException;
    const hint = code === 'ENXIO' ? { hint: 'a named pipe needs its reader first' } : {};
    throw new HostError(`${path}: cannot be opened for output: ${code}`, Math.abs(errno ?? os.errno.EIO), hint);
  }
}
