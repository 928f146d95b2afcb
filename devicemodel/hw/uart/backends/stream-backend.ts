/**
 * What the back ends share: bounded buffers both ways, input paused while the guest does not read (Firecracker's
 * CVE-2020-27174 was a serial port that kept reading), output that never blocks the guest.
 */
import { writeSync } from 'node:fs';
import type { Duplex } from 'node:stream';
import type { CharBackend } from '../../../core/char-backend.ts';
import type { Log } from '../../../core/log.ts';
import { ByteQueue } from './byte-queue.ts';

export interface CharBackendEnv {
  /** Who owns the back end, for messages: `com1`, `uart at 00:07.0`. */
  readonly user: string;
  readonly log: Log;
  /**
   * The back end changed what it waits for from inside a guest access: the event loop must run once before the thread
   * blocks in the hypervisor again. Not needed where the event loop runs anyway (tests).
   */
  readonly requestTurn?: () => void;
  /** The user typed Ctrl-a x on a terminal. Default: SIGINT to this process, as the C device model does. */
  readonly onQuit?: () => void;
  /** Who may connect to Unix sockets beside this user. */
  readonly socketGroup?: string | undefined;
  /** Descriptors of stdio; default 0 and 1. */
  readonly stdio?: { readonly input: number; readonly output: number };
  /** Of whoever hands stdio out; default: nobody else uses it. */
  readonly stdioClaim?: { user: string | undefined };
}

/** Output the host has not taken yet; the oldest is lost beyond it. A power of two. */
export const OUTPUT_LIMIT_BYTES = 1 << 20;
/** The source is paused at this much input the guest has not read. One read of Node's (64 KiB) may come on top. */
const INPUT_PAUSE_BYTES = 4096;
/** One write to a stream. */
const CHUNK_BYTES = 16 * 1024;
/** Output to a file is written at the latest when this much is collected, also within a turn. */
const DIRECT_FLUSH_BYTES = 4096;

