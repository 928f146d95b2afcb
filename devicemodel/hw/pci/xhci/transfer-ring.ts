/**
 * A transfer ring: where its next transfer descriptor is, and what it consists of. Spec: xHCI 1.0 §4.9.1, §4.9.2, §4.11.
 *
 * Everything in a ring is the guest's and may change at any moment: each block is read once, and the descriptor is what
 * was read.
 */
import { GuestFault } from '../../../core/errors.ts';
import type { GuestMemory } from '../../../core/memory.ts';
import type { SetupPacket } from '../../usb/device.ts';
import { joinAddress } from './registers.ts';
import {
  addressOf,
  hasCycle,
  lengthOf,
  newTrb,
  readTrb,
  TRB_BYTES,
  type Trb,
  TrbControl,
  TrbType,
  typeOf,
} from './trb.ts';

/** A descriptor that is longer is refused: no driver needs more, and somebody has to remember it. */
const MAX_TRBS = 2048;
export const MAX_TD_BYTES = 4 * 1024 * 1024;
/** §6.2.4.1: a stream context, and in it the type for a transfer ring in the primary array. */
const STREAM_CONTEXT_BYTES = 16;
const STREAM_PRIMARY_RING = 1;
/** Links one after the other: a ring of nothing else has no end. */
const MAX_LINKS = 16;

/** One block of a descriptor, as it was read. */
export interface TdBlock {
  readonly address: number;
  readonly type: number;
  readonly control: number;
  /** Bytes of data; 0 for blocks without. */
  readonly lengthBytes: number;
  /** Of data: where in guest memory. */
  readonly pointer: number;
  /** Of an event data block: what the event tells, which need not be an address and has all of its 64 bits. */
  readonly parameterLow: number;
  readonly parameterHigh: number;
  /** Data that stands in the block itself. */
  readonly immediate: Uint8Array | undefined;
}

/** A position in a ring, with the cycle bit a block there has to have. */
export interface RingPosition {
  readonly address: number;
  readonly cycle: number;
}

export interface TransferDescriptor {
  readonly blocks: readonly TdBlock[];
  readonly start: RingPosition;
  readonly totalBytes: number;
  readonly setup: SetupPacket | undefined;
  /** Direction of a control transfer's data stage. */
  readonly isIn: boolean;
}

/** `empty`: nothing, or not all of it, is there yet. Otherwise the address of a block that is wrong. */
type Fetched = TransferDescriptor | 'empty' | { readonly badBlock: number };

export class TransferRing {
  readonly streamId: number;
  readonly #streamContext: number;
  #address: number;
  #cycle: number;
  readonly #trb: Trb = newTrb();
  #readBlocks = 0;

  /** @param streamContext address of the context of stream `streamId`; neither is there without streams. */
  constructor(position: RingPosition, streamId = 0, streamContext = 0) {
    this.streamId = streamId;
    this.#streamContext = streamContext;
    this.#address = position.address;
    this.#cycle = position.cycle;
  }

