/**
 * The two address spaces a guest's accesses come in by. Ports use a dense table (one array load per access), MMIO a
 * sorted list of ranges with a last-hit cache.
 */
import { type AccessSize, allOnes, hex } from './address.ts';
import type { IoRegion } from './device.ts';
import { BugError } from './errors.ts';

export interface AddressRange {
  readonly base: number;
  readonly size: number;
  /** For messages: `com1`, `pci 00:05.0 bar2`. */
  readonly name: string;
}

/** A range on a bus; dispose takes it off. */
export interface Registration {
  readonly range: AddressRange;
  dispose(): void;
}

export interface IoBus {
  readonly name: 'pio' | 'mmio';
  /** @throws BugError with both names if the ranges overlap. */
  register(range: AddressRange, region: IoRegion): Registration;
  /** Whether any byte of the range is taken; who has it, for the log. */
  findOverlap(base: number, size: number): AddressRange | undefined;
  /** @returns undefined where nobody answers. */
  read(address: number, size: AccessSize): number | undefined;
  /** @returns false where nobody answers. */
  write(address: number, size: AccessSize, value: number): boolean;
}

interface Entry {
  readonly range: AddressRange;
  readonly region: IoRegion;
}

const PORT_COUNT = 0x1_0000;

/** x86 I/O ports. An access is given to the device that owns its first port. */
export class PioBus implements IoBus {
  readonly name = 'pio';
  readonly #table: Array<Entry | undefined> = new Array(PORT_COUNT);

  register(range: AddressRange, region: IoRegion): Registration {
    const end = range.base + range.size;
    if (range.base < 0 || range.size <= 0 || end > PORT_COUNT) {
      throw new BugError(`pio: ${range.name} ${hex(range.base)}+${hex(range.size)} is outside the port space`);
    }
    const other = this.findOverlap(range.base, range.size);
    if (other !== undefined) throw overlap(this.name, range, other);
    const entry: Entry = { range, region };
    this.#table.fill(entry, range.base, end);
    return {
      range,
      dispose: () => {
        for (let port = range.base; port < end; port++) {
          if (this.#table[port] === entry) this.#table[port] = undefined;
        }
      },
    };
  }

  findOverlap(base: number, size: number): AddressRange | undefined {
    for (let port = base; port < base + size; port++) {
      const entry = this.#table[port];
      if (entry !== undefined) return entry.range;
    }
    return undefined;
  }

  read(port: number, size: AccessSize): number | undefined {
    const entry = this.#table[port];
    return entry?.region.read(port - entry.range.base, size);
  }

  write(port: number, size: AccessSize, value: number): boolean {
    const entry = this.#table[port];
    if (entry === undefined) return false;
    entry.region.write(port - entry.range.base, size, value);
    return true;
  }
}

/** Guest-physical addresses that are not RAM. */
export class MmioBus implements IoBus {
  readonly name = 'mmio';
  /** Sorted by base; never overlapping. */
  #entries: Entry[] = [];
  /** The entry of the previous access: drivers hit the same register block again and again. */
  #last: Entry | undefined;

  register(range: AddressRange, region: IoRegion): Registration {
    if (range.base < 0 || range.size <= 0 || !Number.isSafeInteger(range.base + range.size)) {
      throw new BugError(`mmio: ${range.name} ${hex(range.base)}+${hex(range.size)} is not a range`);
    }
    const other = this.findOverlap(range.base, range.size);
    if (other !== undefined) throw overlap(this.name, range, other);
    const entry: Entry = { range, region };
    this.#entries = [...this.#entries, entry].sort((a, b) => a.range.base - b.range.base);
    return {
      range,
      dispose: () => {
        this.#entries = this.#entries.filter((e) => e !== entry);
        if (this.#last === entry) this.#last = undefined;
      },
    };
  }

  findOverlap(base: number, size: number): AddressRange | undefined {
    return this.#entries.find((e) => base < e.range.base + e.range.size && e.range.base < base + size)?.range;
  }

  read(address: number, size: AccessSize): number | undefined {
    const entry = this.#find(address);
    if (entry === undefined) return undefined;
    const offset = address - entry.range.base;
    // An access that runs over the end of the range answers as unclaimed bus would.
    return offset + size > entry.range.size ? allOnes(size) : entry.region.read(offset, size);
  }

  write(address: number, size: AccessSize, value: number): boolean {
    const entry = this.#find(address);
    if (entry === undefined) return false;
    const offset = address - entry.range.base;
    if (offset + size <= entry.range.size) entry.region.write(offset, size, value);
    return true;
  }

  /** 64-bit read: one access where the device can, else two 32-bit ones, low half first, as the C device model does. */
  readU64(address: number): bigint | undefined {
    const entry = this.#find(address);
    if (entry === undefined) return undefined;
    const offset = address - entry.range.base;
    if (offset + 8 <= entry.range.size && entry.region.readU64 !== undefined) return entry.region.readU64(offset);
    const low = this.read(address, 4) ?? 0xffffffff;
    const high = this.read(address + 4, 4) ?? 0xffffffff;
    return BigInt(low) | (BigInt(high) << 32n);
  }

  writeU64(address: number, value: bigint): boolean {
    const entry = this.#find(address);
    if (entry === undefined) return false;
    const offset = address - entry.range.base;
    if (offset + 8 <= entry.range.size && entry.region.writeU64 !== undefined) {
      entry.region.writeU64(offset, value);
    } else {
      this.write(address, 4, Number(value & 0xffffffffn));
      this.write(address + 4, 4, Number(value >> 32n));
    }
    return true;
  }

  #find(address: number): Entry | undefined {
    const last = this.#last;
    if (last !== undefined && address >= last.range.base && address < last.range.base + last.range.size) return last;
    let low = 0;
    let high = this.#entries.length - 1;
    while (low <= high) {
      const middle = (low + high) >>> 1;
      const entry = this.#entries[middle] as Entry;
      if (address < entry.range.base) high = middle - 1;
      else if (address >= entry.range.base + entry.range.size) low = middle + 1;
      else {
        this.#last = entry;
        return entry;
      }
    }
    return undefined;
  }
}

function overlap(bus: string, a: AddressRange, b: AddressRange): BugError {
  const show = (r: AddressRange) => `${r.name} ${hex(r.base)}+${hex(r.size)}`;
  return new BugError(`${bus}: ${show(a)} overlaps ${show(b)}`);
}
