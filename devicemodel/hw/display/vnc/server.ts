/** The VNC server of a VM's display: who may connect, how many, and what becomes of them. */
import { createServer, type Server, type Socket } from 'node:net';
import { constants } from 'node:os';
import type { VncConfig } from '../../../core/config.ts';
import { ExitCode, HostError } from '../../../core/errors.ts';
import { describeErrno } from '../../../core/host/errno.ts';
import { listenUnix } from '../../../core/host/unix-listener.ts';
import type { Log } from '../../../core/log.ts';
import type { Display } from '../display.ts';
import { Connection } from './connection.ts';
import { readPassword } from './password-file.ts';

/** Viewers, and those who try to be one. */
const MAX_VIEWERS = 8;
const MAX_UNKNOWN = 4;
const BACKLOG = 8;

export interface VncParts {
  readonly config: VncConfig;
  readonly display: Display;
  /** Of the VM. */
  readonly name: string;
  readonly socketGroup: string | undefined;
  readonly log: Log;
}

export class VncServer {
  readonly #parts: VncParts;
  readonly #connections = new Set<Connection>();
  #listener: { close(): void } | undefined;
  #password: string | undefined;

  constructor(parts: VncParts) {
    this.#parts = parts;
  }

  /** @throws ConfigError, HostError */
  async start(): Promise<void> {
    const { config, socketGroup, log } = this.#parts;
    if (config.passwordFile !== undefined) this.#password = readPassword(config.passwordFile);
    const accept = (socket: Socket) => this.#accept(socket);
    if (config.path !== undefined) {
      this.#listener = await listenUnix(config.path, accept, { group: socketGroup });
      log.info(`display: vnc at ${config.path}`);
      return;
    }
    const { host, port } = config;
    this.#listener = await listenTcp(host, port, accept);
    log.info(`display: vnc at ${host}:${port}`);
    if (!isLoopback(host)) log.warn(`display: what goes over ${host}:${port} is not encrypted, keys included`);
  }

  /** Nothing of it is left. Safe twice. */
  close(): void {
    this.#listener?.close();
    this.#listener = undefined;
    for (const connection of [...this.#connections]) connection.destroy();
  }

  #accept(socket: Socket): void {
    const unknown = [...this.#connections].filter((connection) => !connection.hasJoined);
    if (unknown.length >= MAX_UNKNOWN) unknown[0]?.close('one that did not finish its handshake gave way to another');
    const { display, name, log } = this.#parts;
    const connection = new Connection(socket, {
      display,
      name,
      password: this.#password,
      onJoined: (joined, isShared) => {
        log.debug('display: a viewer came');
        if (!isShared) this.#dismissAllBut(joined);
        this.#makeRoom(joined);
      },
      onClosed: (closed, reason) => {
        this.#connections.delete(closed);
        if (reason !== undefined) log.rationed('warn', () => `display: ${reason}`);
      },
    });
    this.#connections.add(connection);
  }

  /** Only for one that knows the password: whoever can connect must not be able to send viewers away. */
  #makeRoom(newest: Connection): void {
    const others = [...this.#connections].filter((other) => other !== newest && other.hasJoined);
    if (others.length < MAX_VIEWERS) return;
    const silent = others.reduce((a, b) => (b.heardAtMs < a.heardAtMs ? b : a));
    silent.close('the viewer that was silent longest gave way to another');
  }

  /** RFC 6143 §7.3.1: a viewer may want to be alone. */
  #dismissAllBut(one: Connection): void {
    for (const other of [...this.#connections]) if (other !== one && other.hasJoined) other.close();
  }
}

function isLoopback(host: string): boolean {
  return host === 'localhost' || host === '::1' || host.startsWith('127.');
}

function listenTcp(host: string, port: number, onConnection: (socket: Socket) => void): Promise<{ close(): void }> {
  return new Promise((resolve, reject) => {
    const server: Server = createServer({ allowHalfOpen: true }, (socket) => {
      socket.setKeepAlive(true, 60_000);
      onConnection(socket);
    });
    server.once('error', (error: NodeJS.ErrnoException) => {
      const errno = Math.abs(error.errno ?? constants.errno.EIO);
      const message = `display: ${host}:${port}: ${describeErrno(errno)}`;
      reject(new HostError(message, errno, { exitCode: ExitCode.CannotCreate, cause: error }));
    });
    server.listen({ host, port, backlog: BACKLOG }, () => {
      // An accept that fails (no descriptors left) must not take the VM down.
      server.on('error', () => {});
      resolve({ close: () => void server.close() });
    });
  });
}
