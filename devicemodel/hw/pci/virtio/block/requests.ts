/**
 * Block requests (Virtio 1.2 §5.2.6): from chains of a queue to the image and back. Knows no transport and no thread:
 * the device thread or a data thread runs it on a queue.
 */
import type { Log } from '../../../../core/log.ts';
import type { BlockBackend } from '../../../storage/disk-image.ts';
import type { Chain } from '../ring/chain.ts';
import type { Virtqueue } from '../ring/virtqueue.ts';
import type { BlockRing } from './io-ring.ts';
import { SECTOR_BYTES } from './options.ts';

/** §5.2.6, request types. */
const RequestType = { In: 0, Out: 1, Flush: 4, FlushOut: 5, GetId: 8, Discard: 11 } as const;
/** Legacy drivers may OR this into the type; it means nothing here (§5.2.6.4). */
const BARRIER = 0x80000000;
const BlkStatus = { Ok: 0, IoError: 1, Unsupported: 2 } as const;
/** u32 type, u32 reserved, u64 sector. */
const HEADER_BYTES = 16;
/** §5.2.6, struct virtio_blk_discard_write_zeroes: u64 sector, u32 num_sectors, u32 flags. */
const DISCARD_SEGMENT_BYTES = 16;
const DISCARD_UNMAP = 1;
/** Serial numbers are this long; longer buffers are cleared up to here. */
const MAX_ID_FILL = 4096;
/** One call of `serve` takes no more than this many times the queue's size, however fast the guest refills it. */
const BUDGET_FACTOR = 2;
/** … nor moves more than this before other work has its turn. */
const BYTE_BUDGET = 64 * 1024 * 1024;

/** What the device decides about requests. */
export interface BlockRequestState {
  /** Undefined: `nodisk`. */
  readonly backend: BlockBackend | undefined;
  /** Writes stay in the host's cache until a flush: only if the driver knows how to flush. */
  readonly isWriteback: boolean;
  /** Compat: legacy drivers see a used length of 1 for every request, as from the C device model. */
  readonly reportsLength: boolean;
  /** 20 bytes of ASCII. */
  readonly serial: Uint8Array;
  /** The driver goes on while requests are served: it did not kick through the request page. */
  readonly runsBesideDriver: boolean;
}

/** Requests after which the driver is shown what is done, when there are many: often enough to keep both sides busy. */
const PUBLISH_EVERY = 8;

export class BlockRequests {
  readonly #state: BlockRequestState;
  readonly #log: Log;
  /** Requests that are done but for the sync they wait for. */
  readonly #waiting: Chain[] = [];
  /** Of `waiting`: setting its length to 0 would free its memory, and the next request allocate it. */
  #waitingCount = 0;
  #bytesLeft = 0;
  /** Requests so far; wraps at 2^31. */
  served = 0;

  readonly #ring: BlockRing | undefined;

  /** @param ring lets requests go on in the kernel after `serve` returned: see `finish` and `drain`. */
  constructor(state: BlockRequestState, log: Log, ring?: BlockRing) {
    this.#state = state;
    this.#log = log;
    this.#ring = ring;
  }

