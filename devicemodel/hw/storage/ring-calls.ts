/**
 * The calls that a {@link RingQueue} can have under way: which requests each carries out, and the pieces of memory that are
 * described to the kernel for them. A call belongs to its requests from `take` to `release`.
 */
import { BugError } from '../../core/errors.ts';
import { type Mapping, map } from '../../core/host/mapping.ts';
import { type ImageRequest, isTransfer, isWrite, QUEUE_CAPACITY } from './image-queue.ts';

/** Pieces of memory of one call to the kernel; a request with more takes several. */
const MAX_PIECES = 256;
const IOVEC_BYTES = 16;
/** From the pieces of one call to those of the next. */
export const CALL_IOVEC_BYTES = MAX_PIECES * IOVEC_BYTES;

export interface RingCall {
  readonly index: number;
  request: ImageRequest | undefined;
  /** The next of the neighbours that the call carries out as well. */
  next: RingCall | undefined;
  /** Of the call: pieces of memory, and whether it is carried out while it is handed over. */
  pieces: number;
  isNow: boolean;
  /** Handed over as a write to the host's cache, which a thread of the kernel's copies. */
  isCopied: boolean;
  /** Bytes that are done, and bytes of the call under way. */
  doneBytes: number;
  askedBytes: number;
  tries: number;
  /** The call is a write that is on the medium when it is complete. */
  isDsync: boolean;
  /** A write with DSYNC failed with this: it is made again without, to see which of the two it was. */
  syncErrno: number;
}

export class RingCalls {
  /** struct iovec of all calls (readv(2)). */
  readonly iovecs: Mapping;
  readonly #iov: DataView;
  readonly #address: number;
  readonly #all: RingCall[];
  readonly #free: RingCall[];

  constructor() {
    this.iovecs = map(QUEUE_CAPACITY * CALL_IOVEC_BYTES, 'disk requests');
    this.#iov = new DataView(this.iovecs.bytes.buffer);
    this.#address = Number(this.iovecs.address);
    this.#all = Array.from({ length: QUEUE_CAPACITY }, (_, index) => ({
      index,
      request: undefined,
      next: undefined,
      pieces: 0,
      isNow: false,
      isCopied: false,
      doneBytes: 0,
      askedBytes: 0,
      tries: 0,
      isDsync: false,
      syncErrno: 0,
    }));
    this.#free = [...this.#all];
  }

  at(index: number): RingCall {
    return this.#all[index] as RingCall;
  }

  /** Where the call's pieces are described. */
  addressOf(call: RingCall): number {
    return this.#address + call.index * CALL_IOVEC_BYTES;
  }

  /** Of how many requests there is one. */
  get taken(): number {
    return QUEUE_CAPACITY - this.#free.length;
  }

  /** The first request, in no order, of which this is true. */
  findRequest(isIt: (request: ImageRequest) => boolean): ImageRequest | undefined {
    for (const { request } of this.#all) if (request !== undefined && isIt(request)) return request;
    return undefined;
  }

  take(request: ImageRequest): RingCall {
    const call = this.#free.pop();
    if (call === undefined) throw new BugError('more disk requests than a queue holds');
    call.request = request;
    call.next = undefined;
    call.isNow = false;
    call.doneBytes = 0;
    call.tries = 0;
    call.syncErrno = 0;
    call.isDsync = request.isDurable && isWrite(request.op);
    return call;
  }

  release(call: RingCall): void {
    call.request = undefined;
    this.#free.push(call);
  }

  /** Describe what is left of the call's request. @param isNow it is carried out while it is handed over. */
  describe(call: RingCall, isNow: boolean): RingCall {
    const request = call.request as ImageRequest;
    call.isNow = isNow;
    call.pieces = 0;
    call.askedBytes = 0;
    if (isTransfer(request.op)) this.#addPieces(call, request, call.doneBytes);
    return call;
  }

  /**
   * Let a call that is described carry out a request that follows its last one, too. @returns false: there is no room; so for a
   * call that has not even all of its first request.
   */
  join(call: RingCall, request: ImageRequest): boolean {
    if (!this.#addPieces(call, request, 0)) return false;
    let last = call;
    while (last.next !== undefined) last = last.next;
    last.next = this.take(request);
    return true;
  }

  /** @returns whether there was room for all pieces of the request, from this byte of it on. */
  #addPieces(call: RingCall, { op, buffers, count }: ImageRequest, from: number): boolean {
    const first = call.index * MAX_PIECES;
    const left = count - from;
    const pieces = buffers.toIovecs(from, left, !isWrite(op), this.#iov, first + call.pieces, first + MAX_PIECES);
    const { iovBytes } = buffers;
    if (call.pieces > 0 && iovBytes < left) return false;
    call.pieces += pieces;
    call.askedBytes += iovBytes;
    return true;
  }

  dispose(): void {
    this.iovecs.dispose();
  }
}
