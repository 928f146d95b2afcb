/**
 * The connections of a control socket. There is a place for the next manager whatever the others do: when all places are
 * taken, the connection gives way that has been idle longest, or does not take its reply, and a request that is begun and
 * not finished is cut off.
 */
import type { Socket } from 'node:net';

/** How long the rest of a request may take [C waits for ever]. */
const REQUEST_TIMEOUT_MS = 10_000;
/** So many steps are done in one turn of the event loop: the guest is served by this thread, too. */
const STEPS_IN_A_TURN = 8;
/** How long `close` waits for clients to take their last reply. */
const LINGER_MS = 500;

export interface ClientsOptions {
  readonly maxClients: number;
  /** How many more may wait, unread, until a place is free. Default: none. */
  readonly maxWaiting?: number;
  /** Those that are idle for a good reason, such as one that waits for events, do not give way. */
  readonly isKept?: (socket: Socket) => boolean;
  /** Told about a connection that was ended for its own sake or for another's. */
  readonly onCut: (why: string) => void;
  readonly requestTimeoutMs?: number;
}

interface Client {
  work: Promise<void>;
  /** Steps not done yet. */
  pending: number;
  /** It does not read: what is waited for is the client itself. */
  isOwed: boolean;
  timer: NodeJS.Timeout | undefined;
  /** Steps done since the last turn. */
  steps: number;
}

export class Clients {
  readonly #options: ClientsOptions;
  /** The one that was busy last is the last. */
  readonly #clients = new Map<Socket, Client>();
  /** Connected and not read from yet, in the order they came. */
  readonly #waiting: Socket[] = [];

  constructor(options: ClientsOptions) {
    this.#options = options;
  }

  /**
   * A new connection. One that has to wait is paused, and read from when its turn comes.
   * @returns false when it was turned away: every other one is at work, and enough wait.
   */
  admit(socket: Socket): boolean {
    socket.on('error', () => {});
    if (this.#waiting.length > 0 || (this.#clients.size >= this.#options.maxClients && !this.#makeRoom())) {
      if (this.#waiting.length < (this.#options.maxWaiting ?? 0)) {
        socket.pause();
        this.#waiting.push(socket);
        return true;
      }
      this.#options.onCut(`more than ${this.#options.maxClients} clients at work, one was turned away`);
      socket.destroy();
      return false;
    }
    this.#enter(socket);
    return true;
  }

  #enter(socket: Socket): void {
    this.#clients.set(socket, { work: Promise.resolve(), pending: 0, isOwed: false, timer: undefined, steps: 0 });
    socket.on('close', () => {
      clearTimeout(this.#clients.get(socket)?.timer);
      this.#clients.delete(socket);
      this.#admitWaiting();
    });
  }

  #admitWaiting(): void {
    while (this.#waiting.length > 0 && (this.#clients.size < this.#options.maxClients || this.#makeRoom())) {
      const next = this.#waiting.shift() as Socket;
      if (next.destroyed) continue;
      this.#enter(next);
      next.resume();
    }
  }

  #makeRoom(): boolean {
    for (const [socket, client] of this.#clients) {
      if ((client.pending > 0 && !client.isOwed) || this.#options.isKept?.(socket) === true) continue;
      this.#options.onCut(
        client.isOwed
          ? 'a client that did not take its reply gave way to another'
          : 'the client that was idle longest gave way to another',
      );
      this.#clients.delete(socket);
      clearTimeout(client.timer);
      socket.destroy();
      return true;
    }
    return false;
  }

  /** Do something for a client after what was queued before; what it throws is the step's to deal with. */
  queue(socket: Socket, step: () => void | Promise<void>): void {
    const client = this.#clients.get(socket);
    if (client === undefined) return;
    client.pending++;
    const paced = async () => {
      if (++client.steps % STEPS_IN_A_TURN === 0) await new Promise((resolve) => setImmediate(resolve));
      await step();
    };
    client.work = client.work.then(paced).finally(() => {
      client.pending--;
      if (this.#clients.delete(socket)) this.#clients.set(socket, client);
      this.#admitWaiting();
    });
  }

  /** Part of a step: a reply. @returns when the client has taken it, or is gone. */
  give(socket: Socket, bytes: Uint8Array): Promise<void> {
    const client = this.#clients.get(socket);
    if (client === undefined || socket.destroyed || socket.writableEnded) return Promise.resolve();
    return new Promise((resolve) => {
      socket.write(bytes, () => {
        client.isOwed = false;
        resolve();
      });
      client.isOwed = socket.writableLength > 0;
      if (client.isOwed) this.#admitWaiting();
    });
  }

  /** Whether a request has been begun and its end not been seen. */
  setUnfinished(socket: Socket, isUnfinished: boolean): void {
    const client = this.#clients.get(socket);
    if (client === undefined || isUnfinished === (client.timer !== undefined)) return;
    clearTimeout(client.timer);
    client.timer = undefined;
    if (!isUnfinished) return;
    client.timer = setTimeout(() => {
      this.#options.onCut('a client did not finish its request and was cut off');
      socket.destroy();
    }, this.#options.requestTimeoutMs ?? REQUEST_TIMEOUT_MS);
    client.timer.unref();
  }

  /** Let all take their last reply, then end them. @param awaited this one gets to close its half, too. */
  async close(awaited?: Socket): Promise<void> {
    for (const socket of this.#waiting.splice(0)) socket.destroy();
    await Promise.all([...this.#clients].map(([socket, { work }]) => finish(socket, work, socket === awaited)));
  }
}

/**
 * End a connection once `work` is done and the client took what is under way, at the latest after {@link LINGER_MS}.
 * @param isPeerAwaited wait for the client to close its half too
 */
function finish(socket: Socket, work: Promise<void>, isPeerAwaited: boolean): Promise<void> {
  return new Promise((resolve) => {
    if (socket.destroyed) {
      resolve();
      return;
    }
    const timer = setTimeout(() => socket.destroy(), LINGER_MS);
    socket.once('close', () => {
      clearTimeout(timer);
      resolve();
    });
    // The other side may keep its half open for ever: ours is enough, as a rule.
    void work.then(() => socket.end(() => isPeerAwaited || socket.destroy()));
  });
}
