/** A connection of bytes with one who may be an attacker (wary-socket.ts): what it cannot take is kept, up to what its user allows. */
import { describeErrno, Errno } from './errno.ts';
import { type FdEvent, watchFdFor } from './fd-watch.ts';
import { hostCall } from './libc.ts';
import { hangUp, look, takeBytes } from './wary-socket.ts';

const MSG_NOSIGNAL = 0x4000;
/** What is read at a time, before others have their turn. */
const MAX_LOOKS = 16;

/** Of send(2): the other end. What it said before is read still. */
const GONE: ReadonlySet<number> = new Set([Errno.EPIPE, Errno.ECONNRESET]);

const send = hostCall<[fd: number, bytes: Uint8Array, sizeBytes: number, flags: number]>(
  'int64_t send(int, const void *, size_t, int)',
);

export interface ByteStreamEvents {
  /** UTF-8 that came. */
  text(text: string): void;
  /** Everything that was kept is gone out. */
  drained(): void;
  /** The other end has, or it cannot be listened to any more. Not told to who closed it. @param why what is wrong with it */
  ended(why?: string): void;
}

export class ByteStream {
  readonly #fd: number;
  readonly #events: ByteStreamEvents;
  readonly #decoder = new TextDecoder();
  #unwatch: () => void;
  #isOpen = true;
  #isKept = false;
  /** Not gone out yet. */
  #kept: Uint8Array[] = [];
  #keptBytes = 0;

  /** @param fd is its own from now on. @throws HostError; it is hung up then. */
  constructor(fd: number, events: ByteStreamEvents) {
    this.#fd = fd;
    this.#events = events;
    try {
      this.#unwatch = this.#watch('readable');
    } catch (error) {
      hangUp(fd, 'bytes');
      throw error;
    }
  }

  get isOpen(): boolean {
    return this.#isOpen;
  }

  /** It has ended, and stays open, hung up: what came last has descriptors. */
  get isKept(): boolean {
    return this.#isKept;
  }

  get keptBytes(): number {
    return this.#keptBytes;
  }

  write(text: string): void {
    if (!this.#isOpen) return;
    const bytes = new TextEncoder().encode(text);
    const wasWaiting = this.#keptBytes > 0;
    this.#kept.push(bytes);
    this.#keptBytes += bytes.length;
    if (wasWaiting) return;
    this.#flush();
    if (this.#keptBytes > 0) this.#watchAnew('either');
  }

  /** Safe twice. */
  close(): void {
    if (!this.#isOpen) return;
    this.#isOpen = false;
    this.#unwatch();
    this.#kept = [];
    this.#keptBytes = 0;
    this.#isKept = !hangUp(this.#fd, 'bytes');
  }

  #watch(event: FdEvent): () => void {
    // It is the VM that keeps the process.
    return watchFdFor(this.#fd, event, () => this.#turn(), false);
  }

  #watchAnew(event: FdEvent): void {
    this.#unwatch();
    try {
      this.#unwatch = this.#watch(event);
    } catch (error) {
      this.#end((error as Error).message);
    }
  }

  #turn(): void {
    if (this.#keptBytes > 0) {
      this.#flush();
      if (this.#isOpen && this.#keptBytes === 0) {
        this.#watchAnew('readable');
        this.#events.drained();
      }
    }
    for (let looks = 0; this.#isOpen && looks < MAX_LOOKS; looks++) {
      const seen = look(this.#fd);
      if (seen === undefined) return;
      if (seen === 'ended') this.#end();
      else if (seen.hasRights) this.#end('it sends descriptors');
      else this.#events.text(this.#decoder.decode(takeBytes(this.#fd, seen), { stream: true }));
    }
  }

  /** What cannot be sent now or later ends the connection: the other end must not have what comes after it. */
  #flush(): void {
    while (this.#kept.length > 0) {
      const first = this.#kept[0] as Uint8Array;
      const sent = send(this.#fd, first, first.length, MSG_NOSIGNAL);
      if (sent === -Errno.EAGAIN) return;
      if (sent < 0) {
        this.#kept = [];
        this.#keptBytes = 0;
        if (!GONE.has(-sent)) this.#end(`it cannot be sent to: ${describeErrno(-sent)}`);
        return;
      }
      this.#keptBytes -= sent;
      if (sent === first.length) this.#kept.shift();
      else this.#kept[0] = first.subarray(sent);
    }
  }

  #end(why?: string): void {
    if (!this.#isOpen) return;
    this.close();
    this.#events.ended(why);
  }
}
