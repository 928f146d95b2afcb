/** What can be a socket's path. Apart from the listener, which needs the C library: a command line is checked without. */
import { ConfigError } from '../errors.ts';

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
