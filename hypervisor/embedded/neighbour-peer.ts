/** The connection to another User VM of this host. What it does not read is kept up to a limit, whatever it is sent. */
import type { Socket } from 'node:net';
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
  readonly #socket: Socket;
  /** Why the connection is ended by this side, if it is for something the other did. */
  #why: string | undefined;
  #rest = '';
  /** Doorbells that wait until it reads; rung again, they are still one, as an interrupt that is pending. */
  readonly #pending = new Set<string>();

  constructor(socket: Socket, onMessage: (message: Message) => void, onClose: (why: string | undefined) => void) {
    this.#socket = socket;
    socket.setEncoding('utf8');
    socket.unref(); // it is the VM that keeps the process
    socket.on('data', (text: string) => {
      const lines = (this.#rest + text).split('\n');
      this.#rest = lines.pop() ?? '';
      try {
        if (this.#rest.length > MAX_LINE_BYTES) throw new Error('line too long');
        for (const line of lines) onMessage(parseMessage(line));
      } catch (error) {
        this.end((error as Error).message);
      }
    });
    socket.on('drain', () => {
      for (const line of this.#pending) socket.write(line);
      this.#pending.clear();
    });
    socket.on('error', () => {}); // 'close' follows
    socket.on('close', () => onClose(this.#why));
  }

  /** Whose process it is, or was when it connected. */
  get userId(): number | undefined {
    return peerUser(this.#socket);
  }

  send(message: Message): void {
    if (!this.#socket.writable) return;
    if (this.#socket.writableLength > MAX_KEPT_BYTES) this.end('it does not read');
    else this.#socket.write(`${JSON.stringify(message)}\n`);
  }

  /** As `send`; a VM that does not read makes this one keep no more than a doorbell of each kind. */
  ring(message: Message & { readonly kind: 'doorbell' }): void {
    if (this.#socket.writableLength < MAX_UNREAD_BYTES) this.send(message);
    else this.#pending.add(`${JSON.stringify(message)}\n`);
  }

  close(): void {
    this.#socket.destroy();
  }

  /** @param why for the log. */
  end(why: string): void {
    this.#why ??= why;
    this.#socket.destroy();
  }
}
