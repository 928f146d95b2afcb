/** Listening Unix stream sockets in the file system: what is in the way, and what is left behind. */
import { lstatSync, unlinkSync } from 'node:fs';
import { createConnection, createServer, type Server, type Socket } from 'node:net';
import { constants } from 'node:os';
import { ConfigError, HostError } from '../errors.ts';

/** sizeof(sun_path) - 1, <sys/un.h>: the path and its terminating zero must fit. */
const MAX_SOCKET_PATH_BYTES = 107;

export interface UnixListener {
  readonly path: string;
  /** No new connections; those that exist are the caller's. Removes the socket file. Safe twice. */
  close(): void;
}

/** Whether somebody accepts connections there. */
function isAlive(path: string): Promise<boolean> {
  return new Promise((resolve) => {
    const probe = createConnection(path);
    probe.once('connect', () => {
      probe.destroy();
      resolve(true);
    });
    probe.once('error', () => resolve(false));
  });
}

function hostError(path: string, error: unknown): HostError {
  const { errno, message } = error as NodeJS.ErrnoException;
  return new HostError(`socket ${path}: ${message}`, Math.abs(errno ?? constants.errno.EIO), { cause: error });
}

/**
 * Check a socket path without touching the host.
 * @throws ConfigError
 */
export function checkSocketPath(path: string): void {
  const sizeBytes = Buffer.byteLength(path);
  if (path === '' || path.includes('\0')) throw new ConfigError('socket path is empty');
  if (sizeBytes > MAX_SOCKET_PATH_BYTES) {
    throw new ConfigError(`socket path has ${sizeBytes} bytes, at most ${MAX_SOCKET_PATH_BYTES} are possible: ${path}`);
  }
}

/**
 * Listen on `path`. A socket file that nobody answers is what a crashed run left behind, and is replaced; anything
 * else in the way is an error (the C device model unlinks whatever is there, also an ordinary file).
 * @throws ConfigError for a path that cannot be one, HostError when it cannot be made or is in use.
 */
export async function listenUnix(path: string, onConnection: (socket: Socket) => void): Promise<UnixListener> {
  checkSocketPath(path);
  const existing = lstatSync(path, { throwIfNoEntry: false });
  if (existing !== undefined) {
    if (!existing.isSocket()) {
      throw new HostError(`socket ${path}: the path exists and is no socket`, constants.errno.EEXIST, {
        hint: 'choose another path, or remove it',
      });
    }
    if (await isAlive(path)) {
      throw new HostError(`socket ${path} is in use`, constants.errno.EADDRINUSE, {
        hint: 'is another VM running with the same path?',
      });
    }
    unlinkSync(path);
  }
  const server: Server = createServer({ allowHalfOpen: true }, onConnection);
  await new Promise<void>((resolve, reject) => {
    server.once('error', (error) => reject(hostError(path, error)));
    server.listen({ path, backlog: 8 }, resolve);
  });
  // An accept that fails (no descriptors left) must not take the VM down.
  server.on('error', () => {});
  let isOpen = true;
  return {
    path,
    close: () => {
      if (!isOpen) return;
      isOpen = false;
      // Node unlinks the path itself when a listening server closes.
      server.close();
    },
  };
}
