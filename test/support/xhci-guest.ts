/**
 * A driver for the xHCI controller, as small as can be: it sets the controller up in guest memory, gives commands and
 * transfers, and reads events. Tests say what they want done and look at what came back.
 */
import type { AccessSize } from '../../devicemodel/core/address.ts';
import { IoPatience } from '../../devicemodel/core/io-patience.ts';
import { GuestMemory } from '../../devicemodel/core/memory.ts';
import { XhciController } from '../../devicemodel/hw/pci/xhci/controller.ts';
import { plainCapabilities } from '../../devicemodel/hw/pci/xhci/extended-capabilities.ts';
import { FakeClock } from './fake-clock.ts';
import { memoryLog } from './memory-log.ts';

export const Reg = {
  command: 0x40,
  status: 0x44,
  crcrLow: 0x58,
  crcrHigh: 0x5c,
  dcbaapLow: 0x70,
  dcbaapHigh: 0x74,
  config: 0x78,
  iman: 0xdc0,
  erstSize: 0xdc8,
  erstLow: 0xdd0,
  erstHigh: 0xdd4,
  erdpLow: 0xdd8,
  erdpHigh: 0xddc,
  doorbell: 0x580,
} as const;
export const portRegister = (port: number) => 0x440 + 16 * (port - 1);

/** Guest addresses: everything has a page or more of its own. */
export const At = {
  commands: 0x1000,
  eventTable: 0x2000,
  events: 0x3000,
  contextArray: 0x4000,
  input: 0x5000,
  contexts: 0x10000,
  rings: 0x20000,
  buffers: 0x80000,
} as const;
export const RAM_BYTES = 0x20_0000;

export interface Event {
  readonly type: number;
  readonly code: number;
  readonly slot: number;
  readonly endpoint: number;
  readonly pointer: number;
  /** The same in all its bits. */
  readonly parameter: bigint;
  /** Bits 23:0 of the status. */
  readonly rest: number;
  readonly control: number;
}

export class XhciGuest {
  readonly clock = new FakeClock();
  readonly patience = new IoPatience(60_000);
  readonly memory: GuestMemory;
  readonly ram: Uint8Array;
  readonly controller: XhciController;
  readonly lines: string[];
  /** Level of the interrupt line, and how many messages went out. */
  line = false;
  messages = 0;
  onLine: ((level: boolean) => void) | undefined;
  readonly eventTrbs: number;
  #commandIndex = 0;
  #eventIndex = 0;
  #eventCycle = 1;
  readonly #rings = new Map<string, { base: number; index: number }>();

  constructor(eventTrbs = 64, ram: Uint8Array = new Uint8Array(RAM_BYTES)) {
    this.eventTrbs = eventTrbs;
    this.ram = ram;
    this.memory = new GuestMemory([{ base: 0, bytes: this.ram, hostAddress: undefined }]);
    const { log, lines } = memoryLog();
    this.lines = lines;
    this.controller = new XhciController(
      {
        memory: this.memory,
        clock: this.clock,
        log,
        patience: this.patience,
        setLine: (level) => {
          this.line = level;
          this.onLine?.(level);
        },
        sendMessage: () => this.messages++,
      },
      plainCapabilities,
    );
  }

  read(offset: number): number {
    return this.controller.read(offset);
  }
  write(offset: number, value: number, _size: AccessSize = 4): void {
    this.controller.write(offset, value >>> 0);
  }
  trb(at: number, parameter: number, status: number, control: number): void {
    this.memory.writeU32(at, parameter % 0x1_0000_0000);
    this.memory.writeU32(at + 4, Math.floor(parameter / 0x1_0000_0000));
    this.memory.writeU32(at + 8, status >>> 0);
    this.memory.writeU32(at + 12, control >>> 0);
  }

  /** Rings, registers, run. */
  setUp(): this {
    this.trb(At.eventTable, At.events, this.eventTrbs, 0);
    this.write(Reg.config, 64);
    this.write(Reg.dcbaapLow, At.contextArray);
    this.write(Reg.dcbaapHigh, 0);
    this.write(Reg.crcrLow, At.commands | 1);
    this.write(Reg.crcrHigh, 0);
    this.write(Reg.erstSize, 1);
    this.write(Reg.erdpLow, At.events);
    this.write(Reg.erdpHigh, 0);
    this.write(Reg.erstLow, At.eventTable);
    this.write(Reg.erstHigh, 0);
    this.write(Reg.iman, 2);
    this.write(Reg.command, 5);
    return this;
  }

  /** Another driver of the same controller: a reset of it, empty rings, nothing known of what was. */
  startAgain(): this {
    this.write(Reg.command, 2);
    this.ram.fill(0, 0x1000, 0x80000);
    this.#commandIndex = 0;
    this.#eventIndex = 0;
    this.#eventCycle = 1;
    this.#rings.clear();
    return this.setUp();
  }

