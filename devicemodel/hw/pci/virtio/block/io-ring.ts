/** Disk requests that are in flight in the kernel, by io_uring. Nothing here allocates per request. */
import { HostError } from '../../../../core/errors.ts';
import { describeErrno, Errno } from '../../../../core/host/errno.ts';
import { IoUring, UringOp } from '../../../../core/host/io-uring.ts';
import { map } from '../../../../core/host/mapping.ts';
import type { Chain } from '../ring/chain.ts';
import type { Virtqueue } from '../ring/virtqueue.ts';

/** Requests in flight at most; a power of two. */
const SLOTS = 64;
/** Pieces of memory one of them may have; requests in more pieces are served while the thread waits. */
const MAX_PIECES = 64;
const IOVEC_BYTES = 16;
/** What the kernel does not take is handed over again after a pause, so often. */
const MAX_TRIES = 100;
const PAUSE_MS = 1;
const pause = new Int32Array(new SharedArrayBuffer(4));
/** <linux/fs.h>: the write is on the medium when it is complete. */
const RWF_DSYNC = 0x02;

/** <linux/io_uring.h>: only what is needed to find the data again. */
const FSYNC_DATASYNC = 1;

/** One request in flight. */
export interface RingSlot {
  /** The data are written, the medium is waited for: the result is 0 or a negative errno. */
  isSync: boolean;
  /** The write is on the medium when it is complete. */
  isDurable: boolean;
  queue: Virtqueue | undefined;
  chain: Chain | undefined;
  isWrite: boolean;
  /** First byte in the chain's part, bytes in all, and the place in the disk. */
  chainAt: number;
  count: number;
  offset: number;
}

export class BlockRing {
  readonly #uring = new IoUring(SLOTS);
  readonly #iovecs = map(SLOTS * MAX_PIECES * IOVEC_BYTES, 'disk requests');
  readonly #iov = new DataView(this.#iovecs.bytes.buffer);
  readonly #iovAddress = Number(this.#iovecs.address);
  readonly #slots: RingSlot[] = Array.from({ length: SLOTS }, () => ({
    queue: undefined,
    chain: undefined,
    isSync: false,
    isDurable: false,
    isWrite: false,
    chainAt: 0,
    count: 0,
    offset: 0,
  }));
  readonly #free = Uint8Array.from({ length: SLOTS }, (_, i) => i);
  inFlight = 0;

  /** Readable while there are completions. */
  get fd(): number {
    return this.#uring.fd;
  }

  /**
   * Begin a request; the kernel hears of it at `submit`.
   * @param base where the disk begins in the file.
   * @param isDurable a write is on the medium when it is complete.
   * @returns false when there is no room for it.
   */
  begin(
    queue: Virtqueue,
    chain: Chain,
    chainAt: number,
    count: number,
    fd: number,
    base: number,
    offset: number,
    isWrite: boolean,
    isDurable: boolean,
  ): boolean {
    if (this.inFlight === SLOTS) return false;
    const index = this.#free[this.inFlight] as number;
    const first = index * MAX_PIECES;
    const pieces = chain.toIovecs(chainAt, count, !isWrite, this.#iov, first, first + MAX_PIECES);
    if (chain.iovBytes !== count) return false;
    const slot = this.#slots[index] as RingSlot;
    slot.queue = queue;
    slot.chain = chain;
    slot.isSync = false;
    slot.isWrite = isWrite;
    slot.isDurable = isDurable;
    slot.chainAt = chainAt;
    slot.count = count;
    slot.offset = offset;
    const op = isWrite ? UringOp.Writev : UringOp.Readv;
    const address = this.#iovAddress + first * IOVEC_BYTES;
    this.#uring.prepare(op, fd, address, pieces, base + offset, isDurable ? RWF_DSYNC : 0, index);
    this.inFlight++;
    return true;
  }

  /** Begin to bring a part of the file to the medium, for a request whose data are written. @returns false if there is no room. */
  beginSync(queue: Virtqueue, chain: Chain, count: number, fd: number, at: number): boolean {
    if (this.inFlight === SLOTS) return false;
    const index = this.#free[this.inFlight++] as number;
    const slot = this.#slots[index] as RingSlot;
    slot.queue = queue;
    slot.chain = chain;
    slot.isSync = true;
    this.#uring.prepare(UringOp.Fsync, fd, 0, count, at, FSYNC_DATASYNC, index);
    return true;
  }

  /**
   * Hand over what was begun. @param completions wait for this many.
   * @throws HostError when the kernel does not take it: nobody would ever hear of those requests again.
   */
  submit(completions = 0): void {
    for (let tries = 1; ; tries++) {
      const errno = this.#uring.submit(completions);
      if (errno === 0) return;
      if (tries === MAX_TRIES) throw new HostError(`io_uring: ${describeErrno(errno)}`, errno);
      // It is short of memory for a moment.
      Atomics.wait(pause, 0, 0, PAUSE_MS);
    }
  }

  /**
   * The next request that is complete, with its `result`: bytes, or a negative errno. It is free when the next is asked
   * for.
   */
  next(): RingSlot | undefined {
    if (!this.#uring.next()) return undefined;
    this.result = this.#uring.result;
    this.#free[--this.inFlight] = this.#uring.userData;
    return this.#slots[this.#uring.userData];
  }
  result = 0;

  /** One of the requests that are not complete, to say what is waited for. */
  anyInFlight(): RingSlot | undefined {
    const free = this.#free.subarray(this.inFlight);
    return this.#slots.find((_, index) => !free.includes(index));
  }

  dispose(): void {
    this.#uring.dispose();
    this.#iovecs.dispose();
  }
}

/** The kernel was interrupted, has no memory now, or does not do this by io_uring: nothing is known of the medium. */
export function isTransient(errno: number): boolean {
  return errno === Errno.EINTR || errno === Errno.EAGAIN || errno === Errno.EINVAL || errno === Errno.EOPNOTSUPP;
}
