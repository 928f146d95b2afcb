/** Who is at the other end of a Unix socket, as the kernel knows it (unix(7), SO_PEERCRED). */
import type { Socket } from 'node:net';
import { hostCall } from './libc.ts';

const SOL_SOCKET = 1;
const SO_PEERCRED = 17;
/** struct ucred: i32 pid, u32 uid, u32 gid. */
const UCRED_BYTES = 12;
const USER_ID = 1;

const getsockopt = hostCall<[fd: number, level: number, option: number, value: Uint32Array, bytes: Uint32Array]>(
  'int getsockopt(int, int, int, void *, void *)',
);

/** @returns the user when it connected, or began to listen; undefined: it cannot be known. */
export function peerUser(socket: Socket | number): number | undefined {
  const fd = typeof socket === 'number' ? socket : descriptorOf(socket);
  const credentials = new Uint32Array(UCRED_BYTES / 4);
  if (fd === undefined || getsockopt(fd, SOL_SOCKET, SO_PEERCRED, credentials, Uint32Array.of(UCRED_BYTES)) < 0) {
    return undefined;
  }
  return credentials[USER_ID];
}

/** Node has it, and no name for it. */
function descriptorOf(socket: Socket): number | undefined {
  return (socket as { _handle?: { fd?: number } | null })._handle?.fd;
}
