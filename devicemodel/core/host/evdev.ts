/** An input device of the host (<linux/input.h>): its events and its description. */
import { HostError } from '../errors.ts';
import { describeErrno, Errno } from './errno.ts';
import { watchFd } from './fd-watch.ts';
import { closeFd, OpenFlag, openFile, readBytes, writeBytes } from './files.ts';
import { ioctlBytes, ioctlNumber } from './ioctl.ts';

/** _IOC(_IOC_READ, 'E', number, size). */
const readRequest = (number: number, size: number) => ((2 << 30) | (size << 16) | (0x45 << 8) | number) >>> 0;
const GRAB = 0x40044590;
/** struct input_event: 16 bytes of time, u16 type, u16 code, s32 value. */
const EVENT_BYTES = 24;
const EVENT_TYPE = 16;
/** struct input_absinfo: value, minimum, maximum, fuzz, flat, resolution. */
const ABSINFO_BYTES = 24;

/** What an input device of a guest needs of the host. */
export interface InputSource {
  /** UTF-8 without a final zero; empty when there is none. */
  name(): Uint8Array;
  /** bustype, vendor, product, version. */
  ids(): readonly [number, number, number, number] | undefined;
  /** Bit map of properties, or of the codes of an event type; undefined if the kernel knows none. */
  properties(sizeBytes: number): Uint8Array | undefined;
  codes(type: number, sizeBytes: number): Uint8Array | undefined;
  /** minimum, maximum, fuzz, flat, resolution of an axis. */
  axis(code: number): readonly number[] | undefined;
  /** @returns false when no event is waiting. */
  read(into: InputEvent): boolean;
  write(type: number, code: number, value: number): void;
  /** Called when events are waiting. @returns how to stop. */
  watch(onReadable: () => void): () => void;
  close(): void;
}

/** Reused by the reader. */
export interface InputEvent {
  type: number;
  code: number;
  value: number;
}

export class Evdev implements InputSource {
  readonly #fd: number;
  readonly #buffer = new Uint8Array(EVENT_BYTES);
  readonly #view = new DataView(this.#buffer.buffer);
  #open = true;

  /**
   * @param use `alone`: nobody else hears of its events, and it can be written to. `shared`: others hear of them, too.
   * @throws HostError if it is no input device, or cannot be had alone.
   */
  constructor(path: string, use: 'alone' | 'shared' = 'alone') {
    const access = use === 'alone' ? OpenFlag.ReadWrite : OpenFlag.ReadOnly;
    this.#fd = openFile(path, access | OpenFlag.NonBlock | OpenFlag.CloseOnExec);
    const version = ioctlBytes(this.#fd, readRequest(0x01, 4), new Uint8Array(4));
    const isInput = version >= 0;
    const result = isInput && use === 'alone' ? ioctlNumber(this.#fd, GRAB, 1) : version;
    if (result >= 0) return;
    const errno = -result;
    closeFd(this.#fd);
    throw new HostError(
      isInput ? `${path}: cannot be taken exclusively: ${describeErrno(errno)}` : `${path}: not an input device`,
      errno,
      { hint: isInput ? 'does another program or VM have it?' : 'name a /dev/input/event…' },
    );
  }

  #query(number: number, size: number): Uint8Array | undefined {
    const bytes = new Uint8Array(size);
    return ioctlBytes(this.#fd, readRequest(number, size), bytes) < 0 ? undefined : bytes;
  }

  name(): Uint8Array {
    const bytes = this.#query(0x06, 127) ?? new Uint8Array(0);
    const end = bytes.indexOf(0);
    return end < 0 ? bytes : bytes.subarray(0, end);
  }

  ids(): readonly [number, number, number, number] | undefined {
    const bytes = this.#query(0x02, 8);
    if (bytes === undefined) return undefined;
    const view = new DataView(bytes.buffer);
    return [view.getUint16(0, true), view.getUint16(2, true), view.getUint16(4, true), view.getUint16(6, true)];
  }

  properties(sizeBytes: number): Uint8Array | undefined {
    return this.#query(0x09, sizeBytes);
  }

  codes(type: number, sizeBytes: number): Uint8Array | undefined {
    return this.#query(0x20 + type, sizeBytes);
  }

  axis(code: number): readonly number[] | undefined {
    const bytes = this.#query(0x40 + code, ABSINFO_BYTES);
    if (bytes === undefined) return undefined;
    const view = new DataView(bytes.buffer);
    return [4, 8, 12, 16, 20].map((at) => view.getUint32(at, true));
  }

  read(into: InputEvent): boolean {
    const got = readBytes(this.#fd, this.#buffer, EVENT_BYTES);
    if (got !== EVENT_BYTES) {
      if (got < 0 && got !== -Errno.EAGAIN) throw new HostError('input device is gone', -got);
      return false;
    }
    into.type = this.#view.getUint16(EVENT_TYPE, true);
    into.code = this.#view.getUint16(EVENT_TYPE + 2, true);
    into.value = this.#view.getUint32(EVENT_TYPE + 4, true);
    return true;
  }

  /** LEDs and the like. The kernel puts its own time on it. */
  write(type: number, code: number, value: number): void {
    this.#buffer.fill(0);
    this.#view.setUint16(EVENT_TYPE, type, true);
    this.#view.setUint16(EVENT_TYPE + 2, code, true);
    this.#view.setUint32(EVENT_TYPE + 4, value, true);
    writeBytes(this.#fd, this.#buffer, EVENT_BYTES);
  }

  watch(onReadable: () => void): () => void {
    return watchFd(this.#fd, onReadable);
  }

  close(): void {
    if (this.#open) closeFd(this.#fd);
    this.#open = false;
  }
}
