/**
 * What happens to a VM and is worth telling its manager: RTC changed, power-off, triple fault. Events come from the
 * hypervisor through a ring of shared memory (fork kernels) and from devices, and go to the command monitor's client
 * as JSON (C: core/vm_event.c, core/sbuf.c).
 */
import type { EventEmitter } from 'eventemitter3';
import { SharedBuf } from './hsm/abi.ts';
import { initSharedBuffer } from './hsm/shared-buffer.ts';
import type { Log } from './log.ts';

export type VmEvent =
  /** The guest set its clock: what it was (seconds since 1970) and by how much it moved. */
  | { readonly type: 'rtc-change'; readonly lastTimeS: number; readonly deltaS: number }
  | { readonly type: 'poweroff' }
  | { readonly type: 'triple-fault' };

export type VmState = 'created' | 'running' | 'paused' | 'suspended' | 'ended';

/** A system reset keeps the contents of memory, a full one does not. */
export interface GuestReset {
  readonly kind: 'system-reset' | 'full-reset';
  readonly reason: string;
}

/** What is known of a guest that was given up. */
export interface GuestCrash {
  readonly cause: 'triple-fault' | 'watchdog';
  /** Registers of each vCPU, a line each; none where the hypervisor does not show them. */
  readonly vcpus: readonly string[];
}

/** The one stream of what happens to a VM. Rare events only: never one for each access of the guest. */
export interface VmEventMap {
  /** What a manager wants to know, from the hypervisor or a device. */
  event: [VmEvent];
  /** Something wakes the guest from S3: a device, or a command. Means nothing in other states. */
  wake: [];
  state: [VmState];
  /** The guest is about to start anew: `paused`, then `running`, and nobody's order is behind that. */
  reset: [GuestReset];
  /** The guest shut down by a triple fault, or did not feed its watchdog; it stands still. */
  crash: [GuestCrash];
  /**
   * A life has had its first moments: the guest was started, for the first time or anew after a full reset, and what it
   * did not need for that may come up.
   */
  started: [];
  /** What the guest wrote on a serial port whose back end is a program's own; with the port's name. */
  console: [data: Uint8Array, port: string];
}

/** For those who listen. */
export type VmEvents = Pick<EventEmitter<VmEventMap>, 'on' | 'once' | 'off'>;
/** For those who tell. */
export type VmEventSink = Pick<EventEmitter<VmEventMap>, 'emit'>;

/** enum vm_event_type, acrn_common.h. */
export const VmEventCode = { 'rtc-change': 0, poweroff: 1, 'triple-fault': 2 } as const satisfies Record<
  VmEvent['type'],
  number
>;

/** struct vm_event: u32 type, 28 bytes of data. */
const EVENT_BYTES = 32;
const EVENT_DATA = 4;
export const EVENT_PAGE_BYTES = 4096;

/** The consumer's side of the ring. The hypervisor writes elements and `tail`, we read them and write `head`. */
export class VmEventRing {
  readonly #words: Int32Array;
  readonly #view: DataView;
  readonly #log: Log;
  readonly #ringBytes: number;

  /** Formats the page. @param page at least one event long, 4-byte aligned; shared with the hypervisor from now on. */
  constructor(page: Uint8Array, log: Log) {
    this.#ringBytes = Math.floor((page.length - SharedBuf.size) / EVENT_BYTES) * EVENT_BYTES;
    this.#log = log;
    this.#words = new Int32Array(page.buffer, page.byteOffset, page.length >>> 2);
    this.#view = new DataView(page.buffer, page.byteOffset, page.length);
    initSharedBuffer(page, EVENT_BYTES);
  }

  /** Hand on everything that is there; at most one ring full, so that a wild producer cannot keep us here. */
  drain(onEvent: (event: VmEvent) => void): void {
    const headWord = SharedBuf.offsets.head >>> 2;
    const tail = Atomics.load(this.#words, SharedBuf.offsets.tail >>> 2) >>> 0;
    let head = Atomics.load(this.#words, headWord) >>> 0;
    if (tail >= this.#ringBytes || tail % EVENT_BYTES !== 0 || head >= this.#ringBytes || head % EVENT_BYTES !== 0) {
      this.#log.guest(() => `event ring is damaged (head ${head}, tail ${tail}), its events are dropped`);
      const start = tail < this.#ringBytes ? tail - (tail % EVENT_BYTES) : 0;
      Atomics.store(this.#words, headWord, start);
      return;
    }
    while (head !== tail) {
      const event = this.#decode(SharedBuf.size + head);
      head += EVENT_BYTES;
      if (head === this.#ringBytes) head = 0;
      // Released before the event is handled: whoever handles it may wait for the next one.
      Atomics.store(this.#words, headWord, head);
      if (event !== undefined) onEvent(event);
    }
  }

  #decode(at: number): VmEvent | undefined {
    const code = this.#view.getUint32(at, true);
    switch (code) {
      case VmEventCode['rtc-change']:
        return {
          type: 'rtc-change',
          lastTimeS: Number(this.#view.getBigInt64(at + EVENT_DATA, true)),
          deltaS: Number(this.#view.getBigInt64(at + EVENT_DATA + 8, true)),
        };
      case VmEventCode.poweroff:
        return { type: 'poweroff' };
      case VmEventCode['triple-fault']:
        return { type: 'triple-fault' };
      default:
        this.#log.guest(() => `event of unknown type ${code}`);
        return undefined;
    }
  }
}
