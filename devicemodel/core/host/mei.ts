/** /dev/meiN: a connection to a client of the management engine (<linux/mei.h>), a message a read or write. */
import { HostError } from '../errors.ts';
import { describeErrno, Errno } from './errno.ts';
import { watchFd } from './fd-watch.ts';
import { closeFd, OpenFlag, openFile, readBytes, writeBytes } from './files.ts';
import { ioctlBytes } from './ioctl.ts';

/** IOCTL_MEI_CONNECT_CLIENT_VTAG: _IOWR('H', 4, struct { u8 uuid[16]; u8 vtag; u8 pad[3]; }). */
const CONNECT_VTAG = 0xc0144804;
const CONNECT_BYTES = 20;
const VTAG_AT = 16;

/** A connection, as the device uses it. */
export interface MeiChannel {
  /** The whole message. @returns 0, or a negative errno: -EAGAIN where the engine takes no more now. */
  send(message: Uint8Array): number;
  /** Messages are waited for, or left with the kernel. */
  listen(isListening: boolean): void;
  /** Nothing is told any more. Safe twice. */
  close(): void;
}

export interface MeiListener {
  onMessage(message: Uint8Array): void;
  /** @param errno ENODEV when the engine was reset. */
  onLost(errno: number): void;
}

/**
 * @param uuid as the engine has it, 16 bytes. @param vtag which of the engine's users this is.
 * @throws HostError with the errno of the refusal
 */
export function connectMei(
  path: string,
  uuid: Uint8Array,
  vtag: number,
  maxMessageBytes: number,
  listener: MeiListener,
): MeiChannel {
  const fd = openFile(path, OpenFlag.ReadWrite | OpenFlag.NonBlock | OpenFlag.CloseOnExec);
  const request = new Uint8Array(CONNECT_BYTES);
  request.set(uuid);
  request[VTAG_AT] = vtag;
  const result = ioctlBytes(fd, CONNECT_VTAG, request);
  if (result < 0) {
    closeFd(fd);
    throw new HostError(`${path}: ${describeErrno(-result)}`, -result);
  }
  const buffer = new Uint8Array(maxMessageBytes);
  let unwatch: (() => void) | undefined;
  let isOpen = true;
  const read = () => {
    const length = readBytes(fd, buffer, buffer.length);
    if (length > 0) listener.onMessage(buffer.slice(0, length));
    else if (-length !== Errno.EAGAIN) listener.onLost(-length);
  };
  return {
    send: (message) => Math.min(0, writeBytes(fd, message, message.length)),
    listen: (isListening) => {
      if (isListening === (unwatch !== undefined) || !isOpen) return;
      unwatch?.();
      unwatch = isListening ? watchFd(fd, read) : undefined;
    },
    close: () => {
      if (!isOpen) return;
      isOpen = false;
      unwatch?.();
      unwatch = undefined;
      closeFd(fd);
    },
  };
}
