/** The driver's side of a split virtqueue (Virtio 1.2 §2.7), as Linux keeps it: free descriptors, and whose are in flight. */
import type { GuestMemory } from '../../devicemodel/core/memory.ts';
import type { RingAddresses } from '../../devicemodel/hw/pci/virtio/ring/ring.ts';
import type { DriverBuffer } from './packed-driver-ring.ts';

const DescFlag = { Next: 1, Write: 2, Indirect: 4 } as const;

export class SplitDriverRing {
  readonly #memory: GuestMemory;
  readonly #size: number;
  readonly #at: RingAddresses;
  readonly #hasEventIdx: boolean;
  readonly #freeDescriptors: number[];
  readonly #descriptorsOf = new Map<number, number[]>();
  #availIdx = 0;
  #kickedIdx = 0;
  #seenUsed = 0;

  constructor(memory: GuestMemory, size: number, at: RingAddresses, hasEventIdx: boolean) {
    this.#memory = memory;
    this.#size = size;
    this.#at = at;
    this.#hasEventIdx = hasEventIdx;
    this.#freeDescriptors = Array.from({ length: size }, (_, i) => i);
  }

  get free(): number {
    return this.#freeDescriptors.length;
  }

  /** Make a chain available, through the indirect table at `table` if there is one. @returns its head. */
  add(buffers: readonly DriverBuffer[], table?: number): number {
    const count = table === undefined ? buffers.length : 1;
    const indexes = this.#freeDescriptors.splice(0, count);
    const head = indexes[0];
    if (head === undefined || indexes.length < count) throw new Error('the ring is full');
    const placesOf = table === undefined ? indexes : buffers.map((_, i) => i);
    buffers.forEach(({ at, length, isWritable }, i) => {
      const next = placesOf[i + 1];
      const flags = (isWritable ? DescFlag.Write : 0) | (next === undefined ? 0 : DescFlag.Next);
      this.#write((table ?? this.#at.desc) + 16 * (placesOf[i] as number), at, length, flags, next ?? 0);
    });
    if (table !== undefined) {
      this.#write(this.#at.desc + 16 * head, table, 16 * buffers.length, DescFlag.Indirect, 0);
    }
    this.#descriptorsOf.set(head, indexes);
    this.#memory.writeU16(this.#at.avail + 4 + 2 * (this.#availIdx % this.#size), head);
    this.#availIdx = (this.#availIdx + 1) & 0xffff;
    this.#memory.writeU16(this.#at.avail + 2, this.#availIdx);
    return head;
  }

  #write(at: number, address: number, length: number, flags: number, next: number): void {
    this.#memory.writeU64(at, BigInt(address));
    this.#memory.writeU32(at + 8, length);
    this.#memory.writeU16(at + 12, flags);
    this.#memory.writeU16(at + 14, next);
  }

  /** What the device gave back since the last look. @throws Error when a head was not in flight. */
  takeUsed(): Array<{ head: number; length: number }> {
    const taken: Array<{ head: number; length: number }> = [];
    while (this.#seenUsed !== this.#memory.readU16(this.#at.used + 2)) {
      const at = this.#at.used + 4 + 8 * (this.#seenUsed % this.#size);
      const head = this.#memory.readU32(at);
      const indexes = this.#descriptorsOf.get(head);
      if (indexes === undefined) throw new Error(`chain ${head} is not in flight`);
      this.#descriptorsOf.delete(head);
      this.#freeDescriptors.push(...indexes);
      taken.push({ head, length: this.#memory.readU32(at + 4) });
      this.#seenUsed = (this.#seenUsed + 1) & 0xffff;
    }
    return taken;
  }

  /** Whether the device wants to hear of what was added since the last call, as Linux decides it. */
  wantsKick(): boolean {
    const before = this.#kickedIdx;
    this.#kickedIdx = this.#availIdx;
    if (!this.#hasEventIdx) return (this.#memory.readU16(this.#at.used) & 1) === 0;
    const event = this.#memory.readU16(this.#at.used + 4 + 8 * this.#size);
    return ((this.#availIdx - event - 1) & 0xffff) < ((this.#availIdx - before) & 0xffff);
  }

  /** Ask for interrupts: every one, none, or one when `after` more chains than now are used. */
  setInterrupts(mode: 'all' | 'none' | { readonly after: number }): void {
    this.#memory.writeU16(this.#at.avail, mode === 'none' ? 1 : 0);
    if (typeof mode === 'object') {
      this.#memory.writeU16(this.#at.avail + 4 + 2 * this.#size, (this.#seenUsed + mode.after) & 0xffff);
    }
  }
}
