/**
 * An {@link ImageQueue} whose requests the kernel carries out beside this thread, by io_uring. What the host has in its
 * cache is read at once; everything that could wait for a medium, or copies much, is the kernel's.
 */
import type { Clock } from '../../core/clock.ts';
import { BugError } from '../../core/errors.ts';
import { Errno } from '../../core/host/errno.ts';
import { watchFd } from '../../core/host/fd-watch.ts';
import { IoUring, UringFlag, UringOp } from '../../core/host/io-uring.ts';
import { type Mapping, map } from '../../core/host/mapping.ts';
import { KiB, MiB } from '../../core/units.ts';
import { NOW_BYTES } from './image-aside.ts';
import type { ImageIo } from './image-io.ts';
import {
  DrainWaiters,
  describeRequest,
  flushAnswer,
  ImageOp,
  type ImageQueue,
  type ImageRequest,
  QUEUE_CAPACITY,
} from './image-queue.ts';
import { SlicedQueue } from './sliced-queue.ts';

/** Pieces of memory of one call to the kernel; a request with more takes several. */
const MAX_PIECES = 256;
const IOVEC_BYTES = 16;
/** <linux/fs.h>: the write is on the medium when it is complete. */
const RWF_DSYNC = 0x02;
/** <linux/io_uring.h>: only what is needed to find the data again. */
const FSYNC_DATASYNC = 1;
/** <linux/falloc.h>: the hole reads as zeros, the file keeps its length. */
const PUNCH_HOLE_KEEP_SIZE = 0x03;
/**
 * Copied from and to the host's memory on this thread between two kicks; the rest is copied by the kernel's threads. As
 * much as 32 requests of 128 KiB, for which those threads take longer.
 */
const MAX_COPY_BYTES = 4 * MiB;
/** And for how long. */
const MAX_COPY_NS = 1_000_000;
/** A larger request of an image in memory is the kernel's threads' in any case. */
const MAX_MEMORY_BYTES = 256 * KiB;
/** A request the kernel had no memory for is made this often. */
const MAX_TRIES = 16;

interface Slot {
  request: ImageRequest | undefined;
  /** Bytes that are done, and bytes of the call under way. */
  doneBytes: number;
  askedBytes: number;
  tries: number;
  /** The call is a write that is on the medium when it is complete. */
  isDsync: boolean;
  /** A write with DSYNC failed with this: it is made again without, to see which of the two it was. */
  syncErrno: number;
}

export class RingQueue implements ImageQueue {
  readonly #io: ImageIo;
  readonly #uring: IoUring;
  readonly #iovecs: Mapping;
  readonly #iov: DataView;
  readonly #iovAddress: number;
  readonly #slots: Slot[];
  readonly #free: number[];
  readonly #waiters = new DrainWaiters();
  /** For what has to be copied, and for discards of block devices. */
  readonly #copied: SlicedQueue;
  #unwatch: (() => void) | undefined;
  #isPrepared = false;
  #isReaping = false;
  #copiedBytes = 0;
  #copyUntilNs = 0;
  readonly #clock: Clock;
  #again: NodeJS.Immediate | undefined;

