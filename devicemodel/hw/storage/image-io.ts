/**
 * Reading and writing a disk image. System calls are synchronous and work on guest memory in place; nothing here
 * allocates per request.
 */
import { writeSync } from 'node:fs';
import { HostError } from '../../core/errors.ts';
import type { GuestBuffers } from '../../core/guest-buffers.ts';
import { discardBlocks } from '../../core/host/block-device.ts';
import { Errno } from '../../core/host/errno.ts';
import {
  punchHole,
  readAt,
  readCachedAt,
  readVectorAt,
  syncData,
  syncDataAside,
  writeAt,
  writeVectorAt,
} from '../../core/host/files.ts';
import { type Mapping, map } from '../../core/host/mapping.ts';
import { readSome } from '../../core/host/read-file.ts';
import { alignDown, alignUp, MiB } from '../../core/units.ts';
import type { DiskImage } from './disk-image.ts';

/** preadv takes this many pieces at once (IOV_MAX). */
const MAX_IOVECS = 1024;
/** One call moves this much at most (MAX_RW_COUNT, rounded down). */
const MAX_TRANSFER_BYTES = 0x4000_0000;
/** Unaligned requests on O_DIRECT files go through a buffer of this size. */
const BOUNCE_BYTES = 1 * MiB;

/** Work on an image. Each thread has its own: the buffers in here are not shared. */
export class ImageIo {
  /** Its size may change; everything else stays. */
  image: DiskImage;
  readonly #base: number;
  readonly #iov = new DataView(new ArrayBuffer(MAX_IOVECS * 16));
  readonly #iovBytes = new Uint8Array(this.#iov.buffer);
  readonly #syncFailure: Int32Array;
  #bounce: Mapping | undefined;

  constructor(image: DiskImage) {
    this.image = image;
    this.#syncFailure = new Int32Array(image.syncFailure);
    this.#base = image.base;
  }

  /** The image has this size now. */
  resize(sizeBytes: number): void {
    this.image = { ...this.image, sizeBytes };
  }

