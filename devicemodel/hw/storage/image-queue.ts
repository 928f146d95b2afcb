/**
 * Requests on a disk image that go on while the thread that made them does something else. For controllers whose
 * registers need the device thread (a virtio disk hands whole rings to a data thread instead). Who owns what: from
 * `submit` to `done` the request's memory and its fields belong to the queue; the image stays open, and guest memory
 * mapped, until `drained`.
 */
import type { GuestBuffers } from '../../core/guest-buffers.ts';
import type { ImageIo } from './image-io.ts';
import { SECTOR_BYTES } from './image-options.ts';

export const ImageOp = { Read: 0, Write: 1, Flush: 2, Discard: 3 } as const;
export type ImageOp = (typeof ImageOp)[keyof typeof ImageOp];
const names = ['read', 'write', 'flush', 'discard'] as const;

/** At most this many requests are in a queue at a time; a power of two. */
export const QUEUE_CAPACITY = 32;

export interface ImageRequest {
  readonly op: ImageOp;
  /** Of a read its writable part from the first byte, of a write its readable part. */
  readonly buffers: GuestBuffers;
  readonly count: number;
  /** Byte in the disk. The caller has checked [offset, offset + count) against `sizeBytes`. */
  readonly offset: number;
  /** What is written or discarded is on the medium when it is done. */
  readonly isDurable: boolean;
  /**
   * It is over: once for each `submit`, with 0 or an errno. May come before `submit` or `kick` return, and may submit
   * again.
   */
  done(errno: number): void;
}

export interface ImageQueue {
  /** Requests that are not done. */
  readonly inFlight: number;
  /**
   * Requests are begun in order and done in any order. A write or discard of bytes that another changes is as if it came
   * before that or after it, in each sector; it may be begun after later ones.
   */
  submit(request: ImageRequest): void;
  /** What was submitted is to begin. Returns soon, whatever the storage does. */
  kick(): void;
  /** @returns when nothing is in flight; undefined: nothing is. */
  drained(): Promise<void> | undefined;
  /** What is waited for: `read of 4096 bytes at sector 8`. Undefined: nothing. */
  describeWork(): string | undefined;
  /**
   * Give back what the queue holds, when it is drained; the image stays open. @returns when it holds nothing of the image any
   * more: closing that before would not be the end of its lock; undefined: it holds nothing.
   */
  dispose(): Promise<void> | undefined;
}

export function isTransfer(op: ImageOp): boolean {
  return op === ImageOp.Read || op === ImageOp.Write;
}

export function isWrite(op: ImageOp): boolean {
  return op === ImageOp.Write;
}

function isChange(op: ImageOp): boolean {
  return op === ImageOp.Write || op === ImageOp.Discard;
}

/** Whether both change the same bytes. */
export function overlap(one: ImageRequest, other: ImageRequest): boolean {
  return (
    isChange(one.op) &&
    isChange(other.op) &&
    one.offset < other.offset + other.count &&
    other.offset < one.offset + one.count
  );
}

/** For messages. */
export function describeRequest({ op, count, offset }: ImageRequest): string {
  const name = names[op];
  return op === ImageOp.Flush ? name : `${name} of ${count} bytes at sector ${offset / SECTOR_BYTES}`;
}

/** What waits until nothing is in flight any more. */
export class DrainWaiters {
  #waiters: Array<() => void> = [];

  wait(): Promise<void> {
    return new Promise((resolve) => this.#waiters.push(resolve));
  }

  /** Nothing is in flight. */
  wake(): void {
    if (this.#waiters.length === 0) return;
    for (const resolve of this.#waiters.splice(0)) resolve();
  }
}

/** A disk that cannot be written has nothing to flush; after one failed sync no later one means anything. @returns the answer at once, or undefined. */
export function flushAnswer(io: ImageIo): number | undefined {
  if (io.image.isReadOnly) return 0;
  return io.syncFailure !== 0 ? io.syncFailure : undefined;
}
