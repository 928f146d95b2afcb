/** Transfer Request Blocks: what rings are made of. Spec: xHCI 1.0 §6.4. */
import { GuestFault } from '../../../core/errors.ts';
import type { GuestMemory } from '../../../core/memory.ts';
import { joinAddress } from './registers.ts';

export const TRB_BYTES = 16;

/** §6.4.6, table 131. */
export const TrbType = {
  Normal: 1,
  SetupStage: 2,
  DataStage: 3,
  StatusStage: 4,
  Isoch: 5,
  Link: 6,
  EventData: 7,
  NoOp: 8,
  EnableSlot: 9,
  DisableSlot: 10,
  AddressDevice: 11,
  ConfigureEndpoint: 12,
  EvaluateContext: 13,
  ResetEndpoint: 14,
  StopEndpoint: 15,
  SetTrDequeue: 16,
  ResetDevice: 17,
  TransferEvent: 32,
  CommandCompletionEvent: 33,
  PortStatusChangeEvent: 34,
  HostControllerEvent: 37,
} as const;

/** §6.4.5, table 130. */
export const CompletionCode = {
  Success: 1,
  Babble: 3,
  Transaction: 4,
  Trb: 5,
  Stall: 6,
  NoSlots: 9,
  SlotNotEnabled: 11,
  EndpointNotEnabled: 12,
  ShortPacket: 13,
  RingUnderrun: 14,
  RingOverrun: 15,
  Parameter: 17,
  ContextState: 19,
  EventRingFull: 21,
  CommandRingStopped: 24,
  CommandAborted: 25,
  Stopped: 26,
} as const;

/** Bits of the control dword; what a bit means depends on the type (§6.4.1 to §6.4.4). */
export const TrbControl = {
  Cycle: 1 << 0,
  /** Of a link. */
  ToggleCycle: 1 << 1,
  InterruptOnShort: 1 << 2,
  /** Of a transfer event. */
  EventData: 1 << 2,
  Chain: 1 << 4,
  InterruptOnCompletion: 1 << 5,
  ImmediateData: 1 << 6,
  BlockEventInterrupt: 1 << 9,
  /** Of Address Device and Configure Endpoint. */
  BlockSetAddress: 1 << 9,
  Deconfigure: 1 << 9,
  /** Of a data stage. */
  DirectionIn: 1 << 16,
} as const;

/** One block; the reader's, filled anew by every `readTrb`. */
export interface Trb {
  parameterLow: number;
  parameterHigh: number;
  status: number;
  control: number;
}

export function newTrb(): Trb {
  return { parameterLow: 0, parameterHigh: 0, status: 0, control: 0 };
}

/**
 * The control dword first: the guest writes it last, with the cycle bit.
 * @returns false if there is no RAM.
 */
export function readTrb(memory: GuestMemory, address: number, into: Trb): boolean {
  try {
    into.control = memory.readU32(address + 12);
    into.parameterLow = memory.readU32(address);
    into.parameterHigh = memory.readU32(address + 4);
    into.status = memory.readU32(address + 8);
    return true;
  } catch (error) {
    if (error instanceof GuestFault) return false;
    throw error;
  }
}

export function typeOf(trb: Pick<Trb, 'control'>): number {
  return (trb.control >>> 10) & 0x3f;
}

/** Of a data TRB (§6.4.1.1): bits 16:0. */
export function lengthOf(trb: Pick<Trb, 'status'>): number {
  return trb.status & 0x1ffff;
}

export function hasCycle(trb: Pick<Trb, 'control'>, cycle: number): boolean {
  return (trb.control & TrbControl.Cycle) === cycle;
}

export function slotOf(trb: Pick<Trb, 'control'>): number {
  return trb.control >>> 24;
}

export function endpointOf(trb: Pick<Trb, 'control'>): number {
  return (trb.control >>> 16) & 0x1f;
}

/** The address in the parameter; the low bits are flags. */
export function addressOf(trb: Pick<Trb, 'parameterLow' | 'parameterHigh'>): number {
  return joinAddress((trb.parameterLow & ~0xf) >>> 0, trb.parameterHigh);
}

/** An event; the cycle bit is the ring's. */
export interface EventTrb {
  readonly parameterLow: number;
  readonly parameterHigh: number;
  readonly status: number;
  readonly control: number;
}

/** @param address what it is about. @param rest bits 23:0 of the status: a length. */
export function eventTrb(
  type: number,
  code: number,
  address: number,
  { rest = 0, slot = 0, endpoint = 0, flags = 0 } = {},
): EventTrb {
  return {
    parameterLow: address % 0x1_0000_0000,
    parameterHigh: Math.floor(address / 0x1_0000_0000),
    status: ((code << 24) | rest) >>> 0,
    control: ((slot << 24) | (endpoint << 16) | (type << 10) | flags) >>> 0,
  };
}