export abstract class StreamBackend implements CharBackend {
  onReadable: (() => void) | undefined;
  protected readonly env: CharBackendEnv;
  /** How long `stop` waits for a reader that takes nothing at all. */
  protected drainTimeoutMs = 200;
  /** Whether whoever reads asked for it: then what is lost at the end is worth a warning. */
  protected hasKnownReader = true;
  /** Newest output kept while nobody has been connected yet; 0: what a real line without a listener does with it. */
  protected keepForFirstBytes = 0;
  #input: Duplex | undefined;
  #output: Duplex | undefined;
  /** Output that cannot be polled and never makes us wait: a regular file, /dev/null. */
  #directFd: number | undefined;
  #directFailed = false;
  /** Received chunks, oldest first, and how much of the first one was read. */
  readonly #received: Uint8Array[] = [];
  #receivedAt = 0;
  #receivedBytes = 0;
  readonly #pending = new ByteQueue(OUTPUT_LIMIT_BYTES);
  /** What the stream took last; its tail may still be on the way. */
  #lastChunk: Buffer | undefined;
  #hasWarned = false;
  #whenWritten: (() => void) | undefined;
  readonly #onWritten = () => {
    this.flush();
    this.#whenWritten?.();
  };

  constructor(env: CharBackendEnv) {
    this.env = env;
  }

  abstract get name(): string;
  abstract start(): void | Promise<void>;
  /** Undo `start`; the streams are gone already. Called again after a `start` that failed half-way. */
  protected abstract close(): void;

  read(): number {
    const chunk = this.#received[0];
    if (chunk === undefined) return -1;
    const byte = chunk[this.#receivedAt++] as number;
    this.#receivedBytes--;
    if (this.#receivedAt === chunk.length) {
      this.#received.shift();
      this.#receivedAt = 0;
      if (this.#receivedBytes === 0) this.#continueInput();
    }
    return byte;
  }

  write(byte: number): void {
    if (!this.#pending.push(byte)) this.#warnOverflow();
    if (this.#directFd !== undefined && this.#pending.length >= DIRECT_FLUSH_BYTES && !this.#directFailed) this.flush();
  }

  flush(): void {
    if (this.#pending.length === 0) return;
    if (this.#directFd !== undefined) {
      this.#writeDirect(this.#directFd);
      return;
    }
    const output = this.#output;
    if (output === undefined) {
      this.#pending.drop(this.#pending.length - this.keepForFirstBytes);
      return;
    }
    // While the stream holds a chunk it could not write, the queue keeps the rest: there it is bounded.
    while (this.#pending.length > 0 && output.writableLength === 0) {
      const chunk = Buffer.from(this.#pending.peek(CHUNK_BYTES));
      this.#pending.drop(chunk.length);
      this.#lastChunk = chunk;
      output.write(chunk, this.#onWritten);
      if (output.writableLength > 0) this.env.requestTurn?.();
    }
    if (this.#pending.length === 0 && output.writableLength === 0) this.#hasWarned = false;
  }

  /** Sends what is left as long as the reader takes it, then closes. */
  async stop(): Promise<void> {
    await this.#drain();
    this.#warnLoss();
    this.detach();
    this.close();
    this.#received.length = 0;
    this.#receivedAt = 0;
    this.#receivedBytes = 0;
  }

  protected get isAttached(): boolean {
    return this.#input !== undefined || this.#output !== undefined || this.#directFd !== undefined;
  }

  /** Connect one stream for both directions. The back end owns it from now on. */
  protected attach(stream: Duplex): void {
    this.attachOutput(stream);
    this.attachInput(stream);
  }

  protected attachInput(stream: Duplex): void {
    this.#input = stream;
    this.#watch(stream);
    // A late event of an earlier client must not touch the next one: hence the comparisons.
    stream.on('data', (chunk: Buffer) => {
      if (this.#input === stream) this.receive(chunk);
    });
    stream.on('end', () => this.#closed(stream, 'input', undefined));
  }

  protected attachOutput(stream: Duplex): void {
    this.#output = stream;
    this.keepForFirstBytes = 0;
    this.#watch(stream);
    this.flush();
  }

  /** @param fd stays the caller's. */
  protected attachDirectOutput(fd: number): void {
    this.#directFd = fd;
    this.#directFailed = false;
  }

  protected detach(): void {
    const streams = [this.#input, this.#output];
    this.#input = undefined;
    this.#output = undefined;
    this.#directFd = undefined;
    this.#lastChunk = undefined;
    this.#pending.clear();
    for (const stream of streams) stream?.destroy();
    this.#whenWritten?.();
  }

  /** One direction ended. Input that ends is no error: the guest just receives nothing any more. */
  protected onClosed(_direction: 'input' | 'output', _error: Error | undefined): void {}

  /** Bytes as they arrive, before the guest sees them. */
  protected inspectInput(_chunk: Uint8Array): void {}

  /** Take what arrived, and tell the device. */
  protected receive(chunk: Uint8Array): void {
    this.keep(chunk);
    if (chunk.length > 0) this.onReadable?.();
  }

  /** Take what arrived. */
  protected keep(chunk: Uint8Array): void {
    if (chunk.length === 0) return;
    this.inspectInput(chunk);
    this.#received.push(chunk);
    this.#receivedBytes += chunk.length;
    if (this.#receivedBytes >= INPUT_PAUSE_BYTES) this.#input?.pause();
  }

  /** The process ends now: write what is still here to `fd`, synchronously, for at most `limitMs`. */
  protected writeRest(fd: number, limitMs: number): void {
    const lastChunk = this.#lastChunk;
    const parts: Uint8Array[] =
      lastChunk === undefined ? [] : [lastChunk.subarray(lastChunk.length - this.#underWay())];
    for (let part = this.#pending.peek(OUTPUT_LIMIT_BYTES); part.length > 0; ) {
      parts.push(Buffer.from(part));
      this.#pending.drop(part.length);
      part = this.#pending.peek(OUTPUT_LIMIT_BYTES);
    }
    this.#lastChunk = undefined;
    const rest = Buffer.concat(parts);
    const deadline = Date.now() + limitMs;
    for (let at = 0; at < rest.length && Date.now() < deadline; ) {
      try {
        // A terminal or pipe takes what it has room for; asked for more it may take nothing.
        at += writeSync(fd, rest, at, Math.min(rest.length - at, 512));
      } catch (error) {
        if ((error as NodeJS.ErrnoException).code !== 'EAGAIN') return;
      }
    }
  }

  #writeDirect(fd: number): void {
    try {
      while (this.#pending.length > 0) this.#pending.drop(writeSync(fd, this.#pending.peek(OUTPUT_LIMIT_BYTES)));
      this.#directFailed = false;
      this.#hasWarned = false;
    } catch (error) {
      // Kept up to the queue's limit and tried again with the next output: a full disk may get room.
      if (!this.#directFailed) {
        this.env.log.warn(
          `${this.env.user}: ${this.name}: ${(error as Error).message}; output is kept and tried again`,
        );
      }
      this.#directFailed = true;
    }
  }

  #watch(stream: Duplex): void {
    const ended = (error: Error | undefined) => {
      this.#closed(stream, 'input', error);
      this.#closed(stream, 'output', error);
    };
    stream.on('error', ended);
    stream.on('close', () => ended(undefined));
  }

  #continueInput(): void {
    if (this.#input?.isPaused() !== true) return;
    this.#input.resume();
    this.env.requestTurn?.();
  }

  #closed(stream: Duplex, direction: 'input' | 'output', error: Error | undefined): void {
    if (direction === 'input') {
      if (this.#input !== stream) return;
      this.#input = undefined;
    } else {
      if (this.#output !== stream) return;
      this.#output = undefined;
      this.#lastChunk = undefined;
      this.#pending.clear();
      this.#whenWritten?.();
    }
    if (this.#input !== stream && this.#output !== stream) stream.destroy();
    this.onClosed(direction, error);
  }

  #warnOverflow(): void {
    if (this.#hasWarned) return;
    this.#hasWarned = true;
    this.env.log.warn(
      `${this.env.user}: ${this.name} takes no output: more than ${OUTPUT_LIMIT_BYTES} bytes wait, the oldest are lost`,
    );
  }

  /** The end of what a guest printed is what a reader wants most. */
  #warnLoss(): void {
    if (this.#output === undefined && this.#directFd === undefined) return;
    const lost = this.#pending.length + this.#underWay();
    if (lost === 0) return;
    const level = this.hasKnownReader ? 'warn' : 'info';
    this.env.log[level](`${this.env.user}: ${this.name} takes no output: the last ${lost} bytes are lost`);
  }

  get #isDrained(): boolean {
    return this.#output === undefined || (this.#pending.length === 0 && this.#output.writableLength === 0);
  }

  /** Wait until everything is written, or until the reader took nothing for `drainTimeoutMs`. */
  #drain(): Promise<void> {
    this.flush();
    if (this.#isDrained) return Promise.resolve();
    return new Promise((resolve) => {
      let before = this.#underWay();
      const finish = () => {
        clearInterval(timer);
        this.#whenWritten = undefined;
        resolve();
      };
      const timer = setInterval(() => {
        const now = this.#underWay();
        if (now === before) finish();
        before = now;
      }, this.drainTimeoutMs);
      this.#whenWritten = () => {
        before = Number.NaN; // progress: never equal
        if (this.#isDrained) finish();
      };
    });
  }

  /** Bytes of the last chunk that libuv still holds: an undocumented, long-lived counter of Node's stream handles. */
  #underWay(): number {
    return (this.#output as { _handle?: { writeQueueSize?: number } | null } | undefined)?._handle?.writeQueueSize ?? 0;
  }
}
