/** Consoles over TCP and Unix sockets: raw bytes, one client at a time, who may leave and come back. */
import { createConnection, createServer, isIPv6, type Server, type Socket } from 'node:net';
import { ExitCode } from '../../../core/errors.ts';
import { pathFailure } from '../../../core/host/path-failure.ts';
import { checkSocketPath } from '../../../core/host/socket-path.ts';
import { listenUnix, type UnixListener } from '../../../core/host/unix-listener.ts';
import { type CharBackendEnv, StreamBackend } from './stream-backend.ts';
import { reason } from './tty.ts';

/** What a guest printed before anybody connected, kept for the first client: boot messages, a panic. */
const KEPT_FOR_FIRST_CLIENT_BYTES = 64 * 1024;

/** A client whose machine is gone without a word frees the line after this and a few seconds. */
const KEEP_ALIVE_MS = 60_000;

/** A listening back end. Once a client has been there, output without one is dropped, as on a line nobody listens to. */
abstract class ServerBackend extends StreamBackend {
  protected override keepForFirstBytes = KEPT_FOR_FIRST_CLIENT_BYTES;

  protected accept(client: Socket): void {
    if (this.isAttached) {
      this.env.log.rationed(
        'info',
        () => `${this.env.user}: ${this.name} has a client already, another one was turned away`,
      );
      client.on('error', () => {});
      client.destroy();
      return;
    }
    this.env.log.rationed('info', () => `${this.env.user}: client on ${this.name}`);
    this.attach(client);
  }

  protected override onClosed(): void {
    if (!this.isAttached) return;
    // A client that sent its end is gone: the next one must not wait for it.
    this.detach();
    this.env.log.rationed('info', () => `${this.env.user}: the client of ${this.name} left`);
  }
}

export class TcpBackend extends ServerBackend {
  readonly #address: string;
  #port: number;
  #server: Server | undefined;

  constructor(address: string, port: number, env: CharBackendEnv) {
    super(env);
    this.#address = address;
    this.#port = port;
  }

  get name(): string {
    return `tcp ${isIPv6(this.#address) ? `[${this.#address}]` : this.#address}:${this.#port}`;
  }

  /** The port; with 0 asked for, the one the system chose, known once started. */
  get port(): number {
    return this.#port;
  }

  /** @throws HostError */
  async start(): Promise<void> {
    if (this.#server !== undefined) return;
    const server = createServer(
      { allowHalfOpen: true, noDelay: true, keepAlive: true, keepAliveInitialDelay: KEEP_ALIVE_MS },
      (client) => this.accept(client),
    );
    await new Promise<void>((resolve, reject) => {
      server.once('error', (error) => {
        reject(pathFailure(`${this.name} cannot be listened on`, error, ExitCode.CannotCreate));
      });
      server.listen({ host: this.#address, port: this.#port, backlog: 1 }, resolve);
    });
    server.on('error', () => {}); // an accept that fails must not take the VM down
    this.#server = server;
    const bound = server.address();
    if (bound !== null && typeof bound === 'object') this.#port = bound.port;
    const who = isLoopback(this.#address) ? 'any local user' : 'anybody who reaches it';
    this.env.log.notice(`${this.env.user}: listening on ${this.name}, where ${who} can connect`);
  }

  protected override close(): void {
    this.#server?.close();
    this.#server = undefined;
  }
}

/** 127.0.0.0/8 and ::1. */
function isLoopback(address: string): boolean {
  return address.startsWith('127.') || address === '::1' || address === 'localhost';
}

export class UnixServerBackend extends ServerBackend {
  readonly #path: string;
  #listener: UnixListener | undefined;

  constructor(path: string, env: CharBackendEnv) {
    super(env);
    this.#path = path;
  }

  get name(): string {
    return `unix ${this.#path}`;
  }

  /** @throws ConfigError, HostError */
  async start(): Promise<void> {
    if (this.#listener !== undefined) return;
    this.#listener = await listenUnix(this.#path, (client) => this.accept(client), { group: this.env.socketGroup });
    this.env.log.notice(`${this.env.user}: listening on ${this.name}`);
  }

  protected override close(): void {
    this.#listener?.close();
    this.#listener = undefined;
  }
}

/** Connects to somebody else's socket (virtio-console `socket:…:client`). Not tried again once it is closed. */
export class UnixClientBackend extends StreamBackend {
  readonly #path: string;

  constructor(path: string, env: CharBackendEnv) {
    super(env);
    this.#path = path;
  }

  get name(): string {
    return `unix ${this.#path} (client)`;
  }

  /** @throws HostError if there is no such socket. As with C, one that nobody serves any more is only worth a warning. */
  async start(): Promise<void> {
    if (this.isAttached) return;
    // Node would cut it, and connect to something else.
    checkSocketPath(this.#path);
    const socket = createConnection({ path: this.#path });
    const isConnected = await new Promise<boolean>((resolve, reject) => {
      socket.once('connect', () => resolve(true));
      socket.once('error', (error) => {
        if ((error as NodeJS.ErrnoException).code === 'ECONNREFUSED') {
          this.env.log.warn(`${this.env.user}: ${this.name}: nobody listens (ECONNREFUSED), output is dropped`);
          resolve(false);
          return;
        }
        reject(pathFailure(`${this.name} cannot be connected to`, error));
      });
    });
    if (isConnected) this.attach(socket);
  }

  protected override close(): void {}

  protected override onClosed(_direction: 'input' | 'output', error: Error | undefined): void {
    if (!this.isAttached) return;
    this.detach();
    this.env.log.warn(`${this.env.user}: ${this.name} was closed by the other side${reason(error)}`);
  }
}
