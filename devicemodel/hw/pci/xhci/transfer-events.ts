/** Which events a transfer descriptor gives when it is done. Spec: xHCI 1.0 §4.10.1 (short packets), §4.11.3, §4.11.5.2 (event data). */
import type { TransferStatus } from '../../usb/device.ts';
import type { TdBlock, TransferDescriptor } from './transfer-ring.ts';
import { CompletionCode, type EventTrb, eventTrb, TrbControl, TrbType } from './trb.ts';

export interface PendingEvent {
  readonly event: EventTrb;
  /** The guest asked not to be interrupted for it. */
  readonly isQuiet: boolean;
}

/** Whose events they are. */
export interface EventSource {
  readonly slot: number;
  readonly endpoint: number;
}

/** `stopped` is for a descriptor that the guest's Stop Endpoint interrupted. */
export type Outcome = TransferStatus | 'stopped';

/** §6.4.5. Compat: C says Short Packet of a device that is gone, and of one that failed Stall. */
const codes: Readonly<Record<Outcome, number>> = {
  completed: CompletionCode.Success,
  stall: CompletionCode.Stall,
  error: CompletionCode.Transaction,
  timeout: CompletionCode.Transaction,
  gone: CompletionCode.Transaction,
  babble: CompletionCode.Babble,
  cancelled: CompletionCode.Transaction,
  stopped: CompletionCode.Stopped,
};

const LENGTH_MASK = 0xffffff;

const isData = (block: TdBlock) =>
  block.type === TrbType.Normal || block.type === TrbType.DataStage || block.type === TrbType.Isoch;

/** @param actualBytes moved by the descriptor as a whole. */
export function completionEvents(
  td: TransferDescriptor,
  outcome: Outcome,
  actualBytes: number,
  source: EventSource,
): PendingEvent[] {
  const events: PendingEvent[] = [];
  const failing = outcome === 'completed' ? undefined : failingBlock(td, actualBytes);
  let left = actualBytes;
  let movedSinceEvent = 0;
  let isShort = false;
  let isShortTold = false;
  const tell = (block: TdBlock, event: EventTrb) => {
    events.push({ event, isQuiet: (block.control & TrbControl.BlockEventInterrupt) !== 0 });
  };
  const tellBlock = (block: TdBlock, code: number, rest: number) =>
    tell(block, eventTrb(TrbType.TransferEvent, code, block.address, { ...source, rest }));
  const tellData = (block: TdBlock, code: number, rest: number) => {
    const event = eventTrb(TrbType.TransferEvent, code, 0, { ...source, rest, flags: TrbControl.EventData });
    tell(block, { ...event, parameterLow: block.parameterLow, parameterHigh: block.parameterHigh });
  };
  for (const block of td.blocks) {
    const moved = isData(block) ? Math.min(left, block.lengthBytes) : 0;
    left -= moved;
    movedSinceEvent += moved;
    const residual = block.lengthBytes - moved;
    if (block === failing) {
      tellBlock(block, codes[outcome], residual);
      return events;
    }
    if (residual > 0) isShort = true;
    // The status stage succeeds, however much data there was.
    if (block.type === TrbType.StatusStage) isShort = isShortTold = false;
    const code = isShort ? CompletionCode.ShortPacket : CompletionCode.Success;
    const wantsEvent = (block.control & TrbControl.InterruptOnCompletion) !== 0;
    if (block.type === TrbType.EventData) {
      if (!wantsEvent) continue;
      tellData(block, code, movedSinceEvent & LENGTH_MASK);
      movedSinceEvent = 0;
    } else if (!isShortTold && (wantsEvent || (isShort && (block.control & TrbControl.InterruptOnShort) !== 0))) {
      tellBlock(block, code, residual);
      isShortTold = isShort;
    }
  }
  return events;
}

/** Where the data ended; with all of it moved, the last block: of a control transfer its status stage. */
function failingBlock(td: TransferDescriptor, actualBytes: number): TdBlock | undefined {
  let left = actualBytes;
  for (const block of td.blocks) {
    if (!isData(block)) continue;
    if (left < block.lengthBytes) return block;
    left -= block.lengthBytes;
  }
  return (
    td.blocks.find((block) => block.type === TrbType.StatusStage) ?? td.blocks.findLast(isData) ?? td.blocks.at(-1)
  );
}

/** A block is none (§4.11.3). */
export function trbErrorEvent(address: number, source: EventSource): PendingEvent {
  return { event: eventTrb(TrbType.TransferEvent, CompletionCode.Trb, address, source), isQuiet: false };
}

/** §4.10.3.1: an isochronous ring ran empty. There is no block it would be about. */
export function ringEmptyEvent(isIn: boolean, source: EventSource): EventTrb {
  return eventTrb(TrbType.TransferEvent, isIn ? CompletionCode.RingOverrun : CompletionCode.RingUnderrun, 0, source);
}
