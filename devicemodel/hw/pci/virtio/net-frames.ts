/**
 * Frames between the queues of a network device and a tap: the device thread or a data thread runs it. System calls work
 * on guest memory in place; nothing here allocates per frame.
 */
import { addressOf, Errno, lastErrno, native } from '../../../core/host/libc.ts';
import { type Mapping, map } from '../../../core/host/mapping.ts';
import type { Log } from '../../../core/log.ts';
import { type Chain, ChainFifo, setIovec } from './chain.ts';
import type { Virtqueue } from './virtqueue.ts';

export const RECEIVE = 0;
export const TRANSMIT = 1;

/** §5.1.6, struct virtio_net_hdr: u16 num_buffers is its last field, and absent in the oldest form. */
export const HEADER_BYTES = 12;
export const SHORT_HEADER_BYTES = 10;
const NUM_BUFFERS = 10;
/** Shortest Ethernet frame without its checksum; the C device model pads to it. */
const MIN_FRAME = 60;
const PLAIN_FRAME = 1514;
/** Longest thing a tap hands out: a segmented frame and its headers. */
const MAX_FRAME = 65_550;
/** Frames handled before other work has its turn. */
const FRAME_BUDGET = 256;
/** Pieces of one frame. */
const MAX_IOVECS = 1024;

/** What the device decides about frames. */
export interface NetFrameState {
  /** The tap; undefined while there is none. */
  readonly fd: number | undefined;
  /** Header bytes before a frame in the driver's buffers (§5.1.6.1). */
  readonly headerBytes: number;
  /** Frames on the tap carry the header as well. */
  readonly hasHeader: boolean;
  /** VIRTIO_NET_F_MRG_RXBUF. */
  readonly merges: boolean;
  /** The driver takes segmented frames, up to 64 KiB. */
  readonly isSegmented: boolean;
  /** Compat: sent buffers are given back with the number of bytes read, as with C; Virtio 1.x wants those written, none. */
  readonly reportsRead: boolean;
  /** A system call on the tap failed. */
  failed(what: 'send' | 'receive', errno: number): void;
}

export class NetFrames {
  readonly #state: NetFrameState;
  readonly #log: Log;
  readonly #iov = new DataView(new ArrayBuffer((MAX_IOVECS + 2) * 16));
  readonly #iovBytes = new Uint8Array(this.#iov.buffer);
  /** What does not fit the guest's buffers at once, and frames of engines whose RAM has no address. */
  readonly #spill: Mapping = map(MAX_FRAME + HEADER_BYTES, 'network frame');
  readonly #spillAddress = Number(addressOf(this.#spill.bytes));
  /** Buffers taken from the receive queue ahead of the frames that go into them, oldest first. */
  readonly #buffers = new ChainFifo(MAX_IOVECS / 2);
  #bufferBytes = 0;
  /** Frames moved so far, both ways; wraps at 2^31. */
  moved = 0;

  constructor(state: NetFrameState, log: Log) {
    this.#state = state;
    this.#log = log;
  }

  dispose(): void {
    this.#spill.dispose();
  }

