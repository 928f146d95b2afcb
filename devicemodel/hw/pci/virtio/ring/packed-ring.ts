/**
 * Packed virtqueue (Virtio 1.2 §2.8), device side: one ring of descriptors that both sides write, each going round it
 * with a wrap counter of its own, and two words that say which events either side wants.
 */
import type { Gpa } from '../../../../core/address.ts';
import type { Chain } from './chain.ts';
import { type ChainCollector, Desc, DescFlag, MAX_QUEUE_SIZE, noFeatures, type Ring, RingPart } from './ring.ts';

/** §2.8.13, struct pvirtq_desc: what follows the length. */
const PackedDesc = { id: 12, flags: 14 } as const;
/** Both at once: the id in the lower half, the flags in the upper. */
const FLAGS_SHIFT = 16;
/** §2.8.1. */
const WrapFlag = { Avail: 1 << 7, Used: 1 << 15 } as const;
/** §2.8.14, struct pvirtq_event_suppress, taken as one u32: offset and wrap counter as in `Place.word`, then the flags. */
const EVENT_BYTES = 4;
const EVENT_FLAGS_SHIFT = 16;
/** §2.8.10, RING_EVENT_FLAGS_*. */
const EventFlags = { Enable: 0, Disable: 1, Desc: 2, mask: 3 } as const;

/** §2.8: any number; not a power of two only. */
export function isPackedQueueSize(size: number): boolean {
  return size > 0 && size <= MAX_QUEUE_SIZE;
}

/** A place in the ring and the wrap counter that goes with it (§2.8.1). */
class Place {
  index = 0;
  wrap = 1;
  readonly #size: number;

  constructor(size: number) {
    this.#size = size;
  }

  /** @param count of descriptors, at most the size of the ring; negative: back. */
  move(count: number): void {
    this.index += count;
    if (this.index >= this.#size) {
      this.index -= this.#size;
      this.wrap ^= 1;
    } else if (this.index < 0) {
      this.index += this.#size;
      this.wrap ^= 1;
    }
  }

  /** As in event suppression structures and in vhost: the index in 15 bits, then the wrap counter. */
  get word(): number {
    return this.index | (this.wrap << 15);
  }

  set word(value: number) {
    this.index = (value & 0x7fff) % this.#size;
    this.wrap = (value >>> 15) & 1;
  }
}

export class PackedRing implements Ring {
  readonly isPacked = true;
  features = noFeatures;
  readonly #size: number;
  readonly #chains: ChainCollector;
  readonly #desc: RingPart;
  readonly #driverEvents: RingPart;
  readonly #deviceEvents: RingPart;
  readonly #nextAvail: Place;
  readonly #nextUsed: Place;
  /** Byte offset of the first used descriptor whose flags are still to be written; -1: none. */
  #unpublishedAt = -1;
  #unpublishedFlags = 0;
  /** Descriptors used since the last decision about an interrupt. */
  #usedSinceDecision = 0;

  constructor(size: number, chains: ChainCollector) {
    this.#size = size;
    this.#chains = chains;
    this.#desc = new RingPart(chains.ram);
    this.#driverEvents = new RingPart(chains.ram);
    this.#deviceEvents = new RingPart(chains.ram);
    this.#nextAvail = new Place(size);
    this.#nextUsed = new Place(size);
  }

  /** Start at descriptor 0. §2.8.10.1: alignment 16, 4 and 4. @returns false unless everything is RAM and aligned. */
  place(desc: Gpa, driverEvents: Gpa, deviceEvents: Gpa): boolean {
    const size = this.#size;
    if (!isPackedQueueSize(size) || desc % 16 !== 0 || driverEvents % 4 !== 0 || deviceEvents % 4 !== 0) return false;
    return (
      this.#desc.place(desc, Desc.size * size) &&
      this.#driverEvents.place(driverEvents, EVENT_BYTES) &&
      this.#deviceEvents.place(deviceEvents, EVENT_BYTES)
    );
  }

