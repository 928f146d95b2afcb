/**
 * An {@link ImageQueue} that does the work on the thread it belongs to, in slices: for RAM that no system call can be
 * pointed at (a WebAssembly engine), and for requests that have to be copied. Such a thread waits for the storage.
 */
import type { Clock, Timer } from '../../core/clock.ts';
import { Errno } from '../../core/host/errno.ts';
import { MiB } from '../../core/units.ts';
import type { ImageIo } from './image-io.ts';
import {
  DrainWaiters,
  describeRequest,
  flushAnswer,
  ImageOp,
  type ImageQueue,
  type ImageRequest,
} from './image-queue.ts';

/** What one slice moves, and how long it keeps the thread, at most: its last step may go over. */
const SLICE_BYTES = 1 * MiB;
const SLICE_NS = 1_000_000;
/** Of a discard: what a file system gives back in about a millisecond. */
const DISCARD_STEP_BYTES = 64 * MiB;

export class SlicedQueue implements ImageQueue {
  readonly #io: ImageIo;
  readonly #clock: Clock;
  readonly #timer: Timer;
  readonly #onSliceEnd: (() => void) | undefined;
  readonly #waiters = new DrainWaiters();
  readonly #requests: ImageRequest[] = [];
  /** Done but for the sync that the end of the slice makes. */
  readonly #unsynced: ImageRequest[] = [];
  /** Bytes of the first request that are done. */
  #progress = 0;
  #isRunning = false;

  /** @param onSliceEnd requests that were done may have submitted others elsewhere. */
  constructor(io: ImageIo, clock: Clock, onSliceEnd?: () => void) {
    this.#io = io;
    this.#onSliceEnd = onSliceEnd;
    this.#clock = clock;
    this.#timer = clock.createTimer(() => this.kick());
  }

  get inFlight(): number {
    return this.#requests.length + this.#unsynced.length;
  }

  submit(request: ImageRequest): void {
    this.#requests.push(request);
  }

  kick(): void {
    if (this.#isRunning || this.inFlight === 0) return;
    this.#isRunning = true;
    const endNs = this.#clock.nowNs() + SLICE_NS;
    let left = SLICE_BYTES;
    while (left > 0 && this.#requests.length > 0) {
      left -= this.#step(this.#requests[0] as ImageRequest);
      if (this.#clock.nowNs() >= endNs) break;
    }
    this.#sync();
    this.#isRunning = false;
    if (this.inFlight > 0) this.#timer.arm(this.#clock.nowNs());
    else this.#waiters.wake();
    this.#onSliceEnd?.();
  }

  /** The next part of the first request. @returns what it cost, in bytes. */
  #step(request: ImageRequest): number {
    const { op, buffers, count, offset } = request;
    const io = this.#io;
    const at = this.#progress;
    if (op === ImageOp.Flush) {
      const answer = flushAnswer(io);
      if (answer === undefined) this.#wait();
      else this.#finish(answer);
      return 0;
    }
    const part = Math.min(count - at, op === ImageOp.Discard ? DISCARD_STEP_BYTES : SLICE_BYTES);
    const errno =
      op === ImageOp.Discard
        ? io.discard(offset + at, part)
        : io.transfer(buffers, at, part, offset + at, op === ImageOp.Write);
    this.#progress += part;
    if (errno !== 0) this.#finish(errno);
    else if (this.#progress >= count) {
      if (request.isDurable && op !== ImageOp.Read) this.#wait();
      else this.#finish(0);
    }
    return op === ImageOp.Discard ? SLICE_BYTES / 16 : part;
  }

  #finish(errno: number): void {
    const request = this.#requests.shift();
    this.#progress = 0;
    request?.done(errno);
  }

  /** The first request is done when the medium has it. */
  #wait(): void {
    const request = this.#requests.shift();
    this.#progress = 0;
    if (request !== undefined) this.#unsynced.push(request);
  }

  /** One sync for all that was written in the slice. */
  #sync(): void {
    if (this.#unsynced.length === 0) return;
    const errno = this.#io.sync();
    for (const request of this.#unsynced.splice(0)) request.done(errno);
  }

  drained(): Promise<void> | undefined {
    return this.inFlight === 0 ? undefined : this.#waiters.wait();
  }

  describeWork(): string | undefined {
    const request = this.#requests[0] ?? this.#unsynced[0];
    return request === undefined ? undefined : describeRequest(request);
  }

  dispose(): void {
    this.#timer.cancel();
    for (const request of [...this.#requests.splice(0), ...this.#unsynced.splice(0)]) request.done(Errno.ECANCELED);
  }
}
