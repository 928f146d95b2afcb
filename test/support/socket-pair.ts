/** A pair of connected datagram sockets: each write is one read at the other end, as with a tap. */
import { closeFd } from '../../devicemodel/core/host/files.ts';
import { lastErrno, native } from '../../devicemodel/core/host/libc.ts';

const AF_UNIX = 1;
const SOCK_DGRAM_NONBLOCK = 2 | 0o4000;

export interface FramePeer {
  readonly fd: number;
  send(frame: Uint8Array): void;
  /** The next frame, or undefined. */
  receive(): Uint8Array | undefined;
  close(): void;
}

/** @returns the device's descriptor, which the device closes, and the other end. */
export function socketPair(): [number, FramePeer] {
  const fds = new Int32Array(2);
  if (native('int socketpair(int, int, int, void *)')(AF_UNIX, SOCK_DGRAM_NONBLOCK, 0, fds) !== 0) {
    throw new Error(`socketpair: errno ${lastErrno()}`);
  }
  const fd = fds[1] as number;
  const buffer = new Uint8Array(0x11000);
  let isOpen = true;
  return [
    fds[0] as number,
    {
      fd,
      send: (frame) => {
        const sent = native('int64_t write(int, const void *, size_t)')(fd, frame, frame.length);
        if (sent !== frame.length) throw new Error(`frame not sent: errno ${lastErrno()}`);
      },
      receive: () => {
        const got = native('int64_t read(int, void *, size_t)')(fd, buffer, buffer.length);
        return got < 0 ? undefined : buffer.slice(0, got);
      },
      close: () => {
        if (isOpen) closeFd(fd);
        isOpen = false;
      },
    },
  ];
}
