/**
 * An {@link ImageQueue} whose requests the kernel carries out beside this thread, by io_uring. What the host has in its
 * cache is read at once; everything that could wait for a medium, or copies much, is the kernel's.
 *
 * Requests are held until the kick, so that it is known how many there are: one that is alone and cannot wait is a system
 * call, several are handed over with one, which carries out those that cannot wait, and neighbours in the file are one.
 * Large transfers of a busy image in memory are shared with a thread that copies beside this one (shared-copies.ts).
 */
import type { Clock } from '../../core/clock.ts';
import { Errno } from '../../core/host/errno.ts';
import { Eventfd } from '../../core/host/eventfd.ts';
import { watchFd } from '../../core/host/fd-watch.ts';
import { letSubmitTransfer } from '../../core/host/files.ts';
import { IoUring, UringFlag, UringOp } from '../../core/host/io-uring.ts';
import type { Log } from '../../core/log.ts';
import type { ThreadPulses } from '../../core/thread-pulses.ts';
import { KiB, MiB } from '../../core/units.ts';
import type { ImageIo } from './image-io.ts';
import {
  DrainWaiters,
  describeRequest,
  flushAnswer,
  ImageOp,
  type ImageQueue,
  type ImageRequest,
  isTransfer,
  isWrite,
  QUEUE_CAPACITY,
} from './image-queue.ts';
import { PromptWait } from './prompt-wait.ts';
import { type RingCall, RingCalls } from './ring-calls.ts';
import { SharedCopies } from './shared-copies.ts';
import { SlicedQueue } from './sliced-queue.ts';

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
/** A larger request of an image in memory is the kernel's threads' in any case; so much is copied between two looks at the clock. */
const MAX_MEMORY_BYTES = 256 * KiB;
/**
 * A larger read of a file system is the kernel's threads' in any case: as much as Linux reads ahead, which is what a guest
 * that reads on and on asks for.
 */
const MAX_CACHED_BYTES = 128 * KiB;
/** Neighbours are one call up to this size, where the kernel's threads carry it out. */
const MAX_JOINED_BYTES = 1 * MiB;
/** A request the kernel had no memory for is made this often. */
const MAX_TRIES = 16;

export class RingQueue implements ImageQueue {
  readonly #io: ImageIo;
  readonly #uring: IoUring;
  readonly #calls: RingCalls;
  /** Requests that are not begun: until the next kick. */
  readonly #held: ImageRequest[] = [];
  /** Whether a call on this image in memory is carried out while it is handed over. */
  readonly #transfersAtOnce: boolean;
  readonly #waiters = new DrainWaiters();
  /** What is copied beside this thread, too; undefined for an image that is not in memory. */
  readonly #sharing: SharedCopies | undefined;
  /** For what has to be copied, and for discards of block devices. */
  readonly #copied: SlicedQueue;
  /** Calls that a thread of the kernel's copies to the host's cache: this one waits for them, for a moment. */
  #copying = 0;
  readonly #promptWait: PromptWait;
  /** Rings for what is complete later: while this thread looks by itself, nobody is to be woken for it. */
  readonly #bell: Eventfd | undefined;
  #unwatch: (() => void) | undefined;
  #isPrepared = false;
  #isReaping = false;
  #copiedBytes = 0;
  #copyUntilNs = 0;
  readonly #clock: Clock;
  #retry: NodeJS.Immediate | undefined;

