/** eventfd(2): a counter in a descriptor. */
import { closeFd, readBytes, writeBytes } from './files.ts';
import { hostCall, must } from './libc.ts';

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