  /**
   * Serve what the driver made available, and complete it: when this returns nothing is in flight but in the ring.
   * @returns false if there may be more, which the guest made while this ran: call again after other work had its turn.
   */
  serve(queue: Virtqueue): boolean {
    let budget = BUDGET_FACTOR * queue.size;
    this.#bytesLeft = BYTE_BUDGET;
    do {
      queue.suppressNotify();
      for (let chain = queue.pop(); chain !== undefined; chain = queue.pop()) {
        this.#request(queue, chain);
        this.served = (this.served + 1) | 0;
        if (this.#state.runsBesideDriver && this.served % PUBLISH_EVERY === 0) queue.publish();
        // The guest can bring requests forever, but only a ring full is waiting for one sync.
        if (--budget === 0 || this.#bytesLeft <= 0 || this.#waitingCount >= queue.size) break;
      }
      if (this.#ring !== undefined && this.#ring.inFlight > 0) {
        this.#ring.submit();
        this.#finish(queue);
      }
      this.#syncWaiting(queue);
      queue.publish();
      if (budget <= 0 || this.#bytesLeft <= 0) return false;
    } while (queue.allowNotify());
    return true;
  }

  #request(queue: Virtqueue, chain: Chain): void {
    if (chain.writableBytes === 0 || chain.readableBytes < HEADER_BYTES) {
      this.#logShort(chain);
      // No room for a status, or no header. §5.2.6.2 has no answer to that; Compat: the used length is 1 all the same.
      queue.push(chain, this.#state.reportsLength ? 0 : 1);
      return;
    }
    const type = (chain.readU32(0) & ~BARRIER) >>> 0;
    const high = chain.readU32(12);
    // A small integer where it is one: every other number is an object for whom it is passed to.
    const sector = high === 0 ? chain.readU32(8) : chain.readU32(8) + high * 0x1_0000_0000;
    const outBytes = chain.readableBytes - HEADER_BYTES;
    const inBytes = chain.writableBytes - 1;
    const { backend } = this.#state;
    const isWrite = type === RequestType.Out || type === RequestType.Discard;
    if (backend === undefined || (isWrite ? backend.image.isReadOnly || inBytes > 0 : outBytes > 0)) {
      this.#done(queue, chain, BlkStatus.IoError, 0);
      return;
    }
    switch (type) {
      case RequestType.In:
        this.#in(queue, chain, backend, sector, inBytes);
        break;
      case RequestType.Out:
        this.#out(queue, chain, backend, sector, outBytes);
        break;
      case RequestType.Flush:
      case RequestType.FlushOut:
        this.#waiting[this.#waitingCount++] = chain;
        break;
      case RequestType.Discard:
        this.#discard(queue, chain, backend, outBytes);
        break;
      case RequestType.GetId:
        chain.fillIn(0, Math.min(inBytes, MAX_ID_FILL), 0);
        chain.copyIn(0, this.#state.serial, 0, Math.min(inBytes, this.#state.serial.length));
        this.#done(queue, chain, BlkStatus.Ok, inBytes);
        break;
      default:
        this.#done(queue, chain, BlkStatus.Unsupported, 0);
    }
  }

  /** §5.2.6.1: whole sectors, inside the disk. */
  #isInside(backend: BlockBackend, sector: number, count: number): boolean {
    return count % SECTOR_BYTES === 0 && sector <= Number.MAX_SAFE_INTEGER / SECTOR_BYTES / 2
      ? sector * SECTOR_BYTES + count <= backend.image.sizeBytes - (backend.image.sizeBytes % SECTOR_BYTES)
      : false;
  }

  #in(queue: Virtqueue, chain: Chain, backend: BlockBackend, sector: number, count: number): void {
    if (!this.#isInside(backend, sector, count)) {
      this.#done(queue, chain, BlkStatus.IoError, 0);
      return;
    }
    this.#bytesLeft -= count;
    if (this.#begin(queue, chain, backend, 0, count, sector * SECTOR_BYTES, false)) return;
    const errno = backend.transfer(chain, 0, count, sector * SECTOR_BYTES, false);
    this.#readDone(queue, chain, backend, count, errno);
  }

  #readDone(queue: Virtqueue, chain: Chain, backend: BlockBackend, count: number, errno: number): void {
    this.#report('read', backend, errno);
    this.#done(queue, chain, errno === 0 ? BlkStatus.Ok : BlkStatus.IoError, errno === 0 ? count : 0);
  }

  #out(queue: Virtqueue, chain: Chain, backend: BlockBackend, sector: number, count: number): void {
    if (!this.#isInside(backend, sector, count)) {
      this.#done(queue, chain, BlkStatus.IoError, 0);
      return;
    }
    this.#bytesLeft -= count;
    if (this.#begin(queue, chain, backend, HEADER_BYTES, count, sector * SECTOR_BYTES, true)) return;
    const errno = backend.transfer(chain, HEADER_BYTES, count, sector * SECTOR_BYTES, true);
    if (errno === 0 && !this.#state.isWriteback && this.#beginSync(queue, chain, backend, sector * SECTOR_BYTES, count))
      return;
    this.#writeDone(queue, chain, backend, errno, this.#state.isWriteback);
  }

  #writeDone(queue: Virtqueue, chain: Chain, backend: BlockBackend, errno: number, isDurable: boolean): void {
    this.#report('write', backend, errno);
    if (errno !== 0) this.#done(queue, chain, BlkStatus.IoError, 0);
    else if (isDurable) this.#done(queue, chain, BlkStatus.Ok, 0);
    else this.#waiting[this.#waitingCount++] = chain;
  }

  // Requests in the ring.

  /** Let the kernel go on with the request, where that is better than waiting for it. @returns false when it is not. */
  #begin(
    queue: Virtqueue,
    chain: Chain,
    backend: BlockBackend,
    chainAt: number,
    count: number,
    offset: number,
    isWrite: boolean,
  ): boolean {
    const ring = this.#ring;
    const { image } = backend;
    // Writes to the host's cache are a copy, for which the kernel would only get a thread of its own.
    if (ring === undefined || count === 0 || (!image.isDirect && (isWrite || !backend.knowsCached))) return false;
    // Nothing else to do meanwhile: one system call less.
    if (ring.inFlight === 0 && !queue.hasAvailable()) return false;
    if (!backend.isDirectlyUsable(chain, chainAt, count, offset, isWrite)) return false;
    if (!image.isDirect && backend.readCached(chain, chainAt, count, offset)) {
      this.#done(queue, chain, BlkStatus.Ok, count);
      return true;
    }
    const isDurable = isWrite && !this.#state.isWriteback;
    return ring.begin(queue, chain, chainAt, count, image.fd, image.base, offset, isWrite, isDurable);
  }

  /** The data are in the host's cache: let the kernel bring them to the medium beside those of others. */
  #beginSync(queue: Virtqueue, chain: Chain, backend: BlockBackend, offset: number, count: number): boolean {
    const ring = this.#ring;
    if (ring === undefined || (ring.inFlight === 0 && !queue.hasAvailable())) return false;
    const { image } = backend;
    return ring.beginSync(queue, chain, count, image.fd, image.base + offset);
  }

