/**
 * The process's own standard input and output. On a terminal: raw mode, so that every key reaches the guest, restored
 * however the process ends. On pipes, files and the journal: as they are.
 */
import { closeSync, fstatSync } from 'node:fs';
import { ConfigError } from '../../../core/errors.ts';
import { onProcessEnd } from '../../../core/host/exit-hooks.ts';
import { isPollable, reopen, streamOverFd } from '../../../core/host/fd-stream.ts';
import { setNonBlocking } from '../../../core/host/files.ts';
import { readSome } from '../../../core/host/read-file.ts';
import { isTerminal, RawTerminal } from '../../../core/host/tty.ts';
import { type CharBackendEnv, StreamBackend } from './stream-backend.ts';
import { reason } from './tty.ts';

const CTRL_A = 0x01;
const LETTER_X = 0x78;
/** One read of input that is a regular file. */
const FILE_CHUNK_BYTES = 4096;
/** How long the process's end may wait for a terminal or pipe that takes nothing. */
const LAST_WRITE_MS = 500;

/** There is one keyboard: two devices reading it would each get every other key. Whoever hands it out keeps this. */
export class StdioClaim {
  /** Who has it: `com1`. */
  user: string | undefined;
}

export class StdioBackend extends StreamBackend {
  readonly name = 'stdio';
  readonly #claim: StdioClaim;
  readonly #translateOutput: boolean;
  readonly #inputFd: number;
  readonly #outputFd: number;
  #raw: RawTerminal | undefined;
  #removeHook: (() => void) | undefined;
  /** Input from a regular file: read as the guest reads. */
  #inputFile = false;
  /** Descriptors whose non-blocking flag we share with others, to be set back. */
  readonly #shared: number[] = [];
  #sawCtrlA = false;
  #isStarted = false;

  constructor(env: CharBackendEnv, options: { readonly translateOutput?: boolean } = {}) {
    super(env);
    this.#claim = env.stdioClaim ?? new StdioClaim();
    this.#translateOutput = options.translateOutput === true;
    this.#inputFd = env.stdio?.input ?? 0;
    this.#outputFd = env.stdio?.output ?? 1;
    this.drainTimeoutMs = 2000;
  }

  /** @throws ConfigError when another device has it, HostError */
  start(): void {
    if (this.#isStarted) return;
    if (this.#claim.user !== undefined) {
      throw new ConfigError(`${this.env.user}: stdio is used by ${this.#claim.user} already`, {
        hint: 'give one of them another back end, for example pty',
      });
    }
    this.#claim.user = this.env.user;
    this.#isStarted = true;
    try {
      this.#removeHook = onProcessEnd(() => this.writeRest(this.#outputFd, LAST_WRITE_MS));
      if (isPollable(this.#outputFd)) this.attachOutput(this.#stream(this.#outputFd, 'write'));
      else this.attachDirectOutput(this.#outputFd);
      this.#openInput();
    } catch (error) {
      this.detach();
      this.close();
      throw error;
    }
  }

  override read(): number {
    const byte = super.read();
    if (byte >= 0 || !this.#inputFile) return byte;
    // No onReadable: the device is in the middle of reading.
    this.keep(this.#nextFileChunk());
    return super.read();
  }

  protected override close(): void {
    this.#raw?.leave();
    this.#raw = undefined;
    this.#removeHook?.();
    this.#removeHook = undefined;
    for (const fd of this.#shared.splice(0)) {
      try {
        setNonBlocking(fd, false, 'stdio');
      } catch {
        // Closed by now.
      }
    }
    this.#inputFile = false;
    if (this.#isStarted) this.#claim.user = undefined;
    this.#isStarted = false;
  }

  /** Ctrl-a x ends the VM from the keyboard: in raw mode Ctrl-c belongs to the guest. */
  protected override inspectInput(chunk: Uint8Array): void {
    if (this.#raw === undefined) return;
    for (const byte of chunk) {
      if (byte === CTRL_A) this.#sawCtrlA = true;
      else {
        if (this.#sawCtrlA && byte === LETTER_X) this.#quit();
        this.#sawCtrlA = false;
      }
    }
  }

  protected override onClosed(direction: 'input' | 'output', error: Error | undefined): void {
    // Input that ends (a pipe's writer left, a terminal was hung up) is nothing to complain about.
    if (direction === 'output')
      this.env.log.warn(`${this.env.user}: stdout was closed${reason(error)}, output is dropped`);
    else if (error !== undefined) this.env.log.info(`${this.env.user}: stdin was closed${reason(error)}`);
  }

  #openInput(): void {
    const fd = this.#inputFd;
    if (!isPollable(fd)) {
      this.#inputFile = fstatSync(fd).isFile();
      if (this.#inputFile) this.receive(this.#nextFileChunk());
      return;
    }
    if (isTerminal(fd)) {
      // In raw mode Ctrl-c is the guest's: without this line nobody finds the way out.
      this.env.log.notice(`${this.env.user}: Ctrl-a x ends the VM; every key, Ctrl-a too, reaches the guest`);
      const raw = new RawTerminal(fd, 'stdin', { translateOutput: this.#translateOutput, guarded: true });
      this.#raw = raw;
      if (!raw.enter()) {
        // In the background, reading would stop the process. The keyboard comes with the foreground.
        this.env.log.info(`${this.env.user}: running in the background, the terminal's keyboard is left alone`);
        raw.onForeground = () => {
          raw.onForeground = undefined;
          this.attachInput(this.#stream(fd, 'read'));
        };
        return;
      }
    }
    this.attachInput(this.#stream(fd, 'read'));
  }

  #stream(fd: number, access: 'read' | 'write') {
    const copy = reopen(fd, access);
    try {
      if (copy.shared && !setNonBlocking(copy.fd, true, 'stdio')) this.#shared.push(fd);
      return streamOverFd(copy.fd, this.name, { readable: access === 'read', writable: access === 'write' });
    } catch (error) {
      closeSync(copy.fd);
      throw error;
    }
  }

  /** The next bytes of a regular file; empty at its end. */
  #nextFileChunk(): Uint8Array {
    const chunk = new Uint8Array(FILE_CHUNK_BYTES);
    let count = 0;
    try {
      count = readSome(this.#inputFd, chunk, 0, chunk.length, null);
    } catch (error) {
      this.env.log.info(`${this.env.user}: stdin cannot be read${reason(error as Error)}`);
    }
    if (count === 0) this.#inputFile = false;
    return chunk.subarray(0, count);
  }

  #quit(): void {
    this.env.log.notice(`${this.env.user}: Ctrl-a x`);
    if (this.env.onQuit === undefined) process.kill(process.pid, 'SIGINT');
    else this.env.onQuit();
  }
}
