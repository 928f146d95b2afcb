/**
 * Frames between the queues of a network device and a tap: the device thread or a data thread runs it. System calls work
 * on guest memory in place; nothing here allocates per frame.
 */
import { type CounterPage, NetCount, newPage, tally } from '../../../../core/counters.ts';
import { setIovec } from '../../../../core/guest-buffers.ts';
import { Errno } from '../../../../core/host/errno.ts';
import { readToAddress, readVector, writeVector } from '../../../../core/host/files.ts';
import { addressOf, type Mapping, map } from '../../../../core/host/mapping.ts';
import type { Log } from '../../../../core/log.ts';
import { type Chain, ChainFifo } from '../ring/chain.ts';
import { type ChainServer, SLICE_BYTES, type SliceBudget, type SliceClock, serveChains } from '../ring/serve-chains.ts';
import type { Virtqueue } from '../ring/virtqueue.ts';
import { isUnsupported, MAX_BATCH, type TapRing } from './tap-ring.ts';

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
/** A tap never makes a write wait: a look at the clock for each frame would cost more than it tells. */
const TRANSMIT_BUDGET: SliceBudget = {
  chains: FRAME_BUDGET,
  cost: SLICE_BYTES,
  chainsPerLook: 8,
  suppressesNotify: true,
};
/** Pieces of one frame. */
const MAX_IOVECS = 1024;
/** Fewer frames than this are sent one by one: a batch has its own price. */
const MIN_BATCH = 4;
/** Longest thing a read of the tap gives. */
const SPILL_BYTES = MAX_FRAME + HEADER_BYTES;

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
  /** Of kind `net`, of this thread. */
  readonly counts?: CounterPage;
  /** A system call on the tap failed. */
  failed(what: 'send' | 'receive', errno: number): void;
}

export class NetFrames implements ChainServer {
  readonly #state: NetFrameState;
  readonly #log: Log;
  readonly #clock: SliceClock;
  readonly #counts: CounterPage;
  readonly #iov = new DataView(new ArrayBuffer((MAX_IOVECS + 2) * 16));
  readonly #iovBytes = new Uint8Array(this.#iov.buffer);
  /** What does not fit the guest's buffers at once, and frames of engines whose RAM has no address. */
  readonly #spill: Mapping = map(SPILL_BYTES, 'network frame');
  readonly #spillAddress = Number(addressOf(this.#spill.bytes));
  /** Buffers taken from the receive queue ahead of the frames that go into them, oldest first. */
  readonly #buffers = new ChainFifo(MAX_IOVECS / 2);
  #bufferBytes = 0;
  /** Frames moved so far, both ways; wraps at 2^31. */
  moved = 0;

  /** By the present call of `receive`. */
  #receivedBytes = 0;

  // Batches.
  #ring: TapRing | undefined;
  /** Taken from the transmit queue and not sent. */
  readonly #toSend: Chain[] = [];
  #toSendCount = 0;
  /** How many frames the tap is likely to have: doubled while it gives all that is asked for. A lone frame is read alone. */
  #readBatch = 1;
  /** Of each frame of a batch that is read: room in its buffer, and bytes got or a negative errno. */
  readonly #rooms = new Int32Array(MAX_BATCH);
  readonly #got = new Int32Array(MAX_BATCH);
  /** What does not fit a frame's buffer, and frames that have to be put elsewhere. Memory only once it is touched. */
  #spills: Mapping | undefined;
  #spillsAddress = 0;
  #gathered: Mapping | undefined;
  /** Off once frames are longer than buffers. */
  #mayReadTogether = true;

  /** @param ring moves frames by the batch; this owns it. */
  constructor(state: NetFrameState, log: Log, clock: SliceClock, ring?: TapRing) {
    this.#state = state;
    this.#log = log;
    this.#clock = clock;
    this.#counts = state.counts ?? newPage('net');
    this.#ring = ring;
    if (ring === undefined) return;
    this.#spills = map(MAX_BATCH * SPILL_BYTES, 'network frames');
    this.#spillsAddress = Number(this.#spills.address);
  }

  dispose(): void {
    this.#spill.dispose();
    this.#spills?.dispose();
    this.#gathered?.dispose();
    this.#ring?.dispose();
  }

