/**
 * The interrupter: its registers, the event ring and the interrupt. Spec: xHCI 1.0 §4.9.4 (event ring), §4.17
 * (interrupts), §5.5.2 (registers).
 *
 * Nobody may push without asking `hasRoom` first. The controller's parts keep what they have to say until then, so that
 * a guest that does not read its ring stops the controller and grows nothing.
 */
import { GuestFault } from '../../../core/errors.ts';
import type { GuestMemory } from '../../../core/memory.ts';
import { joinAddress } from './registers.ts';
import { CompletionCode, type EventTrb, eventTrb, TRB_BYTES, TrbControl, TrbType } from './trb.ts';

/** Registers, from the interrupter's base. */
const Reg = {
  Management: 0x00,
  Moderation: 0x04,
  TableSize: 0x08,
  TableLow: 0x10,
  TableHigh: 0x14,
  DequeueLow: 0x18,
  DequeueHigh: 0x1c,
};
const Management = { Pending: 1 << 0, Enable: 1 << 1 } as const;
/** In the low dword of the dequeue pointer. */
const EVENT_HANDLER_BUSY = 1 << 3;
/** §6.5: an entry of the event ring segment table: address, size in TRBs. */
const ENTRY_BYTES = 16;
const MIN_SEGMENT_TRBS = 16;
const MAX_SEGMENT_TRBS = 4096;
/** HCSPARAMS2. */
const MAX_SEGMENTS = 4;

export interface InterruptWires {
  /** Interrupts are enabled for the controller as a whole (USBCMD.INTE). */
  isEnabled(): boolean;
  /** An event was posted that asks for an interrupt: USBSTS.EINT. */
  posted(): void;
  setLine(isAsserted: boolean): void;
  sendMessage(): void;
}

export class Interrupter {
  readonly #memory: GuestMemory;
  readonly #wires: InterruptWires;
  #management = 0;
  #moderation = 0;
  #tableSize = 0;
  #tableLow = 0;
  #tableHigh = 0;
  #dequeueLow = 0;
  #dequeueHigh = 0;
  /** Taken when the high dword was written. */
  #table = 0;
  /** Where the next event goes, and its cycle bit. */
  #segment = 0;
  #index = 0;
  #cycle = 1;
  #isFullReported = false;
  /** A message went out for the pending interrupt. */
  #isSignalled = false;
  /** An event came while the guest was at the earlier ones: it is told when it is through. */
  #hasUntold = false;
  /** What is pending is of before the ring was restarted. */
  #isStale = false;

  constructor(memory: GuestMemory, wires: InterruptWires) {
    this.#memory = memory;
    this.#wires = wires;
  }

  /** Power-on. */
  reset(): void {
    this.#management = 0;
    this.#moderation = 0;
    this.#tableSize = 0;
    this.#tableLow = 0;
    this.#tableHigh = 0;
    this.#dequeueLow = 0;
    this.#dequeueHigh = 0;
    this.#table = 0;
    this.restartRing();
    this.update();
  }

  /**
   * Compat: a reset of the controller leaves the registers as they are, and starts the ring anew. The pending bit may
   * stand; nobody is told of it any more (with xHCI it would be cleared). Line: see {@link update}.
   */
  restartRing(): void {
    this.#segment = 0;
    this.#index = 0;
    this.#cycle = 1;
    this.#isFullReported = false;
    this.#isSignalled = false;
    this.#hasUntold = false;
    this.#isStale = true;
  }

  read(offset: number): number {
    switch (offset & ~3) {
      case Reg.Management:
        return this.#management;
      case Reg.Moderation:
        return this.#moderation;
      case Reg.TableSize:
        return this.#tableSize;
      case Reg.TableLow:
        return this.#tableLow;
      case Reg.TableHigh:
        return this.#tableHigh;
      case Reg.DequeueLow:
        return this.#dequeueLow;
      case Reg.DequeueHigh:
        return this.#dequeueHigh;
      default:
        return 0;
    }
  }

  /** @returns whether there may be room in the ring where there was none. */
  write(offset: number, value: number): boolean {
    switch (offset) {
      case Reg.Management:
        this.#writeManagement(value);
        return false;
      case Reg.Moderation:
        this.#moderation = value;
        return false;
      case Reg.TableSize:
        this.#tableSize = value & 0xffff;
        if (this.#segment >= this.#segments) this.#segment = 0;
        return true;
      case Reg.TableLow:
        this.#tableLow = (value & ~0x3f) >>> 0;
        return false;
      case Reg.TableHigh:
        this.#tableHigh = value;
        this.#table = joinAddress(this.#tableLow, value);
        return true;
      case Reg.DequeueLow:
        this.#writeDequeue(value);
        return true;
      case Reg.DequeueHigh:
        this.#dequeueHigh = value;
        return true;
      default:
        return false;
    }
  }

  #writeManagement(value: number): void {
    const pending = (value & Management.Pending) !== 0 ? 0 : this.#management & Management.Pending;
    this.#management = (value & Management.Enable) | pending;
    this.update();
  }

