/**
 * The driver of a hostile guest: sets devices up the way they want it, since chance alone hardly ever gets past
 * DRIVER_OK, and then breaks one rule after the other. It knows what a guest knows: configuration space, BARs, RAM.
 */
import type { BarIndex, BarSpec } from '../../devicemodel/chips/pci-config-space.ts';
import { type AccessSize, allOnes, type Gpa } from '../../devicemodel/core/address.ts';
import type { Random } from './random.ts';
import { type FuzzMachine, SLOT } from './virtio-machine.ts';

/** One descriptor of a request: what the device reads begins with `bytes`. */
export interface Piece {
  readonly write: boolean;
  readonly length: number;
  readonly bytes?: Uint8Array;
}

/** A request as a driver of this device would make it for queue `queue`. */
export type RequestShape = (random: Random, queue: number) => Piece[];

interface Ring {
  readonly isPacked: boolean;
  readonly size: number;
  readonly desc: Gpa;
  /** Available ring, or driver event area. */
  readonly avail: Gpa;
  /** Used ring, or device event area. */
  readonly used: Gpa;
  slot: number;
  wrap: boolean;
}

const Cfg = { command: 0x04, bar0: 0x10, capabilities: 0x34 } as const;
const CapId = { msi: 0x05, vendor: 0x09, msix: 0x11 } as const;
const Bar = { legacy: 0, msix: 1, notify: 2, modern: 4 } as const;
/** Virtio 1.2 §4.1.4.10, and §4.1.4.3 in BAR 4. */
const Legacy = { features: 0, accepted: 4, pfn: 8, size: 0x0c, select: 0x0e, notify: 0x10, status: 0x12 } as const;
const Modern = {
  ...{ deviceSelect: 0, deviceFeature: 4, driverSelect: 8, driverFeature: 12, configVector: 16, queues: 18 },
  ...{
    status: 20,
    select: 22,
    size: 24,
    vector: 26,
    enable: 28,
    desc: 32,
    avail: 40,
    used: 48,
    device: 0x2000,
    notify: 0x3000,
  },
} as const;
const PACKED_BIT_HIGH = 1 << 2;
const DescFlag = { next: 1, write: 2, indirect: 4, packedAvail: 1 << 7, packedUsed: 1 << 15 } as const;
const PAGE = 4096;
const SIZES: readonly AccessSize[] = [1, 2, 4];
/** Rings and buffers that are meant to work are placed in the chunks that touch. */
const LOW_RAM_BYTES = 0x40000;
/** A rule is broken about once in this many chances; by a guest that is to get some work done, in the second. */
const RARELY = { hostile: 200, busy: 20_000 } as const;
/** Requests in answer to one interrupt. */
const MAX_FLOOD = 64;
/** A busy guest's buffers are no longer than this: its RAM holds them. */
const BUSY_PIECE_BYTES = 0x8000;

export class HostileGuest {
  readonly #random: Random;
  readonly #machine: FuzzMachine;
  readonly #shape: RequestShape;
  readonly #chunks: ReadonlyArray<{ readonly base: Gpa; readonly bytes: Uint8Array }>;
  readonly #specs: readonly BarSpec[];
  readonly #rarely: number;
  readonly #homes: number[] = [];
  /** BARs as the guest reads them back; looked up again after every write to configuration space. */
  readonly #bars: number[] = [];
  #rings: Array<Ring | undefined> = [];
  /** A part of memory has just been set up: pokes go there more often. */
  #hot: Gpa = 0;
  /** Whether interrupts are answered with more requests. */
  isFlooding = false;
  kicks = 0;
  served = 0;

  constructor(random: Random, machine: FuzzMachine, shape: RequestShape) {
    this.#random = random;
    this.#machine = machine;
    this.#shape = shape;
    this.#chunks = machine.ram.memory.chunks;
    this.#specs = machine.fn.bars;
    this.#rarely = machine.isBusy ? RARELY.busy : RARELY.hostile;
    this.#readBars();
    this.#homes.push(...this.#bars);
    machine.onActivity = () => this.#react();
  }