  #dropRing(): void {
    this.#ring?.dispose();
    this.#ring = undefined;
  }

  /** Throw away what waits in the tap, within bounds. */
  discardWaiting(fd: number): void {
    let frames = 0;
    while (frames < FRAME_BUDGET * 4 && readToAddress(fd, this.#spillAddress, MAX_FRAME) >= 0) frames++;
    tally(this.#counts, NetCount.rxDrops, frames);
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
    this.#mayReadTogether = true;
  }

  // Guest to host.

  /** Send a slice of what the driver made available. @returns false if there may be more. */
  transmit(queue: Virtqueue): boolean {
    return serveChains(queue, TRANSMIT_BUDGET, this, this.#clock);
  }

  serveChain(queue: Virtqueue, chain: Chain): number {
    const frame = chain.readableBytes - this.#state.headerBytes;
    this.#toSend[this.#toSendCount++] = chain;
    if (this.#toSendCount === MAX_BATCH || this.#ring === undefined) this.#sendTaken(queue);
    return frame > MAX_FRAME ? 0 : chain.readableBytes;
  }

  endPass(queue: Virtqueue): void {
    this.#sendTaken(queue);
  }

  #sendTaken(queue: Virtqueue): void {
    const count = this.#toSendCount;
    this.#toSendCount = 0;
    // The beginning of what waits for the next run: what comes between goes a way of its own, in order.
    let first = 0;
    for (let i = 0; i < count; i++) {
      const chain = this.#toSend[i] as Chain;
      if (count >= MIN_BATCH && this.#addSend(chain)) continue;
      this.#runSends(first, i);
      this.#send(chain);
      first = i + 1;
    }
    this.#runSends(first, count);
    for (let i = 0; i < count; i++) {
      const chain = this.#toSend[i] as Chain;
      queue.push(chain, this.#state.reportsRead ? chain.readableBytes : 0);
    }
    this.moved = (this.moved + count) | 0;
  }

  /** @returns false for what has to be padded, is no frame, or is in too many pieces. */
  #addSend(chain: Chain): boolean {
    const { headerBytes: header, hasHeader, fd } = this.#state;
    const ring = this.#ring;
    const skip = hasHeader ? 0 : header;
    const frame = chain.readableBytes - header;
    if (ring === undefined || fd === undefined || frame < MIN_FRAME || frame > MAX_FRAME) return false;
    const count = chain.readableBytes - skip;
    const pieces = chain.toIovecs(skip, count, false, ring.iov, ring.firstPiece, ring.endPiece);
    if (chain.iovBytes !== count) return false;
    ring.add('write', fd, pieces);
    return true;
  }

  /** Send frames `first` to before `end` of those taken: they were added to the ring. */
  #runSends(first: number, end: number): void {
    const ring = this.#ring;
    if (ring === undefined || first === end) return;
    let isUsable = ring.run();
    for (let i = first; i < end; i++) {
      const chain = this.#toSend[i] as Chain;
      const result = ring.result(i - first);
      if (result < 0 && isUnsupported(-result)) {
        isUsable = false;
        this.#send(chain);
      } else {
        this.#sent(chain, result);
      }
    }
    if (!isUsable) this.#dropRing();
  }

  #send(chain: Chain): void {
    const { headerBytes: header, hasHeader, fd } = this.#state;
    const skip = hasHeader ? 0 : header;
    const frame = chain.readableBytes - header;
    if (fd === undefined || frame <= 0 || frame > MAX_FRAME) {
      tally(this.#counts, NetCount.txDrops, 1);
      return;
    }
    const spill = this.#spill;
    let result: number;
    if (chain.ram.hasHostAddresses) {
      let pieces = chain.toIovecs(skip, chain.readableBytes - skip, false, this.#iov, 0, MAX_IOVECS);
      if (frame < MIN_FRAME) {
        spill.bytes.fill(0, 0, MIN_FRAME);
        setIovec(this.#iov, pieces++, this.#spillAddress, MIN_FRAME - frame);
      }
      result = writeVector(fd, this.#iovBytes, pieces);
    } else {
      const count = chain.copyOut(skip, spill.bytes, 0, chain.readableBytes - skip);
      const padded = Math.max(count, MIN_FRAME + header - skip);
      spill.bytes.fill(0, count, padded);
      setIovec(this.#iov, 0, this.#spillAddress, padded);
      result = writeVector(fd, this.#iovBytes, 1);
    }
    this.#sent(chain, result);
  }

  /** @param result of a write: bytes, or a negative errno. */
  #sent(chain: Chain, result: number): void {
    if (result < 0) {
      tally(this.#counts, NetCount.txDrops, 1);
      this.#state.failed('send', -result);
      return;
    }
    tally(this.#counts, NetCount.txFrames, 1);
    tally(this.#counts, NetCount.txBytes, chain.readableBytes - this.#state.headerBytes);
  }

  // Host to guest.

  /** Take buffers until a frame of the usual size fits, or there are no more. @returns whether any is there. */
  #takeBuffers(queue: Virtqueue, wanted: number): boolean {
    while (this.#bufferBytes < wanted && this.#takeBuffer(queue));
    return this.#buffers.length > 0;
  }

  /** @returns false when there is none, or no place for it. */
  #takeBuffer(queue: Virtqueue): boolean {
    for (;;) {
      const chain = this.#buffers.isFull ? undefined : queue.pop();
      if (chain === undefined) return false;
      if (chain.writableBytes > this.#state.headerBytes) {
        this.#buffers.push(chain);
        this.#bufferBytes += chain.writableBytes;
        return true;
      }
      // Not even a header fits: of no use, and not ours to keep.
      queue.push(chain, 0);
    }
  }

  /** Take one buffer for each of `count` frames. @returns how many at the front hold a frame of the usual size each. */
  #takeWholeBuffers(queue: Virtqueue, count: number): number {
    while (this.#buffers.length < count && this.#takeBuffer(queue));
    const wanted = PLAIN_FRAME + this.#state.headerBytes;
    const end = Math.min(count, this.#buffers.length);
    let whole = 0;
    while (whole < end && this.#buffers.at(whole).writableBytes >= wanted) whole++;
    return whole;
  }

  /** Move what waits in the tap. @returns false when buffers ran out: frames wait in the tap until the driver kicks. */
  receive(queue: Virtqueue): boolean {
    const { fd, merges, isSegmented, headerBytes } = this.#state;
    if (fd === undefined) return false;
    const wanted = (isSegmented ? MAX_FRAME : PLAIN_FRAME) + headerBytes;
    if (this.#buffers.length > 0 && this.#buffers.at(0).generation !== queue.generation) this.dropBuffers(queue);
    queue.suppressNotify();
    let hasBuffers = true;
    this.#receivedBytes = 0;
    for (let budget = FRAME_BUDGET; budget > 0; ) {
      const batch = this.#readBatch;
      hasBuffers =
        this.#takeBuffers(queue, merges ? wanted : 1) || (queue.allowNotify() && this.#takeBuffers(queue, 1));
      if (!hasBuffers) break;
      const together =
        this.#ring !== undefined && this.#mayReadTogether && !isSegmented && batch >= MIN_BATCH
          ? this.#takeWholeBuffers(queue, batch)
          : 0;
      const asked = together >= MIN_BATCH ? together : 1;
      const got = asked > 1 ? this.#receiveTogether(queue, fd, asked, merges) : +this.#receiveFrame(queue, fd, merges);
      this.moved = (this.moved + got) | 0;
      // Segmented frames are up to 64 KiB each. What is left stays in the tap, which is looked at again soon.
      if (this.#receivedBytes >= SLICE_BYTES) break;
      if (got < asked) {
        this.#readBatch = Math.max(got, 1);
        break;
      }
      budget -= asked;
      // The driver works on these while the next are read.
      if (asked > 1) queue.publish();
      this.#readBatch = Math.min(2 * batch, MAX_BATCH);
    }
    queue.publish();
    return hasBuffers;
  }

  /** Read up to `count` frames into a buffer each. @returns how many there were. */
  #receiveTogether(queue: Virtqueue, fd: number, count: number, merges: boolean): number {
    const ring = this.#ring as TapRing;
    const skip = this.#state.hasHeader ? 0 : this.#state.headerBytes;
    for (let i = 0; i < count; i++) {
      const chain = this.#buffers.at(i);
      const first = ring.firstPiece;
      // A buffer may have 4 GiB: no more of it than a frame can fill, which also keeps `rooms` within 32 bits.
      const wanted = Math.min(chain.writableBytes - skip, SPILL_BYTES);
      const pieces = chain.toIovecs(skip, wanted, true, ring.iov, first, ring.endPiece - 1);
      this.#rooms[i] = chain.iovBytes;
      setIovec(ring.iov, first + pieces, this.#spillsAddress + i * SPILL_BYTES, SPILL_BYTES);
      ring.add('read', fd, pieces + 1);
    }
    let isUsable = ring.run();
    let frames = 0;
    /** The first frame that is not where it belongs: it came after a read that found none, or is too long. */
    let displaced = -1;
    let failure = 0;
    for (let i = 0; i < count; i++) {
      const got = ring.result(i);
      this.#got[i] = got;
      if (got >= 0) {
        if (displaced < 0 && (i !== frames || got > (this.#rooms[i] as number))) displaced = frames;
        frames++;
      } else if (isUnsupported(-got)) {
        isUsable = false;
      } else if (got !== -Errno.EAGAIN && got !== -Errno.EINTR) {
        failure = -got;
      }
    }
    if (displaced < 0) for (let i = 0; i < frames; i++) this.#complete(queue, (this.#got[i] as number) + skip, skip);
    else this.#placeAgain(queue, count, displaced, skip, merges);
    if (failure !== 0) this.#state.failed('receive', failure);
    if (!isUsable) this.#dropRing();
    return frames;
  }

  /** Frames of a batch, of which those from the `displaced`th on cannot stay where they were read to. */
  #placeAgain(queue: Virtqueue, count: number, displaced: number, skip: number, merges: boolean): void {
    this.#gathered ??= map(MAX_BATCH * SPILL_BYTES, 'network frames');
    const spills = (this.#spills as Mapping).bytes;
    let frame = 0;
    for (let i = 0; i < count; i++) {
      const got = this.#got[i] as number;
      if (got < 0 || frame++ < displaced) continue;
      const room = Math.min(got, this.#rooms[i] as number);
      const at = i * SPILL_BYTES;
      this.#buffers.at(i).copyBack(skip, this.#gathered.bytes, at, room);
      this.#gathered.bytes.set(spills.subarray(at, at + got - room), at + room);
      if (got > room) this.#mayReadTogether = false;
    }
    frame = 0;
    for (let i = 0; i < count; i++) {
      const got = this.#got[i] as number;
      if (got < 0) continue;
      if (frame++ < displaced) this.#complete(queue, got + skip, skip);
      else if (this.#hasRoom(queue, got + skip, merges)) {
        this.#copyFrom(this.#gathered.bytes, i * SPILL_BYTES, skip, got);
        this.#complete(queue, got + skip, skip);
      }
    }
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
        // No more than a frame can fill: the kernel cuts a read at 2 GiB, which a buffer may have in one piece.
        const wanted = Math.min(chain.writableBytes - from, SPILL_BYTES);
        pieces += chain.toIovecs(from, wanted, true, this.#iov, pieces, MAX_IOVECS - 1);
        room += chain.iovBytes;
        // No entry left, or enough: what follows goes through the spill.
        if (chain.iovBytes < chain.writableBytes - from || room >= SPILL_BYTES) break;
      }
    }
    setIovec(this.#iov, pieces++, this.#spillAddress, SPILL_BYTES);
    const got = readVector(fd, this.#iovBytes, pieces);
    if (got < 0) {
      if (got !== -Errno.EAGAIN) this.#state.failed('receive', -got);
      return false;
    }
    const total = got + skip;
    // More than the buffers at hand: the rest is in the spill, and goes into further ones if the driver merges.
    if (got > room) {
      if (!this.#hasRoom(queue, total, merges)) return true;
      this.#copyFrom(this.#spill.bytes, 0, room + skip, got - room);
    }
    this.#complete(queue, total, skip);
    return true;
  }

  /** Whether the buffers at hand, or those that can be had, hold a frame and its header; else it has to be dropped. */
  #hasRoom(queue: Virtqueue, total: number, merges: boolean): boolean {
    if (merges) this.#takeBuffers(queue, total);
    const first = this.#buffers.length > 0 ? this.#buffers.at(0).writableBytes : 0;
    const usable = merges ? this.#bufferBytes : first;
    if (usable >= total) return true;
    const frame = total - this.#state.headerBytes;
    tally(this.#counts, NetCount.rxDrops, 1);
    this.#log.guest(() => `a frame of ${frame} bytes does not fit the driver's buffers`);
    return false;
  }

  /** Copy `count` bytes into the buffers at hand, from their `at`th byte on. */
  #copyFrom(source: Uint8Array, sourceAt: number, at: number, count: number): void {
    let left = at;
    let done = 0;
    for (let i = 0; i < this.#buffers.length && done < count; i++) {
      const chain = this.#buffers.at(i);
      if (left >= chain.writableBytes) {
        left -= chain.writableBytes;
        continue;
      }
      done += chain.copyIn(left, source, sourceAt + done, count - done);
      left = 0;
    }
  }

  /** The frame and its header take `total` bytes of the buffers at hand. */
  #complete(queue: Virtqueue, total: number, skip: number): void {
    const first = this.#buffers.at(0);
    this.#receivedBytes += total;
    tally(this.#counts, NetCount.rxFrames, 1);
    tally(this.#counts, NetCount.rxBytes, total - this.#state.headerBytes);
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
