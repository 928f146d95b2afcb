/**
 * What the device thread copies together with another one (copy-thread/), of the calls of a {@link RingQueue} on an image in
 * memory: calls that whoever comes first carries out, and what has to wait for them.
 *
 * The kernel lets one system call at a time change a file, so that two that overlap leave one or the other in each sector. What
 * the other thread writes does not wait for those, nor they for it: no write is shared while one that overlaps is begun, and
 * what overlaps one that is shared is postponed until all that is shared is over.
 */
import { KiB } from '../../core/units.ts';
import { CopyThread, type CopyThreadOptions } from './copy-thread/copy-thread.ts';
import { JobState } from './copy-thread/words.ts';
import type { ImageIo } from './image-io.ts';
import { type ImageRequest, isTransfer, isWrite, overlap } from './image-queue.ts';
import { CALL_IOVEC_BYTES, type RingCall, type RingCalls } from './ring-calls.ts';

/** What is copied in less time than another thread needs to wake up is not shared. */
const MIN_SHARED_BYTES = 32 * KiB;

export class SharedCopies {
  readonly #io: ImageIo;
  readonly #calls: RingCalls;
  readonly #thread: CopyThread;
  /** In the order in which they were published. */
  readonly #shared: RingCall[] = [];
  /** Begun when all of those are over. */
  readonly #postponed: ImageRequest[] = [];
  #isLate = false;

  constructor(
    io: ImageIo,
    calls: RingCalls,
    options: Pick<CopyThreadOptions, 'clock' | 'log' | 'pulses' | 'onLate' | 'workerUrl'>,
  ) {
    const { image } = io;
    this.#io = io;
    this.#calls = calls;
    this.#thread = new CopyThread({
      ...options,
      fd: image.fd,
      // Where O_DIRECT wants whole sectors, what is around a write is written with it: that is one more's to overlap.
      writableBytes: () => (image.isReadOnly || image.isDirect ? 0 : image.base + image.sizeBytes),
      iovecs: calls.iovecs.address,
      iovecBytes: CALL_IOVEC_BYTES,
      what: image.path,
    });
  }

  /** Requests that are not begun. */
  get waiting(): number {
    return this.#postponed.length;
  }

  /** Whether there is something to finish. */
  get isSharing(): boolean {
    return this.#shared.length > 0;
  }

  /** What is shared is finished when the other thread calls: until then, there is nothing to do for this one. */
  get isLate(): boolean {
    return this.#isLate;
  }

  /** Keep a request back that changes what a shared one writes. @returns false: it is none. */
  postpone(request: ImageRequest): boolean {
    if (!this.#shared.some((call) => overlap(call.request as ImageRequest, request))) return false;
    this.#postponed.push(request);
    return true;
  }

  /** Whether a request is large enough, and not the first: that is this thread's, and may be the only one. @param held requests to begin. */
  canShare(request: ImageRequest, held: readonly ImageRequest[]): boolean {
    const thread = this.#thread;
    const { op, count, offset } = request;
    if (count < MIN_SHARED_BYTES || !isTransfer(op)) return false;
    // What is postponed waits for all that is shared: that comes to an end first.
    if ((held.length === 0 && this.#shared.length === 0) || this.#postponed.length > 0) return false;
    if (!thread.isUp) {
      thread.couldShare();
      return false;
    }
    const mayOverlap = (other: ImageRequest) => overlap(other, request);
    const end = this.#io.image.base + offset + count;
    if (
      isWrite(op) &&
      (!thread.canWriteTo(end) || held.some(mayOverlap) || this.#calls.findRequest(mayOverlap) !== undefined)
    )
      return false;
    return !thread.rests;
  }

  /** Let whoever comes first carry out the request. @returns false: it has too many pieces. */
  share(request: ImageRequest): boolean {
    const { op, count, offset } = request;
    const call = this.#calls.describe(this.#calls.take(request), true);
    if (call.askedBytes < count) {
      this.#calls.release(call);
      return false;
    }
    this.#shared.push(call);
    this.#thread.publish(call.index, call.pieces, count, this.#io.image.base + offset, isWrite(op));
    return true;
  }

  /**
   * Carry out what nobody has taken, and wait for the one that the other thread is at, for a moment. @param begin gets what was
   * postponed, once nothing is shared.
   */
  finish(begin: (request: ImageRequest) => void): void {
    const thread = this.#thread;
    this.#isLate = false;
    for (let job = thread.take(); job >= 0; job = thread.take()) {
      const call = this.#calls.at(job);
      this.#shared.splice(this.#shared.indexOf(call), 1);
      this.#copyAlone(call);
    }
    while (this.#shared.length > 0) {
      const call = this.#shared[0] as RingCall;
      if (!thread.waitFor(call.index)) {
        this.#isLate = true;
        return;
      }
      this.#shared.shift();
      if (thread.stateOf(call.index) === JobState.Done) this.#over(call, 0);
      else this.#copyAlone(call);
    }
    for (const request of this.#postponed.splice(0)) begin(request);
  }

  /** Also what the other thread could not do: this one sees why. */
  #copyAlone(call: RingCall): void {
    const { op, buffers, count, offset } = call.request as ImageRequest;
    this.#over(call, this.#io.transfer(buffers, 0, count, offset, isWrite(op)));
  }

  #over(call: RingCall, errno: number): void {
    const request = call.request as ImageRequest;
    this.#calls.release(call);
    request.done(errno);
  }

  /** Nothing is shared. @returns when nothing is mapped any more; undefined: nothing is. */
  dispose(): Promise<void> | undefined {
    return this.#thread.dispose();
  }
}