  /**
   * Read into the writable part of a buffers, or write from its readable part.
   * @param bufferAt first byte in that part.
   * @param offset byte in the disk; the caller has checked [offset, offset + count) against `sizeBytes`.
   * @returns 0, or an errno: the request failed as a whole, how much was done is unknown.
   */
  transfer(buffers: GuestBuffers, bufferAt: number, count: number, offset: number, isWrite: boolean): number {
    if (!buffers.ram.hasHostAddresses) return this.#transferByView(buffers, bufferAt, count, offset, isWrite);
    if (this.image.isDirect && !this.#isAligned(buffers, bufferAt, count, offset, isWrite)) {
      return this.#transferBounced(buffers, bufferAt, count, offset, isWrite);
    }
    let done = 0;
    while (done < count) {
      const part = Math.min(count - done, MAX_TRANSFER_BYTES);
      const pieces = buffers.toIovecs(bufferAt + done, part, !isWrite, this.#iov, 0, MAX_IOVECS);
      if (pieces === 0) return Errno.EINVAL;
      const got = isWrite
        ? writeVectorAt(this.image.fd, this.#iovBytes, pieces, this.#base + offset + done)
        : readVectorAt(this.image.fd, this.#iovBytes, pieces, this.#base + offset + done);
      if (got < 0) return -got;
      if (got === 0) return this.#endOfFile(buffers, bufferAt + done, count - done, isWrite);
      done += got;
    }
    return 0;
  }

  /** Whether the kernel can work on the buffers as they are: not so for requests that `transfer` has to copy. */
  isDirectlyUsable(buffers: GuestBuffers, bufferAt: number, count: number, offset: number, isWrite: boolean): boolean {
    return (
      buffers.ram.hasHostAddresses &&
      (!this.image.isDirect || this.#isAligned(buffers, bufferAt, count, offset, isWrite))
    );
  }

  /** Whether `readCached` can tell; file systems in memory do not know the question, and never wait. */
  knowsCached = true;

  /** Read what the host has in its cache, without waiting. @returns whether that was all of it. */
  readCached(buffers: GuestBuffers, bufferAt: number, count: number, offset: number): boolean {
    const pieces = buffers.toIovecs(bufferAt, count, true, this.#iov, 0, MAX_IOVECS);
    if (buffers.iovBytes !== count) return false;
    const got = readCachedAt(this.image.fd, this.#iovBytes, pieces, this.#base + offset);
    if (got === -Errno.EOPNOTSUPP) this.knowsCached = false;
    return got === count;
  }

  /** Nothing more to read. The file shrank, or a range was given beyond its end: that reads as the hole it is. */
  #endOfFile(buffers: GuestBuffers, bufferAt: number, count: number, isWrite: boolean): number {
    if (isWrite || !this.image.hasRange) return Errno.EIO;
    buffers.fillIn(bufferAt, count, 0);
    return 0;
  }

  /** Guest RAM that no system call can be pointed at (a WebAssembly engine): piece by piece through Node. */
  #transferByView(buffers: GuestBuffers, bufferAt: number, count: number, offset: number, isWrite: boolean): number {
    let done = 0;
    try {
      while (done < count) {
        if (!buffers.seek(bufferAt + done, !isWrite)) return Errno.EINVAL;
        const i = buffers.segment;
        const bytes = buffers.ram.bytes[buffers.chunk[i] as number] as Uint8Array;
        const at = (buffers.offset[i] as number) + buffers.within;
        const length = Math.min(count - done, (buffers.length[i] as number) - buffers.within, MAX_TRANSFER_BYTES);
        const position = this.#base + offset + done;
        const got = isWrite
          ? writeSync(this.image.fd, bytes, at, length, position)
          : readSome(this.image.fd, bytes, at, length, position);
        if (got === 0) return this.#endOfFile(buffers, bufferAt + done, count - done, isWrite);
        done += got;
      }
      return 0;
    } catch (error) {
      return Math.abs((error as NodeJS.ErrnoException).errno ?? Errno.EIO);
    }
  }

  /** O_DIRECT wants file offset, addresses and lengths in sectors. */
  #isAligned(buffers: GuestBuffers, bufferAt: number, count: number, offset: number, isWrite: boolean): boolean {
    const unit = this.image.logicalSectorBytes;
    if ((this.#base + offset) % unit !== 0 || count % unit !== 0 || !buffers.seek(bufferAt, !isWrite)) return false;
    const end = isWrite ? buffers.readableCount : buffers.segmentCount;
    let left = count;
    for (let i = buffers.segment, within = buffers.within; left > 0 && i < end; i++, within = 0) {
      const take = Math.min(left, (buffers.length[i] as number) - within);
      const address =
        (buffers.ram.hostAddresses[buffers.chunk[i] as number] as number) + (buffers.offset[i] as number) + within;
      if (address % unit !== 0 || take % unit !== 0) return false;
      left -= take;
    }
    return true;
  }

  #transferBounced(buffers: GuestBuffers, bufferAt: number, count: number, offset: number, isWrite: boolean): number {
    try {
      this.#bounce ??= map(BOUNCE_BYTES, 'disk bounce buffer');
    } catch (error) {
      if (!(error instanceof HostError)) throw error;
      return Errno.ENOMEM;
    }
    const { bytes, address } = this.#bounce;
    const unit = this.image.logicalSectorBytes;
    let done = 0;
    while (done < count) {
      const at = this.#base + offset + done;
      const from = alignDown(at, unit);
      const head = at - from;
      const part = Math.min(count - done, BOUNCE_BYTES - head - unit);
      const span = alignUp(head + part, unit);
      // Writes keep what is around them in the first and the last sector.
      if (!isWrite || head !== 0 || span !== head + part) {
        const got = this.#whole(readAt, address, span, from);
        if (got < 0) return -got;
        if (got < head + part && !isWrite && !this.image.hasRange) return Errno.EIO;
        bytes.fill(0, got, span);
      }
      if (isWrite) {
        buffers.copyOut(bufferAt + done, bytes, head, part);
        const put = this.#whole(writeAt, address, span, from);
        if (put < 0) return -put;
        if (put !== span) return Errno.EIO;
      } else {
        buffers.copyIn(bufferAt + done, bytes, head, part);
      }
      done += part;
    }
    return 0;
  }

  /** All of it, or up to the end of the file. @returns bytes, or a negative errno. */
  #whole(call: typeof readAt, address: bigint, sizeBytes: number, at: number): number {
    let done = 0;
    while (done < sizeBytes) {
      const got = call(this.image.fd, address + BigInt(done), sizeBytes - done, at + done);
      if (got < 0) return got;
      if (got === 0) break;
      done += got;
    }
    return done;
  }

  /**
   * Everything written so far is on the medium when this returns 0. After one failure it fails until the image is opened
   * anew: the kernel drops what it could not write and says so once, so that a later success would mean nothing.
   * @returns 0 or an errno.
   */
  sync(): number {
    if (this.syncFailure !== 0) return this.syncFailure;
    const errno = -syncData(this.image.fd);
    if (errno !== 0) this.syncFailed(errno);
    // Also of another thread's: the kernel tells a failure to one of those who ask.
    return this.syncFailure;
  }

  /** As `sync`, on a thread of Node's: the caller goes on. */
  async flush(): Promise<number> {
    if (this.syncFailure !== 0) return this.syncFailure;
    const errno = -(await syncDataAside(this.image.fd));
    if (errno !== 0) this.syncFailed(errno);
    return this.syncFailure;
  }

  /** A sync failed that was made elsewhere: by io_uring. */
  syncFailed(errno: number): void {
    Atomics.compareExchange(this.#syncFailure, 0, 0, errno);
  }

  /** errno of the first sync of the image that failed, on any thread; 0 while none has. */
  get syncFailure(): number {
    return Atomics.load(this.#syncFailure, 0);
  }

  /** Give a range back; it reads as zeros or as anything (block devices). @returns 0 or an errno. */
  discard(offset: number, count: number): number {
    const from = this.#base + offset;
    return -(this.image.isBlockDevice
      ? discardBlocks(this.image.fd, from, count)
      : punchHole(this.image.fd, from, count));
  }

  /** Give back what this object holds; the image stays open. */
  dispose(): void {
    this.#bounce?.dispose();
    this.#bounce = undefined;
  }
}
