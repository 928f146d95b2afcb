/**
 * Events of the hypervisor for the device model: a ring in a page of the device model (struct shared_buf and struct
 * vm_event, acrn_common.h) and an eventfd that announces them.
 */
import { SharedBuf } from '../../devicemodel/core/hsm/abi.ts';

/** VM_EVENT_*. */
export const VmEventType = { RtcChange: 0, PowerOff: 1, TripleFault: 2 } as const;

const EVENT_BYTES = 32;

export class EventRing {
  readonly #signal: (eventfd: number) => void;
  #page: Uint8Array | undefined;
  #eventfd = -1;

  constructor(signal: (eventfd: number) => void) {
    this.#signal = signal;
  }

  /** @param page as the device model initialised it; read anew at every event. */
  attach(page: Uint8Array, eventfd: number): void {
    this.#page = page;
    this.#eventfd = eventfd;
  }

  detach(): void {
    this.#page = undefined;
  }

  /** A full ring loses the event and counts it. @returns whether it went in. */
  put(type: number, data: Uint8Array = new Uint8Array(0)): boolean {
    const page = this.#page;
    if (page === undefined) return false;
    const view = new DataView(page.buffer, page.byteOffset, page.byteLength);
    const { size, eleSize, head, tail, overrunCnt } = SharedBuf.decode(page);
    if (eleSize !== EVENT_BYTES || size === 0 || SharedBuf.size + size > page.length || tail >= size) return false;
    const next = (tail + eleSize) % size;
    if (next === head) {
      view.setUint32(SharedBuf.offsets.overrunCnt, overrunCnt + 1, true);
      return false;
    }
    const at = SharedBuf.size + tail;
    page.fill(0, at, at + EVENT_BYTES);
    view.setUint32(at, type, true);
    page.set(data.subarray(0, EVENT_BYTES - 4), at + 4);
    view.setUint32(SharedBuf.offsets.tail, next, true);
    this.#signal(this.#eventfd);
    return true;
  }
}
