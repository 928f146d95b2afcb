/**
 * PCI configuration space of one function: bytes, what the guest may change of them, base address registers and the
 * capability lists. Spec: PCI Local Bus 3.0 chapter 6 (header, capabilities, BARs), PCI Express 4.0 chapter 7.
 *
 * The device side (`get*`, `set*`) sees bytes; the guest side (`read`, `write`) sees write masks, BARs and hooks.
 */
import { type AccessSize, allOnes, type Gpa, hex, type Port } from '../core/address.ts';
import { BugError } from '../core/errors.ts';

export type BarIndex = 0 | 1 | 2 | 3 | 4 | 5;

export interface BarSpec {
  readonly index: BarIndex;
  readonly kind: 'io' | 'mem32' | 'mem64';
  readonly sizeBytes: number;
  readonly prefetchable?: boolean;
  /** Port it has to be at. */
  readonly fixedAddress?: Port;
}

/** What a function says it is. */
export interface PciIdentity {
  readonly vendorId: number;
  readonly deviceId: number;
  readonly revisionId?: number;
  /** Class code 23:16, subclass 15:8, programming interface 7:0. */
  readonly classCode: number;
  readonly subsystemVendorId?: number;
  readonly subsystemId?: number;
  /** Header type register 0x0e: layout in bits 6:0, and bit 7 where whoever places functions does not set it. */
  readonly headerType?: number;
}

/** Offsets of the type 0 header (PCI 3.0 §6.1). */
export const Cfg = {
  VendorId: 0x00,
  DeviceId: 0x02,
  Command: 0x04,
  Status: 0x06,
  RevisionId: 0x08,
  ClassCode: 0x09,
  CacheLineSize: 0x0c,
  LatencyTimer: 0x0d,
  HeaderType: 0x0e,
  Bist: 0x0f,
  Bar0: 0x10,
  SubsystemVendorId: 0x2c,
  SubsystemId: 0x2e,
  ExpansionRom: 0x30,
  CapabilitiesPointer: 0x34,
  InterruptLine: 0x3c,
  InterruptPin: 0x3d,
} as const;

/** Offsets of the type 1 header, a bridge's (PCI-to-PCI Bridge 1.2 §3.2), where it differs from type 0. */
export const BridgeCfg = {
  PrimaryBus: 0x18,
  SecondaryBus: 0x19,
  SubordinateBus: 0x1a,
  SecondaryLatencyTimer: 0x1b,
  IoBase: 0x1c,
  IoLimit: 0x1d,
  MemoryBase: 0x20,
  MemoryLimit: 0x22,
  PrefetchableBase: 0x24,
  PrefetchableLimit: 0x26,
  PrefetchableBaseHigh: 0x28,
  PrefetchableLimitHigh: 0x2c,
  BridgeControl: 0x3e,
} as const;

/** Command register bits (PCI 3.0 §6.2.2). */
export const Command = {
  IoSpace: 1 << 0,
  MemorySpace: 1 << 1,
  BusMaster: 1 << 2,
  InterruptDisable: 1 << 10,
} as const;

/** Status register bits (PCI 3.0 §6.2.3). */
export const Status = { InterruptStatus: 1 << 3, CapabilitiesList: 1 << 4 } as const;

/** Capability ids (PCI Code and ID Assignment 1.11 §2). */
export const CapId = { PowerManagement: 0x01, Msi: 0x05, Vendor: 0x09, PciExpress: 0x10, Msix: 0x11 } as const;

/** Low bits of a BAR register (PCI 3.0 §6.2.5.1). */
const BarFlag = { Io: 1 << 0, TypeMask: 3 << 1, Mem64: 2 << 1, Prefetchable: 1 << 3 } as const;

/** What a BAR register that is in use says. @param high the register behind it, for one of 64 bits. */
export function decodeBar(
  low: number,
  high: number,
): { readonly kind: BarSpec['kind']; readonly address: Gpa | Port; readonly prefetchable: boolean } {
  if ((low & BarFlag.Io) !== 0) return { kind: 'io', address: (low & ~3) >>> 0, prefetchable: false };
  const isWide = (low & BarFlag.TypeMask) === BarFlag.Mem64;
  return {
    kind: isWide ? 'mem64' : 'mem32',
    address: (isWide ? high * 0x1_0000_0000 : 0) + ((low & ~0xf) >>> 0),
    prefetchable: (low & BarFlag.Prefetchable) !== 0,
  };
}