  get position(): RingPosition {
    return { address: this.#address, cycle: this.#cycle };
  }

  moveTo(position: RingPosition): void {
    this.#address = position.address;
    this.#cycle = position.cycle;
  }

  /** §6.2.4.1: where the stream is, in its context. @throws GuestFault */
  tellStreamContext(memory: GuestMemory): void {
    memory.writeU32(this.#streamContext, (this.#address % 0x1_0000_0000) + (STREAM_PRIMARY_RING << 1) + this.#cycle);
    memory.writeU32(this.#streamContext + 4, Math.floor(this.#address / 0x1_0000_0000));
  }

  /** Take the next descriptor off the ring. @param isControl descriptors up to a status stage are one. */
  fetch(memory: GuestMemory, isControl: boolean): Fetched {
    const reader = new DescriptorReader(memory, this.#trb, this.position);
    const fetched = reader.read(isControl);
    this.#readBlocks += reader.readBlocks;
    if (typeof fetched === 'object' && 'blocks' in fetched) this.moveTo(reader.position);
    return fetched;
  }

  /** @returns blocks that were read since the last call, links and those of no descriptor included: what it has cost. */
  takeReadBlocks(): number {
    const blocks = this.#readBlocks;
    this.#readBlocks = 0;
    return blocks;
  }
}

/**
 * §4.12.2: the rings of an endpoint's streams; the array's first entry is reserved.
 * @param exponent the array has 2^(exponent+1) entries. @throws GuestFault
 */
export function streamRings(memory: GuestMemory, array: number, exponent: number): TransferRing[] {
  const rings: TransferRing[] = [];
  for (let id = 1; id < 1 << (exponent + 1); id++) {
    const at = array + id * STREAM_CONTEXT_BYTES;
    const low = memory.readU32(at);
    if (((low >>> 1) & 7) !== STREAM_PRIMARY_RING) continue;
    const address = joinAddress((low & ~0xf) >>> 0, memory.readU32(at + 4));
    rings.push(new TransferRing({ address, cycle: low & 1 }, id, at));
  }
  return rings;
}

class DescriptorReader {
  readonly #memory: GuestMemory;
  readonly #trb: Trb;
  readonly #start: RingPosition;
  readonly #blocks: TdBlock[] = [];
  #address: number;
  #cycle: number;
  #totalBytes = 0;
  #setup: SetupPacket | undefined;
  #isIn = false;
  #readBlocks = 0;

  constructor(memory: GuestMemory, trb: Trb, start: RingPosition) {
    this.#memory = memory;
    this.#trb = trb;
    this.#start = start;
    this.#address = start.address;
    this.#cycle = start.cycle;
  }

  get position(): RingPosition {
    return { address: this.#address, cycle: this.#cycle };
  }

  get readBlocks(): number {
    return this.#readBlocks;
  }

  read(isControl: boolean): Fetched {
    for (;;) {
      const step = this.#next();
      if (step !== 'block') return step === 'empty' ? 'empty' : { badBlock: this.#address };
      const at = this.#address;
      const isFine = isControl ? this.#addControl() : this.#addData();
      if (!isFine || this.#blocks.length > MAX_TRBS || this.#totalBytes > MAX_TD_BYTES) return { badBlock: at };
      this.#address += TRB_BYTES;
      if ((this.#trb.control & TrbControl.Chain) !== 0) continue;
      if (isControl && this.#setup !== undefined && !this.#hasStatus) continue;
      return this.#descriptor();
    }
  }

  /** Read the block that is next, through links. §4.11.5.1: a link is the guest's until its cycle bit says so, too. */
  #next(): 'block' | 'empty' | 'bad' {
    for (let links = 0; links <= MAX_LINKS; links++) {
      this.#readBlocks++;
      if (!readTrb(this.#memory, this.#address, this.#trb)) return 'bad';
      if (!hasCycle(this.#trb, this.#cycle)) return 'empty';
      if (typeOf(this.#trb) !== TrbType.Link) return 'block';
      if ((this.#trb.control & TrbControl.InterruptOnCompletion) !== 0) this.#blocks.push(this.#block(0));
      this.#address = addressOf(this.#trb);
      if ((this.#trb.control & TrbControl.ToggleCycle) !== 0) this.#cycle ^= 1;
    }
    return 'bad';
  }

  get #hasStatus(): boolean {
    return this.#blocks.some((block) => block.type === TrbType.StatusStage);
  }

  #addData(): boolean {
    switch (typeOf(this.#trb)) {
      case TrbType.Normal:
      case TrbType.Isoch:
        return this.#addDataBlock();
      case TrbType.EventData:
      case TrbType.NoOp:
        this.#blocks.push(this.#block(0));
        return true;
      default:
        return false;
    }
  }

  /** §4.11.2.2: setup stage, then data, then status. */
  #addControl(): boolean {
    const type = typeOf(this.#trb);
    const isFirst = this.#setup === undefined;
    switch (type) {
      case TrbType.SetupStage:
        return isFirst && this.#addSetup();
      case TrbType.DataStage:
        this.#isIn = (this.#trb.control & TrbControl.DirectionIn) !== 0;
        return !isFirst && this.#addDataBlock();
      case TrbType.Normal:
        return !isFirst && this.#addDataBlock();
      case TrbType.StatusStage:
        this.#blocks.push(this.#block(0));
        return !isFirst;
      case TrbType.EventData:
      case TrbType.NoOp:
        this.#blocks.push(this.#block(0));
        return true;
      default:
        return false;
    }
  }

  #addSetup(): boolean {
    const { control, parameterLow, parameterHigh } = this.#trb;
    if ((control & TrbControl.ImmediateData) === 0 || lengthOf(this.#trb) !== 8) return false;
    this.#setup = {
      requestType: parameterLow & 0xff,
      request: (parameterLow >>> 8) & 0xff,
      value: parameterLow >>> 16,
      index: parameterHigh & 0xffff,
      length: parameterHigh >>> 16,
    };
    this.#blocks.push(this.#block(0));
    return true;
  }

  /** @returns false if the data is not in RAM. */
  #addDataBlock(): boolean {
    const lengthBytes = lengthOf(this.#trb);
    const block = this.#block(lengthBytes);
    if (block.immediate === undefined && lengthBytes > 0) {
      try {
        this.#memory.pieces(block.pointer, lengthBytes);
      } catch (error) {
        if (error instanceof GuestFault) return false;
        throw error;
      }
    } else if (block.immediate !== undefined && lengthBytes > 8) {
      return false;
    }
    this.#blocks.push(block);
    this.#totalBytes += lengthBytes;
    return true;
  }

  #block(lengthBytes: number): TdBlock {
    const { control, parameterLow, parameterHigh } = this.#trb;
    const isImmediate = (control & TrbControl.ImmediateData) !== 0;
    return {
      address: this.#address,
      type: typeOf(this.#trb),
      control,
      lengthBytes,
      pointer: joinAddress(parameterLow, parameterHigh),
      parameterLow,
      parameterHigh,
      immediate: isImmediate ? new Uint8Array(Uint32Array.of(parameterLow, parameterHigh).buffer) : undefined,
    };
  }

  #descriptor(): TransferDescriptor {
    return {
      blocks: this.#blocks,
      start: this.#start,
      totalBytes: this.#totalBytes,
      setup: this.#setup,
      isIn: this.#isIn,
    };
  }
}

/** What an OUT descriptor sends. */
export function gather(memory: GuestMemory, td: TransferDescriptor): Uint8Array {
  const bytes = new Uint8Array(td.totalBytes);
  let at = 0;
  for (const { immediate, pointer, lengthBytes } of td.blocks) {
    if (lengthBytes === 0) continue;
    if (immediate !== undefined) bytes.set(immediate.subarray(0, lengthBytes), at);
    else copyOut(memory, pointer, bytes.subarray(at, at + lengthBytes));
    at += lengthBytes;
  }
  return bytes;
}

function copyOut(memory: GuestMemory, from: number, into: Uint8Array): void {
  let done = 0;
  for (const piece of memory.pieces(from, into.length)) {
    into.set(piece, done);
    done += piece.length;
  }
}

/** What came, to where an IN descriptor wants it. @param from how many of its bytes came earlier. */
export function scatter(memory: GuestMemory, td: TransferDescriptor, bytes: Uint8Array, from: number): void {
  let at = -from;
  for (const { immediate, pointer, lengthBytes } of td.blocks) {
    const skipped = Math.max(0, -at);
    const part = bytes.subarray(Math.max(0, at), Math.max(0, at + lengthBytes));
    if (part.length > 0 && immediate === undefined) memory.write(pointer + skipped, part);
    at += lengthBytes;
  }
}
