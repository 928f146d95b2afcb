/** Split virtqueue (Virtio 1.2 §2.7), device side. Legacy drivers know no other. */
import type { Gpa } from '../../../../core/address.ts';
import type { Chain } from './chain.ts';
import { type ChainCollector, Desc, DescFlag, MAX_QUEUE_SIZE, noFeatures, type Ring, RingPart } from './ring.ts';

/** §2.7.5, struct virtq_desc: what follows the length, taken as one u32: flags in the lower half, next in the upper. */
const FLAGS_AND_NEXT = 12;
/** §2.7.6, struct virtq_avail. */
const Avail = { flags: 0, idx: 2, ring: 4 } as const;
const AvailFlag = { NoInterrupt: 1 } as const;
/** §2.7.8, struct virtq_used; elements are { u32 id, u32 len }. */
const Used = { flags: 0, idx: 2, ring: 4, elementSize: 8 } as const;
const UsedFlag = { NoNotify: 1 } as const;
/** Legacy rings: the used ring starts on the next boundary of this many bytes (§2.7.2, VIRTIO_PCI_VRING_ALIGN). */
const LEGACY_ALIGN = 4096;

/** §2.7: a power of two. */
export function isSplitQueueSize(size: number): boolean {
  return size > 0 && size <= MAX_QUEUE_SIZE && (size & (size - 1)) === 0;
}

/** Legacy layout (§2.7.2): the three parts follow each other from one page-aligned address. */
export function legacyAddresses(base: Gpa, size: number): { desc: Gpa; avail: Gpa; used: Gpa } {
  const avail = base + Desc.size * size;
  return { desc: base, avail, used: Math.ceil((avail + 6 + 2 * size) / LEGACY_ALIGN) * LEGACY_ALIGN };
}

export class SplitRing implements Ring {
  readonly isPacked = false;
  features = noFeatures;
  readonly #size: number;
  readonly #chains: ChainCollector;
  readonly #desc: RingPart;
  readonly #avail: RingPart;
  readonly #used: RingPart;
  /** Next entry of the available ring to take, and the driver's index when last looked at; both wrap at 2^16. */
  #lastAvail = 0;
  #seenAvail = 0;
  /** Next used index, counting elements that are written but not published. */
  #nextUsed = 0;
  #publishedUsed = 0;
  /** Used index at the last decision about an interrupt. */
  #signalledUsed = 0;

  constructor(size: number, chains: ChainCollector) {
    this.#size = size;
    this.#chains = chains;
    this.#desc = new RingPart(chains.ram);
    this.#avail = new RingPart(chains.ram);
    this.#used = new RingPart(chains.ram);
  }

  /** Start at index 0. §2.7: alignment 16, 2 and 4. @returns false unless everything is RAM and aligned. */
  place(desc: Gpa, avail: Gpa, used: Gpa): boolean {
    const size = this.#size;
    if (!isSplitQueueSize(size) || desc % 16 !== 0 || avail % 2 !== 0 || used % 4 !== 0) return false;
    // The event words are counted in: they are there whether used or not, as in the legacy layout.
    return (
      this.#desc.place(desc, Desc.size * size) &&
      this.#avail.place(avail, 6 + 2 * size) &&
      this.#used.place(used, 6 + Used.elementSize * size)
    );
  }

