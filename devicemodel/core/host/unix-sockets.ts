/** Unix stream sockets as Node has none: in pairs, and with descriptors sent over them (unix(7), cmsg(3)). */
import { HostError } from '../errors.ts';
import { describeErrno } from './errno.ts';
import { closeFd, OpenFlag } from './files.ts';
import { hostCall, must } from './libc.ts';
import { map } from './mapping.ts';
import { checkSocketPath } from './socket-path.ts';

/** <bits/socket.h>. */
const AF_UNIX = 1;
const SOCK_STREAM = 1;
const SOL_SOCKET = 1;
const SCM_RIGHTS = 1;
const MSG_NOSIGNAL = 0x4000;
/** sizeof(struct msghdr), x86-64; then one struct iovec, one control message with a descriptor, and the bytes. */
const MSGHDR_BYTES = 56;
const IOVEC_AT = 64;
const CONTROL_AT = 80;
const CONTROL_BYTES = 24;
/** CMSG_LEN(sizeof(int)). */
const CONTROL_LENGTH = 20;
const BYTES_AT = 128;

const socket = hostCall<[domain: number, type: number, protocol: number]>('int socket(int, int, int)');
const connect = hostCall<[fd: number, address: Uint8Array, sizeBytes: number]>(
  'int connect(int, const void *, unsigned int)',
);
const socketpair = hostCall<[domain: number, type: number, protocol: number, pair: Int32Array]>(
  'int socketpair(int, int, int, void *)',
);
const sendmsg = hostCall<[fd: number, message: bigint, flags: number]>('int64_t sendmsg(int, uintptr_t, int)');

/** Two connected sockets. @param what for messages. @throws HostError */
export function socketPair(what: string): readonly [number, number] {
  const pair = new Int32Array(2);
  must(socketpair(AF_UNIX, SOCK_STREAM | OpenFlag.CloseOnExec, 0, pair), 'socketpair', what);
  return [pair[0] as number, pair[1] as number];
}

/**
 * A non-blocking socket that is connected: never waits, so that one whose server takes no more connections fails.
 * @throws ConfigError for a path that cannot be one, HostError
 */
export function connectUnix(path: string): number {
  checkSocketPath(path);
  const fd = must(socket(AF_UNIX, SOCK_STREAM | OpenFlag.CloseOnExec | OpenFlag.NonBlock, 0), 'socket', path);
  // struct sockaddr_un: u16 family, then the path with its terminating zero.
  const name = Buffer.from(path);
  const address = Buffer.alloc(2 + name.length + 1);
  address.writeUInt16LE(AF_UNIX);
  name.copy(address, 2);
  const result = connect(fd, address, address.length);
  if (result < 0) {
    closeFd(fd);
    throw new HostError(`${path}: ${describeErrno(-result)}`, -result);
  }
  return fd;
}

/** A short message and a copy of a descriptor with it. @param what for messages. @throws HostError */
export function sendDescriptor(fd: number, bytes: Uint8Array, descriptor: number, what: string): void {
  const memory = map(BYTES_AT + bytes.length, what);
  try {
    const view = new DataView(memory.bytes.buffer, memory.bytes.byteOffset, memory.bytes.byteLength);
    const at = (offset: number) => memory.address + BigInt(offset);
    memory.bytes.set(bytes, BYTES_AT);
    view.setBigUint64(IOVEC_AT, at(BYTES_AT), true);
    view.setBigUint64(IOVEC_AT + 8, BigInt(bytes.length), true);
    view.setBigUint64(CONTROL_AT, BigInt(CONTROL_LENGTH), true);
    view.setInt32(CONTROL_AT + 8, SOL_SOCKET, true);
    view.setInt32(CONTROL_AT + 12, SCM_RIGHTS, true);
    view.setInt32(CONTROL_AT + 16, descriptor, true);
    // struct msghdr: name, its length, iovecs, their count, control message, its length, flags.
    memory.bytes.fill(0, 0, MSGHDR_BYTES);
    view.setBigUint64(16, at(IOVEC_AT), true);
    view.setBigUint64(24, 1n, true);
    view.setBigUint64(32, at(CONTROL_AT), true);
    view.setBigUint64(40, BigInt(CONTROL_BYTES), true);
    const sent = must(sendmsg(fd, memory.address, MSG_NOSIGNAL), 'sendmsg', what);
    if (sent !== bytes.length) throw new HostError(`${what}: sendmsg: ${sent} of ${bytes.length} bytes`, 0);
  } finally {
    memory.dispose();
  }
}
