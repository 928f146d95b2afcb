/** Listening Unix stream sockets in the file system: what is in the way, and what is left behind. */
import { chmodSync, chownSync, lstatSync, rmSync } from 'node:fs';
import { createServer, type Server, type Socket } from 'node:net';
import { constants } from 'node:os';
import { ConfigError, ExitCode, HostError } from '../errors.ts';
import { describeErrno } from './errno.ts';
import { onProcessExit } from './exit-hooks.ts';
import { makeParents } from './folders.ts';
import { groupId } from './groups.ts';
import { isServed } from './is-served.ts';
import { checkSocketPath, nodeSocketPath, socketInUse } from './socket-path.ts';
import { OWNER_ONLY, withUmask } from './umask.ts';

/** Who connects without waiting is refused when so many wait to be accepted (EAGAIN). */
const BACKLOG = 128;

export interface UnixListener {
  readonly path: string;
  /** No new connections; those that exist are the caller's. Removes the socket file. Safe twice. */
  close(): void;
}

function hostError(path: string, error: unknown): HostError {
  if (error instanceof HostError) return error;
  const errno = Math.abs((error as NodeJS.ErrnoException).errno ?? constants.errno.EIO);
  return new HostError(`socket ${path}: ${describeErrno(errno)}`, errno, {
    exitCode: ExitCode.CannotCreate,
    cause: error,
  });
}

export interface ListenOptions {
  /** A group, by name or number, that may connect; otherwise only this user (and root) may. */
  readonly group?: string | undefined;
  /** Connections come paused, with nothing read: for whoever gives them to somebody else. */
  readonly isPaused?: boolean;
}

/**
 * Listen on `path`; missing folders above it are made. A socket file that nobody answers is what a crashed run left
 * behind, and is replaced; anything else in the way is an error (the C device model unlinks whatever is there, also an
 * ordinary file). Whatever the umask, only this user may connect, or a group.
 * @throws ConfigError for a path that cannot be one or a group that is none, HostError when it cannot be made or is in
 * use.
 */
export async function listenUnix(
  path: string,
  onConnection: (socket: Socket) => void,
  options: ListenOptions = {},
): Promise<UnixListener> {
  checkSocketPath(path);
  const group = options.group === undefined ? undefined : groupId(options.group);
  if (options.group !== undefined && group === undefined) {
    throw new ConfigError(`there is no group "${options.group}"`, { hint: 'getent group lists them' });
  }
  const server: Server = createServer({ allowHalfOpen: true, pauseOnConnect: options.isPaused === true }, onConnection);
  let own: number;
  try {
    makeParents(path, group);
    await clearWay(path);
    await new Promise<void>((resolve, reject) => {
      server.once('error', reject);
      // The socket is bound within the call, so that it is never more open than it should be.
      withUmask(OWNER_ONLY, () => server.listen({ path: nodeSocketPath(path), backlog: BACKLOG }, resolve));
    });
    if (group !== undefined) chownSync(path, -1, group);
    // Also without a group: in a folder with a default ACL that takes the umask's place.
    chmodSync(path, group === undefined ? 0o600 : 0o660);
    own = lstatSync(path).ino;
  } catch (error) {
    server.close();
    throw hostError(path, error);
  }
  // Node removes the file when the server is closed, which an error that nobody foresaw does not come to.
  const forget = onProcessExit(() => {
    if (lstatSync(path, { throwIfNoEntry: false })?.ino === own) rmSync(path, { force: true });
  });
  // An accept that fails (no descriptors left) must not take the VM down.
  server.on('error', () => {});
  let isOpen = true;
  return {
    path,
    close: () => {
      if (!isOpen) return;
      isOpen = false;
      forget();
      // Node unlinks the path itself when a listening server closes.
      server.close();
    },
  };
}

/** Remove a socket that nobody answers, unless somebody else did meanwhile. @throws HostError for anything else. */
async function clearWay(path: string): Promise<void> {
  const existing = lstatSync(path, { throwIfNoEntry: false });
  if (existing === undefined) return;
  if (!existing.isSocket()) {
    throw new HostError(`socket ${path}: the path exists and is no socket`, constants.errno.EEXIST, {
      exitCode: ExitCode.CannotCreate,
      hint: 'choose another path, or remove it',
    });
  }
  if (await isServed(path)) throw socketInUse(`socket ${path}`);
  // Another start may have replaced the dead one by now: that one is not ours to remove.
  const now = lstatSync(path, { throwIfNoEntry: false });
  if (now?.ino === existing.ino && now.ctimeMs === existing.ctimeMs) rmSync(path, { force: true });
}