  /** Complete what the kernel is through with, and show it to the drivers. */
  finish(): void {
    this.#finish(undefined);
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
        this.#report('flush', backend, -ring.result);
        this.#done(queue, chain, ring.result === 0 ? BlkStatus.Ok : BlkStatus.IoError, 0);
        continue;
      }
      const done = Math.max(ring.result, 0);
      let errno = 0;
      // Less than asked for, or trouble: the plain way finds out what it is.
      if (done < slot.count) {
        errno = backend.transfer(chain, slot.chainAt + done, slot.count - done, slot.offset + done, slot.isWrite);
        if (errno === 0 && slot.isWrite && !this.#state.isWriteback) errno = backend.sync();
      }
      if (slot.isWrite) this.#writeDone(queue, chain, backend, errno, true);
      else this.#readDone(queue, chain, backend, slot.count, errno);
    }
    if (touched !== publishedLater) touched?.publish();
  }

  /** Wait for everything in flight and complete it. */
  drain(): void {
    while (this.#ring !== undefined && this.#ring.inFlight > 0) {
      this.#ring.submit(1);
      this.finish();
    }
  }

  #discard(queue: Virtqueue, chain: Chain, backend: BlockBackend, outBytes: number): void {
    const limits = backend.image.discardLimits;
    if (limits === undefined) {
      this.#done(queue, chain, BlkStatus.Unsupported, 0);
      return;
    }
    const segments = Math.floor(outBytes / DISCARD_SEGMENT_BYTES);
    const isWhole = segments > 0 && segments <= limits.maxSegments && outBytes % DISCARD_SEGMENT_BYTES === 0;
    let status: number = isWhole ? BlkStatus.Ok : BlkStatus.IoError;
    // All segments are looked at before the first is carried out.
    for (let i = 0; i < segments && status === BlkStatus.Ok; i++) {
      const at = HEADER_BYTES + i * DISCARD_SEGMENT_BYTES;
      const sector = chain.readU32(at) + chain.readU32(at + 4) * 0x1_0000_0000;
      const sectors = chain.readU32(at + 8);
      // §5.2.6.2: unmap is for write-zeroes only.
      if ((chain.readU32(at + 12) & DISCARD_UNMAP) !== 0) status = BlkStatus.Unsupported;
      else if (
        sectors === 0 ||
        sectors > limits.maxSectors ||
        (limits.alignmentSectors !== 0 && sector % limits.alignmentSectors !== 0) ||
        !this.#isInside(backend, sector, sectors * SECTOR_BYTES)
      ) {
        status = BlkStatus.IoError;
      }
    }
    for (let i = 0; i < segments && status === BlkStatus.Ok; i++) {
      const at = HEADER_BYTES + i * DISCARD_SEGMENT_BYTES;
      // Read a second time: the guest may have changed it, so it is checked a second time where it matters.
      const sector = chain.readU32(at) + chain.readU32(at + 4) * 0x1_0000_0000;
      const count = chain.readU32(at + 8) * SECTOR_BYTES;
      if (!this.#isInside(backend, sector, count) || count === 0) {
        status = BlkStatus.IoError;
        break;
      }
      const errno = backend.discard(sector * SECTOR_BYTES, count);
      this.#report('discard', backend, errno);
      if (errno !== 0) status = BlkStatus.IoError;
    }
    if (status === BlkStatus.Ok && !this.#state.isWriteback) this.#waiting[this.#waitingCount++] = chain;
    else this.#done(queue, chain, status, 0);
  }

  /** One sync for all writes and flushes taken together; requests that are done need not wait for it. */
  #syncWaiting(queue: Virtqueue): void {
    if (this.#waitingCount === 0) return;
    queue.publish();
    const { backend } = this.#state;
    // A disk that cannot be written has nothing to flush.
    const errno = backend === undefined || backend.image.isReadOnly ? 0 : backend.sync();
    if (backend !== undefined) this.#report('flush', backend, errno);
    for (let i = 0; i < this.#waitingCount; i++) {
      this.#done(queue, this.#waiting[i] as Chain, errno === 0 ? BlkStatus.Ok : BlkStatus.IoError, 0);
    }
    this.#waitingCount = 0;
  }

  /** The status is the last writable byte, wherever the driver put it. */
  #done(queue: Virtqueue, chain: Chain, status: number, inBytes: number): void {
    chain.writeU8(chain.writableBytes - 1, status);
    queue.push(chain, this.#state.reportsLength ? inBytes + 1 : 1);
  }

  #report(what: string, backend: BlockBackend, errno: number): void {
    if (errno !== 0) this.#logFailure(what, backend, errno);
  }

  // On their own: what a line's function captures is allocated when the function around it is entered, line or not.

  #logFailure(what: string, backend: BlockBackend, errno: number): void {
    this.#log.guest(() => `${backend.image.path}: ${what} failed with errno ${errno}`);
  }

  #logShort(chain: Chain): void {
    this.#log.guest(() => `block request of ${chain.readableBytes} and ${chain.writableBytes} bytes`);
  }
}
