/**
 * Config space of a function the hypervisor emulates: bytes, the bits a guest may change, and base address registers.
 *
 * Compat: a BAR is decoded whenever it is not 0 and not being sized, whatever the command register says, as in ACRN
 * (dm/vpci/vdev.c): bare-metal guests there never learned to set the memory enable bit. Writes to read-only registers
 * are dropped; ACRN lets a guest overwrite even the ids.
 */
import type { AccessSize, Gpa } from '../../../devicemodel/core/address.ts';

/** PCI 3.0 §6.1, figure 6-1. */
export const Register = {
  VendorId: 0x00,
  DeviceId: 0x02,
  Command: 0x04,
  Status: 0x06,
  RevisionId: 0x08,
  ProgIf: 0x09,
  Subclass: 0x0a,
  Class: 0x0b,
  CacheLineSize: 0x0c,
  LatencyTimer: 0x0d,
  HeaderType: 0x0e,
  Bar0: 0x10,
  SubsystemVendorId: 0x2c,
  SubsystemId: 0x2e,
  CapabilityPointer: 0x34,
  InterruptLine: 0x3c,
} as const;

/** Status: the capability list is there. */
const STATUS_CAPABILITIES = 1 << 4;
/** Command: I/O, memory, bus master, parity, SERR, INTx disable. */
const COMMAND_WRITABLE = 0x0547;
export const HEADER_MULTI_FUNCTION = 0x80;

const CONFIG_BYTES = 4096;
const FIRST_CAPABILITY = 0x40;
const TWO_32 = 0x1_0000_0000;

export interface BarRange {
  readonly index: number;
  readonly sizeBytes: number;
  readonly is64: boolean;
  readonly prefetchable: boolean;
  /** Address at create. */
  readonly base: Gpa;
  /** Where it is now; undefined: nowhere. Called when that changes. */
  place(base: Gpa | undefined): void;
}

export class ConfigSpace {
  readonly #bytes = new DataView(new ArrayBuffer(CONFIG_BYTES));
  readonly #writable = new Uint8Array(CONFIG_BYTES);
  readonly #bars: BarRange[] = [];
  readonly #placed = new Map<BarRange, Gpa | undefined>();
  /** BAR registers whose last write was all ones: they hold a size, not an address. */
  readonly #sizing = new Set<number>();
  readonly #hooks = new Map<number, () => void>();
  #freeCapability = FIRST_CAPABILITY;
  #lastCapability = 0;

  constructor() {
    this.allow(Register.Command, 2, COMMAND_WRITABLE);
    this.allow(Register.CacheLineSize, 1, 0xff);
    this.allow(Register.InterruptLine, 1, 0xff);
  }

  /** Set a register, whatever the guest may do. */
  set(offset: number, size: AccessSize, value: number): void {
    if (size === 1) this.#bytes.setUint8(offset, value);
    else if (size === 2) this.#bytes.setUint16(offset, value, true);
    else this.#bytes.setUint32(offset, value, true);
  }

  /** The guest may change these bits. */
  allow(offset: number, size: AccessSize, mask: number): void {
    for (let i = 0; i < size; i++) this.#writable[offset + i] = (mask >>> (8 * i)) & 0xff;
  }

  /** Call back after a guest's write that touched the dword at `offset`. */
  onWrite(offset: number, changed: () => void): void {
    this.#hooks.set(offset & ~3, changed);
  }

  /** Append to the capability list (PCI 3.0 §6.7); byte 1, the link, is filled in. @returns its offset */
  addCapability(capability: Uint8Array): number {
    const at = this.#freeCapability;
    for (let i = 0; i < capability.length; i++) this.#bytes.setUint8(at + i, capability[i] as number);
    this.#bytes.setUint8(at + 1, 0);
    if (this.#lastCapability === 0) {
      this.#bytes.setUint8(Register.CapabilityPointer, at);
      this.set(Register.Status, 2, this.read(Register.Status, 2) | STATUS_CAPABILITIES);
    } else {
      this.#bytes.setUint8(this.#lastCapability + 1, at);
    }
    this.#lastCapability = at;
    this.#freeCapability = (at + capability.length + 3) & ~3;
    return at;
  }

  /** A memory BAR, placed at its base at once. */
  addBar(bar: BarRange): void {
    this.#bars.push(bar);
    const offset = Register.Bar0 + 4 * bar.index;
    this.set(offset, 4, (bar.base % TWO_32) + typeBits(bar));
    if (bar.is64) this.set(offset + 4, 4, Math.floor(bar.base / TWO_32));
    this.#move(bar);
  }

  read(offset: number, size: AccessSize): number {
    if (size === 1) return this.#bytes.getUint8(offset);
    return size === 2 ? this.#bytes.getUint16(offset, true) : this.#bytes.getUint32(offset, true);
  }

  /** A guest's write; naturally aligned. */
  write(offset: number, size: AccessSize, value: number): void {
    for (const bar of this.#bars) {
      const at = Register.Bar0 + 4 * bar.index;
      if (offset < at || offset >= at + (bar.is64 ? 8 : 4)) continue;
      if (size !== 4) return; // only whole registers, as ACRN has it
      if (value === 0xffff_ffff) this.#sizing.add(offset);
      else this.#sizing.delete(offset);
      if (offset === at) this.set(at, 4, (value & -bar.sizeBytes & ~0xf) + typeBits(bar));
      else this.set(at + 4, 4, value);
      this.#move(bar);
      return;
    }
    for (let i = 0; i < size; i++) {
      const mask = this.#writable[offset + i] as number;
      const byte = (value >>> (8 * i)) & 0xff;
      const old = this.#bytes.getUint8(offset + i);
      this.#bytes.setUint8(offset + i, (old & ~mask) | (byte & mask));
    }
    this.#hooks.get(offset & ~3)?.();
  }

  /** Take every BAR away. */
  dispose(): void {
    for (const bar of this.#bars) {
      if (this.#placed.get(bar) !== undefined) bar.place(undefined);
      this.#placed.set(bar, undefined);
    }
  }

  #move(bar: BarRange): void {
    const base = this.#baseOf(bar);
    if (this.#placed.has(bar) && this.#placed.get(bar) === base) return;
    if (this.#placed.get(bar) !== undefined) bar.place(undefined);
    this.#placed.set(bar, base);
    if (base !== undefined) bar.place(base);
  }

  /** @returns undefined while the BAR is 0 or is being sized. */
  #baseOf(bar: BarRange): Gpa | undefined {
    const at = Register.Bar0 + 4 * bar.index;
    if (this.#sizing.has(at) || (bar.is64 && this.#sizing.has(at + 4))) return undefined;
    const low = (this.read(at, 4) & ~0xf) >>> 0;
    const base = (bar.is64 ? this.read(at + 4, 4) * TWO_32 : 0) + low;
    return base === 0 ? undefined : base;
  }
}

function typeBits(bar: BarRange): number {
  return (bar.is64 ? 4 : 0) | (bar.prefetchable ? 8 : 0);
}