  /** Throw away what waits in the tap, within bounds. */
  discardWaiting(fd: number): void {
    for (let i = 0; i < FRAME_BUDGET * 4 && readInto(fd, this.#spillAddress, MAX_FRAME) >= 0; i++);
  }

  /** The rings the buffers came from are gone. */
  dropBuffers(queue: Virtqueue): void {
    while (this.#buffers.length > 0) queue.push(this.#buffers.shift(), 0);
    this.#bufferBytes = 0;
  }

  /** Somebody else goes on with the queue: nothing was used of what was only taken. */
  putBackBuffers(queue: Virtqueue): void {
    while (this.#buffers.length > 0) queue.unpop(this.#buffers.pop());
    this.#bufferBytes = 0;
  }

  // Guest to host.

  /** Send what the driver made available. @returns false if there may be more. */
  transmit(queue: Virtqueue): boolean {
    let budget = FRAME_BUDGET;
    do {
      queue.suppressNotify();
      for (let chain = queue.pop(); chain !== undefined; chain = queue.pop()) {
        this.#send(chain);
        queue.push(chain, this.#state.reportsRead ? chain.readableBytes : 0);
        this.moved = (this.moved + 1) | 0;
        if (--budget === 0) break;
      }
      queue.publish();
      if (budget === 0) return false;
    } while (queue.allowNotify());
    return true;
  }

  #send(chain: Chain): void {
    const { headerBytes: header, hasHeader, fd } = this.#state;
    const skip = hasHeader ? 0 : header;
    const frame = chain.readableBytes - header;
    if (fd === undefined || frame <= 0 || frame > MAX_FRAME) return;
    const spill = this.#spill;
    let result: number;
    if (chain.ram.hasHostAddresses) {
      let pieces = chain.toIovecs(skip, chain.readableBytes - skip, false, this.#iov, 0, MAX_IOVECS);
      if (frame < MIN_FRAME) {
        spill.bytes.fill(0, 0, MIN_FRAME);
        setIovec(this.#iov, pieces++, this.#spillAddress, MIN_FRAME - frame);
      }
      result = writev(fd, this.#iovBytes, pieces);
    } else {
      const count = chain.copyOut(skip, spill.bytes, 0, chain.readableBytes - skip);
      const padded = Math.max(count, MIN_FRAME + header - skip);
      spill.bytes.fill(0, count, padded);
      setIovec(this.#iov, 0, this.#spillAddress, padded);
      result = writev(fd, this.#iovBytes, 1);
    }
    if (result < 0) this.#state.failed('send', lastErrno());
  }

  // Host to guest.

  /** Take buffers until a frame of the usual size fits, or there are no more. @returns whether any is there. */
  #takeBuffers(queue: Virtqueue, wanted: number): boolean {
    while (this.#bufferBytes < wanted && !this.#buffers.isFull) {
      const chain = queue.pop();
      if (chain === undefined) break;
      if (chain.writableBytes <= this.#state.headerBytes) {
        // Not even a header fits: of no use, and not ours to keep.
        queue.push(chain, 0);
        continue;
      }
      this.#buffers.push(chain);
      this.#bufferBytes += chain.writableBytes;
    }
    return this.#buffers.length > 0;
  }

  /** Move what waits in the tap. @returns false when buffers ran out: frames wait in the tap until the driver kicks. */
  receive(queue: Virtqueue): boolean {
    const { fd, merges, isSegmented, headerBytes } = this.#state;
    if (fd === undefined) return false;
    const wanted = (isSegmented ? MAX_FRAME : PLAIN_FRAME) + headerBytes;
    if (this.#buffers.length > 0 && this.#buffers.at(0).generation !== queue.generation) this.dropBuffers(queue);
    queue.suppressNotify();
    let hasBuffers = true;
    for (let budget = FRAME_BUDGET; budget > 0; budget--) {
      hasBuffers =
        this.#takeBuffers(queue, merges ? wanted : 1) || (queue.allowNotify() && this.#takeBuffers(queue, 1));
      if (!hasBuffers || !this.#receiveFrame(queue, fd, merges)) break;
      this.moved = (this.moved + 1) | 0;
    }
    queue.publish();
    return hasBuffers;
  }

  /** @returns false when no frame is waiting, or it found too little room. */
  #receiveFrame(queue: Virtqueue, fd: number, merges: boolean): boolean {
    const { headerBytes: header, hasHeader } = this.#state;
    const skip = hasHeader ? 0 : header;
    const first = this.#buffers.at(0);
    const direct = first.ram.hasHostAddresses;
    let pieces = 0;
    let room = 0;
    if (direct) {
      const usable = merges ? this.#buffers.length : 1;
      for (let i = 0; i < usable; i++) {
        const chain = this.#buffers.at(i);
        const from = i === 0 ? skip : 0;
        pieces += chain.toIovecs(from, chain.writableBytes - from, true, this.#iov, pieces, MAX_IOVECS - 1);
        room += chain.iovBytes;
        // No entry left: what follows goes through the spill.
        if (chain.iovBytes < chain.writableBytes - from) break;
      }
    }
    setIovec(this.#iov, pieces++, this.#spillAddress, MAX_FRAME + HEADER_BYTES);
    const got = readv(fd, this.#iovBytes, pieces);
    if (got < 0) {
      const errno = lastErrno();
      if (errno === Errno.EINTR) return true;
      if (errno !== Errno.EAGAIN) this.#state.failed('receive', errno);
      return false;
    }
    const total = got + skip;
    // More than the buffers at hand: the rest is in the spill, and goes into further ones if the driver merges.
    if (got > room && !this.#copySpill(queue, total, room, skip, got - room, merges)) {
      this.#log.guest(() => `a frame of ${total - header} bytes does not fit the driver's buffers`);
      return true;
    }
    this.#complete(queue, total, skip);
    return true;
  }

  /** @returns false when the frame has to be dropped. */
  #copySpill(queue: Virtqueue, total: number, room: number, skip: number, count: number, merges: boolean): boolean {
    if (merges) this.#takeBuffers(queue, total);
    const usable = merges ? this.#bufferBytes : this.#buffers.at(0).writableBytes;
    if (usable < total) return false;
    const spill = this.#spill.bytes;
    let at = room + skip;
    let done = 0;
    for (let i = 0; i < this.#buffers.length && done < count; i++) {
      const chain = this.#buffers.at(i);
      if (at >= chain.writableBytes) {
        at -= chain.writableBytes;
        continue;
      }
      done += chain.copyIn(at, spill, done, count - done);
      at = 0;
    }
    return true;
  }

  /** The frame and its header take `total` bytes of the buffers at hand. */
  #complete(queue: Virtqueue, total: number, skip: number): void {
    const first = this.#buffers.at(0);
    if (skip > 0) first.fillIn(0, skip, 0);
    let used = 0;
    let left = total;
    while (left > 0) {
      left -= this.#buffers.at(used).writableBytes;
      used++;
    }
    if (this.#state.headerBytes === HEADER_BYTES) {
      first.writeU8(NUM_BUFFERS, used & 0xff);
      first.writeU8(NUM_BUFFERS + 1, used >>> 8);
    }
    left = total;
    for (let i = 0; i < used; i++) {
      const chain = this.#buffers.shift();
      const bytes = Math.min(left, chain.writableBytes);
      this.#bufferBytes -= chain.writableBytes;
      left -= bytes;
      queue.push(chain, bytes);
    }
  }
}

let readvFn: ReturnType<typeof native> | undefined;
let writevFn: ReturnType<typeof native> | undefined;
let readFn: ReturnType<typeof native> | undefined;

function readv(fd: number, iov: Uint8Array, count: number): number {
  readvFn ??= native('int64_t readv(int, const void *, int)');
  return readvFn(fd, iov, count);
}
function writev(fd: number, iov: Uint8Array, count: number): number {
  writevFn ??= native('int64_t writev(int, const void *, int)');
  return writevFn(fd, iov, count);
}
function readInto(fd: number, address: number, size: number): number {
  readFn ??= native('int64_t read(int, uintptr_t, size_t)');
  return readFn(fd, address, size);
}