  /** @throws HostError where the kernel has no io_uring or does not let us. */
  constructor(io: ImageIo, clock: Clock) {
    this.#io = io;
    this.#clock = clock;
    this.#uring = new IoUring(QUEUE_CAPACITY);
    try {
      this.#iovecs = map(QUEUE_CAPACITY * MAX_PIECES * IOVEC_BYTES, 'disk requests');
    } catch (error) {
      this.#uring.dispose();
      throw error;
    }
    this.#iov = new DataView(this.#iovecs.bytes.buffer);
    this.#iovAddress = Number(this.#iovecs.address);
    this.#slots = Array.from({ length: QUEUE_CAPACITY }, () => ({
      request: undefined,
      doneBytes: 0,
      askedBytes: 0,
      tries: 0,
      isDsync: false,
      syncErrno: 0,
    }));
    this.#free = this.#slots.map((_, index) => index);
    this.#copied = new SlicedQueue(io, clock, () => this.#reap());
    try {
      this.#unwatch = watchFd(this.#uring.fd, () => this.#reap());
    } catch (error) {
      this.#uring.dispose();
      this.#iovecs.dispose();
      throw error;
    }
  }

  get inFlight(): number {
    return QUEUE_CAPACITY - this.#free.length + this.#copied.inFlight;
  }

  submit(request: ImageRequest): void {
    const io = this.#io;
    const { op, buffers, count, offset } = request;
    if (op === ImageOp.Flush) {
      const answer = flushAnswer(io);
      if (answer !== undefined) {
        request.done(answer);
        return;
      }
    } else if (op === ImageOp.Discard) {
      if (io.image.isBlockDevice) {
        this.#copied.submit(request);
        return;
      }
    } else if (!io.isDirectlyUsable(buffers, 0, count, offset, op === ImageOp.Write)) {
      this.#copied.submit(request);
      return;
    } else if (io.image.neverWaits && count <= MAX_MEMORY_BYTES && this.#mayCopy(count)) {
      request.done(io.transfer(buffers, 0, count, offset, op === ImageOp.Write));
      return;
    } else if (op === ImageOp.Read && this.#isCached(request)) {
      request.done(0);
      return;
    }
    this.#begin(request);
  }

  /** Whether so much may be copied by this thread. */
  #mayCopy(count: number): boolean {
    if (this.#copiedBytes + count > MAX_COPY_BYTES) return false;
    const nowNs = this.#clock.nowNs();
    if (this.#copiedBytes === 0) this.#copyUntilNs = nowNs + MAX_COPY_NS;
    else if (nowNs >= this.#copyUntilNs) return false;
    this.#copiedBytes += count;
    return true;
  }

  /** Read what the host has in its cache, without waiting. @returns whether that was all of it. */
  #isCached({ buffers, count, offset }: ImageRequest): boolean {
    const io = this.#io;
    if (io.image.isDirect || !io.knowsCached || count > NOW_BYTES || !this.#mayCopy(count)) return false;
    return io.readCached(buffers, 0, count, offset);
  }

  #begin(request: ImageRequest): void {
    const index = this.#free.pop();
    if (index === undefined) throw new BugError('more disk requests than a queue holds');
    const slot = this.#slots[index] as Slot;
    slot.request = request;
    slot.doneBytes = 0;
    slot.tries = 0;
    slot.syncErrno = 0;
    slot.isDsync = request.isDurable && request.op === ImageOp.Write;
    this.#prepare(index, slot, request);
  }

  /** The next call for what is left of a request. */
  #prepare(index: number, slot: Slot, request: ImageRequest): void {
    const { op, buffers, count, offset } = request;
    const { image } = this.#io;
    const uring = this.#uring;
    this.#isPrepared = true;
    if (op === ImageOp.Flush) {
      uring.prepare(UringOp.Fsync, image.fd, 0, 0, 0, FSYNC_DATASYNC, index);
      return;
    }
    if (op === ImageOp.Discard) {
      // The length is where others have an address (io_uring_enter(2), IORING_OP_FALLOCATE).
      uring.prepare(UringOp.Fallocate, image.fd, count, PUNCH_HOLE_KEEP_SIZE, image.base + offset, 0, index);
      return;
    }
    const isWrite = op === ImageOp.Write;
    const first = index * MAX_PIECES;
    const at = slot.doneBytes;
    const pieces = buffers.toIovecs(at, count - at, !isWrite, this.#iov, first, first + MAX_PIECES);
    slot.askedBytes = buffers.iovBytes;
    // Where the host's cache is between, a thread of the kernel copies: some file systems would wait in the call itself,
    // and what is read ahead is (image-aside.ts).
    const aside = !image.isDirect && (isWrite || count > NOW_BYTES) ? UringFlag.Async : 0;
    const address = this.#iovAddress + first * IOVEC_BYTES;
    const code = (isWrite ? UringOp.Writev : UringOp.Readv) | (aside << 8);
    uring.prepare(code, image.fd, address, pieces, image.base + offset + at, slot.isDsync ? RWF_DSYNC : 0, index);
  }

  kick(): void {
    // From within a completion: what may be copied here is not more for that.
    if (this.#isReaping) return;
    this.#copiedBytes = 0;
    this.#reap();
  }

  /** Hand over what was prepared, and finish what is complete, until there is neither. */
  #reap(): void {
    if (this.#isReaping) return;
    this.#isReaping = true;
    do {
      this.#submitPrepared();
      while (this.#uring.next()) this.#complete(this.#uring.userData, this.#uring.result);
    } while (this.#isPrepared);
    this.#isReaping = false;
    if (this.#copied.inFlight > 0) this.#copied.kick();
    if (this.#free.length === QUEUE_CAPACITY) this.#waiters.wake();
  }

  #submitPrepared(): void {
    if (!this.#isPrepared) return;
    this.#isPrepared = false;
    if (this.#uring.submit() === 0) return;
    // The kernel is short of memory for a moment: what it did not take is handed over again, and nobody waits for that.
    this.#again ??= setImmediate(() => {
      this.#again = undefined;
      this.#isPrepared = true;
      this.#reap();
    });
  }

  /** @param result bytes, or a negative errno. */
  #complete(index: number, result: number): void {
    const slot = this.#slots[index] as Slot;
    const request = slot.request as ImageRequest;
    const isTransfer = request.op === ImageOp.Read || request.op === ImageOp.Write;
    if (result < 0) this.#failed(index, slot, request, -result);
    else if (!isTransfer) this.#over(index, slot, request, request.op === ImageOp.Flush ? this.#io.syncFailure : 0);
    else if (result === 0) this.#endOfFile(index, slot, request);
    else {
      slot.doneBytes += result;
      if (slot.doneBytes < request.count) this.#prepare(index, slot, request);
      else this.#over(index, slot, request, this.#syncErrno(slot));
    }
  }

  /** What a write that is done to its last byte ends with. */
  #syncErrno({ isDsync, syncErrno, request }: Slot): number {
    if (syncErrno !== 0) {
      // It can be written, so that what failed is the sync.
      this.#io.syncFailed(syncErrno);
      return syncErrno;
    }
    return isDsync && request?.op === ImageOp.Write ? this.#io.syncFailure : 0;
  }

  #failed(index: number, slot: Slot, request: ImageRequest, errno: number): void {
    const isTransient = errno === Errno.EINTR || errno === Errno.EAGAIN;
    if (isTransient && ++slot.tries < MAX_TRIES) {
      this.#prepare(index, slot, request);
    } else if (slot.isDsync && slot.syncErrno === 0) {
      slot.isDsync = false;
      slot.syncErrno = errno;
      this.#prepare(index, slot, request);
    } else {
      if (request.op === ImageOp.Flush && !isTransient) this.#io.syncFailed(errno);
      this.#over(index, slot, request, errno);
    }
  }

  /** Nothing more to read: the file shrank, or a range was given beyond its end. */
  #endOfFile(index: number, slot: Slot, request: ImageRequest): void {
    const isHole = request.op === ImageOp.Read && this.#io.image.hasRange;
    if (isHole) request.buffers.fillIn(slot.doneBytes, request.count - slot.doneBytes, 0);
    this.#over(index, slot, request, isHole ? 0 : Errno.EIO);
  }

  #over(index: number, slot: Slot, request: ImageRequest, errno: number): void {
    slot.request = undefined;
    this.#free.push(index);
    if (errno === 0 && request.op === ImageOp.Discard && request.isDurable) {
      // What was given back stays so: as after a write.
      this.#begin({ ...flushOf(request), done: (flushErrno) => request.done(flushErrno) });
      return;
    }
    request.done(errno);
  }

  drained(): Promise<void> | undefined {
    if (this.inFlight === 0) return undefined;
    const copied = this.#copied.drained();
    const ring = QUEUE_CAPACITY - this.#free.length > 0 ? this.#waiters.wait() : undefined;
    return Promise.all([copied, ring]).then(() => this.drained());
  }

  describeWork(): string | undefined {
    const busy = this.#slots.find((slot) => slot.request !== undefined)?.request;
    return busy === undefined ? this.#copied.describeWork() : describeRequest(busy);
  }

  dispose(): void {
    this.#unwatch?.();
    this.#unwatch = undefined;
    clearImmediate(this.#again);
    this.#copied.dispose();
    this.#uring.dispose();
    this.#iovecs.dispose();
  }
}

function flushOf({ buffers }: ImageRequest): Omit<ImageRequest, 'done'> {
  return { op: ImageOp.Flush, buffers, count: 0, offset: 0, isDurable: false };
}
