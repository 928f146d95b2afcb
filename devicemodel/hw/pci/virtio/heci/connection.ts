/** One connection of the guest's driver to a client of the engine: a credit for each message, both ways. */
import { Errno } from '../../../../core/host/errno.ts';
import type { MeiChannel } from '../../../../core/host/mei.ts';

/** Complete messages that wait for the engine. */
const MAX_WAITING = 7;

export class EngineConnection {
  readonly me: number;
  /** 0 for a fixed client, which has no flow control. */
  readonly host: number;
  readonly #maxMessageBytes: number;
  channel: MeiChannel | undefined;
  /** How many messages the driver is ready for. */
  #credits: number;
  /** What the engine has said and the driver not yet got, from `#sentBytes` on. */
  #incoming: Uint8Array | undefined;
  #sentBytes = 0;
  /** The driver's message that is not complete, in one piece however many it came in: a driver may send empty ones for ever. */
  #partial: Uint8Array | undefined;
  #partialBytes = 0;
  readonly #outgoing: Uint8Array[] = [];

  constructor(me: number, host: number, maxMessageBytes: number) {
    this.me = me;
    this.host = host;
    this.#maxMessageBytes = maxMessageBytes;
    this.#credits = host === 0 ? 1 : 0;
  }

  /** The engine's next message is wanted only when the driver is, and has the one before. */
  listen(): void {
    this.channel?.listen(this.#credits > 0 && this.#incoming === undefined);
  }

  addCredit(): void {
    this.#credits++;
    this.listen();
  }

  onMessage(message: Uint8Array): void {
    this.#incoming = message;
    this.#sentBytes = 0;
    this.listen();
  }

  get hasIncoming(): boolean {
    return this.#incoming !== undefined && this.#credits > 0;
  }

  /** The next piece for the driver, of at most `roomBytes`. */
  takeIncoming(roomBytes: number): { readonly bytes: Uint8Array; readonly isComplete: boolean } {
    const message = this.#incoming ?? new Uint8Array(0);
    const bytes = message.subarray(this.#sentBytes, this.#sentBytes + roomBytes);
    this.#sentBytes += bytes.length;
    const isComplete = this.#sentBytes === message.length;
    if (isComplete) {
      this.#incoming = undefined;
      if (this.host !== 0) this.#credits--;
      this.listen();
    }
    return { bytes, isComplete };
  }

  /** A piece of the driver's, which is copied. @returns false if it is more than there is room for: the connection is to end. */
  add(piece: Uint8Array, isComplete: boolean): boolean {
    const end = this.#partialBytes + piece.length;
    if (end > this.#maxMessageBytes || this.#outgoing.length >= MAX_WAITING) return false;
    if (piece.length > 0) {
      this.#partial ??= new Uint8Array(this.#maxMessageBytes);
      this.#partial.set(piece, this.#partialBytes);
      this.#partialBytes = end;
    }
    if (!isComplete) return true;
    this.#outgoing.push(Buffer.from(this.#partial?.subarray(0, end) ?? []));
    this.#partial = undefined;
    this.#partialBytes = 0;
    return true;
  }

  /** @returns 0 when everything is with the engine, or a negative errno. */
  sendOutgoing(): number {
    for (;;) {
      const [message] = this.#outgoing;
      if (message === undefined || this.channel === undefined) return 0;
      const result = this.channel.send(message);
      if (result < 0) return result;
      this.#outgoing.shift();
    }
  }

  get isWaiting(): boolean {
    return this.#outgoing.length > 0;
  }

  /** Nothing waits for the engine any more, either. */
  close(): void {
    this.channel?.close();
    this.channel = undefined;
    this.#outgoing.length = 0;
  }
}

/** Of ENOTTY and the like, as the engine's driver answers a connection. */
export function refusalOf(errno: number): number {
  if (errno === Errno.ENOTTY) return 1;
  return errno === Errno.EBUSY ? 2 : 4;
}
