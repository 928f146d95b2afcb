/**
 * An {@link ImageQueue} for where the kernel cannot be pointed at the guest's memory (a WebAssembly engine), has no
 * io_uring, or wants its buffers aligned: what the host has in its memory is done here, in slices; everything else by
 * {@link ImageAside}, one piece at a time.
 */
import type { Clock, Timer } from '../../core/clock.ts';
import { MiB } from '../../core/units.ts';
import { ImageAside, MAX_ASIDE_BYTES, WOULD_WAIT } from './image-aside.ts';
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
const DISCARD_COST = SLICE_BYTES / 16;

export class SlicedQueue implements ImageQueue {
  readonly #io: ImageIo;
  readonly #aside: ImageAside;
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
  /** A piece of work is under way elsewhere: requests after it wait. */
  #isAway = false;
  #isDisposed = false;

  /** @param onSliceEnd requests that were done may have submitted others elsewhere. */
  constructor(io: ImageIo, clock: Clock, onSliceEnd?: () => void) {
    this.#io = io;
    this.#aside = new ImageAside(io, clock);
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
    if (this.#isRunning || this.#isAway || this.inFlight === 0) return;
    this.#isRunning = true;
    const endNs = this.#clock.nowNs() + SLICE_NS;
    let left = SLICE_BYTES;
    while (left > 0 && !this.#isAway && this.#requests.length > 0) {
      left -= this.#step(this.#requests[0] as ImageRequest);
      if (this.#clock.nowNs() >= endNs) break;
    }
    if (!this.#isAway) this.#sync();
    this.#isRunning = false;
    if (this.inFlight === 0) this.#waiters.wake();
    else if (!this.#isAway) this.#timer.arm(this.#clock.nowNs());
    this.#onSliceEnd?.();
  }

  /** The next part of the first request. @returns what it cost, in bytes. */
  #step(request: ImageRequest): number {
    const { op, buffers, count, offset } = request;
    const at = this.#progress;
    if (op === ImageOp.Flush) {
      const answer = flushAnswer(this.#io);
      if (answer === undefined) this.#wait();
      else this.#finish(answer);
      return 0;
    }
    if (op === ImageOp.Discard) {
      const part = Math.min(count - at, DISCARD_STEP_BYTES);
      if (this.#io.image.neverWaits) this.#moved(request, part, this.#io.discard(offset + at, part));
      else this.#goAway(this.#aside.discard(offset + at, part), (errno) => this.#moved(request, part, errno));
      return DISCARD_COST;
    }
    const isWrite = op === ImageOp.Write;
    const part = Math.min(count - at, MAX_ASIDE_BYTES);
    const done = part === 0 ? 0 : this.#aside.transferNow(buffers, at, part, offset + at, isWrite);
    if (done === WOULD_WAIT && part > 0) {
      const isWanted = () => !this.#isDisposed;
      const work = this.#aside.transfer(buffers, at, part, offset + at, isWrite, isWanted);
      this.#goAway(work, (later) => this.#moved(request, part, later));
    } else {
      this.#moved(request, Math.max(done, 0), Math.max(-done, 0));
    }
    return part;
  }

  /** A part of the first request is done. */
  #moved(request: ImageRequest, part: number, errno: number): void {
    this.#progress += part;
    if (errno !== 0) this.#finish(errno);
    else if (this.#progress < request.count) return;
    else if (request.isDurable && request.op !== ImageOp.Read) this.#wait();
    else this.#finish(0);
  }

  #goAway(work: Promise<number>, then: (errno: number) => void): void {
    this.#isAway = true;
    void work.then((errno) => {
      this.#isAway = false;
      if (this.#isDisposed) return;
      then(errno);
      if (this.inFlight === 0) this.#waiters.wake();
      this.kick();
      this.#onSliceEnd?.();
    });
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
    const requests = this.#unsynced.slice();
    const synced = (errno: number) => {
      // Before they are done: they may submit others.
      this.#unsynced.splice(0, requests.length);
      for (const request of requests) request.done(errno);
    };
    if (this.#io.image.neverWaits) synced(this.#io.sync());
    else this.#goAway(this.#aside.sync(), synced);
  }

  drained(): Promise<void> | undefined {
    return this.inFlight === 0 ? undefined : this.#waiters.wait();
  }

  describeWork(): string | undefined {
    const request = this.#requests[0] ?? this.#unsynced[0];
    return request === undefined ? undefined : describeRequest(request);
  }

  dispose(): undefined {
    this.#isDisposed = true;
    this.#timer.cancel();
    this.#aside.dispose();
  }
}
