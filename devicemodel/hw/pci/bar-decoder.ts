/**
 * Keeps the buses in step with what the guest does to BARs and the command register. Spec: PCI Local Bus 3.0 §6.2.2
 * (which kinds are decoded) and §6.2.5 (where).
 */
import type { BarIndex } from '../../chips/pci-config-space.ts';
import { type AccessSize, allOnes, hex } from '../../core/address.ts';
import type { IoRegion } from '../../core/device.ts';
import type { IoBus } from '../../core/io-bus.ts';
import { Layout } from '../../core/layout.ts';
import type { Log } from '../../core/log.ts';
import type { GuestMemory } from '../../core/memory.ts';
import type { AccessGate } from '../../core/request-holds.ts';
import { GiB } from '../../core/units.ts';
import { barName } from './bar-allocator.ts';
import type { PciFunction } from './function.ts';
import { type BarSlot, configOf, functionOf, type Slot } from './slot.ts';

/** Ports of configuration mechanism 1: never a BAR's. */
const CONFIG_PORTS = { base: 0xcf8, end: 0xd00 } as const;
/** Beyond this no guest has address bits. */
const ADDRESS_LIMIT = 2 ** 52;

export interface BarDecoderOptions {
  readonly pio: IoBus;
  readonly mmio: IoBus;
  readonly memory: GuestMemory;
  readonly log: Log;
}

export class BarDecoder {
  readonly #options: BarDecoderOptions;
  readonly #blocked = new Set<BarSlot>();

  constructor(options: BarDecoderOptions) {
    this.#options = options;
  }

  /** The guest may have changed what the function decodes. */
  update(slot: Slot): void {
    // The hypervisor maps what is the device's own.
    if (functionOf(slot).backing === 'passthrough') return;
    const config = configOf(slot);
    this.#updateLegacy(slot);
    let hasFreed = false;
    for (const bar of slot.bars) {
      const { index, kind } = bar.placed.spec;
      const isDecoding = config.isDecoding(kind);
      // Some drivers size BARs while they decode: what they write then is no address, and the old one stays.
      if (isDecoding && config.isBarProbed(index)) continue;
      const address = isDecoding ? config.barAddress(index) : undefined;
      if (address === (bar.registration?.range.base ?? bar.blockedAt)) continue;
      if (bar.registration !== undefined) hasFreed = true;
      bar.registration?.dispose();
      bar.registration = undefined;
      this.#unblock(bar);
      if (address !== undefined) this.#decode(bar, address);
      notifyMoved(bar);
    }
    if (hasFreed) this.#retryBlocked();
  }

  /** Off the buses, without telling the function. */
  remove(slot: Slot): void {
    for (const registration of slot.legacy.splice(0)) registration.dispose();
    for (const bar of slot.bars) {
      this.#unblock(bar);
      bar.registration?.dispose();
      bar.registration = undefined;
    }
  }

