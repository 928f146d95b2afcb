/**
 * An endpoint: takes descriptors off its rings, has the device do them, and tells the guest. Spec: xHCI 1.0 §4.8
 * (states), §4.6.9 (stop), §4.12 (streams), §4.10 (what goes wrong).
 *
 * A piece of work is the device's from `submit` until it is done. The endpoint remembers it until its events are in the
 * event ring; so a guest that does not read its events gets no more work done, and nothing grows. What an endpoint that
 * is let go still has in flight comes back to nobody: it is dropped, and only its bytes are counted.
 */
import type { Clock, Timer } from '../../../core/clock.ts';
import { GuestFault } from '../../../core/errors.ts';
import type { GuestMemory } from '../../../core/memory.ts';
import type { UsbDevice, UsbTransfer } from '../../usb/device.ts';
import { type DeviceContext, EndpointState, EndpointType } from './context.ts';
import { completionEvents, type PendingEvent, ringEmptyEvent, trbErrorEvent } from './transfer-events.ts';
import {
  gather,
  MAX_TD_BYTES,
  type RingPosition,
  scatter,
  type TransferDescriptor,
  type TransferRing,
} from './transfer-ring.ts';
import { newTransfer, type TransferKind } from './transfers.ts';
import { type EventTrb, TrbType } from './trb.ts';

/** What is done at once on one ring: more gains nothing, and somebody has to remember it. */
const MAX_IN_FLIGHT: Readonly<Record<TransferKind, number>> = { control: 1, interrupt: 8, bulk: 16, isochronous: 16 };
/** Isochronous descriptors that are one transfer of so many packets. */
const MAX_PACKETS = 32;
/** §4.10.3.1 does not say when a ring counts as run dry; C waits this long, and drivers live with it. */
const DRY_RING_NS = 100_000_000;
/** A driver waits some seconds for Stop Endpoint (Linux's five), and then gives the whole controller up. */
const STOP_NS = 1_000_000_000;
/** What a block counts for beside its data, so that blocks without data cannot be remembered without end. */
const BLOCK_COST_BYTES = 1024;
/** Blocks looked at before others get their turn: on one ring, and on all of a controller at once. */
export const SLICE_BLOCKS = 2048;

/** What all endpoints of a controller share. */
export interface EndpointWires {
  readonly memory: GuestMemory;
  /** R/S: a controller that is halted touches no guest memory and begins nothing. */
  isRunning(): boolean;
  /** It runs, and an event can be told now. */
  canTell(): boolean;
  tell(event: EventTrb, isQuiet: boolean): void;
  /**
   * One transfer more, and its bytes. @returns to be called once, when it came back; undefined: too many are in flight, and
   * `again` is called when there are fewer.
   */
  takeBytes(count: number, again: () => number): (() => void) | undefined;
  /** Once, soon; the same function only once. What it returns is what it did, in blocks. */
  later(work: () => number): void;
  /** Neither `later` nor `takeBytes` is to call it any more. */
  forget(work: () => number): void;
  readonly clock: Clock;
}

interface Work {
  readonly ring: TransferRing;
  readonly tds: readonly TransferDescriptor[];
  transfer: UsbTransfer | undefined;
  /** Its bytes are not in flight any more. */
  readonly giveBack: () => void;
  /** Bytes of the first descriptor that were done before it was stopped. */
  readonly doneBefore: number;
  /** Instead of descriptors: a block that is none. */
  readonly badBlock: number | undefined;
  /** It came back, or is waited for no longer. */
  isDone: boolean;
  events: PendingEvent[] | undefined;
  told: number;
}

interface RingQueue {
  readonly ring: TransferRing;
  readonly works: Work[];
  isServing: boolean;
  /** Goes on with the ring: one function, so that it waits in one place only. */
  readonly serve: () => number;
  /** The descriptor at the head was stopped in the middle. */
  partial: { readonly address: number; readonly bytes: number } | undefined;
}