  /** What other CPUs of the guest do meanwhile: nothing, harm, or so much work that the device is never done. */
  #react(): void {
    const random = this.#random;
    if (random.oneIn(this.#machine.isBusy ? this.#rarely : 8)) this.scribble();
    if (!this.isFlooding) return;
    const index = random.below(Math.max(this.#rings.length, 1));
    const ring = this.#rings[index];
    for (let n = Math.min(ring?.size ?? 0, MAX_FLOOD); ring !== undefined && n > 0; n--) this.#add(ring, index);
  }

  // Accesses.

  #cfgRead(offset: number, size: AccessSize): number {
    const value = this.#machine.host.readConfig(SLOT, offset, size);
    return within(value, size, `configuration register ${offset}`);
  }

  #cfgWrite(offset: number, size: AccessSize, value: number): void {
    this.#machine.host.writeConfig(SLOT, offset, size, cut(value, size));
    this.#readBars();
  }

  #readBars(): void {
    for (const { index, kind } of this.#specs) {
      const low = this.#cfgRead(Cfg.bar0 + 4 * index, 4);
      const high = kind === 'mem64' ? this.#cfgRead(Cfg.bar0 + 4 * index + 4, 4) : 0;
      this.#bars[index] = high * 0x1_0000_0000 + ((low & (kind === 'io' ? ~3 : ~15)) >>> 0);
    }
  }

