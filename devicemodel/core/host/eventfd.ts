/** eventfd(2): a counter in a descriptor. */
import { Errno } from './errno.ts';
import { closeFd, readBytes, readNow, writeBytes } from './files.ts';
import { hostCall, must } from './libc.ts';
import { mapForThread } from './mapping.ts';

const EFD_NONBLOCK = 0o4000;
const EFD_CLOEXEC = 0o2000000;
const COUNT_BYTES = 8;

const eventfd = hostCall<[initial: number, flags: number]>('int eventfd(unsigned int, int)');
const one = Uint8Array.of(1, 0, 0, 0, 0, 0, 0, 0);
const count = new Uint8Array(COUNT_BYTES);
const countView = new DataView(count.buffer);

/** The descriptor is the caller's. @throws HostError */
export function createEventfd(options: { readonly blocking?: boolean } = {}): number {
  return must(eventfd(0, EFD_CLOEXEC | (options.blocking === true ? 0 : EFD_NONBLOCK)), 'eventfd', 'eventfd');
}

/** Add 1: whoever polls the descriptor wakes. */
export function signalEventfd(fd: number): void {
  writeBytes(fd, one, COUNT_BYTES);
}

/** Take the count (0 when nothing was signalled). */
export function takeEventfd(fd: number): number {
  if (readBytes(fd, count, COUNT_BYTES) !== COUNT_BYTES) return 0;
  return countView.getUint32(0, true) + countView.getUint32(4, true) * 0x1_0000_0000;
}

/** Memory that does not move: an iovec that points at the count behind it. Made at first use. */
let sharedCount: { readonly iovec: Uint8Array; readonly view: DataView } | undefined;
const COUNT_AT = 16;

/** As {@link takeEventfd}, never waiting: another process that has it may have made it blocking, and may take the count first. */
export function takeSharedEventfd(fd: number): number {
  if (sharedCount === undefined) {
    const { address, bytes } = mapForThread(4096, 'count of eventfds');
    const view = new DataView(bytes.buffer, bytes.byteOffset, COUNT_AT + COUNT_BYTES);
    view.setBigUint64(0, address + BigInt(COUNT_AT), true);
    view.setBigUint64(8, BigInt(COUNT_BYTES), true);
    sharedCount = { iovec: bytes, view };
  }
  const { iovec, view } = sharedCount;
  const result = readNow(fd, iovec, 1);
  // Before Linux 5.8.
  if (result === -Errno.EOPNOTSUPP) return takeEventfd(fd);
  return result === COUNT_BYTES ? Number(view.getBigUint64(COUNT_AT, true)) : 0;
}

/** A non-blocking one that is closed by `dispose`. */
export class Eventfd {
  readonly fd: number;
  #open = true;

  /** @throws HostError */
  constructor() {
    this.fd = createEventfd();
  }

  signal(): void {
    signalEventfd(this.fd);
  }

  take(): number {
    return takeEventfd(this.fd);
  }

  dispose(): void {
    if (this.#open) closeFd(this.fd);
    this.#open = false;
  }
}
