/**
 * Memory and ports of a function where the guest has put them: mapped into the guest as far as they may be mapped, the
 * rest (the page of an MSI-X table, ports, BARs smaller than a page) access by access.
 *
 * Nothing is mapped while the function does not decode (memory space off, D3hot): the host would answer an access by a
 * signal. It reads as all ones then, as on a bus where nobody answers.
 */
import {
  type BarIndex,
  type BarSpec,
  Cfg,
  type ConfigSpace,
  decodeBar,
} from '../../../devicemodel/chips/pci-config-space.ts';
import { type AccessSize, allOnes } from '../../../devicemodel/core/address.ts';
import type { IoRegion } from '../../../devicemodel/core/device.ts';
import type { VfioArea, VfioDevice, VfioRegion } from '../../../devicemodel/core/host/vfio.ts';
import type { Log } from '../../../devicemodel/core/log.ts';
import { alignUp, KiB } from '../../../devicemodel/core/units.ts';
import type { HostFunctionHost } from '../../embedded/host-functions.ts';

const PAGE = 4 * KiB;
const BAR_REGISTERS = 6;

/** Part of a BAR that is answered here: MSI-X table and pending bits. */
export interface OwnRegisters {
  readonly bar: number;
  readonly offset: number;
  readonly sizeBytes: number;
  read(offset: number, size: AccessSize): number;
  write(offset: number, size: AccessSize, value: number): void;
}

interface Bar {
  readonly spec: BarSpec;
  readonly registers: IoRegion;
  readonly mapped: readonly { readonly offset: number; readonly sizeBytes: number; readonly address: bigint }[];
  base: number | undefined;
  ways: readonly { dispose(): void }[];
}

export interface FunctionBarsParts {
  readonly device: VfioDevice;
  readonly host: HostFunctionHost;
  /** Holds the BAR registers. */
  readonly config: ConfigSpace;
  /** The six registers as the device model placed them. */
  readonly initial: readonly number[];
  readonly own: readonly OwnRegisters[];
  readonly log: Log;
}

export class FunctionBars {
  readonly #parts: FunctionBarsParts;
  readonly #bars: Bar[] = [];
  readonly #mappings: { dispose(): void }[] = [];
  #decodes = { memory: false, io: false };

  /** @throws HostError; nothing is held then. */
  constructor(parts: FunctionBarsParts) {
    this.#parts = parts;
    try {
      for (let index = 0; index < BAR_REGISTERS; index++) {
        if (this.#add(index as BarIndex) === 'mem64') index++;
      }
    } catch (error) {
      this.dispose();
      throw error;
    }
    parts.config.onControlWritten = () => this.#place();
  }

  /** What the function decodes. Call it once it does. */
  setDecoding(memory: boolean, io: boolean): void {
    this.#decodes = { memory, io };
    this.#place();
  }

  /** What it does not decode any more. Call it before: another vCPU may be at its registers. */
  stopDecoding(memory: boolean, io: boolean): void {
    this.setDecoding(this.#decodes.memory && !memory, this.#decodes.io && !io);
  }

  dispose(): void {
    this.#parts.config.onControlWritten = undefined;
    for (const bar of this.#bars) this.#move(bar, undefined);
    this.#bars.length = 0;
    for (const mapping of this.#mappings.splice(0)) mapping.dispose();
  }

  #add(index: BarIndex): BarSpec['kind'] | undefined {
    const { device, config, initial, own, log } = this.#parts;
    const low = initial[index] ?? 0;
    const { kind, address, prefetchable } = decodeBar(low, initial[index + 1] ?? 0);
    const region = device.region(index);
    if (region === undefined) {
      if (low !== 0) log.warn(`it has no BAR ${index}: vmsix_on_msi means nothing here`);
      return undefined;
    }
    const sizeBytes = kind === 'io' ? region.sizeBytes : alignUp(region.sizeBytes, PAGE);
    const spec = { index, kind, sizeBytes, prefetchable };
    config.defineBar(spec, address);
    const owned = own.filter(({ bar }) => bar === index);
    const mapped = kind === 'io' ? [] : this.#map(region, owned);
    this.#bars.push({ spec, registers: new Registers(device, region, owned), mapped, base: undefined, ways: [] });
    return kind;
  }

  #map(region: VfioRegion, owned: readonly OwnRegisters[]): Bar['mapped'] {
    return mappable(region, owned).map((area) => {
      const mapping = this.#parts.device.map(region, area);
      this.#mappings.push(mapping);
      return { ...area, address: mapping.address };
    });
  }

  #place(): void {
    const { config } = this.#parts;
    for (const bar of this.#bars) {
      const { index, kind, sizeBytes } = bar.spec;
      const base = config.barAddress(index);
      const isDecoded = kind === 'io' ? this.#decodes.io : this.#decodes.memory;
      const isThere = isDecoded && base !== 0 && !config.isBarProbed(index) && Number.isSafeInteger(base + sizeBytes);
      this.#move(bar, isThere ? base : undefined);
    }
  }

  #move(bar: Bar, base: number | undefined): void {
    if (bar.base === base) return;
    bar.base = base;
    for (const way of bar.ways) way.dispose();
    bar.ways = base === undefined ? [] : this.#ways(bar, base);
  }

