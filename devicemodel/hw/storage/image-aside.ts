/**
 * Work on a disk image for a thread that must not wait for storage: what the host has in its memory is done at once,
 * everything else by a thread of Node's, through a buffer in between. That thread sees nothing of the guest: storage that
 * never answers keeps a buffer of ours and no memory of a VM that may be gone.
 *
 * One piece of work at a time, of at most {@link MAX_ASIDE_BYTES}: a disk that hangs keeps one thread of the few.
 *
 * Neither is the thread kept for long by a copy, which on memory that was not touched lately can take twenty times as long
 * as on other: what is done at once is done by small pieces for a millisecond, and a piece of work is no larger than what
 * is copied in about that time. Of a file system only one small piece is read at once: RWF_NOWAIT does not wait for the
 * medium, but reads ahead, which with a window of 8 MiB takes 30 ms of whoever comes to its edge.
 */
import type { Clock } from '../../core/clock.ts';
import { HostError } from '../../core/errors.ts';
import type { GuestBuffers } from '../../core/guest-buffers.ts';
import { discardBlocksAside } from '../../core/host/block-device.ts';
import { Errno } from '../../core/host/errno.ts';
import { punchHoleAside, readAtAside, readCachedAt, writeAtAside } from '../../core/host/files.ts';
import { type Mapping, map } from '../../core/host/mapping.ts';
import { alignDown, alignUp, KiB } from '../../core/units.ts';
import type { ImageIo } from './image-io.ts';

/** Bytes of one piece of work. */
export const MAX_ASIDE_BYTES = 256 * KiB;
/** Bytes copied between two looks at the clock, and when that is over. */
const NOW_BYTES = 64 * KiB;
const NOW_NS = 1_000_000;
/** What `transferNow` answers for work that could wait. */
export const WOULD_WAIT = 0;

export class ImageAside {
  readonly #io: ImageIo;
  readonly #unit: number;
  #buffer: Mapping | undefined;
  /** The kernel reads or writes the buffer. */
  #isBufferLent = false;
  #isDisposed = false;
  readonly #clock: Pick<Clock, 'nowNs'>;
  /** One struct iovec. */
  readonly #iov = new BigUint64Array(2);
  readonly #iovBytes = new Uint8Array(this.#iov.buffer);

  constructor(io: ImageIo, clock: Pick<Clock, 'nowNs'>) {
    this.#io = io;
    this.#clock = clock;
    this.#unit = io.image.isDirect ? io.image.logicalSectorBytes : 1;
  }

  /**
   * As {@link ImageIo.transfer}, as far as that cannot wait, and for about a millisecond.
   * @param count not 0.
   * @returns bytes that are done, from the first; a negative errno; {@link WOULD_WAIT}: not even the first piece.
   */
  transferNow(buffers: GuestBuffers, bufferAt: number, count: number, offset: number, isWrite: boolean): number {
    const io = this.#io;
    if (!io.image.neverWaits) {
      if (isWrite || io.image.isDirect || !io.knowsCached || count > NOW_BYTES) return WOULD_WAIT;
      return this.#readCached(buffers, bufferAt, count, offset);
    }
    // The clock is not free: a small one is one piece.
    if (count <= NOW_BYTES) return -io.transfer(buffers, bufferAt, count, offset, isWrite) || count;
    const endNs = this.#clock.nowNs() + NOW_NS;
    for (let done = 0; ; ) {
      const piece = Math.min(count - done, NOW_BYTES);
      const errno = io.transfer(buffers, bufferAt + done, piece, offset + done, isWrite);
      if (errno !== 0) return -errno;
      done += piece;
      if (done === count || this.#clock.nowNs() >= endNs) return done;
    }
  }

  /** @returns as `transferNow`: all of it, or nothing. */
  #readCached(buffers: GuestBuffers, bufferAt: number, count: number, offset: number): number {
    const io = this.#io;
    if (buffers.ram.hasHostAddresses) return io.readCached(buffers, bufferAt, count, offset) ? count : WOULD_WAIT;
    const buffer = this.#takeBuffer();
    if (buffer === undefined) return WOULD_WAIT;
    const { bytes, address } = buffer;
    this.#iov[0] = address;
    this.#iov[1] = BigInt(count);
    if (readCachedAt(io.image.fd, this.#iovBytes, 1, io.image.base + offset) !== count) return WOULD_WAIT;
    buffers.copyIn(bufferAt, bytes, 0, count);
    return count;
  }

  /**
   * As {@link ImageIo.transfer}, for at most {@link MAX_ASIDE_BYTES}.
   * @param isWanted asked before the guest's memory is written to: the request may be nobody's any more.
   */
  async transfer(
    buffers: GuestBuffers,
    bufferAt: number,
    count: number,
    offset: number,
    isWrite: boolean,
    isWanted: () => boolean,
  ): Promise<number> {
    const { image } = this.#io;
    const buffer = this.#takeBuffer();
    if (buffer === undefined) return Errno.ENOMEM;
    const { bytes, address } = buffer;
    const unit = this.#unit;
    const at = image.base + offset;
    const from = alignDown(at, unit);
    const head = at - from;
    const span = alignUp(head + count, unit);
    // Writes keep what is around them in the first and the last sector.
    if (!isWrite || head !== 0 || span !== head + count) {
      const got = await this.#whole(readAtAside, address, span, from);
      if (got < 0) return -got;
      if (got < head + count && !isWrite && !image.hasRange) return Errno.EIO;
      bytes.fill(0, got, span);
    }
    if (!isWanted()) return Errno.ECANCELED;
    if (!isWrite) {
      buffers.copyIn(bufferAt, bytes, head, count);
      return 0;
    }
    buffers.copyOut(bufferAt, bytes, head, count);
    const put = await this.#whole(writeAtAside, address, span, from);
    return put < 0 ? -put : put < span ? Errno.EIO : 0;
  }

  /** As {@link ImageIo.discard}. */
  async discard(offset: number, count: number): Promise<number> {
    const { image } = this.#io;
    const from = image.base + offset;
    return -(await (image.isBlockDevice
      ? discardBlocksAside(image.fd, from, count)
      : punchHoleAside(image.fd, from, count)));
  }

  /** As {@link ImageIo.sync}. */
  sync(): Promise<number> {
    return this.#io.flush();
  }

  /** All of it, or up to the end of the file. @returns bytes, or a negative errno. */
  async #whole(call: typeof readAtAside, address: bigint, sizeBytes: number, at: number): Promise<number> {
    let done = 0;
    this.#isBufferLent = true;
    while (done < sizeBytes) {
      const got = await call(this.#io.image.fd, address + BigInt(done), sizeBytes - done, at + done);
      if (got === -Errno.EINTR) continue;
      if (got < 0) done = got;
      if (got <= 0) break;
      done += got;
    }
    this.#isBufferLent = false;
    if (this.#isDisposed) this.#giveBack();
    return done;
  }

  /** @returns undefined when the host has no memory for it now: this request fails, the next asks again. */
  #takeBuffer(): Mapping | undefined {
    try {
      this.#buffer ??= map(MAX_ASIDE_BYTES + 2 * this.#unit, 'disk buffer');
    } catch (error) {
      if (!(error instanceof HostError)) throw error;
    }
    return this.#buffer;
  }

  #giveBack(): void {
    this.#buffer?.dispose();
    this.#buffer = undefined;
  }

  /** Give back what this object holds; what a call that is under way has, when that answers. */
  dispose(): void {
    this.#isDisposed = true;
    if (!this.#isBufferLent) this.#giveBack();
  }
}