  /** @param copyWorkerUrl another copying thread, for tests; and `promptNs` how long it is waited for the kernel's. @throws HostError where the kernel has no io_uring or does not let us. */
  constructor(io: ImageIo, clock: Clock, log: Log, pulses: ThreadPulses, copyWorkerUrl?: URL, promptNs?: number) {
    this.#io = io;
    this.#clock = clock;
    this.#promptWait = new PromptWait(clock, promptNs);
    this.#uring = new IoUring(QUEUE_CAPACITY);
    try {
      this.#calls = new RingCalls();
    } catch (error) {
      this.#uring.dispose();
      throw error;
    }
    this.#transfersAtOnce = io.image.neverWaits && letSubmitTransfer(io.image.fd);
    this.#copied = new SlicedQueue(io, clock, () => this.#reap());
    if (io.image.neverWaits) {
      const onLate = () => this.#reap();
      this.#sharing = new SharedCopies(io, this.#calls, { clock, log, pulses, onLate, workerUrl: copyWorkerUrl });
    }
    try {
      const bell = new Eventfd();
      this.#bell = bell;
      const isRung = this.#uring.ringBy(bell.fd);
      this.#unwatch = watchFd(isRung ? bell.fd : this.#uring.fd, () => {
        bell.take();
        this.#reap();
      });
    } catch (error) {
      this.#bell?.dispose();
      this.#uring.dispose();
      this.#calls.dispose();
      throw error;
    }
  }

  get inFlight(): number {
    const waiting = this.#held.length + (this.#sharing?.waiting ?? 0);
    return this.#calls.taken + waiting + this.#copied.inFlight;
  }

  submit(request: ImageRequest): void {
    const io = this.#io;
    const { op, buffers, count, offset } = request;
    if (op === ImageOp.Flush) {
      const answer = flushAnswer(io);
      if (answer === undefined) this.#held.push(request);
      else request.done(answer);
    } else if (
      op === ImageOp.Discard ? !io.image.isBlockDevice : io.isDirectlyUsable(buffers, 0, count, offset, isWrite(op))
    ) {
      if (!this.#isShared(request)) this.#held.push(request);
    } else {
      this.#copied.submit(request);
    }
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

  /** Whether the request cannot wait, as far as is known, and this thread may copy it: then that is of its share. */
  #isForNow({ op, count }: ImageRequest): boolean {
    const { image, knowsCached } = this.#io;
    if (image.neverWaits) return isTransfer(op) && count <= MAX_MEMORY_BYTES && this.#mayCopy(count);
    if (op !== ImageOp.Read || image.isDirect || !knowsCached || count > MAX_CACHED_BYTES) return false;
    return this.#mayCopy(count);
  }

  /** Whether two threads share it, or it waits for what they share. */
  #isShared(request: ImageRequest): boolean {
    const sharing = this.#sharing;
    if (sharing === undefined) return false;
    if (sharing.postpone(request)) return true;
    return sharing.canShare(request, this.#held) && this.#isForNow(request) && sharing.share(request);
  }

  /** Begin what is held, in its order. */
  #beginHeld(): void {
    const held = this.#held;
    const isAlone = held.length === 1;
    /** The latest call, which may get more requests. */
    let call: RingCall | undefined;
    let nowBytes = 0;
    // What is done here may submit others, which are then the last of the list.
    for (let i = 0; i < held.length; i++) {
      const request = held[i] as ImageRequest;
      const isNow = this.#isForNow(request);
      if (isNow && (isAlone || !this.#canSubmitTransfer) && this.#transfer(request)) continue;
      if (call === undefined || !this.#join(call, request, isNow)) {
        if (call !== undefined) this.#handOver(call);
        call = this.#calls.describe(this.#calls.take(request), isNow);
      }
      if (isNow) nowBytes += request.count;
      if (nowBytes < MAX_MEMORY_BYTES) continue;
      this.#handOver(call);
      this.#submitPrepared();
      call = undefined;
      nowBytes = 0;
    }
    if (call !== undefined) this.#handOver(call);
    held.length = 0;
  }

  /** Whether io_uring carries out what is for now while it is handed over. */
  get #canSubmitTransfer(): boolean {
    return this.#transfersAtOnce || !this.#io.image.neverWaits;
  }

  /** A request that is for now, by a system call of its own. @returns false: it would wait. */
  #transfer(request: ImageRequest): boolean {
    const io = this.#io;
    const { op, buffers, count, offset } = request;
    if (io.image.neverWaits) request.done(io.transfer(buffers, 0, count, offset, isWrite(op)));
    else if (io.readCached(buffers, 0, count, offset)) request.done(0);
    else return false;
    return true;
  }

  /**
   * Let a call that is not handed over carry out the neighbour in the file, too. @returns false where it is none, or there
   * is no room: so for a call that has not even all of its first request.
   */
  #join(call: RingCall, request: ImageRequest, isNow: boolean): boolean {
    const first = call.request as ImageRequest;
    const bytes = call.askedBytes;
    if (
      request.op !== first.op ||
      request.offset !== first.offset + bytes ||
      request.isDurable !== first.isDurable ||
      isNow !== call.isNow ||
      !isTransfer(request.op) ||
      this.#io.image.isDirect ||
      bytes + request.count > (isNow ? MAX_MEMORY_BYTES : MAX_JOINED_BYTES)
    )
      return false;
    return this.#calls.join(call, request);
  }

  /** Make the entry of a call whose pieces are described. */
  #handOver(call: RingCall): void {
    const { op, count, offset } = call.request as ImageRequest;
    const { image } = this.#io;
    this.#isPrepared = true;
    if (op === ImageOp.Flush) {
      this.#uring.prepare(UringOp.Fsync, image.fd, 0, 0, 0, FSYNC_DATASYNC, call.index);
      return;
    }
    if (op === ImageOp.Discard) {
      // The length is where others have an address (io_uring_enter(2), IORING_OP_FALLOCATE).
      this.#uring.prepare(UringOp.Fallocate, image.fd, count, PUNCH_HOLE_KEEP_SIZE, image.base + offset, 0, call.index);
      return;
    }
    // Where the host's cache is between, a thread of the kernel copies: some file systems would wait in the call itself,
    // and what is read ahead is (image-aside.ts).
    const isAside = !image.isDirect && !call.isNow;
    const aside = isAside ? UringFlag.Async : 0;
    if (isAside && isWrite(op) && !call.isDsync) {
      call.isCopied = true;
      this.#copying++;
    }
    const code = (isWrite(op) ? UringOp.Writev : UringOp.Readv) | (aside << 8);
    const at = image.base + offset + call.doneBytes;
    const flags = call.isDsync ? RWF_DSYNC : 0;
    this.#uring.prepare(code, image.fd, this.#calls.addressOf(call), call.pieces, at, flags, call.index);
  }

  kick(): void {
    // From within a completion: what may be copied here is not more for that.
    if (this.#isReaping) return;
    this.#begin(true);
    this.#copiedBytes = 0;
    if (this.#calls.taken > 0) this.#reap();
  }

  /** As {@link #begin}; what is complete after that rings. */
  #reap(): void {
    if (this.#isReaping) return;
    do {
      this.#begin();
      this.#uring.rings = this.#calls.taken > 0;
    } while (this.#uring.hasCompletions);
  }

  /** Hand over what was prepared, and finish what is complete, until there is neither. */
  #begin(isKick = false): void {
    this.#isReaping = true;
    this.#uring.rings = false;
    let mayWait = isKick;
    do {
      this.#beginHeld();
      if (mayWait && this.#copying > 0) this.#submitAndAwait();
      else this.#submitPrepared();
      mayWait = false;
      if (this.#sharing?.isSharing) this.#sharing.finish((request) => this.#held.push(request));
      while (this.#uring.next()) this.#complete(this.#uring.userData, this.#uring.result);
    } while (this.#isPrepared || this.#held.length > 0 || (this.#sharing?.isSharing && !this.#sharing.isLate));
    this.#isReaping = false;
    if (this.#copied.inFlight > 0) this.#copied.kick();
    if (this.#calls.taken === 0 && this.#held.length === 0) this.#waiters.wake();
  }

  #submitPrepared(): void {
    if (this.#isPrepared) this.#submitted(this.#uring.submit());
  }

  /** And wait for what the kernel's threads copy. */
  #submitAndAwait(): void {
    const limitNs = this.#promptWait.begin();
    if (limitNs === 0) {
      this.#submitPrepared();
      return;
    }
    this.#submitted(this.#uring.submitFor(this.#copying, limitNs));
    while (this.#uring.next()) this.#complete(this.#uring.userData, this.#uring.result);
    this.#promptWait.end(this.#copying === 0);
  }

  #submitted(errno: number): void {
    this.#isPrepared = false;
    if (errno === 0) return;
    // The kernel is short of memory for a moment: what it did not take is handed over again, and nobody waits for that.
    this.#retry ??= setImmediate(() => {
      this.#retry = undefined;
      this.#isPrepared = true;
      this.#reap();
    });
  }

  /** @param result bytes, or a negative errno. */
  #complete(index: number, result: number): void {
    const call = this.#calls.at(index);
    if (call.isCopied) {
      call.isCopied = false;
      this.#copying--;
    }
    if (call.next !== undefined) {
      this.#completeJoined(call, result);
      return;
    }
    const request = call.request as ImageRequest;
    if (result < 0) this.#failed(call, request, -result);
    else if (!isTransfer(request.op))
      this.#over(call, request, request.op === ImageOp.Flush ? this.#io.syncFailure : 0);
    else if (result === 0) this.#endOfFile(call, request);
    else {
      call.doneBytes += result;
      if (call.doneBytes < request.count) this.#again(call);
      else this.#over(call, request, this.#syncErrno(call));
    }
  }

  /** All of it, or each request is made once more by itself, to see which of them has what. */
  #completeJoined(first: RingCall, result: number): void {
    const isWhole = result === first.askedBytes;
    for (let call: RingCall | undefined = first; call !== undefined; ) {
      const { next }: RingCall = call;
      call.next = undefined;
      const request = call.request as ImageRequest;
      if (isWhole) this.#over(call, request, this.#syncErrno(call));
      else this.#again(call);
      call = next;
    }
  }

  /** What is left of a request that was begun: by a thread of the kernel, whatever kept it. */
  #again(call: RingCall): void {
    this.#handOver(this.#calls.describe(call, false));
  }

  /** What a write that is done to its last byte ends with. */
  #syncErrno({ isDsync, syncErrno, request }: RingCall): number {
    if (syncErrno !== 0) {
      // It can be written, so that what failed is the sync.
      this.#io.syncFailed(syncErrno);
      return syncErrno;
    }
    return isDsync && request?.op === ImageOp.Write ? this.#io.syncFailure : 0;
  }

  #failed(call: RingCall, request: ImageRequest, errno: number): void {
    const isTransient = errno === Errno.EINTR || errno === Errno.EAGAIN;
    if (isTransient && ++call.tries < MAX_TRIES) {
      this.#again(call);
    } else if (call.isDsync && call.syncErrno === 0) {
      call.isDsync = false;
      call.syncErrno = errno;
      this.#again(call);
    } else {
      if (request.op === ImageOp.Flush && !isTransient) this.#io.syncFailed(errno);
      this.#over(call, request, errno);
    }
  }

  /** Nothing more to read: the file shrank, or a range was given beyond its end. */
  #endOfFile(call: RingCall, request: ImageRequest): void {
    const isHole = request.op === ImageOp.Read && this.#io.image.hasRange;
    if (isHole) request.buffers.fillIn(call.doneBytes, request.count - call.doneBytes, 0);
    this.#over(call, request, isHole ? 0 : Errno.EIO);
  }

  #over(call: RingCall, request: ImageRequest, errno: number): void {
    this.#calls.release(call);
    if (errno === 0 && request.op === ImageOp.Discard && request.isDurable) {
      // What was given back stays so: as after a write.
      this.#held.push({ ...flushOf(request), done: (flushErrno) => request.done(flushErrno) });
      return;
    }
    request.done(errno);
  }

  drained(): Promise<void> | undefined {
    if (this.inFlight === 0) return undefined;
    const copied = this.#copied.drained();
    const isBusy = this.#calls.taken > 0 || this.#held.length > 0;
    const ring = isBusy ? this.#waiters.wait() : undefined;
    return Promise.all([copied, ring]).then(() => this.drained());
  }

  describeWork(): string | undefined {
    const busy = this.#calls.findRequest(() => true) ?? this.#held[0];
    return busy === undefined ? this.#copied.describeWork() : describeRequest(busy);
  }

  dispose(): Promise<void> | undefined {
    this.#unwatch?.();
    this.#unwatch = undefined;
    this.#bell?.dispose();
    clearImmediate(this.#retry);
    const unmapped = this.#sharing?.dispose();
    this.#copied.dispose();
    this.#uring.dispose();
    this.#calls.dispose();
    return unmapped;
  }
}

function flushOf({ buffers }: ImageRequest): Omit<ImageRequest, 'done'> {
  return { op: ImageOp.Flush, buffers, count: 0, offset: 0, isDurable: false };
}
