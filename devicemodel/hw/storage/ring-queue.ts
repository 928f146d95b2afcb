/**
 * An {@link ImageQueue} whose requests the kernel carries out beside this thread, by io_uring. What the host has in its
 * cache is read at once; everything that could wait for a medium, or copies much, is the kernel's.
 *
 * Requests are held until the kick, so that it is known how many there are: one that is alone and cannot wait is a system
 * call, several are handed over with one, which carries out those that cannot wait, and neighbours in the file are one.
 * Large transfers of a busy image in memory are shared with a thread that copies beside this one (copy-thread/).
 */
import type { Clock } from '../../core/clock.ts';
import { BugError } from '../../core/errors.ts';
import { Errno } from '../../core/host/errno.ts';
import { watchFd } from '../../core/host/fd-watch.ts';
import { letSubmitTransfer } from '../../core/host/files.ts';
import { IoUring, UringFlag, UringOp } from '../../core/host/io-uring.ts';
import { type Mapping, map } from '../../core/host/mapping.ts';
import type { Log } from '../../core/log.ts';
import type { ThreadPulses } from '../../core/thread-pulses.ts';
import { KiB, MiB } from '../../core/units.ts';
import { CopyThread } from './copy-thread/copy-thread.ts';
import { JobState } from './copy-thread/words.ts';
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
/** A larger request of an image in memory is the kernel's threads' in any case; so much is copied between two looks at the clock. */
const MAX_MEMORY_BYTES = 256 * KiB;
/**
 * A larger read of a file system is the kernel's threads' in any case: as much as Linux reads ahead, which is what a guest
 * that reads on and on asks for.
 */
const MAX_CACHED_BYTES = 128 * KiB;
/** Neighbours are one call up to this size, where the kernel's threads carry it out. */
const MAX_JOINED_BYTES = 1 * MiB;
/** What is copied in less time than another thread needs to wake up is copied here. */
const MIN_SHARED_BYTES = 32 * KiB;
/** A request the kernel had no memory for is made this often. */
const MAX_TRIES = 16;

interface Slot {
  readonly index: number;
  request: ImageRequest | undefined;
  /** The next of the neighbours that the call carries out as well. */
  next: Slot | undefined;
  /** Of the call: pieces of memory, and whether it is carried out while it is handed over. */
  pieces: number;
  isNow: boolean;
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
  readonly #free: Slot[];
  /** Requests that are not begun: until the next kick. */
  readonly #held: ImageRequest[] = [];
  /** Whether a call on this image in memory is carried out while it is handed over. */
  readonly #transfersAtOnce: boolean;
  readonly #waiters = new DrainWaiters();
  /** Who copies beside this thread, where it is busy; undefined for an image that is not in memory. */
  readonly #copyThread: CopyThread | undefined;
  /** Calls that this thread or the other carries out, in the order in which they were published. */
  readonly #shared: Slot[] = [];
  /** What changes bytes that one of those writes: begun when all of them are over. */
  readonly #postponed: ImageRequest[] = [];
  /** This thread does not wait for what the other is at: it will be told. */
  #isLate = false;
  /** For what has to be copied, and for discards of block devices. */
  readonly #copied: SlicedQueue;
  #unwatch: (() => void) | undefined;
  #isPrepared = false;
  #isReaping = false;
  #copiedBytes = 0;
  #copyUntilNs = 0;
  readonly #clock: Clock;
  #retry: NodeJS.Immediate | undefined;