  #writeDequeue(value: number): void {
    const busy = (value & EVENT_HANDLER_BUSY) !== 0 ? 0 : this.#dequeueLow & EVENT_HANDLER_BUSY;
    this.#dequeueLow = ((value & ~0xf) | busy) >>> 0;
    if (this.#isFullReported && this.#freeTrbs() > 1) this.#isFullReported = false;
    if ((value & EVENT_HANDLER_BUSY) === 0) return;
    this.#management &= ~Management.Pending;
    this.#isSignalled = false;
    const isBehind = this.#hasUntold && !this.#isEmpty;
    this.#hasUntold = false;
    if (isBehind) this.#raise();
    else this.update();
  }

  /** Level of the line, and a message that could not be sent before. Call when INTE changed. */
  update(): void {
    const isPending = (this.#management & Management.Pending) !== 0;
    const isOn = isPending && (this.#management & Management.Enable) !== 0 && this.#wires.isEnabled();
    this.#wires.setLine(isOn);
    if (!isOn || this.#isSignalled || this.#isStale) return;
    this.#isSignalled = true;
    this.#wires.sendMessage();
  }

  #raise(): void {
    // §4.17.2: while the handler is busy it will see the event; if it does not, it is told when it is through.
    const isBusy = (this.#dequeueLow & EVENT_HANDLER_BUSY) !== 0 && this.#isSignalled;
    this.#isStale = false;
    this.#dequeueLow |= EVENT_HANDLER_BUSY;
    this.#management |= Management.Pending;
    this.#wires.posted();
    if (isBusy) this.#hasUntold = true;
    this.update();
  }

  // The ring.

  /** @returns whether an event can be pushed. When the ring is full the guest is told so, in its last place, once. */
  hasRoom(): boolean {
    const free = this.#freeTrbs();
    if (free > 1) return true;
    if (free === 1 && !this.#isFullReported) {
      this.#isFullReported = true;
      this.#post(eventTrb(TrbType.HostControllerEvent, CompletionCode.EventRingFull, 0), true);
    }
    return false;
  }

  /** @param isQuiet no interrupt is asked for (Block Event Interrupt). */
  push(event: EventTrb, isQuiet = false): void {
    this.#post(event, !isQuiet);
  }

  #post(event: EventTrb, interrupts: boolean): void {
    const size = this.#segmentTrbs(this.#segment);
    const base = this.#segmentBase(this.#segment);
    if (this.#index >= size) this.#index = 0;
    const at = base + this.#index * TRB_BYTES;
    try {
      this.#memory.writeU32(at, event.parameterLow);
      this.#memory.writeU32(at + 4, event.parameterHigh);
      this.#memory.writeU32(at + 8, event.status);
      this.#memory.writeU32(at + 12, ((event.control & ~TrbControl.Cycle) | this.#cycle) >>> 0);
    } catch (error) {
      // The segment is no RAM: hardware would write there, too, and nobody would see it.
      if (!(error instanceof GuestFault)) throw error;
      return;
    }
    if (++this.#index >= size) {
      this.#index = 0;
      this.#segment = (this.#segment + 1) % this.#segments;
      if (this.#segment === 0) this.#cycle ^= 1;
    }
    if (interrupts) this.#raise();
  }

  get #segments(): number {
    return Math.min(this.#tableSize, MAX_SEGMENTS);
  }

  get #dequeue(): number {
    return joinAddress((this.#dequeueLow & ~0xf) >>> 0, this.#dequeueHigh);
  }

  get #isEmpty(): boolean {
    return this.#dequeue === this.#segmentBase(this.#segment) + this.#index * TRB_BYTES;
  }

  /** Places between the next event and the guest's dequeue pointer, less one; 0 also when there is no ring. */
  #freeTrbs(): number {
    let total = 0;
    let enqueue = 0;
    let dequeue = -1;
    const at = this.#dequeue;
    for (let segment = 0; segment < this.#segments; segment++) {
      const size = this.#segmentTrbs(segment);
      if (size === 0) return 0;
      const base = this.#segmentBase(segment);
      if (segment === this.#segment) enqueue = total + Math.min(this.#index, size - 1);
      if (at >= base && at < base + size * TRB_BYTES) dequeue = total + Math.floor((at - base) / TRB_BYTES);
      total += size;
    }
    if (total === 0) return 0;
    // The guest has not said yet where it reads: nothing can be overtaken.
    if (dequeue < 0) return total - 1;
    return (dequeue - enqueue - 1 + total) % total;
  }

  #segmentBase(segment: number): number {
    const at = this.#table + segment * ENTRY_BYTES;
    return joinAddress((this.#tableDword(at) & ~0x3f) >>> 0, this.#tableDword(at + 4));
  }

  /** 0 if the segment is none. */
  #segmentTrbs(segment: number): number {
    const size = this.#tableDword(this.#table + segment * ENTRY_BYTES + 8);
    return this.#table !== 0 && size >= MIN_SEGMENT_TRBS && size <= MAX_SEGMENT_TRBS ? size : 0;
  }

  #tableDword(at: number): number {
    try {
      return this.#memory.readU32(at);
    } catch (error) {
      if (error instanceof GuestFault) return 0;
      throw error;
    }
  }
}
