/** The driver's side of a packed virtqueue (Virtio 1.2 §2.8), as Linux keeps it: free ids, and how many descriptors each has. */
import type { Gpa } from '../../devicemodel/core/address.ts';
import type { GuestMemory } from '../../devicemodel/core/memory.ts';

const DescFlag = { Next: 1, Write: 2, Indirect: 4, Avail: 1 << 7, Used: 1 << 15 } as const;
const EventFlags = { Enable: 0, Disable: 1, Desc: 2 } as const;

export interface DriverBuffer {
  readonly at: Gpa;
  readonly length: number;
  readonly isWritable: boolean;
}

export interface PackedAddresses {
  readonly desc: Gpa;
  readonly driverEvents: Gpa;
  readonly deviceEvents: Gpa;
}

export class PackedDriverRing {
  readonly #memory: GuestMemory;
  readonly #size: number;
  readonly #at: PackedAddresses;
  /** Never in order of the places: a device that mixes the two up shows. */
  readonly #freeIds: number[];
  readonly #countOf = new Map<number, number>();
  #next = 0;
  #wrap = 1;
  #nextUsed = 0;
  #usedWrap = 1;
  #addedSinceKick = 0;
  free: number;

  constructor(memory: GuestMemory, size: number, at: PackedAddresses) {
    this.#memory = memory;
    this.#size = size;
    this.#at = at;
    this.free = size;
    this.#freeIds = Array.from({ length: size }, (_, i) => i);
  }

  /** Make a chain available, through the indirect table at `table` if there is one. @returns its buffer id. */
  add(buffers: readonly DriverBuffer[], table?: Gpa): number {
    const id = this.#freeIds.pop();
    const count = table === undefined ? buffers.length : 1;
    if (id === undefined || count > this.free) throw new Error('the ring is full');
    const first = this.#next;
    let firstFlags = 0;
    const put = (address: Gpa, length: number, flags: number) => {
      const at = this.#at.desc + 16 * this.#next;
      const available = this.#wrap === 1 ? DescFlag.Avail : DescFlag.Used;
      this.#write(at, address, length, id);
      if (this.#next === first && firstFlags === 0) firstFlags = flags | available;
      else this.#memory.writeU16(at + 14, flags | available);
      if (++this.#next === this.#size) {
        this.#next = 0;
        this.#wrap ^= 1;
      }
    };
    if (table === undefined) {
      buffers.forEach(({ at, length, isWritable }, i) => {
        put(at, length, (isWritable ? DescFlag.Write : 0) | (i + 1 < buffers.length ? DescFlag.Next : 0));
      });
    } else {
      buffers.forEach(({ at, length, isWritable }, i) => {
        this.#write(table + 16 * i, at, length, 0);
        this.#memory.writeU16(table + 16 * i + 14, isWritable ? DescFlag.Write : 0);
      });
      put(table, 16 * buffers.length, DescFlag.Indirect);
    }
    this.#memory.writeU16(this.#at.desc + 16 * first + 14, firstFlags);
    this.#countOf.set(id, count);
    this.free -= count;
    this.#addedSinceKick += count;
    return id;
  }

  #write(at: Gpa, address: Gpa, length: number, id: number): void {
    this.#memory.writeU64(at, BigInt(address));
    this.#memory.writeU32(at + 8, length);
    this.#memory.writeU16(at + 12, id);
  }

  /** What the device gave back since the last look. @throws Error when an id was not in flight. */
  takeUsed(): Array<{ head: number; length: number }> {
    const taken: Array<{ head: number; length: number }> = [];
    for (;;) {
      const at = this.#at.desc + 16 * this.#nextUsed;
      const flags = this.#memory.readU16(at + 14);
      const wanted = this.#usedWrap === 1 ? DescFlag.Avail | DescFlag.Used : 0;
      if ((flags & (DescFlag.Avail | DescFlag.Used)) !== wanted || this.free === this.#size) return taken;
      const head = this.#memory.readU16(at + 12);
      const count = this.#countOf.get(head);
      if (count === undefined) throw new Error(`buffer ${head} is not in flight`);
      this.#countOf.delete(head);
      this.#freeIds.unshift(head);
      this.free += count;
      // §2.8.4: the length counts only with WRITE.
      taken.push({ head, length: (flags & DescFlag.Write) !== 0 ? this.#memory.readU32(at + 8) : 0 });
      this.#nextUsed += count;
      if (this.#nextUsed >= this.#size) {
        this.#nextUsed -= this.#size;
        this.#usedWrap ^= 1;
      }
    }
  }

  /** Whether the device wants to hear of what was added since the last call, as Linux decides it. */
  wantsKick(): boolean {
    const added = this.#addedSinceKick;
    this.#addedSinceKick = 0;
    const word = this.#memory.readU16(this.#at.deviceEvents);
    const flags = this.#memory.readU16(this.#at.deviceEvents + 2);
    if (flags !== EventFlags.Desc) return flags !== EventFlags.Disable;
    const event = (word & 0x7fff) - (word >>> 15 === this.#wrap ? 0 : this.#size);
    return ((this.#next - event - 1) & 0xffff) < added;
  }

  /** Ask for interrupts: every one, none, or one when `after` more descriptors than now are used. */
  setInterrupts(mode: 'all' | 'none' | { readonly after: number }): void {
    let word = 0;
    if (typeof mode === 'object') {
      const at = this.#nextUsed + mode.after;
      const isNextRound = at >= this.#size;
      word = (isNextRound ? at - this.#size : at) | ((isNextRound ? this.#usedWrap ^ 1 : this.#usedWrap) << 15);
    }
    this.#memory.writeU16(this.#at.driverEvents, word);
    const flags = mode === 'all' ? EventFlags.Enable : mode === 'none' ? EventFlags.Disable : EventFlags.Desc;
    this.#memory.writeU16(this.#at.driverEvents + 2, flags);
  }
}