  #updateLegacy(slot: Slot): void {
    const fn = functionOf(slot);
    if (fn.backing !== 'device-model') return;
    const config = configOf(slot);
    for (const range of fn.legacyRanges ?? []) {
      const bus = range.space === 'pio' ? this.#options.pio : this.#options.mmio;
      const at = slot.legacy.findIndex((registration) => registration.range === range);
      const isDecoding = config.isDecoding(range.space === 'pio' ? 'io' : 'mem32');
      if (!isDecoding && at >= 0) for (const registration of slot.legacy.splice(at, 1)) registration.dispose();
      if (isDecoding && at < 0 && bus.findOverlap(range.base, range.size) === undefined) {
        slot.legacy.push(bus.register(range, range.region));
      }
    }
  }

  #decode(bar: BarSlot, address: number): boolean {
    const { spec } = bar.placed;
    const name = barName(bar.owner.bdf, spec.index);
    const obstacle = this.#obstacle(spec.kind === 'io', address, spec.sizeBytes);
    if (obstacle !== undefined) {
      if (bar.blockedAt !== address) {
        this.#options.log.guest(() => `${name} at ${hex(address)}+${hex(spec.sizeBytes)} is not decoded: ${obstacle}`);
      }
      bar.blockedAt = address;
      this.#blocked.add(bar);
      return false;
    }
    const bus = spec.kind === 'io' ? this.#options.pio : this.#options.mmio;
    bar.registration = bus.register({ base: address, size: spec.sizeBytes, name }, bar.region);
    this.#unblock(bar);
    return true;
  }

  /** Why a range cannot be decoded, or undefined if it can. A guest may ask for any. */
  #obstacle(isIo: boolean, base: number, sizeBytes: number): string | undefined {
    const end = base + sizeBytes;
    if (base === 0) return 'it is address 0';
    if (isIo) {
      if (end > Layout.pciIo.end) return 'it is beyond the last port';
      if (base < CONFIG_PORTS.end && CONFIG_PORTS.base < end) return 'configuration ports are there';
    } else {
      const isLow = [Layout.pciMem32, Layout.pciMem32Firmware].some((w) => base >= w.base && end <= w.end);
      if (!isLow && !(base >= 4 * GiB && end <= ADDRESS_LIMIT)) return 'no PCI memory is there';
      if (this.#options.memory.regions.some((ram) => base < ram.base + ram.size && ram.base < end))
        return 'RAM is there';
    }
    const bus = isIo ? this.#options.pio : this.#options.mmio;
    const other = bus.findOverlap(base, sizeBytes);
    return other === undefined ? undefined : `${other.name} is there`;
  }

  #unblock(bar: BarSlot): void {
    bar.blockedAt = undefined;
    this.#blocked.delete(bar);
  }

  /** A range became free: a BAR that had to wait for it is decoded now. */
  #retryBlocked(): void {
    for (const bar of [...this.#blocked]) {
      if (this.#decode(bar, bar.blockedAt as number)) notifyMoved(bar);
    }
  }
}

function notifyMoved(bar: BarSlot): void {
  const fn = functionOf(bar.owner);
  if (fn.backing === 'device-model') fn.barMoved?.(bar.placed.spec.index, bar.registration?.range.base);
}

/** One BAR on its bus. */
export class BarRegion implements IoRegion {
  readonly #function: PciFunction;
  readonly #index: BarIndex;
  readonly #sizeBytes: number;
  readonly #gate: AccessGate | undefined;
  /** Only there if the function takes 64 bits at once. */
  readU64?: (offset: number) => bigint;
  writeU64?: (offset: number, value: bigint) => void;

  constructor(fn: PciFunction, index: BarIndex, sizeBytes: number) {
    this.#function = fn;
    this.#index = index;
    this.#sizeBytes = sizeBytes;
    if (fn.backing !== 'device-model') return;
    this.#gate = fn.gate;
    if (fn.readBarU64 !== undefined) this.readU64 = (offset) => fn.readBarU64?.(index, offset) as bigint;
    if (fn.writeBarU64 !== undefined) this.writeU64 = (offset, value) => fn.writeBarU64?.(index, offset, value);
  }

  read(offset: number, size: AccessSize): number {
    // A port access may start in the BAR and end behind it.
    if (offset + size > this.#sizeBytes) return allOnes(size);
    if (this.#gate?.isClosed === true) return this.#gate.postpone();
    const fn = this.#function;
    return (fn.backing === 'passthrough' ? undefined : fn.readBar?.(this.#index, offset, size)) ?? allOnes(size);
  }

  write(offset: number, size: AccessSize, value: number): void {
    const fn = this.#function;
    if (fn.backing !== 'device-model' || offset + size > this.#sizeBytes) return;
    if (this.#gate?.isClosed === true) this.#gate.postpone();
    else fn.writeBar(this.#index, offset, size, value);
  }
}
