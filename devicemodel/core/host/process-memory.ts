/**
 * Writing to memory of this process through the kernel (process_vm_writev(2)): where there is nothing behind an address
 * the call says so, and no signal comes. So two threads may write one file that is mapped, which write(2) lets them do in
 * turns only, while it shrinks, or its file system is full.
 */
import { hostCall } from './libc.ts';

const IOVEC_BYTES = 16;

const writeProcess = hostCall<
  [pid: number, from: Uint8Array, fromCount: number, to: Uint8Array, toCount: number, flags: number]
>('int64_t process_vm_writev(int, const void *, unsigned long, const void *, unsigned long, unsigned long)');

/** For one thread. */
export class MemoryWriter {
  readonly #to = new DataView(new ArrayBuffer(IOVEC_BYTES));
  readonly #toBytes = new Uint8Array(this.#to.buffer);

  /** Whether the host lets a process do it. */
  get isAllowed(): boolean {
    return writeProcess(process.pid, this.#toBytes, 0, this.#toBytes, 0, 0) === 0;
  }

  /** @param iovecs struct iovec: where the bytes are. @returns bytes, or a negative errno. */
  write(iovecs: Uint8Array, count: number, address: bigint, sizeBytes: number): number {
    this.#to.setBigUint64(0, address, true);
    this.#to.setUint32(8, sizeBytes, true);
    return writeProcess(process.pid, iovecs, count, this.#toBytes, 1, 0);
  }
}
