/**
 * Where BARs go at power-on. The same algorithm as the C device model, so that a guest finds every device where it
 * was: one cursor per window, moving up in the order of allocation and never back.
 */
import type { BarSpec } from '../../chips/pci-config-space.ts';
import { formatBdf, hex } from '../../core/address.ts';
import { ConfigError } from '../../core/errors.ts';
import { Layout } from '../../core/layout.ts';
import { alignUp, formatSize, isPowerOfTwo, KiB, MiB } from '../../core/units.ts';

/** EPT maps pages: smaller BARs get a page of their own, I/O BARs too. */
const PAGE = 4 * KiB;
/** 64-bit BARs up to here go below 4 GiB, since some guest drivers fail with high ones, unless firmware is OVMF. */
const SMALL_MEM64 = 32 * MiB;
/** Room left behind each bus for a guest that moves BARs. */
const BUS_IO_SLOP = 32;
const BUS_MEMORY_SLOP = 1 * MiB;

export type BarWindowName = 'io' | 'mem32' | 'mem64';

export interface AddressWindow {
  readonly base: number;
  /** Exclusive. */
  readonly end: number;
}

interface ReservedRange extends AddressWindow {
  readonly isIo: boolean;
  /** By a function: its bus takes it. */
  readonly isDecoded: boolean;
}

/** What a bus got of each window, for the ACPI resources. */
export type BusWindows = Readonly<Record<BarWindowName, AddressWindow>>;

export interface PlacedBar {
  /** With the size rounded up to a power of two and `prefetchable` as the register shows it. */
  readonly spec: BarSpec;
  readonly address: number;
}

/** PCI 3.0 §6.2.5.1: power of two, at least 4 ports or 16 bytes. */
export function barSize(spec: BarSpec): number {
  const least = spec.kind === 'io' ? 4 : 16;
  const size = Math.max(spec.sizeBytes, least);
  return isPowerOfTwo(size) ? size : 2 ** Math.ceil(Math.log2(size));
}

export class BarAllocator {
  readonly #cursor: Record<BarWindowName, number> = {
    io: Layout.pciIo.base,
    mem32: Layout.pciMem32.base,
    mem64: Layout.pciMem64.base,
  };
  readonly #end: Readonly<Record<BarWindowName, number>> = {
    io: Layout.pciIo.end,
    mem32: Layout.pciMem32.end,
    mem64: Layout.pciMem64.end,
  };
  readonly #reserved: ReservedRange[] = [];
  readonly #hasOvmf: boolean;
  #busStart: Record<BarWindowName, number>;

  constructor(options: { readonly hasOvmf: boolean }) {
    this.#hasOvmf = options.hasOvmf;
    this.#busStart = { ...this.#cursor };
  }

  /** Keep BARs out of a range: what passthrough devices need at the host's own addresses. Its bus decodes such ports. */
  reserve(space: 'io' | 'memory', base: number, sizeBytes: number): void {
    this.#keepFree({ base, end: base + sizeBytes, isIo: space === 'io', isDecoded: true });
  }

  /** Keep BARs out of ports that are the board's, which no bus decodes. */
  reserveForBoard(base: number, sizeBytes: number): void {
    this.#keepFree({ base, end: base + sizeBytes, isIo: true, isDecoded: false });
  }

  #keepFree(range: ReservedRange): void {
    this.#reserved.push(range);
    this.#reserved.sort((a, b) => a.base - b.base);
  }

  /** @throws ConfigError if the window is full. */
  allocate(spec: BarSpec, where: string): PlacedBar {
    const sizeBytes = barSize(spec);
    // Kept free by `reserve`.
    if (spec.fixedAddress !== undefined) return { spec: { ...spec, sizeBytes }, address: spec.fixedAddress };
    const window = this.#windowOf(spec.kind, sizeBytes);
    const step = Math.max(sizeBytes, PAGE);
    let address = alignUp(this.#cursor[window], step);
    for (const range of this.#reserved) {
      if (range.isIo === (window === 'io') && address < range.end && range.base < address + step) {
        address = alignUp(range.end, step);
      }
    }
    if (address + step > this.#end[window]) {
      const [first, last] = [Layout[WINDOW_LAYOUT[window]].base, this.#end[window] - 1];
      throw new ConfigError(
        `${where}: BAR ${spec.index} of ${formatSize(sizeBytes)} does not fit into ${hex(first)}-${hex(last)} any more`,
        { hint: 'use fewer or smaller devices' },
      );
    }
    this.#cursor[window] = address + step;
    // Compat: whether a memory BAR shows as prefetchable follows from its window, not from the device.
    return { spec: { ...spec, sizeBytes, prefetchable: window === 'mem64' }, address };
  }

  /**
   * For a function of the host: as `allocate`, with the prefetchable bit as the function has it.
   * @throws ConfigError if the window is full.
   */
  allocateForHost(spec: BarSpec, where: string): PlacedBar {
    const placed = this.allocate(spec, where);
    return { ...placed, spec: { ...placed.spec, prefetchable: spec.prefetchable === true } };
  }

  /** All functions of a bus are placed. @returns what the bus takes of each window, the host's own ports included. */
  finishBus(): BusWindows {
    const start = this.#busStart;
    for (const window of ['io', 'mem32', 'mem64'] as const) {
      const slop = window === 'io' ? BUS_IO_SLOP : BUS_MEMORY_SLOP;
      // Compat: with a full window C names room behind its end, which its ACPI compiler refuses.
      this.#cursor[window] = Math.min(alignUp(this.#cursor[window] + slop, slop), this.#end[window]);
    }
    this.#busStart = { ...this.#cursor };
    const ports = this.#reserved.filter((range) => range.isIo && range.isDecoded);
    return {
      io: {
        base: Math.min(start.io, ...ports.map(({ base }) => base)),
        end: Math.max(this.#cursor.io, ...ports.map(({ end }) => end)),
      },
      mem32: { base: start.mem32, end: this.#cursor.mem32 },
      mem64: { base: start.mem64, end: this.#cursor.mem64 },
    };
  }

  #windowOf(kind: BarSpec['kind'], sizeBytes: number): BarWindowName {
    if (kind !== 'mem64') return kind;
    return this.#hasOvmf || sizeBytes > SMALL_MEM64 ? 'mem64' : 'mem32';
  }
}

const WINDOW_LAYOUT = { io: 'pciIo', mem32: 'pciMem32', mem64: 'pciMem64' } as const;

/** For messages: `pci 00:05.0 bar2`. */
export function barName(bdf: Parameters<typeof formatBdf>[0], index: number): string {
  return `pci ${formatBdf(bdf)} bar${index}`;
}
