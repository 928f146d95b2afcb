/** Output appended to a file or a named pipe; nothing to read. */
import { closeSync, constants, openSync } from 'node:fs';
import { ExitCode, HostError } from '../../../core/errors.ts';
import { describeErrno } from '../../../core/host/errno.ts';
import { isPollable, streamOverFd } from '../../../core/host/fd-stream.ts';
import { isInStickyFolder } from '../../../core/host/folders.ts';
import { errnoOf } from '../../../core/host/path-failure.ts';
import { type CharBackendEnv, StreamBackend } from './stream-backend.ts';
import { reason } from './tty.ts';

const { O_WRONLY, O_CREAT, O_APPEND, O_NONBLOCK, O_NOCTTY, O_NOFOLLOW } = constants;

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
  // Where anybody may make files, a link of somebody else would choose what is written to.
  const follow = isInStickyFolder(path) ? O_NOFOLLOW : 0;
  try {
    return openSync(path, O_WRONLY | O_CREAT | O_APPEND | O_NONBLOCK | O_NOCTTY | follow, 0o640);
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    const hint =
      code === 'ENXIO'
        ? { hint: 'a named pipe needs its reader first' }
        : code === 'ELOOP' && follow !== 0
          ? { hint: 'links are not followed in a folder where everybody may make them' }
          : {};
    throw new HostError(`${path}: cannot be opened for output: ${describeErrno(errnoOf(error))}`, errnoOf(error), {
      exitCode: ExitCode.CannotCreate,
      ...hint,
    });
  }
}