  #ways({ spec, registers, mapped }: Bar, base: number): { dispose(): void }[] {
    const { host } = this.#parts;
    if (spec.kind === 'io') return [host.addPorts(base, spec.sizeBytes, registers)];
    return [
      host.addRegisters(base, spec.sizeBytes, registers),
      ...mapped.map(({ offset, sizeBytes, address }) => host.addDeviceMemory(base + offset, sizeBytes, address)),
    ];
  }
}

/** Whole pages that may be mapped, without those that are answered here. */
export function mappable(
  { areas, sizeBytes }: Pick<VfioRegion, 'areas' | 'sizeBytes'>,
  owned: readonly Pick<OwnRegisters, 'offset' | 'sizeBytes'>[],
): VfioArea[] {
  const holes = owned
    .map(({ offset, sizeBytes: size }) => ({ from: offset - (offset % PAGE), to: alignUp(offset + size, PAGE) }))
    .sort((a, b) => a.from - b.from);
  return areas.flatMap((area) => {
    const parts: VfioArea[] = [];
    let at = alignUp(area.offset, PAGE);
    const last = Math.min(area.offset + area.sizeBytes, sizeBytes);
    const end = last - (last % PAGE);
    for (const { from, to } of [...holes, { from: end, to: end }]) {
      const stop = Math.min(from, end);
      if (stop > at) parts.push({ offset: at, sizeBytes: stop - at });
      at = Math.max(at, to);
    }
    return parts;
  });
}

/** A BAR access by access. */
class Registers implements IoRegion {
  readonly #device: VfioDevice;
  readonly #region: VfioRegion;
  readonly #own: readonly OwnRegisters[];

  constructor(device: VfioDevice, region: VfioRegion, own: readonly OwnRegisters[]) {
    this.#device = device;
    this.#region = region;
    this.#own = own;
  }

  read(offset: number, size: AccessSize): number {
    const own = this.#ownAt(offset, size);
    if (own !== undefined) return own.read(offset - own.offset, size);
    return offset + size > this.#region.sizeBytes ? allOnes(size) : this.#device.read(this.#region, offset, size);
  }

  write(offset: number, size: AccessSize, value: number): void {
    const own = this.#ownAt(offset, size);
    if (own !== undefined) own.write(offset - own.offset, size, value);
    else if (offset + size <= this.#region.sizeBytes) this.#device.write(this.#region, offset, size, value);
  }

  #ownAt(offset: number, size: number): OwnRegisters | undefined {
    return this.#own.find((own) => offset >= own.offset && offset + size <= own.offset + own.sizeBytes);
  }
}

/** The dwords of the header that hold BARs. */
export const BAR_RANGE = { from: Cfg.Bar0, to: Cfg.Bar0 + 4 * BAR_REGISTERS } as const;
