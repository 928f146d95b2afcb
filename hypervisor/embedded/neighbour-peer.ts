/** The connection to another User VM of this host. What it does not read is kept up to a limit, whatever it is sent. */
import { ByteStream } from '../../devicemodel/core/host/byte-stream.ts';
import { peerUser } from '../../devicemodel/core/host/peer-user.ts';
import { type Message, parseMessage } from './neighbour-messages.ts';
import type { VuartAddress } from './scenario.ts';

/** A line longer than this is no message of ours. */
const MAX_LINE_BYTES = 64 * 1024;
/** So much waits for a VM that does not read; further doorbells become one of each kind. */
const MAX_UNREAD_BYTES = 64 * 1024;
/** With so much waiting for it, it is taken for one that will never read. */
const MAX_KEPT_BYTES = 1024 * 1024;

/** Another VM. */
export class Peer {
  /** 0: not known yet. */
  vmid = 0;
  /** It has said who it is. */
  hasIntroduced = false;
  name = '';
  /** Its vUARTs by index, and whom they want. */
  readonly vuarts = new Map<number, VuartAddress | undefined>();
  /** Whose process it is, or was when it connected. */
  readonly userId: number | undefined;
  readonly #stream: ByteStream;
  readonly #onClose: (why: string | undefined) => void;
  #rest = '';
  /** Doorbells that wait until it reads; rung again, they are still one, as an interrupt that is pending. */
  readonly #pending = new Set<string>();

  /**
   * @param fd is this connection's from now on. @param onClose is told after whoever ended it is done, and why if it was for
   * something the other did. @throws HostError; it is hung up then.
   */
  constructor(fd: number, onMessage: (message: Message) => void, onClose: (why: string | undefined) => void) {
    this.#onClose = onClose;
    this.userId = peerUser(fd);
    this.#stream = new ByteStream(fd, {
      text: (text) => {
        const lines = (this.#rest + text).split('\n');
        this.#rest = lines.pop() ?? '';
        try {
          if (this.#rest.length > MAX_LINE_BYTES) throw new Error('line too long');
          for (const line of lines) if (this.#stream.isOpen) onMessage(parseMessage(line));
        } catch (error) {
          this.end((error as Error).message);
        }
      },
      drained: () => {
        for (const line of this.#pending) this.#stream.write(line);
        this.#pending.clear();
      },
      ended: (why) => this.#tell(why),
    });
  }

  /** It has ended, and stays open, hung up (byte-stream.ts). */
  get isKept(): boolean {
    return this.#stream.isKept;
  }

  send(message: Message): void {
    if (this.#stream.keptBytes > MAX_KEPT_BYTES) this.end('it does not read');
    else this.#stream.write(`${JSON.stringify(message)}\n`);
  }

  /** As `send`; a VM that does not read makes this one keep no more than a doorbell of each kind. */
  ring(message: Message & { readonly kind: 'doorbell' }): void {
    if (this.#stream.keptBytes < MAX_UNREAD_BYTES) this.send(message);
    else this.#pending.add(`${JSON.stringify(message)}\n`);
  }

  close(): void {
    if (!this.#stream.isOpen) return;
    this.#stream.close();
    this.#tell();
  }

  /** @param why for the log. */
  end(why: string): void {
    if (!this.#stream.isOpen) return;
    this.#stream.close();
    this.#tell(why);
  }

  #tell(why?: string): void {
    setImmediate(() => this.#onClose(why));
  }
}
