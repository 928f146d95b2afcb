/** eventfd(2): a counter in a descriptor; here always non-blocking and closed on exec. */
import { libc, native } from './libc.ts';

const EFD_NONBLOCK = 0o4000;
const EFD_CLOEXEC = 0o2000000;

export class Eventfd {
  readonly fd: number;
  readonly #value = new Uint8Array(8);
  #open = true;

  constructor() {
    this.fd = libc.eventfd(EFD_NONBLOCK | EFD_CLOEXEC);
  }

  /** Add 1: whoever polls the descriptor wakes. */
  signal(): void {
    this.#value.fill(0);
    this.#value[0] = 1;
    native('int64_t write(int, const void *, size_t)')(this.fd, this.#value, 8);
  }

  /** Take the count (0 when nothing was signalled). */
  take(): number {
    const got = native('int64_t read(int, void *, size_t)')(this.fd, this.#value, 8);
    return got === 8 ? new DataView(this.#value.buffer).getUint32(0, true) : 0;
  }

  dispose(): void {
    if (this.#open) libc.close(this.fd);
    this.#open = false;
  }
}
