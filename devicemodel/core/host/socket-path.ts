/** What can be a socket's path. Apart from the listener, which needs the C library: a command line is checked without. */
import { accessSync, constants, readFileSync, statSync } from 'node:fs';
import { resolve } from 'node:path';
import { ConfigError, ExitCode, HostError } from '../errors.ts';
import { Errno } from './errno.ts';
import { pathFailure } from './path-failure.ts';

/** sizeof(sun_path) - 1, <sys/un.h>: the path and its terminating zero must fit. */
const MAX_SOCKET_PATH_BYTES = 107;

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
 * Look at a socket that somebody else has to serve. Reads only: whether it is served shows when it is connected to.
 * @param hint how to have it served.
 * @throws HostError (66, or 77 where it is a matter of rights)
 */
export function inspectServedSocket(path: string, hint: string): void {
  let isSocket: boolean;
  try {
    isSocket = statSync(path).isSocket();
  } catch (error) {
    throw pathFailure(`${path}: cannot be looked at`, error, undefined, hint);
  }
  if (!isSocket) throw new HostError(`${path}: is no socket`, Errno.ENOTSOCK, { exitCode: ExitCode.NoInput, hint });
  try {
    // What connect(2) asks for.
    accessSync(path, constants.W_OK);
  } catch (error) {
    throw pathFailure(`${path}: cannot be connected to`, error);
  }
}

/** @param what `socket /run/x` */
export function socketInUse(what: string): HostError {
  return new HostError(`${what} is in use`, Errno.EADDRINUSE, {
    exitCode: ExitCode.CannotCreate,
    hint: 'is another VM running with the same path?',
  });
}

/** __SO_ACCEPTCON, <linux/net.h>: somebody listens. */
const LISTENS = 0x10000;

/**
 * Whether somebody listens at this path, as the kernel lists it: without a connection, which a listener would notice.
 * One that was bound by another spelling of the path is not found; it is when the socket is made.
 */
export function isListenedAt(path: string, table = '/proc/net/unix'): boolean {
  let lines: string[];
  try {
    lines = readFileSync(table, 'utf8').split('\n');
  } catch {
    return false;
  }
  const wanted = [path, resolve(path)];
  return lines.some((line) => {
    // Num RefCount Protocol Flags Type St Inode Path
    const [, flags, name] = /^\S+ \S+ \S+ ([0-9A-F]+) \S+ \S+ +\d+ (.*)$/.exec(line) ?? [];
    return name !== undefined && (Number.parseInt(flags as string, 16) & LISTENS) !== 0 && wanted.includes(name);
  });
}

/** The path as Node's listen() takes it: `5` and a blank are ports to it. */
export function nodeSocketPath(path: string): string {
  return Number(path) >= 0 ? `./${path}` : path;
}
