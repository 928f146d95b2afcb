/**
 * A connection whose bytes come in small helpings: at most one request's head in a turn of the event loop. A client may put
 * a thousand requests into one packet; parsed in one go they would keep the guest, which shares this thread, for a second.
 */
import type { Socket } from 'node:net';
import { Duplex } from 'node:stream';

const HEAD_END = Buffer.from('\r\n\r\n');
/** Of a body, or of a head that does not end. */
const MAX_HELPING_BYTES = 16 * 1024;

export class PacedSocket extends Duplex {
  readonly #socket: Socket;
  #rest: Uint8Array = new Uint8Array(0);
  #isWanted = false;
  #isServing = false;
  #isHeld = false;
  #hasEnded = false;

  /** @param socket paused, with nothing read; it is this object's from now on. */
  constructor(socket: Socket) {
    super({ allowHalfOpen: true });
    this.#socket = socket;
    socket.on('data', (data) => {
      socket.pause();
      this.#rest = data;
      this.#serve();
    });
    socket.on('end', () => {
      this.#hasEnded = true;
      this.#serve();
    });
    socket.on('error', () => this.destroy());
    socket.on('close', () => this.destroy());
    socket.resume();
  }

  /** The client does not read what it was sent. */
  get isOwed(): boolean {
    return this.#socket.writableNeedDrain;
  }

  /** What follows stays with the client, or goes on. */
  hold(isHeld: boolean): void {
    this.#isHeld = isHeld;
    this.#serve();
  }

  override _read(): void {
    this.#isWanted = true;
    this.#serve();
  }

  override _write(chunk: Uint8Array, _encoding: string, onDone: () => void): void {
    if (this.#socket.destroyed || this.#socket.write(chunk)) onDone();
    else this.#socket.once('drain', onDone);
  }

  override _final(onDone: () => void): void {
    this.#socket.end(onDone);
  }

  override _destroy(error: Error | null, onDone: (error: Error | null) => void): void {
    this.#socket.destroy();
    onDone(error);
  }

  /** What was written goes out, then the connection is over. */
  destroySoon(): void {
    if (this.writableFinished) this.destroy();
    else this.end(() => this.destroy());
  }

  #serve(): void {
    if (this.#isHeld || !this.#isWanted || this.#isServing || (this.#rest.length === 0 && !this.#hasEnded)) return;
    this.#isServing = true;
    setImmediate(() => {
      this.#isServing = false;
      if (this.destroyed || this.#isHeld) return;
      if (this.#rest.length === 0) {
        this.push(null);
        return;
      }
      const headEnd = Buffer.from(this.#rest.buffer, this.#rest.byteOffset, this.#rest.length).indexOf(HEAD_END);
      const end = headEnd < 0 ? MAX_HELPING_BYTES : Math.min(headEnd + HEAD_END.length, MAX_HELPING_BYTES);
      const helping = this.#rest.subarray(0, end);
      this.#rest = this.#rest.subarray(helping.length);
      this.#isWanted = this.push(helping);
      if (this.#rest.length === 0) this.#socket.resume();
      else this.#serve();
    });
  }
}
