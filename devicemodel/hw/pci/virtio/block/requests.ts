/**
 * Block requests (Virtio 1.2 §5.2.6): from chains of a queue to the image and back. Knows no transport and no thread:
 * the device thread or a data thread runs it on a queue.
 */
import { type CounterPage, DiskCount, newPage, tally, tallyRead, tallyWrite } from '../../../../core/counters.ts';
import { describeErrno } from '../../../../core/host/errno.ts';
import type { Log } from '../../../../core/log.ts';
import { GiB, MiB } from '../../../../core/units.ts';
import { MAX_ASIDE_BYTES, WOULD_WAIT } from '../../../storage/image-aside.ts';
import type { ImageIo } from '../../../storage/image-io.ts';
import { SECTOR_BYTES } from '../../../storage/image-options.ts';
import type { Chain } from '../ring/chain.ts';
import { type ChainServer, SLICE_BYTES, type SliceBudget, type SliceClock, serveChains } from '../ring/serve-chains.ts';
import type { Virtqueue } from '../ring/virtqueue.ts';
import { type AsideWork, syncAfter } from './aside.ts';
import { type BlockRing, isTransient, type RingSlot } from './io-ring.ts';
import {
  BARRIER,
  BlkStatus,
  checkSegments,
  DISCARD_SEGMENT_BYTES,
  HEADER_BYTES,
  isInside,
  RequestType,
} from './protocol.ts';
import type { BlockRequestState } from './request-state.ts';
import { ReusedTransfer, type Transfer } from './transfer.ts';
import { Work } from './work-note.ts';

/** Serial numbers are this long; longer buffers are cleared up to here. */
const MAX_ID_FILL = 4096;
/** Two rings full; a queue has 64 entries. */
const BUDGET: SliceBudget = { chains: 128, cost: SLICE_BYTES, suppressesNotify: true };
/** Requests longer than this are served in slices and not by the kernel beside this thread, which could not call them back. */
const MAX_RING_BYTES = 4 * MiB;
/** Of a discard: what a file system or a disk gives back in about a millisecond. */
const DiscardSlice = { file: 64 * MiB, blockDevice: GiB } as const;
/** Calls to the host for one slice of a discard, however short its segments are. */
const MAX_DISCARD_CALLS = 16;
/** Slices after which requests that wait for a sync have it, however much comes after them. */
const MAX_SYNC_DELAY = 8;

/** Requests after which the driver is shown what is done, when there are many: often enough to keep both sides busy. */
const PUBLISH_EVERY = 8;

export class BlockRequests implements ChainServer {
  readonly #state: BlockRequestState;
  readonly #log: Log;
  readonly #clock: SliceClock;
  /** Requests that are done but for the sync they wait for, and the queue of each. */
  readonly #waiting: Chain[] = [];
  readonly #waitingQueues: Virtqueue[] = [];
  /** Of `waiting`: setting its length to 0 would free its memory, and the next request allocate it. */
  #waitingCount = 0;
  /** Slices since the last sync, while requests wait for one. */
  #syncDelay = 0;
  readonly #counts: CounterPage;
  #hasLateSync = false;
  /** Requests and parts of requests so far; wraps at 2^31. */
  served = 0;

  readonly #transfers = new ReusedTransfer();
  readonly #ring: BlockRing | undefined;
  /** This thread must not wait for storage: what could wait goes on there. */
  aside: AsideWork | undefined;
  /** Looks whether the disk has another size; before each request, since the guest may have heard of it just before that. */
  lookAtSize: (() => void) | undefined;
  /** Somebody else is to have the queues: nothing new is begun until then. */
  #settling: Promise<void> | undefined;

  /** @param ring lets requests go on in the kernel after `serve` returned: see `finish` and `settle`. */
  constructor(state: BlockRequestState, log: Log, clock: SliceClock, ring?: BlockRing) {
    this.#state = state;
    this.#counts = state.counts ?? newPage('disk');
    this.#log = log;
    this.#clock = clock;
    this.#ring = ring;
  }