  get addresses() {
    return { desc: this.#desc.gpa, avail: this.#driverEvents.gpa, used: this.#deviceEvents.gpa };
  }

  /** Next to take in the lower 16 bits, next to use in the upper. */
  get position(): number {
    return (this.#nextAvail.word | (this.#nextUsed.word << 16)) >>> 0;
  }

  set position(value: number) {
    this.#nextAvail.word = value & 0xffff;
    this.#nextUsed.word = value >>> 16;
    this.#unpublishedAt = -1;
    this.#usedSinceDecision = 0;
  }

  /** §2.8.1: available is a descriptor with AVAIL like the wrap counter and USED unlike it. */
  hasNext(): boolean {
    const { index, wrap } = this.#nextAvail;
    const flags = this.#desc.u16(index * Desc.size + PackedDesc.flags);
    return (flags & (WrapFlag.Avail | WrapFlag.Used)) === (wrap === 1 ? WrapFlag.Avail : WrapFlag.Used);
  }

  /** §2.8.6: the first descriptor is made available after all others, so that one look at it is enough. */
  take(chain: Chain): boolean {
    const chains = this.#chains;
    const desc = this.#desc;
    let { index } = this.#nextAvail;
    for (;;) {
      if (chain.ringEntries >= this.#size) return chains.fail(`chain of more than ${this.#size} descriptors`);
      const at = index * Desc.size;
      const idAndFlags = desc.u32(at + PackedDesc.id);
      const flags = idAndFlags >>> FLAGS_SHIFT;
      chain.ringEntries++;
      if ((flags & DescFlag.Indirect) !== 0) {
        // §2.8.19: only if negotiated, and never part of a chain.
        if (!this.features.indirect) return chains.fail('indirect descriptor, not negotiated');
        if (chain.ringEntries > 1 || (flags & DescFlag.Next) !== 0)
          return chains.fail('indirect descriptor in a chain');
        if (!this.#takeTable(chain, at)) return false;
      } else if (!chains.add(chain, desc, at, (flags & DescFlag.Write) !== 0)) {
        return false;
      }
      if ((flags & DescFlag.Next) === 0) {
        // The last descriptor has the buffer id. It means nothing to the device, which only gives it back.
        chain.id = idAndFlags & 0xffff;
        break;
      }
      index = index + 1 === this.#size ? 0 : index + 1;
    }
    this.#nextAvail.move(chain.ringEntries);
    return true;
  }

  /** §2.8.7: every descriptor of the table, one after the other; of their flags only WRITE counts. */
  #takeTable(chain: Chain, at: number): boolean {
    const chains = this.#chains;
    const count = chains.openTable(this.#desc, at);
    for (let i = 0; i < count; i++) {
      const flags = chains.table.u16(i * Desc.size + PackedDesc.flags);
      if (!chains.add(chain, chains.table, i * Desc.size, (flags & DescFlag.Write) !== 0)) return false;
    }
    return count > 0;
  }

  untake(chain: Chain): void {
    this.#nextAvail.move(-chain.ringEntries);
  }

  /**
   * §2.8.6: one used descriptor for the whole chain, then on by as many descriptors as the chain had. The driver looks at
   * the next one only: as long as the first that is written lacks its flags it sees none of those behind it.
   */
  use(chain: Chain, writtenBytes: number): void {
    const { index, wrap } = this.#nextUsed;
    const at = index * Desc.size;
    const flags = (wrap === 1 ? WrapFlag.Avail | WrapFlag.Used : 0) | (writtenBytes > 0 ? DescFlag.Write : 0);
    this.#desc.setU32(at + Desc.length, writtenBytes);
    this.#desc.setU16(at + PackedDesc.id, chain.id);
    if (this.#unpublishedAt < 0) {
      this.#unpublishedAt = at;
      this.#unpublishedFlags = flags;
    } else {
      this.#desc.setU16(at + PackedDesc.flags, flags);
    }
    this.#nextUsed.move(chain.ringEntries);
    this.#usedSinceDecision += chain.ringEntries;
  }

  publish(): boolean {
    if (this.#unpublishedAt < 0) return false;
    // Everything else is stored before these flags: x86 keeps stores in order.
    this.#desc.setU16(this.#unpublishedAt + PackedDesc.flags, this.#unpublishedFlags);
    this.#unpublishedAt = -1;
    return true;
  }

  /** §2.8.10. */
  wantsInterrupt(): boolean {
    const used = this.#usedSinceDecision;
    this.#usedSinceDecision = 0;
    const event = this.#driverEvents.u32(0);
    const flags = (event >>> EVENT_FLAGS_SHIFT) & EventFlags.mask;
    if (flags === EventFlags.Disable) return false;
    // A reserved value, or one that was not negotiated: better an interrupt too many.
    if (flags !== EventFlags.Desc || !this.features.eventIdx) return true;
    // Counted from the start of this round: places of the round before are negative.
    const { index, wrap } = this.#nextUsed;
    const wanted = (event & 0x7fff) - (((event >>> 15) & 1) === wrap ? 0 : this.#size);
    return wanted >= index - used && wanted < index;
  }

  suppressNotify(): void {
    this.#deviceEvents.setU32(0, EventFlags.Disable << EVENT_FLAGS_SHIFT);
  }

  requestNotify(): void {
    // At once: the driver must not see the new flags with the old place.
    this.#deviceEvents.setU32(
      0,
      this.features.eventIdx ? this.#nextAvail.word | (EventFlags.Desc << EVENT_FLAGS_SHIFT) : EventFlags.Enable,
    );
  }
}