/** First capability; also the end of the type 0 header. */
const FIRST_CAPABILITY = 0x40;
const STANDARD_SIZE = 0x100;
/** In the header type register (§6.2.1). */
export const MULTIFUNCTION = 0x80;

/**
 * What a device does when the guest touches one of its special registers. `offset` counts from the start of the
 * configuration space, accesses are naturally aligned and inside the hooked dwords.
 */
export interface ConfigHook {
  /** @returns undefined to let the stored bytes answer. */
  read?(offset: number, size: AccessSize): number | undefined;
  /** @returns true if the write is dealt with; otherwise the bytes take it under their mask. */
  write?(offset: number, size: AccessSize, value: number): boolean;
  /** The bytes took a write. */
  written?(offset: number, size: AccessSize): void;
}

/** One base address register pair as the guest left it. */
interface Bar {
  readonly spec: BarSpec;
  readonly flags: number;
  /** Address bits of the low and the high register. */
  readonly lowMask: number;
  readonly highMask: number;
  initialAddress: number;
}

export interface ConfigSpaceOptions {
  /** Default 256; 4096 with extended capabilities. */
  readonly sizeBytes?: 256 | 4096;
  /** 0: a function with six BARs; 1: a bridge with two, and its bus numbers and windows behind them. Default 0. */
  readonly headerType?: 0 | 1;
  /**
   * What the guest may do to registers that no rule is given for. Default `writable`. Compat: the C device model lets
   * the guest overwrite everything, ids included; what it writes there only the guest itself reads.
   */
  readonly otherRegisters?: 'writable' | 'read-only';
  /** I/O BARs keep the upper 16 bits, too (PCI 3.0 §6.2.5.1 lets a PC leave them out). Default false. */
  readonly wideIoBars?: boolean;
}

export interface CapabilityOptions {
  /**
   * Which bits the guest may change, one byte per body byte (offset 2 of the capability first); missing bytes are
   * read-only. The two bytes of id and next pointer never change.
   */
  readonly writable?: Uint8Array | readonly number[];
  readonly hook?: ConfigHook;
}

export class ConfigSpace {
  readonly sizeBytes: 256 | 4096;
  /** The bytes themselves. The device may change them at will. */
  readonly bytes: Uint8Array;
  readonly #view: DataView;
  readonly #writable: Uint8Array;
  /** One slot per dword: an aligned access of at most 4 bytes never leaves it. */
  readonly #hooks: Array<ConfigHook | undefined>;
  readonly #bars: Array<Bar | undefined> = new Array(6);
  readonly #barEnd: number;
  /** Registers that hold the all-ones pattern of a size probe. */
  readonly #probed = new Uint8Array(6);
  #capabilityEnd = FIRST_CAPABILITY;
  #lastCapability = 0;
  #lastExtended = 0;
  #extendedEnd = STANDARD_SIZE;
  readonly #ioAddressMask: number;
  #msiControl = 0;
  #msixControl = 0;
  #sealed: Uint8Array | undefined;

  /**
   * The guest may have changed what is decoded or how interrupts are delivered (command register, BARs, MSI and MSI-X
   * control). The PCI host and nobody else takes this.
   */
  onControlWritten: (() => void) | undefined;