  /**
   * Serve a slice of what the driver made available.
   * @returns false if there may be more: call again after other work had its turn. Until it returned true, and while
   *   requests are in the ring, `settle` comes before somebody else has the queue.
   */
  serve(queue: Virtqueue): boolean {
    // Whoever has something under way has the queues looked at again.
    if (this.aside?.isBusy === true || this.#settling !== undefined) return true;
    return serveChains(queue, BUDGET, this, this.#clock);
  }

  /** Requests are done but for the sync that a slice to come makes. */
  get isWaiting(): boolean {
    return this.#waitingCount > 0;
  }

  serveChain(queue: Virtqueue, chain: Chain): number {
    this.lookAtSize?.();
    const cost = this.#request(queue, chain);
    this.served = (this.served + 1) | 0;
    if (this.#state.runsBesideDriver && this.served % PUBLISH_EVERY === 0) queue.publish();
    return cost;
  }

  endPass(queue: Virtqueue, hasMore: boolean): void {
    if (this.#ring !== undefined && this.#ring.inFlight > 0) {
      this.#ring.submit();
      this.#finish(queue);
    }
    if (this.#waitingCount === 0 || this.aside?.isBusy === true) return;
    // One sync for everything that is available, and not one for each slice of it.
    if (hasMore && ++this.#syncDelay < MAX_SYNC_DELAY) return;
    queue.publish();
    this.#syncWaiting();
  }

  /** @returns bytes moved. */
  #request(queue: Virtqueue, chain: Chain): number {
    if (chain.writableBytes === 0 || chain.readableBytes < HEADER_BYTES) {
      this.#logShort(chain);
      // No room for a status, or no header: §5.2.6.2 has no answer to that, and nothing is written.
      queue.push(chain, this.#state.reportsLength ? 0 : 1);
      return 0;
    }
    // Read again for each part of a request: what the guest changed meanwhile is checked like a request of its own.
    const type = (chain.readU32(0) & ~BARRIER) >>> 0;
    const high = chain.readU32(12);
    // A small integer where it is one: every other number is an object for whom it is passed to.
    const sector = high === 0 ? chain.readU32(8) : chain.readU32(8) + high * 0x1_0000_0000;
    const outBytes = chain.readableBytes - HEADER_BYTES;
    const inBytes = chain.writableBytes - 1;
    const { backend } = this.#state;
    const isWrite = type === RequestType.Out || type === RequestType.Discard;
    if (backend === undefined || (isWrite ? backend.image.isReadOnly || inBytes > 0 : outBytes > 0)) {
      return this.#done(queue, chain, BlkStatus.IoError, 0);
    }
    switch (type) {
      case RequestType.In:
        return this.#in(queue, chain, backend, sector, inBytes);
      case RequestType.Out:
        return this.#out(queue, chain, backend, sector, outBytes);
      case RequestType.Flush:
      case RequestType.FlushOut:
        tally(this.#counts, DiskCount.flushes, 1);
        return this.#wait(queue, chain);
      case RequestType.Discard:
        return this.#discard(queue, chain, backend, outBytes);
      case RequestType.GetId:
        chain.fillIn(0, Math.min(inBytes, MAX_ID_FILL), 0);
        chain.copyIn(0, this.#state.serial, 0, Math.min(inBytes, this.#state.serial.length));
        return this.#done(queue, chain, BlkStatus.Ok, inBytes);
      default:
        return this.#done(queue, chain, BlkStatus.Unsupported, 0);
    }
  }

  #in(queue: Virtqueue, chain: Chain, backend: ImageIo, sector: number, count: number): number {
    if (!isInside(backend.image, sector, count)) return this.#done(queue, chain, BlkStatus.IoError, 0);
    const transfer = this.#transfers.of(queue, chain, backend, sector * SECTOR_BYTES, count, false);
    if (this.#begin(transfer)) return count;
    if (this.aside !== undefined) return this.#transferAside(this.aside, transfer);
    const at = chain.progress;
    const part = Math.min(count - at, SLICE_BYTES);
    this.#state.note?.set(Work.Read, sector + at / SECTOR_BYTES, part);
    const errno = backend.transfer(chain, at, part, transfer.offset + at, false);
    if (errno === 0 && at + part < count) this.#parkAt(queue, chain, at + part);
    else this.#readDone(queue, chain, backend, count, errno);
    return part;
  }

  #readDone(queue: Virtqueue, chain: Chain, backend: ImageIo, length: number, errno: number): void {
    this.#report('read', backend, errno);
    if (errno === 0) tallyRead(this.#counts, length);
    this.#done(queue, chain, errno === 0 ? BlkStatus.Ok : BlkStatus.IoError, errno === 0 ? length : 0);
  }

  #out(queue: Virtqueue, chain: Chain, backend: ImageIo, sector: number, count: number): number {
    if (!isInside(backend.image, sector, count)) return this.#done(queue, chain, BlkStatus.IoError, 0);
    const transfer = this.#transfers.of(queue, chain, backend, sector * SECTOR_BYTES, count, true);
    const { offset } = transfer;
    if (this.#begin(transfer)) return count;
    if (this.aside !== undefined) return this.#transferAside(this.aside, transfer);
    const at = chain.progress;
    const part = Math.min(count - at, SLICE_BYTES);
    this.#state.note?.set(Work.Write, sector + at / SECTOR_BYTES, part);
    let errno = backend.transfer(chain, HEADER_BYTES + at, part, offset + at, true);
    // As it is now: what is completed after a switch to write-through has to be on the medium.
    const { isWriteback } = this.#state;
    if (errno === 0 && at + part < count) {
      // The medium gets each part at once: a sync of gigabytes at the end could not be cut.
      if (!isWriteback) errno = backend.sync();
      if (errno === 0) {
        this.#parkAt(queue, chain, at + part);
        return part;
      }
    }
    const isSyncing = errno === 0 && !isWriteback && this.#beginSync(queue, chain, backend, offset + at, part);
    if (isSyncing) tallyWrite(this.#counts, count);
    else this.#writeDone(queue, chain, backend, count, errno, isWriteback);
    return part;
  }

  #writeDone(
    queue: Virtqueue,
    chain: Chain,
    backend: ImageIo,
    length: number,
    errno: number,
    isDurable: boolean,
  ): void {
    this.#report('write', backend, errno);
    if (errno === 0) tallyWrite(this.#counts, length);
    if (errno !== 0) this.#done(queue, chain, BlkStatus.IoError, 0);
    else if (isDurable) this.#done(queue, chain, BlkStatus.Ok, 0);
    else this.#wait(queue, chain);
  }

  /** The rest of the request is for the slices that follow. */
  #parkAt(queue: Virtqueue, chain: Chain, progress: number): void {
    chain.progress = progress;
    queue.park(chain);
  }

  /** The request is done once the medium has it. */
  #wait(queue: Virtqueue, chain: Chain): 0 {
    this.#waiting[this.#waitingCount] = chain;
    this.#waitingQueues[this.#waitingCount++] = queue;
    return 0;
  }

  // Requests of a thread that must not wait.

  /** As the rest of `#in` and `#out`. @returns the cost of a slice where the part goes on beside this thread. */
  #transferAside(aside: AsideWork, transfer: Transfer): number {
    const { chain, backend, offset, count, isWrite } = transfer;
    const at = chain.progress;
    // What never waits is copied here, and looks at the clock by itself.
    const part = Math.min(count - at, backend.image.neverWaits ? SLICE_BYTES : MAX_ASIDE_BYTES);
    const chainAt = isWrite ? HEADER_BYTES + at : at;
    this.#state.note?.set(isWrite ? Work.Write : Work.Read, (offset + at) / SECTOR_BYTES, part);
    const done = part === 0 ? 0 : aside.image.transferNow(chain, chainAt, part, offset + at, isWrite);
    if (done === WOULD_WAIT && part > 0) {
      this.#goOnAside(aside, { ...transfer }, at, part);
      return SLICE_BYTES;
    }
    const end = at + Math.max(done, 0);
    let errno = Math.max(-done, 0);
    if (errno === 0 && this.#needsSync(transfer, at, end)) errno = backend.sync();
    this.#partDone(transfer, end, errno);
    // Not all of it: the time of the slice was over.
    return done < part ? SLICE_BYTES : part;
  }

  /** The medium gets each slice of a large write at once: a sync of gigabytes at the end could not be cut. */
  #needsSync({ count, isWrite }: Transfer, at: number, end: number): boolean {
    const isSlice = Math.floor(at / SLICE_BYTES) < Math.floor(end / SLICE_BYTES);
    return isWrite && isSlice && end < count && !this.#state.isWriteback;
  }

  #goOnAside(aside: AsideWork, transfer: Transfer, at: number, part: number): void {
    const { queue, chain, offset, isWrite } = transfer;
    const chainAt = isWrite ? HEADER_BYTES + at : at;
    const isSynced = this.#needsSync(transfer, at, at + part);
    const work = aside.image.transfer(chain, chainAt, part, offset + at, isWrite, aside.isWanted);
    aside.begin(isSynced ? syncAfter(work, aside) : work, (errno) => {
      this.#partDone(transfer, at + part, errno);
      queue.publish();
    });
  }

  /** @param progress bytes of the request that are done if `errno` is 0. */
  #partDone({ queue, chain, backend, count, isWrite }: Transfer, progress: number, errno: number): void {
    if (errno === 0 && progress < count) this.#parkAt(queue, chain, progress);
    else if (isWrite) this.#writeDone(queue, chain, backend, count, errno, this.#state.isWriteback);
    else this.#readDone(queue, chain, backend, count, errno);
  }

  /** A part of a discard; the slices that follow go on behind it. */
  #discardAside(
    aside: AsideWork,
    queue: Virtqueue,
    chain: Chain,
    backend: ImageIo,
    offset: number,
    part: number,
  ): number {
    aside.begin(aside.image.discard(offset, part), (errno) => {
      this.#report('discard', backend, errno);
      if (errno === 0) this.#parkAt(queue, chain, chain.progress + part);
      else this.#done(queue, chain, BlkStatus.IoError, 0);
      queue.publish();
    });
    return SLICE_BYTES;
  }

  async #settleAside(aside: AsideWork, queues: readonly Virtqueue[]): Promise<void> {
    while (aside.isWanted() && (aside.isBusy || this.#waitingCount > 0)) {
      if (!aside.isBusy) this.#syncWaiting();
      await aside.idle;
    }
    this.#settling = undefined;
    for (const queue of queues) queue.putBackParked();
  }

  // Requests in the ring.

  /** Let the kernel go on with the request, where that is better than waiting for it. @returns false when it is not. */
  #begin({ queue, chain, backend, offset, count, isWrite }: Transfer): boolean {
    const chainAt = isWrite ? HEADER_BYTES : 0;
    const ring = this.#ring;
    const { image } = backend;
    // Writes to the host's cache are a copy, for which the kernel would only get a thread of its own.
    if (ring === undefined || count === 0 || (!image.isDirect && (isWrite || !backend.knowsCached))) return false;
    if (count > MAX_RING_BYTES) return false;
    // Nothing else to do meanwhile: one system call less.
    if (ring.inFlight === 0 && !queue.hasAvailable()) return false;
    if (!backend.isDirectlyUsable(chain, chainAt, count, offset, isWrite)) return false;
    if (!image.isDirect && backend.readCached(chain, chainAt, count, offset)) {
      tallyRead(this.#counts, count);
      this.#done(queue, chain, BlkStatus.Ok, count);
      return true;
    }
    const isDurable = isWrite && !this.#state.isWriteback;
    return ring.begin(queue, chain, chainAt, count, image.fd, image.base, offset, isWrite, isDurable);
  }

  /** The data are in the host's cache: let the kernel bring them to the medium beside those of others. */
  #beginSync(queue: Virtqueue, chain: Chain, backend: ImageIo, offset: number, count: number): boolean {
    const ring = this.#ring;
    if (ring === undefined || (ring.inFlight === 0 && !queue.hasAvailable())) return false;
    const { image } = backend;
    return ring.beginSync(queue, chain, count, image.fd, image.base + offset);
  }

  /** Complete what the kernel is through with, and show it to the drivers. */
  finish(): void {
    this.#finish(undefined);
    // The mode was switched while they were written: no slice need come that would sync them.
    if (this.#hasLateSync) this.#syncWaiting();
  }

  /** @param publishedLater this queue is published by the caller. */
  #finish(publishedLater: Virtqueue | undefined): void {
    const ring = this.#ring;
    const { backend } = this.#state;
    if (ring === undefined || backend === undefined) return;
    let touched = publishedLater;
    for (let slot = ring.next(); slot !== undefined; slot = ring.next()) {
      const queue = slot.queue as Virtqueue;
      const chain = slot.chain as Chain;
      if (queue !== touched) {
        touched?.publish();
        touched = queue;
      }
      if (slot.isSync) {
        const errno = this.#syncResult(backend, ring.result);
        this.#report('flush', backend, errno);
        this.#done(queue, chain, errno === 0 ? BlkStatus.Ok : BlkStatus.IoError, 0);
        continue;
      }
      const errno = this.#transferResult(backend, slot, ring.result);
      const isDurable = slot.isDurable || this.#state.isWriteback;
      if (slot.isWrite && !isDurable) this.#hasLateSync = true;
      if (slot.isWrite) this.#writeDone(queue, chain, backend, slot.count, errno, isDurable);
      else this.#readDone(queue, chain, backend, slot.count, errno);
    }
    if (touched !== publishedLater) touched?.publish();
  }

  /** @param result of a transfer. @returns 0 or an errno, after what is left was done the plain way. */
  #transferResult(backend: ImageIo, slot: RingSlot, result: number): number {
    const done = Math.max(result, 0);
    // Less than asked for, or trouble: the plain way finds out what it is.
    const left = slot.count - done;
    const errno =
      left > 0 ? backend.transfer(slot.chain as Chain, slot.chainAt + done, left, slot.offset + done, slot.isWrite) : 0;
    if (errno !== 0 || !slot.isDurable) return errno;
    if (left > 0 && (result >= 0 || isTransient(-result))) return backend.sync();
    // It can be written, so that what failed is the sync.
    return this.#syncResult(backend, Math.min(result, 0));
  }

