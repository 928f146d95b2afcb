/** A TCP connection that whoever closes it last waits for: SO_LINGER, and nobody reads what was sent (socket(7)). */
import { readFileSync } from 'node:fs';
import { closeFd } from '../../devicemodel/core/host/files.ts';
import { native } from '../../devicemodel/core/host/libc.ts';

const AF_INET = 2;
const SOCK_STREAM_CLOEXEC = 1 | 0o2000000;
const SOL_SOCKET = 1;
const SO_RCVBUF = 8;
const SO_LINGER = 13;
const MSG_DONTWAIT_NOSIGNAL = 0x40 | 0x4000;
/** Longer than any other test waits. */
const LINGER_S = 20;
/** Of /proc/net/tcp. */
const ESTABLISHED = '01';

const socket = native('int socket(int, int, int)');
const bind = native('int bind(int, const void *, unsigned int)');
const listen = native('int listen(int, int)');
const connect = native('int connect(int, const void *, unsigned int)');
const accept = native('int accept4(int, void *, void *, int)');
const getsockname = native('int getsockname(int, void *, void *)');
const setsockopt = native('int setsockopt(int, int, int, const void *, unsigned int)');
const send = native('int64_t send(int, const void *, size_t, int)');

export interface LingeringSocket {
  /** To be sent, and then closed here. */
  readonly fd: number;
  /** Whether nobody has closed it for good: the connection is as it was. */
  isOpen(): boolean;
  /** Whoever is closing it goes on. */
  dispose(): void;
}

export function lingeringSocket(): LingeringSocket {
  const address = Buffer.alloc(16);
  address.writeUInt16LE(AF_INET);
  address.set([127, 0, 0, 1], 4);
  const listener = socket(AF_INET, SOCK_STREAM_CLOEXEC, 0);
  setsockopt(listener, SOL_SOCKET, SO_RCVBUF, Int32Array.of(2048), 4);
  bind(listener, address, address.length);
  listen(listener, 1);
  getsockname(listener, address, Int32Array.of(address.length));
  const fd = socket(AF_INET, SOCK_STREAM_CLOEXEC, 0);
  if (connect(fd, address, address.length) !== 0) throw new Error('nobody listens');
  const reader = accept(listener, null, null, SOCK_STREAM_CLOEXEC & ~1);
  closeFd(listener);
  const bytes = new Uint8Array(0x1_0000);
  while (send(fd, bytes, bytes.length, MSG_DONTWAIT_NOSIGNAL) > 0);
  setsockopt(fd, SOL_SOCKET, SO_LINGER, Int32Array.of(1, LINGER_S), 8);
  getsockname(fd, address, Int32Array.of(address.length));
  const name = `0100007F:${address.subarray(2, 4).toString('hex').toUpperCase()}`;
  return {
    fd,
    isOpen: () =>
      readFileSync('/proc/net/tcp', 'utf8')
        .split('\n')
        .map((line) => line.trim().split(/\s+/))
        .some(([, local, , state]) => local === name && state === ESTABLISHED),
    dispose: () => closeFd(reader),
  };
}