export class Endpoint {
  readonly id: number;
  readonly #kind: TransferKind;
  readonly #slot: number;
  readonly #device: UsbDevice;
  readonly #context: DeviceContext;
  readonly #wires: EndpointWires;
  readonly #queues: readonly RingQueue[];
  #state: number = EndpointState.Running;
  #isGone = false;
  /** Given up, and not back yet. */
  readonly #strays = new Set<Work>();
  #whenStopped: (() => void) | undefined;
  /** Until a device that is stopped is waited for no longer. */
  #stopTimer: Timer | undefined;
  /** Of an isochronous endpoint: when its ring counts as run dry. */
  #dryTimer: Timer | undefined;

  /** @param rings one, or one for each stream. */
  constructor(
    id: number,
    type: number,
    rings: readonly TransferRing[],
    owner: { readonly slot: number; readonly device: UsbDevice; readonly context: DeviceContext },
    wires: EndpointWires,
  ) {
    this.id = id;
    this.#kind = kindOf(type);
    this.#slot = owner.slot;
    this.#device = owner.device;
    this.#context = owner.context;
    this.#wires = wires;
    this.#queues = rings.map((ring) => {
      const queue: RingQueue = {
        ring,
        works: [],
        isServing: false,
        partial: undefined,
        serve: () => this.#serve(queue),
      };
      return queue;
    });
  }

  get state(): number {
    return this.#state;
  }

  get #source() {
    return { slot: this.#slot, endpoint: this.id };
  }

  get #isIn(): boolean {
    return this.id % 2 === 1;
  }

  // What software asks for.

  /** The doorbell (§4.7). */
  ring(streamId: number): void {
    if (this.#state === EndpointState.Stopped) this.#setState(EndpointState.Running);
    const queue = this.#queueOf(streamId);
    if (queue !== undefined) this.#serve(queue);
  }

  /** Events may be told again. @param turn blocks that may be looked at now; with none left it is done later. @returns how many were */
  pump(turn: number): number {
    for (const queue of this.#queues) this.#retire(queue);
    this.#checkStopped();
    let blocks = 0;
    for (const queue of this.#queues) {
      if (blocks < turn) blocks += this.#serve(queue);
      else this.#wires.later(queue.serve);
    }
    return blocks;
  }

  /**
   * §4.6.9: everything in flight comes back first, but for what a device keeps that hangs. It may halt meanwhile. @returns
   * when it did; undefined: it has.
   */
  stop(): Promise<void> | undefined {
    this.#dryTimer?.cancel();
    const stopped = new Promise<void>((resolve) => {
      this.#whenStopped = resolve;
    });
    this.#cancelAll();
    this.#checkStopped();
    if (this.#whenStopped === undefined) return undefined;
    this.#stopTimer ??= this.#wires.clock.createTimer(() => this.#giveUp());
    this.#stopTimer.arm(this.#wires.clock.nowNs() + STOP_NS);
    return stopped;
  }

  /** §4.6.8: after a halt. @returns as `stop`. */
  reset(): Promise<void> | undefined {
    for (const queue of this.#queues) queue.partial = undefined;
    const stopped = this.stop();
    if (stopped === undefined) this.#setState(EndpointState.Stopped);
    return stopped?.then(() => this.#setState(EndpointState.Stopped));
  }

  /** §4.6.10. @returns false if there is no such stream. */
  setDequeue(streamId: number, position: RingPosition): boolean {
    const queue = this.#queueOf(streamId);
    if (queue === undefined) return false;
    queue.partial = undefined;
    queue.ring.moveTo(position);
    this.#setState(EndpointState.Stopped);
    this.#tellDequeue();
    return true;
  }

  /** What is in flight is asked for; it will be done again when the rings are served the next time. */
  recall(): void {
    this.#dryTimer?.cancel();
    for (const queue of this.#queues) {
      const first = queue.works.findIndex(({ isDone }) => !isDone);
      if (first >= 0) this.#drop(queue, first);
    }
  }

  /** The endpoint is no more: what is in flight is asked for, and nobody hears of it. */
  letGo(): void {
    this.#isGone = true;
    for (const queue of this.#queues) this.#wires.forget(queue.serve);
    this.recall();
    this.#stopTimer?.cancel();
    this.#whenStopped?.();
    this.#whenStopped = undefined;
  }

  #queueOf(streamId: number): RingQueue | undefined {
    return this.#queues.find((queue) => queue.ring.streamId === streamId);
  }

  // Taking work.

  /** @returns blocks that were looked at */
  #serve(queue: RingQueue): number {
    if (queue.isServing) return 0;
    queue.isServing = true;
    let blocks = 0;
    let isMore = true;
    while (isMore && this.#mayTake(queue) && blocks < SLICE_BLOCKS) {
      const work = this.#take(queue);
      // What is walked for nothing counts, too: a descriptor without its end, or one that is refused.
      blocks += queue.ring.takeReadBlocks();
      if (work === undefined) {
        isMore = false;
        continue;
      }
      queue.works.push(work);
      this.#submit(queue, work);
    }
    queue.isServing = false;
    if (isMore && blocks >= SLICE_BLOCKS) this.#wires.later(queue.serve);
    return blocks;
  }

  #mayTake(queue: RingQueue): boolean {
    return (
      this.#state === EndpointState.Running &&
      this.#wires.isRunning() &&
      !this.#isGone &&
      this.#whenStopped === undefined &&
      queue.works.length < MAX_IN_FLIGHT[this.#kind] &&
      queue.works.at(-1)?.badBlock === undefined
    );
  }

  #take(queue: RingQueue): Work | undefined {
    const { ring } = queue;
    const { memory } = this.#wires;
    const before = ring.position;
    const fetched = ring.fetch(memory, this.#kind === 'control');
    if (fetched === 'empty') return undefined;
    if ('badBlock' in fetched) {
      const giveBack = this.#wires.takeBytes(0, queue.serve);
      return giveBack === undefined ? undefined : newWork(ring, [], giveBack, 0, fetched.badBlock);
    }
    const isPartial = queue.partial?.address === fetched.start.address;
    const doneBefore = isPartial ? Math.min(queue.partial?.bytes ?? 0, fetched.totalBytes) : 0;
    queue.partial = undefined;
    const tds = [fetched];
    if (this.#kind === 'isochronous') this.#takeMorePackets(ring, tds);
    const cost = tds.reduce((sum, td) => sum + td.totalBytes + BLOCK_COST_BYTES * td.blocks.length, 0);
    const giveBack = this.#wires.takeBytes(cost, queue.serve);
    if (giveBack === undefined) {
      ring.moveTo(before);
      if (doneBefore > 0) queue.partial = { address: fetched.start.address, bytes: doneBefore };
      return undefined;
    }
    return newWork(ring, tds, giveBack, doneBefore, undefined);
  }

  #takeMorePackets(ring: TransferRing, tds: TransferDescriptor[]): void {
    let blocks = 0;
    let bytes = 0;
    while (tds.length < MAX_PACKETS && bytes < MAX_TD_BYTES && blocks < SLICE_BLOCKS) {
      const before = ring.position;
      const next = ring.fetch(this.#wires.memory, false);
      if (next === 'empty') return;
      // What is wrong, or no packet, has its turn after this transfer.
      if ('badBlock' in next || !hasData(next)) {
        ring.moveTo(before);
        return;
      }
      tds.push(next);
      bytes += next.totalBytes;
      blocks += next.blocks.length;
    }
  }

  #submit(queue: RingQueue, work: Work): void {
    const done = () => this.#done(queue, work);
    const [first] = work.tds;
    if (first === undefined || !hasData(first)) {
      done();
      return;
    }
    const isIn = this.#kind === 'control' ? (first.setup?.requestType ?? 0) >= 0x80 : this.#isIn;
    const transfer = newTransfer({
      kind: this.#kind,
      endpointId: this.id,
      streamId: work.ring.streamId,
      setup: first.setup,
      isIn,
      bytes: isIn ? undefined : joined(work.tds.map((td) => gather(this.#wires.memory, td))).subarray(work.doneBefore),
      packetBytes: work.tds.map((td) => td.totalBytes),
      totalBytes: work.tds.reduce((sum, td) => sum + td.totalBytes, 0) - work.doneBefore,
      done,
    });
    work.transfer = transfer;
    if (this.#kind === 'isochronous') this.#watch(queue);
    this.#device.submit(transfer);
  }

  #watch(queue: RingQueue): void {
    this.#dryTimer ??= this.#wires.clock.createTimer(() => {
      if (this.#state !== EndpointState.Running || queue.works.length > 0 || !this.#wires.canTell()) return;
      this.#wires.tell(ringEmptyEvent(this.#isIn, this.#source), false);
    });
    this.#dryTimer.arm(this.#wires.clock.nowNs() + DRY_RING_NS);
  }

  // Giving it back.

  #done(queue: RingQueue, work: Work): void {
    work.giveBack();
    if (work.isDone) return;
    work.isDone = true;
    this.#strays.delete(work);
    if (this.#isGone) return;
    this.#retire(queue);
    this.#checkStopped();
    this.#serve(queue);
  }

  /** Tell the guest of what is done, in order; what came back while the controller is halted waits until it runs. */
  #retire(queue: RingQueue): void {
    if (!this.#wires.isRunning()) return;
    for (let work = queue.works[0]; work?.isDone === true; work = queue.works[0]) {
      if (this.#whenStopped !== undefined && work.transfer?.status === 'cancelled') return;
      work.events ??= this.#finish(queue, work);
      for (; work.told < work.events.length; work.told++) {
        if (!this.#wires.canTell()) return;
        const { event, isQuiet } = work.events[work.told] as PendingEvent;
        this.#wires.tell(event, isQuiet);
      }
      // A halt may have emptied the queue.
      if (queue.works[0] === work) queue.works.shift();
    }
  }

  #finish(queue: RingQueue, work: Work): PendingEvent[] {
    const { tds, transfer, badBlock } = work;
    if (badBlock !== undefined) {
      this.#halt(queue, work, EndpointState.Error);
      return [trbErrorEvent(badBlock, this.#source)];
    }
    if (transfer === undefined) return tds.flatMap((td) => completionEvents(td, 'completed', 0, this.#source));
    if (transfer.type === 'isochronous') return this.#finishPackets(tds, transfer);
    const [td] = tds as [TransferDescriptor];
    if (transfer.isIn) this.#scatter(td, transfer.buffer.subarray(0, transfer.actualBytes), work.doneBefore);
    if (transfer.status !== 'completed') this.#halt(queue, work, EndpointState.Halted);
    return completionEvents(td, transfer.status, work.doneBefore + transfer.actualBytes, this.#source);
  }

  /** What goes wrong with a packet does not halt an isochronous endpoint (§4.10.3). */
  #finishPackets(tds: readonly TransferDescriptor[], transfer: UsbTransfer): PendingEvent[] {
    let at = 0;
    return tds.flatMap((td, i) => {
      const packet = transfer.packets[i];
      const actualBytes = packet?.actualBytes ?? 0;
      if (transfer.isIn) this.#scatter(td, transfer.buffer.subarray(at, at + actualBytes), 0);
      at += td.totalBytes;
      const status = transfer.status === 'completed' ? (packet?.status ?? 'error') : transfer.status;
      return completionEvents(td, status, actualBytes, this.#source);
    });
  }

  #scatter(td: TransferDescriptor, bytes: Uint8Array, doneBefore: number): void {
    try {
      scatter(this.#wires.memory, td, bytes, doneBefore);
    } catch (error) {
      if (!(error instanceof GuestFault)) throw error;
    }
  }

  /** §4.10.2.1: the endpoint stops at what failed, and has nothing in flight behind it when it is reset. */
  #halt(queue: RingQueue, work: Work, state: number): void {
    this.#setState(state);
    for (const other of this.#queues) this.#drop(other, other === queue ? 1 : 0);
    queue.ring.moveTo(work.tds[0]?.start ?? queue.ring.position);
    this.#tellDequeue();
  }

  /** Give up what is in flight from this one on; the ring goes back to it. */
  #drop(queue: RingQueue, from: number): void {
    const dropped = queue.works.splice(from);
    const start = dropped[0]?.tds[0]?.start;
    if (start !== undefined) queue.ring.moveTo(start);
    for (const work of dropped) if (!work.isDone) this.#strays.add(work);
    for (const { transfer, isDone } of dropped.toReversed()) {
      if (transfer !== undefined && !isDone) this.#device.cancel(transfer);
    }
  }

  #cancelAll(): void {
    // The last first: what is before it must not be done after it was given up.
    for (const queue of this.#queues) {
      for (const { transfer, isDone } of queue.works.toReversed()) {
        if (transfer !== undefined && !isDone) this.#device.cancel(transfer);
      }
    }
  }

  /** What the device still has counts as not begun; it comes back to nobody. */
  #giveUp(): void {
    this.#strays.clear();
    for (const work of this.#queues.flatMap(({ works }) => works)) work.isDone = true;
    this.#checkStopped();
  }

  /** Everything came back and was told as far as it was done: the rings go back to what was not. */
  #checkStopped(): void {
    const resolve = this.#whenStopped;
    if (resolve === undefined || this.#strays.size > 0 || !this.#wires.isRunning()) return;
    if (this.#queues.some(({ works }) => works.some((work) => !work.isDone))) return;
    for (const queue of this.#queues) {
      this.#retire(queue);
      const [work] = queue.works;
      if (work === undefined) continue;
      if (work.events !== undefined) return; // no room in the event ring for what was done
      if (!this.#rewind(queue, work)) return;
    }
    this.#whenStopped = undefined;
    this.#stopTimer?.cancel();
    if (this.#state === EndpointState.Running) this.#setState(EndpointState.Stopped);
    this.#tellDequeue();
    resolve();
  }

  /** @returns false: the guest has to be told first, and there is no room. */
  #rewind(queue: RingQueue, work: Work): boolean {
    const [td] = work.tds;
    const { transfer } = work;
    if (td !== undefined && transfer !== undefined && transfer.type !== 'isochronous') {
      if (!this.#wires.canTell()) return false;
      if (transfer.isIn) this.#scatter(td, transfer.buffer.subarray(0, transfer.actualBytes), work.doneBefore);
      const bytes = work.doneBefore + transfer.actualBytes;
      const [stopped] = completionEvents(td, 'stopped', bytes, this.#source);
      if (stopped !== undefined) this.#wires.tell(stopped.event, stopped.isQuiet);
      // A control transfer begins with its setup stage again.
      if (transfer.type !== 'control' && bytes > 0) queue.partial = { address: td.start.address, bytes };
    }
    if (td !== undefined) queue.ring.moveTo(td.start);
    queue.works.length = 0;
    return true;
  }

  // The context.

  #setState(state: number): void {
    if (this.#state === state) return;
    this.#state = state;
    this.#write(() => this.#context.setEndpointState(this.id, state));
  }

  #tellDequeue(): void {
    for (const { ring } of this.#queues) {
      if (ring.streamId === 0) this.#write(() => this.#context.setDequeue(this.id, ring.position));
      else this.#write(() => ring.tellStreamContext(this.#wires.memory));
    }
  }

  /** Of an endpoint that was let go the context is the guest's, or another's, already. */
  #write(change: () => void): void {
    if (this.#isGone) return;
    try {
      change();
    } catch (error) {
      if (!(error instanceof GuestFault)) throw error;
    }
  }
}

function newWork(
  ring: TransferRing,
  tds: readonly TransferDescriptor[],
  giveBack: () => void,
  doneBefore: number,
  badBlock: number | undefined,
): Work {
  return { ring, tds, transfer: undefined, giveBack, doneBefore, badBlock, isDone: false, events: undefined, told: 0 };
}

function hasData(td: TransferDescriptor): boolean {
  return td.blocks.some(({ type }) => type === TrbType.Normal || type === TrbType.Isoch || type === TrbType.SetupStage);
}

function joined(parts: readonly Uint8Array[]): Uint8Array {
  return parts.length === 1 ? (parts[0] as Uint8Array) : new Uint8Array(Buffer.concat(parts));
}

function kindOf(type: number): TransferKind {
  if (type === EndpointType.Control) return 'control';
  const kinds: readonly TransferKind[] = ['control', 'isochronous', 'bulk', 'interrupt'];
  return kinds[type & 3] ?? 'control';
}