  #isIo(bar: number): boolean {
    return bar === Bar.legacy || bar === Bar.notify;
  }

  read(bar: BarIndex, offset: number, size: AccessSize): number {
    const { pio, mmio } = this.#machine;
    const address = (this.#bars[bar] ?? 0) + offset;
    const value = this.#isIo(bar) ? pio.read(address, size) : mmio.read(address, size);
    return within(value ?? allOnes(size), size, `BAR ${bar} + ${offset}`);
  }

  write(bar: BarIndex, offset: number, size: AccessSize, value: number): void {
    const { pio, mmio, hsm } = this.#machine;
    const address = (this.#bars[bar] ?? 0) + offset;
    const cutValue = cut(value, size);
    if (hsm.kick(this.#isIo(bar) ? 'pio' : 'mmio', address, size, cutValue)) return;
    if (this.#isIo(bar)) pio.write(address, size, cutValue);
    else mmio.write(address, size, cutValue);
  }

  // Memory.

  /** A guest address in RAM. A busy guest keeps its buffers off its rings, and inside of RAM. */
  #place(length = 0): Gpa {
    const { isBusy } = this.#machine;
    const chunk = this.#random.pick(isBusy ? this.#chunks.slice(-1) : this.#chunks);
    const end = chunk.bytes.length - (isBusy ? length : 0);
    return chunk.base + this.#random.below(Math.max(end, 1));
  }

  #store(at: Gpa, bytes: Uint8Array): void {
    for (const chunk of this.#chunks) {
      const offset = at - chunk.base;
      if (offset >= 0 && offset + bytes.length <= chunk.bytes.length) chunk.bytes.set(bytes, offset);
    }
  }

  /** Another CPU of the guest scribbles, as it may at any moment. */
  scribble(): void {
    const random = this.#random;
    const chunk = random.pick(this.#chunks);
    const nearRing = this.#hot - chunk.base + random.below(64);
    const isNear = random.oneIn(2) && nearRing >= 0 && nearRing + 4 <= chunk.bytes.length;
    const at = isNear ? nearRing : random.below(chunk.bytes.length - 4);
    const value = random.value();
    for (let i = 0; i < 4; i++) chunk.bytes[at + i] = (value >>> (8 * i)) & 0xff;
  }

  // Set-up.

  setUp(): void {
    const random = this.#random;
    this.isFlooding = random.oneIn(6);
    if (!random.oneIn(16)) this.#restoreConfig();
    const { mode } = this.#machine.fn;
    this.#rings = [];
    if (mode === 'legacy' || (mode === 'transitional' && random.oneIn(2))) this.#setUpLegacy();
    else this.#setUpModern();
  }

  /** BARs where the machine put them, everything decoded, MSI-X on or off. */
  #restoreConfig(): void {
    for (const { index, kind } of this.#specs) {
      const home = this.#homes[index] as number;
      this.#cfgWrite(Cfg.bar0 + 4 * index, 4, home % 0x1_0000_0000);
      if (kind === 'mem64') this.#cfgWrite(Cfg.bar0 + 4 * index + 4, 4, Math.floor(home / 0x1_0000_0000));
    }
    this.#cfgWrite(Cfg.command, 2, 0x0007);
    const msix = this.#capability(CapId.msix);
    if (msix === undefined) return;
    this.#cfgWrite(msix + 2, 2, this.#random.oneIn(3) ? 0 : 0x8000);
    for (let vector = 0; vector < 4; vector++) this.#setVector(vector, this.#random.oneIn(4) ? 1 : 0);
  }

  #setVector(vector: number, control: number): void {
    const random = this.#random;
    const words = [
      random.oneIn(8) ? random.value() : 0xfee0_0000,
      random.oneIn(32) ? random.value() : 0,
      0x40,
      control,
    ];
    for (const [i, word] of words.entries()) this.write(Bar.msix, 16 * vector + 4 * i, 4, word);
  }

  #capability(id: number, type?: number): number | undefined {
    let at = this.#cfgRead(Cfg.capabilities, 1);
    for (let hops = 0; at >= 0x40 && hops < 48; hops++) {
      const isIt = this.#cfgRead(at, 1) === id && (type === undefined || this.#cfgRead(at + 3, 1) === type);
      if (isIt) return at;
      at = this.#cfgRead(at + 1, 1) & ~3;
    }
    return undefined;
  }

  #setUpLegacy(): void {
    const random = this.#random;
    this.write(Bar.legacy, Legacy.status, 1, 0);
    this.write(Bar.legacy, Legacy.status, 1, 3);
    const offered = this.read(Bar.legacy, Legacy.features, 4);
    if (!random.oneIn(16)) this.write(Bar.legacy, Legacy.accepted, 4, this.#someOf(offered));
    for (let index = 0; index < 6; index++) {
      this.write(Bar.legacy, Legacy.select, 2, index);
      const size = this.read(Bar.legacy, Legacy.size, 2);
      if (size === 0 || size > 0x8000 || random.oneIn(32)) continue;
      const desc = this.#ringPlace(size * 26 + 2 * PAGE);
      this.write(Bar.legacy, Legacy.pfn, 4, random.oneIn(this.#rarely) ? random.value() : desc / PAGE);
      const avail = desc + 16 * size;
      this.#useRing(index, {
        ...{ isPacked: false, size, desc, avail, slot: 0, wrap: true },
        used: Math.ceil((avail + 6 + 2 * size) / PAGE) * PAGE,
      });
    }
    if (!random.oneIn(16)) this.write(Bar.legacy, Legacy.status, 1, 7);
  }

  #setUpModern(): void {
    const random = this.#random;
    const common = (offset: number, size: AccessSize, value: number) => this.write(Bar.modern, offset, size, value);
    common(Modern.status, 1, 0);
    common(Modern.status, 1, 3);
    let high = 0;
    for (const half of [0, 1]) {
      common(Modern.deviceSelect, 4, half);
      const offered = this.read(Bar.modern, Modern.deviceFeature, 4);
      common(Modern.driverSelect, 4, half);
      const accepted = half === 0 || random.oneIn(16) ? this.#someOf(offered) : offered;
      const kept = half === 1 && random.oneIn(2) ? accepted & ~PACKED_BIT_HIGH : accepted;
      common(Modern.driverFeature, 4, kept);
      if (half === 1) high = kept;
    }
    common(Modern.status, 1, 0xb);
    if (random.oneIn(4)) common(Modern.configVector, 2, random.below(4));
    const queues = Math.min(this.read(Bar.modern, Modern.queues, 2), 6);
    for (let index = 0; index < queues; index++) {
      if (!random.oneIn(64)) this.#setUpModernQueue(index, (high & PACKED_BIT_HIGH) !== 0);
    }
    if (!random.oneIn(16)) common(Modern.status, 1, 0xf);
  }

  #setUpModernQueue(index: number, isPacked: boolean): void {
    const random = this.#random;
    const common = (offset: number, size: AccessSize, value: number) => this.write(Bar.modern, offset, size, value);
    common(Modern.select, 2, index);
    if (random.oneIn(2)) {
      // Packed rings need no power of two.
      const odd = isPacked && random.oneIn(3) ? 1 + random.below(200) : 1 << random.below(10);
      common(Modern.size, 2, random.oneIn(this.#rarely) ? random.value() : odd);
    }
    if (random.oneIn(2)) common(Modern.vector, 2, random.oneIn(16) ? random.value() : index + 1);
    const size = this.read(Bar.modern, Modern.size, 2);
    if (size === 0 || size > 0x8000) return;
    const desc = this.#ringPlace(size * 26 + 64);
    const avail = desc + 16 * size + (random.oneIn(8) ? 2 * random.below(100) : 0);
    const used = Math.ceil((avail + 6 + 2 * size) / 4) * 4;
    for (const [offset, right] of [
      [Modern.desc, desc],
      [Modern.avail, avail],
      [Modern.used, used],
    ] as const) {
      const at = random.oneIn(this.#rarely) ? random.wide() : right;
      common(offset, 4, at % 0x1_0000_0000);
      common(offset + 4, 4, Math.floor(at / 0x1_0000_0000));
    }
    this.#useRing(index, { isPacked, size, desc, avail, used, slot: 0, wrap: true });
    common(Modern.enable, 2, 1);
  }

  /** Room for a ring; at times over the seam of two chunks or at the end of RAM. */
  #ringPlace(bytes: number): Gpa {
    const pages = Math.max(Math.floor((LOW_RAM_BYTES - bytes) / PAGE), 1);
    if (this.#random.oneIn(16)) return Math.max(LOW_RAM_BYTES - Math.ceil(bytes / PAGE) * PAGE, 0);
    return this.#random.below(pages) * PAGE;
  }

  #useRing(index: number, ring: Ring): void {
    this.#rings[index] = ring;
    const { memory } = this.#machine.ram;
    const end = ring.used + 6 + 8 * ring.size;
    if (end > LOW_RAM_BYTES) return;
    for (const piece of memory.pieces(ring.desc, end - ring.desc)) piece.fill(0);
  }

  #someOf(offered: number): number {
    switch (this.#random.below(4)) {
      case 0:
        return (offered & this.#random.u32()) >>> 0;
      case 1:
        return this.#random.oneIn(16) ? this.#random.u32() : 0;
      default:
        return offered;
    }
  }

  // Requests.

  /** One to several requests and a kick. */
  offer(): void {
    const random = this.#random;
    const index = random.below(Math.max(this.#rings.length, 1));
    const ring = this.#rings[index];
    if (ring === undefined) return;
    const count = random.oneIn(8) ? 1 + random.below(20) : 1;
    const before = ring.isPacked ? 0 : this.#u16(ring.used + 2);
    const head = ring.slot;
    const headWrap = ring.wrap;
    for (let n = 0; n < count; n++) this.#add(ring, index);
    this.kick(index);
    if (ring.isPacked) {
      const flags = this.#u16(ring.desc + 16 * head + 14);
      const isUsed = ((flags & DescFlag.packedUsed) !== 0) === headWrap;
      if (isUsed && ((flags & DescFlag.packedAvail) !== 0) === headWrap) this.served++;
    } else {
      const served = (this.#u16(ring.used + 2) - before) & 0xffff;
      // Buffers also land in the used ring.
      if (served <= ring.size) this.served += served;
    }
  }

  #add(ring: Ring, index: number): void {
    const pieces = this.#shape(this.#random, index);
    if (pieces.length > 0) this.#offerChain(ring, pieces);
  }

  #offerChain(ring: Ring, pieces: readonly Piece[]): void {
    const random = this.#random;
    const isIndirect = random.oneIn(4);
    const table = isIndirect ? this.#place(16 * pieces.length) & ~15 : ring.desc;
    const id = ring.slot;
    const longest = this.#machine.isBusy ? BUSY_PIECE_BYTES : Number.POSITIVE_INFINITY;
    let end = 0;
    for (const [i, piece] of pieces.entries()) {
      // At times right behind the piece before.
      const at = random.oneIn(this.#rarely)
        ? random.wide()
        : random.oneIn(8) && !this.#machine.isBusy
          ? end
          : this.#place(Math.min(piece.length, longest));
      end = at + piece.length;
      const length = random.oneIn(this.#rarely) ? random.value() : Math.min(piece.length, longest);
      if (piece.bytes !== undefined) this.#store(at, piece.bytes);
      let flags = (i + 1 < pieces.length ? DescFlag.next : 0) | (piece.write ? DescFlag.write : 0);
      if (random.oneIn(this.#rarely)) flags = random.below(8);
      const slot = isIndirect ? i : (id + i) % ring.size;
      const next = isIndirect ? i + 1 : (id + i + 1) % ring.size;
      if (ring.isPacked) this.#packedDescriptor(ring, table, slot, at, length, flags, id, isIndirect);
      else this.#descriptor(table, slot, at, length, flags, random.oneIn(2 * this.#rarely) ? random.value() : next);
    }
    if (isIndirect) {
      const bytes = random.oneIn(this.#rarely) ? random.value() : 16 * pieces.length;
      const flags = DescFlag.indirect | (random.oneIn(this.#rarely) ? random.below(8) : 0);
      if (ring.isPacked) this.#packedDescriptor(ring, ring.desc, id, table, bytes, flags, id, false);
      else this.#descriptor(ring.desc, id, table, bytes, flags, 0);
    }
    this.#hot = ring.desc + 16 * id;
    this.#advance(ring, isIndirect ? 1 : pieces.length);
    if (ring.isPacked) return;
    const available = this.#u16(ring.avail + 2);
    this.#setU16(ring.avail + 4 + 2 * (available % ring.size), random.oneIn(this.#rarely) ? random.value() : id);
    this.#setU16(ring.avail + 2, available + (random.oneIn(2 * this.#rarely) ? random.below(0x10000) : 1));
    if (random.oneIn(16)) this.#setU16(ring.avail, random.below(4));
    // The event index: what the driver wants to be told of.
    if (random.oneIn(4)) this.#setU16(ring.avail + 4 + 2 * ring.size, available + random.below(4));
  }

  #advance(ring: Ring, count: number): void {
    const next = ring.slot + count;
    if (ring.isPacked && next >= ring.size) ring.wrap = !ring.wrap;
    ring.slot = next % ring.size;
  }

  #descriptor(table: Gpa, slot: number, address: number, length: number, flags: number, next: number): void {
    const at = table + 16 * slot;
    this.#setAddress(at, address, length);
    this.#setU16(at + 12, flags);
    this.#setU16(at + 14, next);
  }

  #packedDescriptor(
    ring: Ring,
    table: Gpa,
    slot: number,
    address: number,
    length: number,
    flags: number,
    id: number,
    isInTable: boolean,
  ): void {
    const at = table + 16 * slot;
    const wrap = slot < id && !isInTable ? !ring.wrap : ring.wrap;
    this.#setAddress(at, address, length);
    this.#setU16(at + 12, this.#random.oneIn(this.#rarely) ? this.#random.value() : id);
    this.#setU16(at + 14, isInTable ? flags : flags | (wrap ? DescFlag.packedAvail : DescFlag.packedUsed));
    if (this.#random.oneIn(16)) this.#setU16(ring.avail + 2, this.#random.below(4));
    if (this.#random.oneIn(16)) this.#setU16(ring.avail, this.#random.value());
  }

  #setAddress(at: Gpa, address: number, length: number): void {
    const { memory } = this.#machine.ram;
    if (!this.#isRam(at)) return;
    memory.writeU32(at, (address % 0x1_0000_0000) >>> 0);
    memory.writeU32(at + 4, Math.floor(address / 0x1_0000_0000));
    memory.writeU32(at + 8, length);
  }

  #isRam(at: Gpa): boolean {
    return this.#chunks.some(({ base, bytes }) => at >= base && at + 16 <= base + bytes.length);
  }

  #u16(at: Gpa): number {
    return this.#isRam(at) ? this.#machine.ram.memory.readU16(at) : 0;
  }

  #setU16(at: Gpa, value: number): void {
    if (this.#isRam(at)) this.#machine.ram.memory.writeU16(at, value & 0xffff);
  }

  kick(queue: number): void {
    this.kicks++;
    const { mode } = this.#machine.fn;
    const isLegacy = mode === 'legacy' || (mode === 'transitional' && this.#random.oneIn(3));
    if (isLegacy) this.write(Bar.legacy, Legacy.notify, 2, queue);
    else if (this.#random.oneIn(2)) this.write(Bar.notify, 0, 2, queue);
    else this.write(Bar.modern, Modern.notify + 4 * queue, 2, queue);
  }

  // Anything, anywhere.

  access(): void {
    const random = this.#random;
    if (random.oneIn(6)) {
      // Selectors and small fields at the start of the device's own configuration.
      this.write(Bar.modern, Modern.device + random.below(3), 1, random.below(0x13));
      this.read(Bar.modern, Modern.device + random.below(12), random.pick(SIZES));
      return;
    }
    const bar = random.pick<BarIndex>([0, 0, 1, 2, 4, 4]);
    const size = random.pick(SIZES);
    const offset =
      bar === Bar.modern
        ? random.below(4) * 0x1000 +
          (random.oneIn(16) ? 0x1000 - random.below(8) : random.below(random.oneIn(2) ? 12 : 72))
        : random.below(bar === Bar.msix ? 0x800 : 96);
    if (random.oneIn(3)) this.read(bar, offset, size);
    else this.write(bar, offset, size, random.value());
  }

  configAccess(): void {
    const random = this.#random;
    const size = random.pick(SIZES);
    switch (random.below(8)) {
      case 0:
        this.#cfgWrite(Cfg.command, 2, random.value());
        break;
      case 1: {
        // A BAR goes elsewhere: a plausible place, the place of another, or none.
        const { index, kind } = random.pick(this.#specs);
        const near = kind === 'io' ? 0x1000 + 16 * random.below(0xf00) : 0x8000_0000 + 0x1000 * random.below(64);
        const to = random.oneIn(4) ? random.value() : random.oneIn(4) ? random.pick(this.#homes) : near;
        this.#cfgWrite(Cfg.bar0 + 4 * index, 4, to ?? 0);
        if (kind === 'mem64' && random.oneIn(4)) this.#cfgWrite(Cfg.bar0 + 4 * index + 4, 4, random.value());
        break;
      }
      case 2: {
        const at = this.#capability(random.oneIn(4) ? CapId.msi : CapId.msix);
        if (at !== undefined) this.#cfgWrite(at + 2, 2, random.value());
        break;
      }
      case 3:
      case 4:
        this.#throughWindow();
        break;
      case 5:
        this.#cfgRead(random.below(0x1008), size);
        break;
      default:
        this.#cfgWrite(random.below(0x108), size, random.value());
    }
  }

  /** Virtio 1.2 §4.1.4.9: an access to a BAR by way of configuration space. */
  #throughWindow(): void {
    const random = this.#random;
    const at = this.#capability(CapId.vendor, 5);
    if (at === undefined) return;
    this.#cfgWrite(at + 4, 1, random.oneIn(16) ? random.value() : random.pick([0, 1, 2, 4, 4]));
    this.#cfgWrite(at + 8, 4, random.oneIn(16) ? random.value() : random.below(4) * 0x1000 + random.below(64));
    this.#cfgWrite(at + 12, 4, random.oneIn(16) ? random.value() : random.pick(SIZES));
    if (random.oneIn(2)) this.#cfgRead(at + 16, 4);
    else this.#cfgWrite(at + 16, random.pick(SIZES), random.value());
  }

  vectorAccess(): void {
    this.#setVector(this.#random.below(8), this.#random.below(4));
  }
}

function cut(value: number, size: AccessSize): number {
  return (value & allOnes(size)) >>> 0;
}

function within(value: number, size: AccessSize, what: string): number {
  if (Number.isInteger(value) && value >= 0 && value <= allOnes(size)) return value;
  throw new Error(`${what}: ${size} bytes read as ${value}`);
}
