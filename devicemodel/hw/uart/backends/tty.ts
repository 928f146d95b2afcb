/** A terminal device that exists already (a serial port, another program's pseudo terminal), and one made here. */
import { lstatSync, readlinkSync, rmSync, symlinkSync, unlinkSync } from 'node:fs';
import { ExitCode, HostError } from '../../../core/errors.ts';
import { Errno } from '../../../core/host/errno.ts';
import { onProcessExit } from '../../../core/host/exit-hooks.ts';
import { streamOverFd } from '../../../core/host/fd-stream.ts';
import { closeFd } from '../../../core/host/files.ts';
import { makeParents } from '../../../core/host/folders.ts';
import { pathFailure } from '../../../core/host/path-failure.ts';
import { openPty, openTty, RawTerminal } from '../../../core/host/tty.ts';
import { type CharBackendEnv, StreamBackend } from './stream-backend.ts';

export class TtyBackend extends StreamBackend {
  readonly #path: string;
  readonly #translateOutput: boolean;
  #raw: RawTerminal | undefined;
  #controlFd: number | undefined;

  constructor(path: string, env: CharBackendEnv, options: { readonly translateOutput?: boolean } = {}) {
    super(env);
    this.#path = path;
    this.#translateOutput = options.translateOutput === true;
  }

  get name(): string {
    return `tty ${this.#path}`;
  }

  start(): void {
    if (this.isAttached) return;
    const dataFd = openTty(this.#path);
    try {
      // The stream closes its descriptor by itself when the line is hung up; the settings need one that stays.
      this.#controlFd = openTty(this.#path);
      this.#raw = new RawTerminal(this.#controlFd, this.#path, { translateOutput: this.#translateOutput });
      this.#raw.enter();
      const stream = streamOverFd(dataFd, this.#path, { readable: true, writable: true });
      this.attach(stream);
    } catch (error) {
      closeFd(dataFd);
      this.close();
      throw error;
    }
  }

  protected override close(): void {
    this.#raw?.leave();
    this.#raw = undefined;
    if (this.#controlFd !== undefined) closeFd(this.#controlFd);
    this.#controlFd = undefined;
  }

  protected override onClosed(direction: 'input' | 'output', error: Error | undefined): void {
    if (direction === 'input') this.env.log.warn(`${this.env.user}: ${this.name} was closed${reason(error)}`);
  }
}

export class PtyBackend extends StreamBackend {
  // Maybe nobody ever opened it.
  protected override hasKnownReader = false;
  readonly #linkPath: string | undefined;
  #slavePath: string | undefined;
  #slaveFd: number | undefined;
  #forgetLink: () => void = () => {};

  constructor(linkPath: string | undefined, env: CharBackendEnv) {
    super(env);
    this.#linkPath = linkPath;
  }

  get name(): string {
    return this.#slavePath === undefined ? 'pty' : `pty ${this.#slavePath}`;
  }

  start(): void {
    if (this.isAttached) return;
    const { masterFd, slaveFd, slavePath } = openPty();
    let ownedMaster: number | undefined = masterFd;
    this.#slaveFd = slaveFd;
    this.#slavePath = slavePath;
    try {
      const link = this.#linkPath;
      if (link !== undefined) {
        placeLink(link, slavePath);
        this.#forgetLink = onProcessExit(() => removeLink(link, slavePath));
      }
      const stream = streamOverFd(masterFd, slavePath, { readable: true, writable: true });
      ownedMaster = undefined;
      this.attach(stream);
    } catch (error) {
      if (ownedMaster !== undefined) closeFd(ownedMaster);
      this.close();
      throw error;
    }
    const link = this.#linkPath === undefined ? '' : ` (${this.#linkPath})`;
    this.env.log.notice(`${this.env.user}: connected to ${slavePath}${link}`);
  }

  protected override close(): void {
    // What could not be removed is tried once more when the process ends.
    if (this.#linkPath === undefined || this.#slavePath === undefined || removeLink(this.#linkPath, this.#slavePath)) {
      this.#forgetLink();
    }
    if (this.#slaveFd !== undefined) closeFd(this.#slaveFd);
    this.#slaveFd = undefined;
    this.#slavePath = undefined;
  }
}

export function reason(error: Error | undefined): string {
  return error === undefined ? '' : `: ${(error as NodeJS.ErrnoException).code ?? error.message}`;
}

/** Point `linkPath` at the slave; an older link is replaced, its directory made. @throws HostError */
function placeLink(linkPath: string, slavePath: string): void {
  try {
    const existing = lstatSync(linkPath, { throwIfNoEntry: false });
    if (existing !== undefined && !existing.isSymbolicLink()) {
      // Compat: the C device model unlinks whatever has this name.
      throw new HostError(`pty link ${linkPath}: the path exists and is no symbolic link`, Errno.EEXIST, {
        exitCode: ExitCode.CannotCreate,
      });
    }
    if (existing !== undefined) rmSync(linkPath, { force: true });
    // Not mkdir's own recursion: under /proc Node's never ends.
    makeParents(linkPath);
    symlinkSync(slavePath, linkPath);
  } catch (error) {
    if (error instanceof HostError) throw error;
    throw pathFailure(`pty link ${linkPath}: cannot be made`, error, ExitCode.CannotCreate);
  }
}

/** Remove the link if it still leads to our slave: a later VM may have taken the name over. Whether it is ours no more. */
function removeLink(linkPath: string, slavePath: string): boolean {
  try {
    if (readlinkSync(linkPath) === slavePath) unlinkSync(linkPath);
    return true;
  } catch (error) {
    const code = (error as NodeJS.ErrnoException).code;
    // Gone, or a file by now.
    return code === 'ENOENT' || code === 'EINVAL';
  }
}
