/** What systemd is told by the services it starts (sd_notify(3)): a datagram to the socket of NOTIFY_SOCKET. */
import { closeSync } from 'node:fs';
import { hostCall } from './libc.ts';

const AF_UNIX = 1;
/** With SOCK_CLOEXEC. [bits/socket_type.h] */
const SOCK_DGRAM = 0x80002;
const MSG_NOSIGNAL_DONTWAIT = 0x4040;

const socket = hostCall<[family: number, type: number, protocol: number]>('int socket(int, int, int)');
const sendto = hostCall<
  [fd: number, data: Uint8Array, bytes: number, flags: number, address: Uint8Array, addressBytes: number]
>('int64_t sendto(int, const void *, size_t, int, const void *, unsigned int)');

/** sockaddr_un: the family, and a path or, behind `@`, a name that is in no file system. */
function addressOf(path: string): Uint8Array {
  const bytes = Buffer.from(path);
  if (path.startsWith('@')) bytes[0] = 0;
  const address = new Uint8Array(2 + bytes.length);
  new DataView(address.buffer).setUint16(0, AF_UNIX, true);
  address.set(bytes, 2);
  return address;
}

export class NotifySocket {
  readonly #address: Uint8Array;
  #fd: number;

  /** @param path of NOTIFY_SOCKET. Where there is no socket to be had, nothing is told. */
  constructor(path: string) {
    this.#address = addressOf(path);
    this.#fd = socket(AF_UNIX, SOCK_DGRAM, 0);
  }

  /** `READY=1`, several with line ends between. @returns whether it was sent; nobody is waited for. */
  send(text: string): boolean {
    if (this.#fd < 0) return false;
    const data = Buffer.from(text);
    return (
      sendto(this.#fd, data, data.length, MSG_NOSIGNAL_DONTWAIT, this.#address, this.#address.length) === data.length
    );
  }

  /** Safe twice. */
  close(): void {
    if (this.#fd >= 0) closeSync(this.#fd);
    this.#fd = -1;
  }
}
