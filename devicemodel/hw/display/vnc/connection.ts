/** One viewer, from its connection to its end. */
import type { Socket } from 'node:net';
import type { Disposable } from '../../../core/disposer.ts';
import type { Display } from '../display.ts';
import type { Rect, Size } from '../rect.ts';
import { type ClientMessages, ProtocolError, takeMessage } from './client-messages.ts';
import { Handshake } from './handshake.ts';
import { ClientInput } from './input.ts';
import { type ClientPixelFormat, encodeFormat, PixelWriter, SERVER_FORMAT } from './pixel-format.ts';
import { ResizeReason, ResizeStatus } from './protocol.ts';
import { Updates } from './updates.ts';

/** For version, password and the rest of it. */
const HANDSHAKE_MS = 30_000;
/** No message that is kept is longer; more comes only of a client that does not wait for its turn. */
const MAX_PENDING_BYTES = 16 * 1024;
/** What was sent before the end may still leave. */
const LINGER_MS = 2000;

export interface ConnectionParts {
  readonly display: Display;
  /** For the title of the viewer's window. */
  readonly name: string;
  readonly password: string | undefined;
  /** The viewer is in. @param isShared it lets others stay */
  onJoined(connection: Connection, isShared: boolean): void;
  /** Once, with a reason if there is one to tell. */
  onClosed(connection: Connection, reason: string | undefined): void;
}

export class Connection implements ClientMessages {
  readonly #socket: Socket;
  readonly #parts: ConnectionParts;
  readonly #handshake: Handshake;
  readonly #input: ClientInput;
  readonly #timer: NodeJS.Timeout;
  /** What came of a message that is not whole yet. */
  #pending: Buffer = Buffer.alloc(0);
  /** Bytes still to come that nobody reads. */
  #skip = 0;
  #updates: Updates | undefined;
  #watching: Disposable | undefined;
  #isClosed = false;
  #heardAtMs = performance.now();
  #onDrained: (() => void) | undefined;

  constructor(socket: Socket, parts: ConnectionParts) {
    this.#socket = socket;
    this.#parts = parts;
    this.#input = new ClientInput(parts.display.input);
    this.#timer = setTimeout(() => this.close('a viewer did not finish its handshake'), HANDSHAKE_MS);
    this.#timer.unref();
    socket.setNoDelay(true);
    socket.on('data', (bytes) => this.#received(bytes));
    socket.on('drain', () => this.#drained());
    socket.on('end', () => this.close());
    socket.on('close', () => this.close());
    socket.on('error', () => this.close());
    this.#handshake = new Handshake({
      send: (bytes) => void socket.write(bytes),
      password: parts.password,
      onDone: (isShared) => this.#join(isShared),
      onRefused: (reason) => this.close(reason),
    });
  }

  /** When it said something last. */
  get heardAtMs(): number {
    return this.#heardAtMs;
  }

  get hasJoined(): boolean {
    return this.#updates !== undefined;
  }

  /** Safe twice. */
  close(reason?: string): void {
    if (this.#isClosed) return;
    this.#isClosed = true;
    clearTimeout(this.#timer);
    this.#handshake.close();
    this.#watching?.dispose();
    this.#updates?.close();
    this.#input.release();
    this.#drained();
    this.#socket.destroySoon();
    const timer = setTimeout(() => this.#socket.destroy(), LINGER_MS);
    timer.unref();
    this.#socket.once('close', () => clearTimeout(timer));
    this.#parts.onClosed(this, reason);
  }

  /** At once. */
  destroy(): void {
    this.close();
    this.#socket.destroy();
  }

  #received(bytes: Buffer): void {
    this.#heardAtMs = performance.now();
    let data = this.#pending.length === 0 ? bytes : Buffer.concat([this.#pending, bytes]);
    try {
      while (!this.#isClosed) {
        const skipped = Math.min(this.#skip, data.length);
        this.#skip -= skipped;
        data = data.subarray(skipped);
        const length = this.#updates === undefined ? this.#handshake.take(data) : takeMessage(data, this);
        if (length === 0) break;
        this.#skip = Math.max(0, length - data.length);
        data = data.subarray(length);
      }
      if (data.length > MAX_PENDING_BYTES) throw new ProtocolError(`${data.length} bytes at once`);
      this.#pending = Buffer.from(data);
    } catch (error) {
      if (!(error instanceof ProtocolError)) throw error;
      this.close(`a viewer is cut off: ${error.message}`);
    }
  }

  #join(isShared: boolean): void {
    clearTimeout(this.#timer);
    const { display, name } = this.#parts;
    const updates = new Updates({ display, send: (bytes) => this.#send(bytes), onError: (e) => this.close(e.message) });
    this.#updates = updates;
    this.#watching = display.watch(updates);
    const text = Buffer.from(name);
    const init = Buffer.alloc(24 + text.length);
    init.writeUInt16BE(updates.size.width);
    init.writeUInt16BE(updates.size.height, 2);
    init.set(encodeFormat(SERVER_FORMAT), 4);
    init.writeUInt32BE(text.length, 20);
    init.set(text, 24);
    this.#socket.write(init);
    this.#parts.onJoined(this, isShared);
  }

  #send(bytes: Uint8Array): Promise<void> | undefined {
    if (this.#isClosed || this.#socket.write(bytes)) return undefined;
    return new Promise((resolve) => {
      this.#onDrained = resolve;
    });
  }

  #drained(): void {
    this.#onDrained?.();
    this.#onDrained = undefined;
  }

  // What the viewer says.

  setPixelFormat(format: ClientPixelFormat): void {
    if (this.#updates !== undefined) this.#updates.format = new PixelWriter(format);
  }

  setEncodings(encodings: readonly number[]): void {
    if (this.#updates !== undefined) this.#updates.encodings = encodings;
  }

  updateRequested(isIncremental: boolean, rect: Rect): void {
    this.#updates?.request(isIncremental, rect);
  }

  key(isDown: boolean, keysym: number, scanCode: number | undefined): void {
    this.#input.key(isDown, keysym, scanCode);
  }

  pointer(x: number, y: number, buttons: number): void {
    this.#input.pointer(x, y, buttons, this.#updates?.size ?? this.#parts.display.size);
  }

  /** Each of our screens gets the size of the viewer's of the same place, or all of it if it has one. */
  sizeWanted(size: Size, screens: readonly Rect[]): void {
    const { display } = this.#parts;
    const isLayout = size.width > 0 && size.height > 0 && screens.length === display.places.length;
    const isTaken = isLayout && screens.every((screen, i) => display.requestSize(i, screen));
    const status = isTaken ? ResizeStatus.Forwarded : isLayout ? ResizeStatus.Prohibited : ResizeStatus.Invalid;
    this.#updates?.notifyLayout(ResizeReason.ThisClient, status);
  }
}