  get addresses() {
    return { desc: this.#desc.gpa, avail: this.#avail.gpa, used: this.#used.gpa };
  }

  /** The next index to take; that of the used ring is in memory. */
  get position(): number {
    return this.#lastAvail;
  }

  set position(lastAvail: number) {
    this.#lastAvail = lastAvail & 0xffff;
    this.#seenAvail = this.#lastAvail;
    this.#nextUsed = this.#used.u16(Used.idx);
    this.#publishedUsed = this.#nextUsed;
    this.#signalledUsed = this.#nextUsed;
  }

  hasNext(): boolean {
    return this.#lastAvail !== this.#seenAvail || this.#look();
  }

  /** @returns false, with the queue broken, if the driver's index makes no sense. */
  #look(): boolean {
    this.#seenAvail = this.#avail.u16(Avail.idx);
    const count = (this.#seenAvail - this.#lastAvail) & 0xffff;
    // §2.7.13.3: the driver never has more entries outstanding than the ring has.
    if (count <= this.#size) return count > 0;
    return this.#chains.fail(
      `available index ${this.#seenAvail} is ${count} ahead of a queue of ${this.#size} entries`,
    );
  }

  take(chain: Chain): boolean {
    const head = this.#avail.u16(Avail.ring + 2 * (this.#lastAvail & (this.#size - 1)));
    chain.id = head;
    chain.ringEntries = 1;
    if (!this.#walk(chain, head)) return false;
    this.#lastAvail = (this.#lastAvail + 1) & 0xffff;
    return true;
  }

  untake(): void {
    this.#lastAvail = (this.#lastAvail - 1) & 0xffff;
  }

  #walk(chain: Chain, head: number): boolean {
    const chains = this.#chains;
    let table = this.#desc;
    let tableSize = this.#size;
    let next = head;
    for (;;) {
      if (next >= tableSize) return chains.fail(`descriptor ${next} of a table of ${tableSize}`);
      // Longer than the ring it has a loop (§2.7.5.3.1); tables have a limit of their own.
      if (table === this.#desc && chain.descriptorCount >= tableSize) {
        return chains.fail(`chain of more than ${tableSize} descriptors`);
      }
      const at = next * Desc.size;
      const flagsAndNext = table.u32(at + FLAGS_AND_NEXT);
      const flags = flagsAndNext & 0xffff;
      if ((flags & DescFlag.Indirect) !== 0) {
        // §2.7.5.3.1: only if negotiated, never within an indirect table, never together with NEXT.
        // Compat: the C device model takes chains that go on after an indirect descriptor, no driver makes them.
        if (!this.features.indirect) return chains.fail('indirect descriptor, not negotiated');
        if (table !== this.#desc) return chains.fail('indirect descriptor within an indirect table');
        if ((flags & DescFlag.Next) !== 0) return chains.fail('descriptor with both INDIRECT and NEXT');
        tableSize = chains.openTable(table, at);
        if (tableSize === 0) return false;
        table = chains.table;
        next = 0;
        continue;
      }
      if (!chains.add(chain, table, at, (flags & DescFlag.Write) !== 0)) return false;
      if ((flags & DescFlag.Next) === 0) return true;
      next = flagsAndNext >>> 16;
    }
  }

  use(chain: Chain, writtenBytes: number): void {
    const at = Used.ring + Used.elementSize * (this.#nextUsed & (this.#size - 1));
    this.#used.setU32(at, chain.id);
    this.#used.setU32(at + 4, writtenBytes);
    this.#nextUsed = (this.#nextUsed + 1) & 0xffff;
  }

  publish(): boolean {
    if (this.#nextUsed === this.#publishedUsed) return false;
    // The elements are stored before the index: x86 keeps stores in order.
    this.#used.setU16(Used.idx, this.#nextUsed);
    this.#publishedUsed = this.#nextUsed;
    return true;
  }

  /** §2.7.7. */
  wantsInterrupt(isIdle: boolean): boolean {
    const before = this.#signalledUsed;
    const now = this.#publishedUsed;
    this.#signalledUsed = now;
    // A buffer the device took ahead and still has is not used up.
    if (this.features.notifyOnEmpty && isIdle && this.#avail.u16(Avail.idx) === this.#lastAvail) return true;
    if (this.features.eventIdx) {
      const usedEvent = this.#avail.u16(Avail.ring + 2 * this.#size);
      return ((now - usedEvent - 1) & 0xffff) < ((now - before) & 0xffff);
    }
    return (this.#avail.u16(Avail.flags) & AvailFlag.NoInterrupt) === 0;
  }

  suppressNotify(): void {
    // With the event index the flag means nothing; an avail_event that is not moved has the same effect (§2.7.10).
    if (!this.features.eventIdx) this.#used.setU16(Used.flags, UsedFlag.NoNotify);
  }

  requestNotify(): void {
    if (this.features.eventIdx) this.#used.setU16(Used.ring + Used.elementSize * this.#size, this.#lastAvail);
    else this.#used.setU16(Used.flags, 0);
  }
}