  /** @param copyWorkerUrl another copying thread, for tests. @throws HostError where the kernel has no io_uring or does not let us. */
  constructor(io: ImageIo, clock: Clock, log: Log, pulses: ThreadPulses, copyWorkerUrl?: URL) {
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
    this.#slots = Array.from({ length: QUEUE_CAPACITY }, (_, index) => ({
      index,
      request: undefined,
      next: undefined,
      pieces: 0,
      isNow: false,
      doneBytes: 0,
      askedBytes: 0,
      tries: 0,
      isDsync: false,
      syncErrno: 0,
    }));
    this.#free = [...this.#slots];
    this.#transfersAtOnce = io.image.neverWaits && letSubmitTransfer(io.image.fd);
    this.#copied = new SlicedQueue(io, clock, () => this.#reap());
    if (io.image.neverWaits) {
      this.#copyThread = new CopyThread({
        fd: io.image.fd,
        // Where O_DIRECT wants whole sectors, what is around a write is written with it: that is one more's to overlap.
        writableBytes: () => (io.image.isReadOnly || io.image.isDirect ? 0 : io.image.base + io.image.sizeBytes),
        iovecs: this.#iovecs.address,
        iovecBytes: MAX_PIECES * IOVEC_BYTES,
        what: io.image.path,
        clock,
        log,
        pulses,
        onLate: () => this.#reap(),
        workerUrl: copyWorkerUrl,
      });
    }
    try {
      this.#unwatch = watchFd(this.#uring.fd, () => this.#reap());
    } catch (error) {
      this.#uring.dispose();
      this.#iovecs.dispose();
      throw error;
    }
  }

  get inFlight(): number {
    const waiting = this.#held.length + this.#postponed.length;
    return QUEUE_CAPACITY - this.#free.length + waiting + this.#copied.inFlight;
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
      if (this.#overlapsShared(request)) this.#postponed.push(request);
      else if (!this.#share(request)) this.#held.push(request);
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

  // What two threads copy.

  /** Publish a request that is large enough, unless it is the first: that one is this thread's, and may be the only one. */
  #share(request: ImageRequest): boolean {
    const thread = this.#copyThread;
    const { op, count, offset } = request;
    if (thread === undefined || count < MIN_SHARED_BYTES || !isTransfer(op)) return false;
    // What is postponed waits for all that is shared: that comes to an end first.
    if ((this.#held.length === 0 && this.#shared.length === 0) || this.#postponed.length > 0) return false;
    if (!thread.isUp) {
      thread.couldShare();
      return false;
    }
    const at = this.#io.image.base + offset;
    if (isWrite(op) && (!thread.canWriteTo(at + count) || this.#overlapsBegun(request))) return false;
    if (thread.rests || !this.#isForNow(request)) return false;
    const slot = this.#describeCall(this.#take(request), request, true);
    if (slot.askedBytes < count) {
      slot.request = undefined;
      this.#free.push(slot);
      return false;
    }
    this.#shared.push(slot);
    thread.publish(slot.index, slot.pieces, count, at, isWrite(op));
    return true;
  }

  // The kernel lets one system call at a time change a file, so that two that overlap leave one or the other in each sector.
  // What the other thread writes does not wait for them, nor they for that.

  #overlapsShared(request: ImageRequest): boolean {
    if (!isChange(request.op)) return false;
    for (const slot of this.#shared) if (overlap(slot.request as ImageRequest, request)) return true;
    return false;
  }

  /** Or is to begin. */
  #overlapsBegun(request: ImageRequest): boolean {
    for (const held of this.#held) if (overlap(held, request)) return true;
    for (const slot of this.#slots) if (slot.request !== undefined && overlap(slot.request, request)) return true;
    return false;
  }

  /** Carry out what nobody has taken, and wait for the one that the other thread is at. */
  #copyShared(): void {
    const thread = this.#copyThread as CopyThread;
    this.#isLate = false;
    for (let job = thread.take(); job >= 0; job = thread.take()) {
      const slot = this.#slots[job] as Slot;
      this.#shared.splice(this.#shared.indexOf(slot), 1);
      this.#copyAlone(slot);
    }
    while (this.#shared.length > 0) {
      const slot = this.#shared[0] as Slot;
      if (!thread.waitFor(slot.index)) {
        this.#isLate = true;
        return;
      }
      this.#shared.shift();
      if (thread.stateOf(slot.index) === JobState.Done) this.#over(slot, slot.request as ImageRequest, 0);
      else this.#copyAlone(slot);
    }
    this.#held.push(...this.#postponed.splice(0));
  }

  /** Also what the other thread could not do: this one sees why. */
  #copyAlone(slot: Slot): void {
    const request = slot.request as ImageRequest;
    const { op, buffers, count, offset } = request;
    this.#over(slot, request, this.#io.transfer(buffers, 0, count, offset, isWrite(op)));
  }

  // What this thread or the kernel does.

  /** Begin what is held, in its order. */
  #beginHeld(): void {
    const held = this.#held;
    const isAlone = held.length === 1;
    /** The latest call, which may get more requests. */
    let call: Slot | undefined;
    let nowBytes = 0;
    // What is done here may submit others, which are then the last of the list.
    for (let i = 0; i < held.length; i++) {
      const request = held[i] as ImageRequest;
      const isNow = this.#isForNow(request);
      if (isNow && (isAlone || !this.#canSubmitTransfer) && this.#transfer(request)) continue;
      if (call === undefined || !this.#join(call, request, isNow)) {
        if (call !== undefined) this.#handOver(call);
        call = this.#describeCall(this.#take(request), request, isNow);
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

  #take(request: ImageRequest): Slot {
    const slot = this.#free.pop();
    if (slot === undefined) throw new BugError('more disk requests than a queue holds');
    slot.request = request;
    slot.next = undefined;
    slot.isNow = false;
    slot.doneBytes = 0;
    slot.tries = 0;
    slot.syncErrno = 0;
    slot.isDsync = request.isDurable && request.op === ImageOp.Write;
    return slot;
  }

  /** The call for what is left of a request. @param isNow it is carried out while it is handed over. */
  #describeCall(slot: Slot, request: ImageRequest, isNow: boolean): Slot {
    slot.isNow = isNow;
    slot.pieces = 0;
    slot.askedBytes = 0;
    if (isTransfer(request.op)) this.#addPieces(slot, request, slot.doneBytes);
    return slot;
  }

  /** @returns whether there was room for all pieces of the request, from this byte of it on. */
  #addPieces(call: Slot, { op, buffers, count }: ImageRequest, from: number): boolean {
    const first = call.index * MAX_PIECES;
    const left = count - from;
    const pieces = buffers.toIovecs(from, left, !isWrite(op), this.#iov, first + call.pieces, first + MAX_PIECES);
    const { iovBytes } = buffers;
    if (call.pieces > 0 && iovBytes < left) return false;
    call.pieces += pieces;
    call.askedBytes += iovBytes;
    return true;
  }

  /**
   * Let a call that is not handed over carry out the neighbour in the file, too. @returns false where it is none, or there
   * is no room: so for a call that has not even all of its first request.
   */
  #join(call: Slot, request: ImageRequest, isNow: boolean): boolean {
    const first = call.request as ImageRequest;
    const bytes = call.askedBytes;
    if (
      request.op !== first.op ||
      request.offset !== first.offset + bytes ||
      request.isDurable !== first.isDurable ||
      isNow !== call.isNow ||
      !isTransfer(request.op) ||
      this.#io.image.isDirect ||
      bytes + request.count > (isNow ? MAX_MEMORY_BYTES : MAX_JOINED_BYTES) ||
      !this.#addPieces(call, request, 0)
    )
      return false;
    let last = call;
    while (last.next !== undefined) last = last.next;
    last.next = this.#take(request);
    return true;
  }

  /** Make the entry of a call whose pieces are described. */
  #handOver(slot: Slot): void {
    const { op, count, offset } = slot.request as ImageRequest;
    const { image } = this.#io;
    this.#isPrepared = true;
    if (op === ImageOp.Flush) {
      this.#uring.prepare(UringOp.Fsync, image.fd, 0, 0, 0, FSYNC_DATASYNC, slot.index);
      return;
    }
    if (op === ImageOp.Discard) {
      // The length is where others have an address (io_uring_enter(2), IORING_OP_FALLOCATE).
      this.#uring.prepare(UringOp.Fallocate, image.fd, count, PUNCH_HOLE_KEEP_SIZE, image.base + offset, 0, slot.index);
      return;
    }
    // Where the host's cache is between, a thread of the kernel copies: some file systems would wait in the call itself,
    // and what is read ahead is (image-aside.ts).
    const aside = !image.isDirect && !slot.isNow ? UringFlag.Async : 0;
    const code = (isWrite(op) ? UringOp.Writev : UringOp.Readv) | (aside << 8);
    const address = this.#iovAddress + slot.index * MAX_PIECES * IOVEC_BYTES;
    const at = image.base + offset + slot.doneBytes;
    this.#uring.prepare(code, image.fd, address, slot.pieces, at, slot.isDsync ? RWF_DSYNC : 0, slot.index);
  }

  kick(): void {
    // From within a completion: what may be copied here is not more for that.
    if (this.#isReaping) return;
    this.#reap();
    this.#copiedBytes = 0;
  }

  /** Hand over what was prepared, and finish what is complete, until there is neither. */
  #reap(): void {
    if (this.#isReaping) return;
    this.#isReaping = true;
    do {
      this.#beginHeld();
      this.#submitPrepared();
      if (this.#shared.length > 0) this.#copyShared();
      while (this.#uring.next()) this.#complete(this.#uring.userData, this.#uring.result);
    } while (this.#isPrepared || this.#held.length > 0 || (this.#shared.length > 0 && !this.#isLate));
    this.#isReaping = false;
    if (this.#copied.inFlight > 0) this.#copied.kick();
    if (this.#free.length === QUEUE_CAPACITY && this.#held.length === 0) this.#waiters.wake();
  }

  #submitPrepared(): void {
    if (!this.#isPrepared) return;
    this.#isPrepared = false;
    if (this.#uring.submit() === 0) return;
    // The kernel is short of memory for a moment: what it did not take is handed over again, and nobody waits for that.
    this.#retry ??= setImmediate(() => {
      this.#retry = undefined;
      this.#isPrepared = true;
      this.#reap();
    });
  }

  /** @param result bytes, or a negative errno. */
  #complete(index: number, result: number): void {
    const slot = this.#slots[index] as Slot;
    if (slot.next !== undefined) {
      this.#completeJoined(slot, result);
      return;
    }
    const request = slot.request as ImageRequest;
    if (result < 0) this.#failed(slot, request, -result);
    else if (!isTransfer(request.op))
      this.#over(slot, request, request.op === ImageOp.Flush ? this.#io.syncFailure : 0);
    else if (result === 0) this.#endOfFile(slot, request);
    else {
      slot.doneBytes += result;
      if (slot.doneBytes < request.count) this.#again(slot, request);
      else this.#over(slot, request, this.#syncErrno(slot));
    }
  }

  /** All of it, or each request is made once more by itself, to see which of them has what. */
  #completeJoined(first: Slot, result: number): void {
    const isWhole = result === first.askedBytes;
    for (let slot: Slot | undefined = first; slot !== undefined; ) {
      const { next }: Slot = slot;
      slot.next = undefined;
      const request = slot.request as ImageRequest;
      if (isWhole) this.#over(slot, request, this.#syncErrno(slot));
      else this.#again(slot, request);
      slot = next;
    }
  }

  /** What is left of a request that was begun: by a thread of the kernel, whatever kept it. */
  #again(slot: Slot, request: ImageRequest): void {
    this.#handOver(this.#describeCall(slot, request, false));
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

  #failed(slot: Slot, request: ImageRequest, errno: number): void {
    const isTransient = errno === Errno.EINTR || errno === Errno.EAGAIN;
    if (isTransient && ++slot.tries < MAX_TRIES) {
      this.#again(slot, request);
    } else if (slot.isDsync && slot.syncErrno === 0) {
      slot.isDsync = false;
      slot.syncErrno = errno;
      this.#again(slot, request);
    } else {
      if (request.op === ImageOp.Flush && !isTransient) this.#io.syncFailed(errno);
      this.#over(slot, request, errno);
    }
  }

  /** Nothing more to read: the file shrank, or a range was given beyond its end. */
  #endOfFile(slot: Slot, request: ImageRequest): void {
    const isHole = request.op === ImageOp.Read && this.#io.image.hasRange;
    if (isHole) request.buffers.fillIn(slot.doneBytes, request.count - slot.doneBytes, 0);
    this.#over(slot, request, isHole ? 0 : Errno.EIO);
  }

  #over(slot: Slot, request: ImageRequest, errno: number): void {
    slot.request = undefined;
    this.#free.push(slot);
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
    const isBusy = this.#free.length < QUEUE_CAPACITY || this.#held.length > 0;
    const ring = isBusy ? this.#waiters.wait() : undefined;
    return Promise.all([copied, ring]).then(() => this.drained());
  }

  describeWork(): string | undefined {
    const busy = this.#slots.find((slot) => slot.request !== undefined)?.request ?? this.#held[0];
    return busy === undefined ? this.#copied.describeWork() : describeRequest(busy);
  }

  dispose(): Promise<void> | undefined {
    this.#unwatch?.();
    this.#unwatch = undefined;
    clearImmediate(this.#retry);
    const unmapped = this.#copyThread?.dispose();
    this.#copied.dispose();
    this.#uring.dispose();
    this.#iovecs.dispose();
    return unmapped;
  }
}

function flushOf({ buffers }: ImageRequest): Omit<ImageRequest, 'done'> {
  return { op: ImageOp.Flush, buffers, count: 0, offset: 0, isDurable: false };
}

function isWrite(op: ImageOp): boolean {
  return op === ImageOp.Write;
}

function isChange(op: ImageOp): boolean {
  return op === ImageOp.Write || op === ImageOp.Discard;
}

/** Whether both change the same bytes. */
function overlap(one: ImageRequest, other: ImageRequest): boolean {
  return (
    isChange(one.op) &&
    isChange(other.op) &&
    one.offset < other.offset + other.count &&
    other.offset < one.offset + one.count
  );
}

function isTransfer(op: ImageOp): boolean {
  return op === ImageOp.Read || op === ImageOp.Write;
}
