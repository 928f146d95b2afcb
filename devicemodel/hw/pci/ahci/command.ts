/**
 * One command slot (AHCI 1.3.1 §4.2): the command frame as it was when the command was taken, and the guest memory that
 * its physical region descriptors name. Reused for every command in the slot, so that a command allocates nothing.
 */
import { GuestBuffers, type GuestRam } from '../../../core/guest-buffers.ts';
import { ImageOp, type ImageRequest } from '../../storage/image-queue.ts';
import { Fis, Header, Prd, Table } from './registers.ts';

/** Pieces of memory of one part of a transfer: a table of 65535 descriptors is worked off in parts. */
const MAX_PIECES = 256;
const TWO_32 = 0x1_0000_0000;

export interface CommandOwner {
  /** A part of the command's transfer is over. */
  partDone(command: Command, errno: number): void;
}

/** What taking a command out of its slot can end with. */
export type FetchResult = 'ok' | 'not-ram';

export class Command implements ImageRequest {
  readonly slot: number;
  /** 1 << slot, signed as everything that goes through JavaScript's bit operations. */
  readonly bit: number;
  readonly #ram: GuestRam;
  readonly #owner: CommandOwner;
  /** The command frame and, from `Table.PacketCommand` on, the ATAPI command. A copy: the guest cannot change it any more. */
  readonly fis = new Uint8Array(Table.CommandBytes);
  #header = 0;
  #table = 0;
  #prdtLength = 0;

  // The transfer: what `ImageQueue` is asked for, part by part.
  op: ImageOp = ImageOp.Read;
  readonly buffers: GuestBuffers;
  count = 0;
  offset = 0;
  isDurable = false;
  /** Bytes of the whole transfer that are not in a part yet. */
  left = 0;
  /** Bytes that were moved, for PRDBC. */
  moved = 0;
  /** The port was stopped or reset: nobody waits for the command any more. */
  isAbandoned = false;
  /** Of DATA SET MANAGEMENT: the next entry of the list. */
  entry = 0;
  /** Next descriptor, and bytes of it that are used. */
  #prd = 0;
  #within = 0;

  constructor(slot: number, ram: GuestRam, owner: CommandOwner) {
    this.slot = slot;
    this.bit = 1 << slot;
    this.#ram = ram;
    this.#owner = owner;
    this.buffers = new GuestBuffers(ram);
  }

  /** ATA command, byte 2 of the frame. */
  get code(): number {
    return this.fis[Fis.Command] as number;
  }

  /** Whether there are descriptors at all. */
  get hasTable(): boolean {
    return this.#prdtLength > 0;
  }

  /** @param header where the command header is; all of it is RAM. */
  fetch(header: number): FetchResult {
    const ram = this.#ram;
    this.#header = header;
    this.#prdtLength = ram.readU16(header + Header.PrdtLength);
    this.#table = ram.readU32(header + Header.Table) + ram.readU32(header + Header.TableHigh) * TWO_32;
    if (!ram.contains(this.#table, Table.Prdt + this.#prdtLength * Prd.Bytes)) return 'not-ram';
    copyFromGuest(ram, this.#table, this.fis, Table.CommandBytes);
    this.rewind();
    return 'ok';
  }

  /** Begin at the first descriptor again. */
  rewind(): void {
    this.#prd = 0;
    this.#within = 0;
    this.moved = 0;
  }

  /** PRDBC (§4.2.2). */
  writeByteCount(bytes: number): void {
    this.#ram.writeU32(this.#header + Header.ByteCount, bytes);
  }

  /** Whether descriptors are left for the rest of the transfer. */
  get hasMoreDescriptors(): boolean {
    return this.#prd < this.#prdtLength;
  }

  /**
   * Describe the next part, up to `left` bytes, in `buffers` and `count`.
   * @param toGuest the guest's memory is written.
   * @returns false if a descriptor names what is not RAM.
   */
  gather(toGuest: boolean): boolean {
    const { buffers } = this;
    const ram = this.#ram;
    buffers.clear();
    this.count = 0;
    // The last entry may lie across chunks of memory and be several pieces.
    while (this.left > 0 && this.#prd < this.#prdtLength && buffers.segmentCount < MAX_PIECES) {
      const entry = this.#table + Table.Prdt + this.#prd * Prd.Bytes;
      const size = (ram.readU32(entry + Prd.Count) & Prd.CountMask) + 1 - this.#within;
      const address = ram.readU32(entry + Prd.Address) + ram.readU32(entry + Prd.AddressHigh) * TWO_32 + this.#within;
      const take = Math.min(size, this.left);
      if (size <= 0 || !ram.contains(address, take)) return false;
      appendPieces(buffers, address, take, toGuest);
      this.count += take;
      this.left -= take;
      if (take === size) {
        this.#prd++;
        this.#within = 0;
      } else {
        this.#within += take;
      }
    }
    return true;
  }

  /**
   * Data that the drive has ready: into the guest's memory, as far as descriptors go.
   * @returns bytes that had room; a descriptor that names no RAM ends it.
   */
  send(data: Uint8Array, length: number): number {
    this.#gatherAll(length, true);
    const sent = this.buffers.copyIn(0, data, 0, this.count);
    this.noteWritten();
    return sent;
  }

  /** Data that the drive asks for. @returns bytes there were. */
  receive(target: Uint8Array, length: number): number {
    this.#gatherAll(length, false);
    return this.buffers.copyOut(0, target, 0, this.count);
  }

  #gatherAll(length: number, toGuest: boolean): void {
    this.rewind();
    this.left = length;
    this.gather(toGuest);
    this.moved = this.count;
  }

  /** Tell an engine that translates guest code what was written. */
  noteWritten(): void {
    const { buffers } = this;
    if (!this.#ram.isObserved) return;
    for (let i = buffers.readableCount; i < buffers.segmentCount; i++) {
      this.#ram.noteWrite(buffers.chunk[i] as number, buffers.offset[i] as number, buffers.length[i] as number);
    }
  }

  done(errno: number): void {
    this.#owner.partDone(this, errno);
  }
}

/** Guest memory as pieces of chunks. The caller has checked that all of it is RAM. */
function appendPieces(buffers: GuestBuffers, at: number, length: number, isWritable: boolean): void {
  const { ram } = buffers;
  let next = at;
  for (let left = length; left > 0; ) {
    const chunk = ram.chunkAt(next);
    const take = Math.min(left, ram.endOf(chunk) - next);
    buffers.append(chunk, next - ram.baseOf(chunk), take, isWritable);
    next += take;
    left -= take;
  }
}

/** A few bytes out of guest memory. The caller has checked that all of it is RAM. */
export function copyFromGuest(ram: GuestRam, at: number, target: Uint8Array, length: number): void {
  const chunk = ram.chunkAt(at);
  const offset = at - ram.baseOf(chunk);
  const bytes = ram.bytes[chunk] as Uint8Array;
  const whole = offset + length <= bytes.length;
  for (let i = 0; i < length; i++) target[i] = whole ? (bytes[offset + i] as number) : ram.readU8(at + i);
}

/** A few bytes into guest memory. The caller has checked that all of it is RAM, and of one chunk: it is aligned. */
export function copyToGuest(ram: GuestRam, at: number, source: Uint8Array, length: number): void {
  const chunk = ram.chunkAt(at);
  const offset = at - ram.baseOf(chunk);
  const bytes = ram.bytes[chunk] as Uint8Array;
  for (let i = 0; i < length; i++) bytes[offset + i] = source[i] as number;
  if (ram.isObserved) ram.noteWrite(chunk, offset, length);
}
