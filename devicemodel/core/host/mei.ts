/**
 * /dev/meiN: connections to clients of the management engine (<linux/mei.h>), a message a read or write.
 *
 * The kernel waits for the engine where a connection is made or closed, fifteen seconds for one that hangs. So that is
 * done on a thread of Node's, for one connection after the other, however many there are.
 */
import { HostError } from '../errors.ts';
import { InTurn } from '../in-turn.ts';
import { describeErrno, Errno } from './errno.ts';
import { watchFd } from './fd-watch.ts';
import { closeFdAside, OpenFlag, openFileAside, readBytes, writeBytes } from './files.ts';
import { ioctlBytesAside } from './ioctl.ts';

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
  /** Asked when it is the connection's turn, and when it is made: otherwise it is not made, or closed again. */
  isWanted(): boolean;
  onMessage(message: Uint8Array): void;
  /** @param errno ENODEV when the engine was reset. */
  onLost(errno: number): void;
}

export class MeiNode {
  readonly #path: string;
  readonly #vtag: number;
  readonly #calls = new InTurn();

  /** @param vtag which of the engine's users this is. */
  constructor(path: string, vtag: number) {
    this.#path = path;
    this.#vtag = vtag;
  }

  /**
   * @param uuid as the engine has it, 16 bytes. @returns undefined: it was not wanted any more when it had its turn, or
   * when it was answered, and is closed.
   * @throws HostError with the errno of the refusal
   */
  connect(uuid: Uint8Array, maxMessageBytes: number, listener: MeiListener): Promise<MeiChannel | undefined> {
    return this.#calls.run(async () => {
      if (!listener.isWanted()) return undefined;
      const fd = await openFileAside(this.#path, OpenFlag.ReadWrite | OpenFlag.NonBlock | OpenFlag.CloseOnExec);
      const request = new Uint8Array(CONNECT_BYTES);
      request.set(uuid);
      request[VTAG_AT] = this.#vtag;
      const result = await ioctlBytesAside(fd, CONNECT_VTAG, request);
      if (result >= 0 && listener.isWanted()) return this.#channel(fd, maxMessageBytes, listener);
      // Within this turn: who waits for `idle` waits for it, too.
      await closeFdAside(fd);
      if (result >= 0) return undefined;
      throw new HostError(`${this.#path}: ${describeErrno(-result)}`, -result);
    });
  }

  /** @returns when everything is done that was asked for. */
  idle(): Promise<unknown> {
    return this.#calls.idle();
  }

  #channel(fd: number, maxMessageBytes: number, listener: MeiListener): MeiChannel {
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
        void this.#calls.run(() => closeFdAside(fd));
      },
    };
  }
}