  /** Events since the last call; the guest tells the controller that it has seen them. */
  events(): Event[] {
    const events: Event[] = [];
    for (;;) {
      const at = At.events + 16 * this.#eventIndex;
      const control = this.memory.readU32(at + 12);
      if ((control & 1) !== this.#eventCycle) break;
      const status = this.memory.readU32(at + 8);
      events.push({
        type: (control >>> 10) & 0x3f,
        code: status >>> 24,
        slot: control >>> 24,
        endpoint: (control >>> 16) & 0x1f,
        pointer: this.memory.readU32(at) + this.memory.readU32(at + 4) * 0x1_0000_0000,
        parameter: this.memory.readU64(at),
        rest: status & 0xffffff,
        control,
      });
      this.#eventIndex = (this.#eventIndex + 1) % this.eventTrbs;
      if (this.#eventIndex === 0) this.#eventCycle ^= 1;
    }
    if (events.length > 0) this.write(Reg.erdpLow, (At.events + 16 * this.#eventIndex) | 8);
    return events;
  }

  /** Put a command on the ring. @returns where it is. */
  queueCommand(type: number, parameter = 0, { slot = 0, endpoint = 0, flags = 0, status = 0 } = {}): number {
    const at = At.commands + 16 * this.#commandIndex++;
    this.trb(at, parameter, status, (slot << 24) | (endpoint << 16) | (type << 10) | flags | 1);
    return at;
  }

  /** Give a command. @returns its completion event; undefined if there is none yet. */
  command(type: number, parameter = 0, fields: Parameters<XhciGuest['queueCommand']>[2] = {}): Event | undefined {
    const at = this.queueCommand(type, parameter, fields);
    this.write(Reg.doorbell, 0);
    return this.events().find((event) => event.type === 33 && event.pointer === at);
  }

  /** Reset the port and give its device an address, as slot 1 upwards. @returns the slot. */
  address(port: number): number {
    this.write(portRegister(port), 0x210);
    this.events();
    const slot = this.command(9)?.slot ?? 0;
    this.addressSlot(slot, port);
    return slot;
  }

  addressSlot(slot: number, port: number, flags = 0): Event | undefined {
    this.memory.writeU64(At.contextArray + 8 * slot, BigInt(this.contextOf(slot)));
    this.ram.fill(0, At.input, At.input + 0x420);
    this.memory.writeU32(At.input + 4, 3);
    this.memory.writeU32(At.input + 0x20, 1 << 27);
    this.memory.writeU32(At.input + 0x24, port << 16);
    this.endpointContext(1, 4, this.ringOf(slot, 1));
    return this.command(11, At.input, { slot, flags });
  }

  /** Fill an endpoint context of the input context. */
  endpointContext(id: number, type: number, ring: number, first = 0): void {
    const at = At.input + 0x20 + 0x20 * id;
    this.memory.writeU32(at, first);
    this.memory.writeU32(at + 4, (type << 3) | (64 << 16));
    this.memory.writeU32(at + 8, ring | 1);
    this.memory.writeU32(at + 12, 0);
  }

  /** Configure endpoints by id and type. */
  configure(slot: number, types: Readonly<Record<number, number>>): Event | undefined {
    this.ram.fill(0, At.input, At.input + 0x420);
    let adds = 1;
    for (const [id, type] of Object.entries(types)) {
      adds |= 1 << Number(id);
      this.endpointContext(Number(id), type, this.ringOf(slot, Number(id)));
    }
    this.memory.writeU32(At.input + 4, adds);
    return this.command(12, At.input, { slot });
  }

  contextOf(slot: number): number {
    return At.contexts + 0x400 * slot;
  }
  endpointState(slot: number, id: number): number {
    return this.memory.readU32(this.contextOf(slot) + 0x20 * id) & 7;
  }
  dequeueOf(slot: number, id: number): number {
    return this.memory.readU32(this.contextOf(slot) + 0x20 * id + 8);
  }

  ringOf(slot: number, id: number): number {
    return At.rings + 0x8000 * (slot - 1) + 0x400 * id;
  }

  /** Put a block on an endpoint's ring. @returns where it is. */
  queue(slot: number, id: number, type: number, parameter = 0, status = 0, flags = 0): number {
    const key = `${slot}/${id}`;
    let ring = this.#rings.get(key);
    if (ring === undefined) this.#rings.set(key, (ring = { base: this.ringOf(slot, id), index: 0 }));
    const at = ring.base + 16 * ring.index++;
    this.trb(at, parameter, status, (type << 10) | flags | 1);
    return at;
  }

  ring(slot: number, id: number, stream = 0): void {
    this.write(Reg.doorbell + 4 * slot, (stream << 16) | id);
  }

  /** A control transfer with its stages on the ring, rung. @returns where the status stage is. */
  control(slot: number, setup: readonly number[], length: number, buffer: number = At.buffers): number {
    const [requestType = 0, request = 0, value = 0, index = 0] = setup;
    const low = requestType | (request << 8) | (value << 16);
    this.queue(slot, 1, 2, (low >>> 0) + (index + length * 0x10000) * 0x1_0000_0000, 8, 1 << 6);
    const isIn = requestType >= 0x80;
    if (length > 0) this.queue(slot, 1, 3, buffer, length, (isIn ? 1 << 16 : 0) | (1 << 2));
    const status = this.queue(slot, 1, 4, 0, 0, (isIn ? 0 : 1 << 16) | (1 << 5));
    this.ring(slot, 1);
    return status;
  }
}