  /** @param result of a sync: 0 or a negative errno. @returns 0 or an errno. */
  #syncResult(backend: ImageIo, result: number): number {
    if (result < 0 && isTransient(-result)) return backend.sync();
    if (result < 0) backend.syncFailed(-result);
    return backend.syncFailure;
  }

  /**
   * Somebody else serves these queues from now on: wait for what is in flight, complete what is done, and put back what
   * was only begun. Everything before the queues' positions is then used.
   * @returns when that is so, which may take as long as storage does; undefined: it is. A thread that may wait has waited.
   */
  settle(queues: readonly Virtqueue[]): Promise<void> | undefined {
    const { aside } = this;
    if (this.#settling !== undefined) return this.#settling;
    if (aside?.isBusy === false) this.#syncWaiting();
    if (aside?.isBusy === true) {
      this.#settling = this.#settleAside(aside, queues);
      return this.#settling;
    }
    while (this.#ring !== undefined && this.#ring.inFlight > 0) {
      this.#noteInFlight(this.#ring);
      this.#ring.submit(1);
      this.finish();
    }
    this.#syncWaiting();
    for (const queue of queues) queue.putBackParked();
    return undefined;
  }

  #noteInFlight(ring: BlockRing): void {
    const slot = ring.anyInFlight();
    if (slot === undefined) return;
    const work = slot.isSync ? Work.Flush : slot.isWrite ? Work.Write : Work.Read;
    this.#state.note?.set(work, slot.offset / SECTOR_BYTES, slot.count);
  }

  /** Give back what fits a slice. */
  #discard(queue: Virtqueue, chain: Chain, backend: ImageIo, outBytes: number): number {
    const limits = backend.image.discardLimits;
    if (limits === undefined) return this.#done(queue, chain, BlkStatus.Unsupported, 0);
    const segments = Math.floor(outBytes / DISCARD_SEGMENT_BYTES);
    // Compat: what is left over behind the last whole segment is nothing, as in C.
    const isTaken = segments > 0 && segments <= limits.maxSegments;
    // All segments are looked at before the first is carried out.
    const status = !isTaken
      ? BlkStatus.IoError
      : chain.progress > 0
        ? BlkStatus.Ok
        : checkSegments(chain, backend.image, limits, segments);
    if (status !== BlkStatus.Ok) return this.#done(queue, chain, status, 0);
    const sliceBytes = backend.image.isBlockDevice ? DiscardSlice.blockDevice : DiscardSlice.file;
    let left = sliceBytes;
    let end = 0;
    for (let i = 0; i < segments; i++) {
      const at = HEADER_BYTES + i * DISCARD_SEGMENT_BYTES;
      // Read a second time: the guest may have changed it, so it is checked a second time where it matters.
      const sector = chain.readU32(at) + chain.readU32(at + 4) * 0x1_0000_0000;
      const count = chain.readU32(at + 8) * SECTOR_BYTES;
      if (!isInside(backend.image, sector, count) || count === 0) return this.#done(queue, chain, BlkStatus.IoError, 0);
      end += count;
      while (chain.progress < end) {
        if (left <= 0) {
          queue.park(chain);
          return SLICE_BYTES;
        }
        const rest = end - chain.progress;
        const part = Math.min(rest, sliceBytes);
        this.#state.note?.set(Work.Discard, sector + (count - rest) / SECTOR_BYTES, part);
        const offset = sector * SECTOR_BYTES + count - rest;
        if (this.aside !== undefined && !backend.image.neverWaits) {
          return this.#discardAside(this.aside, queue, chain, backend, offset, part);
        }
        const errno = backend.discard(offset, part);
        this.#report('discard', backend, errno);
        if (errno !== 0) return this.#done(queue, chain, BlkStatus.IoError, 0);
        chain.progress += part;
        left -= Math.max(part, sliceBytes / MAX_DISCARD_CALLS);
      }
    }
    tally(this.#counts, DiskCount.discards, 1);
    return this.#state.isWriteback ? this.#done(queue, chain, BlkStatus.Ok, 0) : this.#wait(queue, chain);
  }

  /** One sync for all writes and flushes taken together; requests that are done need not wait for it. */
  #syncWaiting(): void {
    if (this.#waitingCount === 0) return;
    const { backend } = this.#state;
    this.#state.note?.set(Work.Flush, 0, 0);
    // A disk that cannot be written has nothing to flush.
    if (backend === undefined || backend.image.isReadOnly) this.#synced(backend, 0);
    else if (this.aside === undefined || backend.image.neverWaits) this.#synced(backend, backend.sync());
    else this.#syncAside(this.aside, backend);
  }

  #syncAside(aside: AsideWork, backend: ImageIo): void {
    aside.begin(aside.image.sync(), (errno) => this.#synced(backend, errno));
  }

  /** Everything that waited for a sync had it. */
  #synced(backend: ImageIo | undefined, errno: number): void {
    const count = this.#waitingCount;
    this.#waitingCount = 0;
    this.#syncDelay = 0;
    this.#hasLateSync = false;
    if (backend !== undefined) this.#report('flush', backend, errno);
    for (let i = 0; i < count; i++) {
      const queue = this.#waitingQueues[i] as Virtqueue;
      this.#done(queue, this.#waiting[i] as Chain, errno === 0 ? BlkStatus.Ok : BlkStatus.IoError, 0);
      if (this.#waitingQueues[i + 1] !== queue || i + 1 === count) queue.publish();
    }
  }

  /** The status is the last writable byte, wherever the driver put it. @returns what the answer costs: nothing. */
  #done(queue: Virtqueue, chain: Chain, status: number, inBytes: number): 0 {
    if (status === BlkStatus.IoError) tally(this.#counts, DiskCount.errors, 1);
    // The rings it came from may be gone, and its memory somebody else's.
    if (chain.generation === queue.generation) chain.writeU8(chain.writableBytes - 1, status);
    queue.push(chain, this.#state.reportsLength ? inBytes + 1 : 1);
    return 0;
  }

  #report(what: string, backend: ImageIo, errno: number): void {
    if (errno !== 0) this.#logFailure(what, backend, errno);
  }

  // On their own: what a line's function captures is allocated when the function around it is entered, line or not.

  #logFailure(what: string, backend: ImageIo, errno: number): void {
    this.#log.guest(() => `${backend.image.path}: ${what} failed: ${describeErrno(errno)}`);
  }

  #logShort(chain: Chain): void {
    this.#log.guest(() => `block request of ${chain.readableBytes} and ${chain.writableBytes} bytes`);
  }
}
