/** Data frames of a Replay Protected Memory Block. Spec: JEDEC JESD84-B51 §6.6.22; numbers are big endian. */
import { createHmac, timingSafeEqual } from 'node:crypto';

export const FRAME_BYTES = 512;
export const BLOCK_BYTES = 256;
export const KEY_BYTES = 32;
const NONCE_BYTES = 16;

const Field = {
  Mac: 196,
  Data: 228,
  Nonce: 484,
  Counter: 500,
  Address: 504,
  Count: 506,
  Result: 508,
  Kind: 510,
} as const;

export const Request = { ProgramKey: 1, GetCounter: 2, Write: 3, Read: 4, Result: 5 } as const;
/** The kind of a response is its request's, shifted. */
const RESPONSE_SHIFT = 8;

export const Result = {
  Ok: 0,
  General: 1,
  Authentication: 2,
  Counter: 3,
  Address: 4,
  Write: 5,
  Read: 6,
  /** A bit beside the others: the counter has come to its end. */
  Expired: 0x80,
} as const;

/** One or more frames in a row. The first has what is said once. */
export class Frames {
  readonly bytes: Buffer;
  readonly count: number;

  constructor(bytes: Uint8Array) {
    this.bytes = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    this.count = bytes.length / FRAME_BYTES;
  }

  get kind(): number {
    return this.bytes.readUInt16BE(Field.Kind);
  }
  get address(): number {
    return this.bytes.readUInt16BE(Field.Address);
  }
  get blockCount(): number {
    return this.bytes.readUInt16BE(Field.Count);
  }
  get nonce(): Uint8Array {
    return this.bytes.subarray(Field.Nonce, Field.Nonce + NONCE_BYTES);
  }
  get result(): number {
    return this.bytes.readUInt16BE(this.#last + Field.Result);
  }
  get counter(): number {
    return this.bytes.readUInt32BE(Field.Counter);
  }

  get #last(): number {
    return (this.count - 1) * FRAME_BYTES;
  }

  hasCounter(counter: number): boolean {
    for (let at = 0; at < this.bytes.length; at += FRAME_BYTES) {
      if (this.bytes.readUInt32BE(at + Field.Counter) !== counter) return false;
    }
    return true;
  }

  /** The blocks, one after the other. */
  data(): Buffer {
    const blocks = Buffer.alloc(this.count * BLOCK_BYTES);
    for (let i = 0; i < this.count; i++) {
      this.bytes.copy(
        blocks,
        i * BLOCK_BYTES,
        i * FRAME_BYTES + Field.Data,
        i * FRAME_BYTES + Field.Data + BLOCK_BYTES,
      );
    }
    return blocks;
  }

  /** HMAC-SHA-256 over what is behind the MAC in every frame. */
  #macOf(key: Uint8Array): Buffer {
    const hmac = createHmac('sha256', key);
    for (let at = 0; at < this.bytes.length; at += FRAME_BYTES) {
      hmac.update(this.bytes.subarray(at + Field.Data, at + FRAME_BYTES));
    }
    return hmac.digest();
  }

  isSignedBy(key: Uint8Array): boolean {
    const at = this.#last + Field.Mac;
    return timingSafeEqual(this.#macOf(key), this.bytes.subarray(at, at + KEY_BYTES));
  }

  sign(key: Uint8Array): void {
    this.#macOf(key).copy(this.bytes, this.#last + Field.Mac);
  }

  /** What is given is put into every frame, as a response's. */
  fill(fields: {
    readonly request?: number;
    readonly nonce?: Uint8Array;
    readonly counter?: number;
    readonly address?: number;
    readonly blockCount?: number;
    readonly result?: number;
  }): void {
    const { bytes } = this;
    for (let at = 0; at < bytes.length; at += FRAME_BYTES) {
      if (fields.nonce !== undefined) bytes.set(fields.nonce, at + Field.Nonce);
      if (fields.counter !== undefined) bytes.writeUInt32BE(fields.counter, at + Field.Counter);
      if (fields.address !== undefined) bytes.writeUInt16BE(fields.address, at + Field.Address);
      if (fields.blockCount !== undefined) bytes.writeUInt16BE(fields.blockCount, at + Field.Count);
      if (fields.result !== undefined) bytes.writeUInt16BE(fields.result, at + Field.Result);
      if (fields.request !== undefined) bytes.writeUInt16BE(fields.request << RESPONSE_SHIFT, at + Field.Kind);
    }
  }

  /** As a request. */
  ask(request: number): void {
    this.bytes.writeUInt16BE(request, Field.Kind);
  }

  setData(blocks: Uint8Array): void {
    for (let i = 0; i < this.count; i++) {
      this.bytes.set(blocks.subarray(i * BLOCK_BYTES, (i + 1) * BLOCK_BYTES), i * FRAME_BYTES + Field.Data);
    }
  }
}
