/** Contexts in guest memory: of devices (what the controller tells) and input contexts (what software wants). Spec: xHCI 1.0 §6.2. */
import type { GuestMemory } from '../../../core/memory.ts';
import { joinAddress } from './registers.ts';
import type { RingPosition } from './transfer-ring.ts';

const CONTEXT_BYTES = 32;

/** §6.2.2, slot state. */
export const SlotState = { Enabled: 0, Default: 1, Addressed: 2, Configured: 3 } as const;
/** §6.2.3, endpoint state. */
export const EndpointState = { Disabled: 0, Running: 1, Halted: 2, Stopped: 3, Error: 4 } as const;
/** §6.2.3, endpoint type: 4 is control, of the others the lower two bits say what and bit 2 says IN. */
export const EndpointType = { Control: 4, IsochronousOut: 1, BulkOut: 2, InterruptOut: 3 } as const;
const TYPE_IN = 4;

/** Device context: the slot's at 0, that of endpoint `id` behind it. */
const offsetOf = (id: number) => id * CONTEXT_BYTES;

/** What is in an endpoint context of an input context. */
export interface EndpointSettings {
  readonly type: number;
  /** 0: no streams, n: 2^(n+1). */
  readonly primaryStreams: number;
  readonly hasLinearStreams: boolean;
  readonly dequeue: RingPosition;
}

/** Reads and writes of one device's contexts. Everything throws GuestFault where there is no RAM. */
export class DeviceContext {
  readonly #memory: GuestMemory;
  readonly #address: number;

  constructor(memory: GuestMemory, address: number) {
    this.#memory = memory;
    this.#address = address;
  }

  /** Copy a context in: the slot's is number 0. */
  copy(id: number, from: InputContext): void {
    for (let at = 0; at < CONTEXT_BYTES; at += 4) {
      this.#memory.writeU32(this.#address + offsetOf(id) + at, from.dword(id, at));
    }
  }

  /** §6.2.2: dword 3: state, address of the device. */
  setSlotState(state: number, usbAddress?: number): void {
    const at = this.#address + 12;
    const address = usbAddress ?? this.#memory.readU32(at) & 0xff;
    this.#memory.writeU32(at, ((state << 27) | address) >>> 0);
  }

  /** Dword 0, bits 31:27. */
  setContextEntries(count: number): void {
    this.#replace(this.#address, 0x1f << 27, count << 27);
  }

  /** §4.6.7: what Evaluate Context may change. */
  evaluate(from: InputContext): void {
    if (from.adds(0)) {
      this.#replace(this.#address + 4, 0xffff, from.dword(0, 4));
      this.#replace(this.#address + 8, 0x3ff << 22, from.dword(0, 8));
    }
    if (from.adds(1)) this.#replace(this.#address + offsetOf(1) + 4, 0xffff << 16, from.dword(1, 4));
  }

  setEndpointState(id: number, state: number): void {
    this.#replace(this.#address + offsetOf(id), 7, state);
  }

  setDequeue(id: number, { address, cycle }: RingPosition): void {
    const at = this.#address + offsetOf(id) + 8;
    this.#memory.writeU32(at, (address % 0x1_0000_0000) + cycle);
    this.#memory.writeU32(at + 4, Math.floor(address / 0x1_0000_0000));
  }

  #replace(at: number, mask: number, bits: number): void {
    this.#memory.writeU32(at, ((this.#memory.readU32(at) & ~mask) | (bits & mask)) >>> 0);
  }
}

/** Input context: the control context, then as a device context. Throws GuestFault where there is no RAM. */
export class InputContext {
  readonly #memory: GuestMemory;
  readonly #address: number;
  readonly drops: number;
  readonly #adds: number;

  constructor(memory: GuestMemory, address: number) {
    this.#memory = memory;
    this.#address = address;
    this.drops = memory.readU32(address);
    this.#adds = memory.readU32(address + 4);
  }

  adds(id: number): boolean {
    return ((this.#adds >>> id) & 1) !== 0;
  }

  dword(id: number, offset: number): number {
    return this.#memory.readU32(this.#address + CONTEXT_BYTES + offsetOf(id) + offset);
  }

  /** §6.2.2: dword 1, bits 23:16. */
  get rootHubPort(): number {
    return (this.dword(0, 4) >>> 16) & 0xff;
  }

  get contextEntries(): number {
    return this.dword(0, 0) >>> 27;
  }

  endpoint(id: number): EndpointSettings {
    const first = this.dword(id, 0);
    const low = this.dword(id, 8);
    return {
      type: (this.dword(id, 4) >>> 3) & 7,
      primaryStreams: (first >>> 10) & 0x1f,
      hasLinearStreams: (first & (1 << 15)) !== 0,
      dequeue: { address: joinAddress((low & ~0xf) >>> 0, this.dword(id, 12)), cycle: low & 1 },
    };
  }
}

export function isBulk(type: number): boolean {
  return (type & ~TYPE_IN) === EndpointType.BulkOut;
}

/** Whether an endpoint of this type can have this id: 1 is control, even ones are OUT, odd ones IN. */
export function suits(type: number, id: number): boolean {
  if (id === 1 || type === EndpointType.Control) return id === 1 && type === EndpointType.Control;
  return type !== 0 && ((type & TYPE_IN) !== 0) === (id % 2 === 1);
}