  constructor(options: ConfigSpaceOptions = {}) {
    const { sizeBytes = STANDARD_SIZE, headerType = 0, otherRegisters = 'writable', wideIoBars = false } = options;
    this.#ioAddressMask = wideIoBars ? 0xffff_ffff : 0xffff;
    this.sizeBytes = sizeBytes;
    this.#barEnd = Cfg.Bar0 + (headerType === 1 ? 2 : 6) * 4;
    this.bytes = new Uint8Array(sizeBytes);
    this.#view = new DataView(this.bytes.buffer);
    this.#hooks = new Array(sizeBytes / 4);
    this.#writable = new Uint8Array(sizeBytes);
    if (otherRegisters === 'writable') this.#writable.fill(0xff, 0, STANDARD_SIZE);
    this.setWritable(Cfg.CacheLineSize, [0xff]);
    this.setWritable(Cfg.InterruptLine, [0xff]);
    // PCI 3.0 §6.2.2: command bits 7 and 11-15 are reserved. Status bits are never set here except as read-only
    // facts, so write-1-to-clear has nothing to clear.
    this.setWritable(Cfg.Command, [0x7f, 0x07, 0, 0]);
    if (otherRegisters === 'writable') this.setWritable(Cfg.HeaderType, [0xff & ~MULTIFUNCTION]);
    this.setWritable(Cfg.Bar0, new Uint8Array(this.#barEnd - Cfg.Bar0));
    // No driver has an expansion ROM; a size probe reads zero.
    if (headerType === 0) this.setWritable(Cfg.ExpansionRom, new Uint8Array(4));
  }

  /** Write the header's ids, class and layout. */
  setIdentity(identity: PciIdentity): void {
    this.set16(Cfg.VendorId, identity.vendorId);
    this.set16(Cfg.DeviceId, identity.deviceId);
    this.set8(Cfg.RevisionId, identity.revisionId ?? 0);
    this.set8(Cfg.ClassCode, identity.classCode & 0xff);
    this.set16(Cfg.ClassCode + 1, identity.classCode >>> 8);
    this.set8(Cfg.HeaderType, identity.headerType ?? 0);
    if (this.#barEnd !== Cfg.Bar0 + 24) return; // a bridge has its windows there
    this.set16(Cfg.SubsystemVendorId, identity.subsystemVendorId ?? 0);
    this.set16(Cfg.SubsystemId, identity.subsystemId ?? 0);
  }

  // Device side: no masks, no hooks.

  get8(offset: number): number {
    return this.#view.getUint8(offset);
  }
  get16(offset: number): number {
    return this.#view.getUint16(offset, true);
  }
  get32(offset: number): number {
    return this.#view.getUint32(offset, true);
  }
  set8(offset: number, value: number): void {
    this.#view.setUint8(offset, value);
  }
  set16(offset: number, value: number): void {
    this.#view.setUint16(offset, value, true);
  }
  set32(offset: number, value: number): void {
    this.#view.setUint32(offset, value, true);
  }

  /** Which bits the guest may change, byte by byte from `offset`. */
  setWritable(offset: number, mask: ArrayLike<number>): void {
    this.#writable.set(mask, offset);
  }

  /** Special registers: every access to a dword that [offset, offset+sizeBytes) touches goes by the hook first. */
  hook(offset: number, sizeBytes: number, hook: ConfigHook): void {
    for (let dword = offset >>> 2; dword < (offset + sizeBytes + 3) >>> 2; dword++) {
      if (this.#hooks[dword] !== undefined || dword >= this.#hooks.length) {
        throw new BugError(`PCI config: two hooks on, or no register at ${hex(dword * 4)}`);
      }
      this.#hooks[dword] = hook;
    }
  }

  /** The host writes the multifunction bit once it knows the whole slot. */
  setMultifunction(isMultifunction: boolean): void {
    const layout = this.get8(Cfg.HeaderType) & ~MULTIFUNCTION;
    this.set8(Cfg.HeaderType, layout | (isMultifunction ? MULTIFUNCTION : 0));
  }

  // Capabilities.

  /**
   * Append to the capability list.
   * @param body what follows the id and next pointer bytes (PCI 3.0 §6.7), for a vendor capability its length byte first.
   * @returns the offset of the capability in the configuration space.
   * @throws BugError if the 256 bytes are full.
   */
  addCapability(id: number, body: ArrayLike<number>, options: CapabilityOptions = {}): number {
    const offset = this.#capabilityEnd;
    const length = (2 + body.length + 3) & ~3;
    if (offset + length > STANDARD_SIZE) throw new BugError(`PCI config: no room for capability ${hex(id)}`);
    if (this.#lastCapability === 0) {
      this.set8(Cfg.CapabilitiesPointer, offset);
      this.set16(Cfg.Status, this.get16(Cfg.Status) | Status.CapabilitiesList);
    } else {
      this.set8(this.#lastCapability + 1, offset);
    }
    this.set8(offset, id);
    this.set8(offset + 1, 0);
    this.bytes.set(body, offset + 2);
    this.#writable.fill(0, offset, offset + length);
    if (options.writable !== undefined) this.setWritable(offset + 2, options.writable);
    if (options.hook !== undefined) this.hook(offset, length, options.hook);
    if (id === CapId.Msi) this.#msiControl = offset + 2;
    if (id === CapId.Msix) this.#msixControl = offset + 2;
    this.#lastCapability = offset;
    this.#capabilityEnd = offset + length;
    return offset;
  }

  /**
   * Append to the extended capability list (PCI Express 4.0 §7.6.1).
   * @param body what follows the 4-byte header.
   * @returns the offset of the header.
   * @throws BugError in a 256-byte space or when it is full.
   */
  addExtendedCapability(id: number, version: number, body: ArrayLike<number>, options: CapabilityOptions = {}): number {
    const offset = this.#extendedEnd;
    const length = (4 + body.length + 3) & ~3;
    if (offset + length > this.sizeBytes) throw new BugError(`PCI config: no room for extended capability ${hex(id)}`);
    if (this.#lastExtended !== 0) {
      this.set32(this.#lastExtended, ((this.get32(this.#lastExtended) & 0xfffff) | (offset << 20)) >>> 0);
    }
    this.set32(offset, ((version << 16) | id) >>> 0);
    this.bytes.set(body, offset + 4);
    if (options.writable !== undefined) this.setWritable(offset + 4, options.writable);
    if (options.hook !== undefined) this.hook(offset, length, options.hook);
    this.#lastExtended = offset;
    this.#extendedEnd = offset + length;
    return offset;
  }

  /**
   * PCI Express capability of version 2 (PCI Express 4.0 §7.5.3), 60 bytes, for the given device/port type. Nothing
   * follows from what the guest writes there. Compat: so all of it can be written, as with the C device model.
   */
  addExpressCapability(portType: number, link: { readonly capabilities: number; readonly status: number }): number {
    const body = new Uint8Array(58);
    const view = new DataView(body.buffer);
    const PCIE_VERSION = 2;
    // Offsets in the body are the spec's minus 2.
    view.setUint16(0x00, PCIE_VERSION | (portType << 4), true);
    view.setUint32(0x0a, link.capabilities, true);
    view.setUint16(0x10, link.status, true);
    return this.addCapability(CapId.PciExpress, body, { writable: new Uint8Array(body.length).fill(0xff) });
  }

  /**
   * @returns the offset of the first capability with this id, or undefined. Follows the list as built, not as the
   * guest may have overwritten it.
   */
  findCapability(id: number): number | undefined {
    if (this.#lastCapability === 0) return undefined;
    for (let offset: number = FIRST_CAPABILITY; offset !== 0; offset = this.get8(offset + 1)) {
      if (this.get8(offset) === id) return offset;
    }
    return undefined;
  }

  // Interrupt mode, read live from the registers the guest writes.

  get isMsiEnabled(): boolean {
    return this.#msiControl !== 0 && (this.get16(this.#msiControl) & 0x0001) !== 0;
  }
  get isMsixEnabled(): boolean {
    return this.#msixControl !== 0 && (this.get16(this.#msixControl) & 0x8000) !== 0;
  }
  /** Legacy interrupts may be driven: neither MSI nor MSI-X is on and the guest did not disable them. */
  get isIntxPermitted(): boolean {
    return !this.isMsiEnabled && !this.isMsixEnabled && (this.get16(Cfg.Command) & Command.InterruptDisable) === 0;
  }

  // Base address registers.

  /**
   * Define a BAR and its power-on address.
   * @param spec size is a power of two; a 64-bit one takes the next register too.
   */
  defineBar(spec: BarSpec, address: Gpa | Port): void {
    const { index, kind, sizeBytes } = spec;
    const isUpperHalf = index > 0 && this.#bars[index - 1]?.spec.kind === 'mem64';
    const hasUpperHalf = kind !== 'mem64' || (index < 5 && this.#bars[index + 1] === undefined);
    if (this.#bars[index] !== undefined || isUpperHalf || !hasUpperHalf) {
      throw new BugError(`PCI config: BAR ${index} is taken`);
    }
    let flags: number = kind === 'io' ? BarFlag.Io : kind === 'mem64' ? BarFlag.Mem64 : 0;
    if (kind !== 'io' && spec.prefetchable === true) flags |= BarFlag.Prefetchable;
    const ioMask = this.#ioAddressMask & -sizeBytes;
    const lowMask = kind === 'io' ? ioMask >>> 0 : sizeBytes > 0xffffffff ? 0 : -sizeBytes >>> 0;
    const highMask =
      sizeBytes > 0xffffffff ? (0x1_0000_0000 - Math.floor(sizeBytes / 0x1_0000_0000)) >>> 0 : 0xffffffff;
    this.#bars[index] = { spec, flags, lowMask, highMask, initialAddress: address };
    this.#setBar(index, address);
  }

  /** Where the guest has put the BAR. Not a safe integer for the wildest 64-bit values: check before use. */
  barAddress(index: BarIndex): Gpa | Port {
    const bar = this.#bars[index];
    if (bar === undefined) return 0;
    const low = (this.get32(Cfg.Bar0 + index * 4) & bar.lowMask) >>> 0;
    return bar.spec.kind === 'mem64' ? this.get32(Cfg.Bar0 + index * 4 + 4) * 0x1_0000_0000 + low : low;
  }

  /** Whether the BAR holds the pattern of a size probe and not an address. */
  isBarProbed(index: BarIndex): boolean {
    return this.#probed[index] === 1 || (this.#bars[index]?.spec.kind === 'mem64' && this.#probed[index + 1] === 1);
  }

  /** Whether the command register lets this kind of BAR decode. */
  isDecoding(kind: BarSpec['kind']): boolean {
    return (this.get16(Cfg.Command) & (kind === 'io' ? Command.IoSpace : Command.MemorySpace)) !== 0;
  }

  #setBar(index: BarIndex, address: number): void {
    const bar = this.#bars[index] as Bar;
    const low = address % 0x1_0000_0000;
    this.set32(Cfg.Bar0 + index * 4, ((low & bar.lowMask) | bar.flags) >>> 0);
    if (bar.spec.kind === 'mem64') this.set32(Cfg.Bar0 + index * 4 + 4, Math.floor(address / 0x1_0000_0000));
  }

  #writeBar(offset: number, size: AccessSize, value: number): void {
    // Compat: PCI 3.0 allows byte enables here, the C device model ignores all but dword writes.
    if (size !== 4) return;
    const register = (offset - Cfg.Bar0) >>> 2;
    const bar = this.#bars[register];
    if (bar !== undefined) {
      this.set32(offset, ((value & bar.lowMask) | bar.flags) >>> 0);
    } else {
      const lower = register > 0 ? this.#bars[register - 1] : undefined;
      if (lower?.spec.kind !== 'mem64') return;
      this.set32(offset, (value & lower.highMask) >>> 0);
    }
    this.#probed[register] = value === 0xffffffff ? 1 : 0;
    this.onControlWritten?.();
  }

  // Guest side.

  /** @returns unsigned; unaligned accesses and offsets beyond the space read as all ones. */
  read(offset: number, size: AccessSize): number {
    if ((offset & (size - 1)) !== 0) return allOnes(size);
    if (offset >= this.sizeBytes) {
      // PCI Express 4.0 §7.6.1: "no extended capabilities" is a first header of zero.
      return offset < STANDARD_SIZE + 4 ? 0 : allOnes(size);
    }
    const special = this.#hooks[offset >>> 2]?.read?.(offset, size);
    if (special !== undefined) return special;
    return size === 4 ? this.get32(offset) : size === 2 ? this.get16(offset) : this.get8(offset);
  }

  /** Unaligned accesses and offsets beyond the space do nothing. */
  write(offset: number, size: AccessSize, value: number): void {
    if ((offset & (size - 1)) !== 0 || offset >= this.sizeBytes) return;
    const hook = this.#hooks[offset >>> 2];
    if (hook?.write?.(offset, size, value) === true) return;
    if (offset >= Cfg.Bar0 && offset < this.#barEnd) {
      this.#writeBar(offset, size, value);
      return;
    }
    for (let i = 0; i < size; i++) {
      const mask = this.#writable[offset + i] as number;
      const byte = (value >>> (8 * i)) & 0xff;
      this.bytes[offset + i] = ((this.bytes[offset + i] as number) & ~mask) | (byte & mask);
    }
    hook?.written?.(offset, size);
    const dword = offset & ~3;
    if (dword === Cfg.Command || dword === this.#msiControl - 2 || dword === this.#msixControl - 2) {
      this.onControlWritten?.();
    }
  }

  // Reset.

  /** The header is complete: what is there now is the power-on state. */
  seal(): void {
    this.#sealed = this.bytes.slice();
  }

  /** Back to the state of {@link seal}; BARs to the addresses they were defined with. Runs no hook. */
  reset(): void {
    if (this.#sealed === undefined) throw new BugError('PCI config: reset before seal');
    this.bytes.set(this.#sealed);
    this.#probed.fill(0);
    for (const bar of this.#bars) {
      if (bar !== undefined) this.#setBar(bar.spec.index, bar.initialAddress);
    }
    this.onControlWritten?.();
  }
}
