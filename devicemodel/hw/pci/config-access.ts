/**
 * Where configuration accesses arrive: by number of the function, from a PCICFG request or from the memory-mapped
 * window (ECAM). Spec: PCI Express 4.0 §7.2.2.
 */
import type { ConfigSpace } from '../../chips/pci-config-space.ts';
import { Cfg } from '../../chips/pci-config-space.ts';
import { type AccessSize, allOnes, type Bdf, bdfToNumber } from '../../core/address.ts';
import type { IoRegion, PciConfigAccess } from '../../core/device.ts';
import type { AccessGate } from '../../core/request-holds.ts';
import type { PassthroughPciFunction } from './function.ts';

/** Anything with configuration registers. */
export interface ConfigTarget {
  read(offset: number, size: AccessSize): number;
  write(offset: number, size: AccessSize, value: number): void;
}

const CONFIG_BYTES = 4096;
const MULTIFUNCTION = 0x80;

/** Registers of a passed-through function: the device's own, but for whether its slot has others beside it. */
export class PassthroughConfig implements ConfigTarget {
  readonly #function: PassthroughPciFunction;
  readonly #header: ConfigSpace;

  constructor(fn: PassthroughPciFunction, header: ConfigSpace) {
    this.#function = fn;
    this.#header = header;
  }

  read(offset: number, size: AccessSize): number {
    if ((offset & (size - 1)) !== 0 || offset >= CONFIG_BYTES) return allOnes(size);
    const value = this.#function.readConfig(offset, size);
    const shift = 8 * (Cfg.HeaderType - offset);
    if (shift < 0 || shift >= 8 * size || value === allOnes(size)) return value;
    const bit = this.#header.get8(Cfg.HeaderType) & MULTIFUNCTION;
    return ((value & ~(MULTIFUNCTION << shift)) | (bit << shift)) >>> 0;
  }

  write(offset: number, size: AccessSize, value: number): void {
    if ((offset & (size - 1)) === 0 && offset < CONFIG_BYTES) this.#function.writeConfig(offset, size, value);
  }
}

/** The functions of all buses by their packed address. A function that is not there reads as all ones. */
export class ConfigAccess implements PciConfigAccess {
  readonly #targets = new Map<number, ConfigTarget>();

  /** @param gate accesses wait while it is closed. */
  add(bdf: Bdf, target: ConfigTarget, gate?: AccessGate): void {
    this.#targets.set(bdfToNumber(bdf), gate === undefined ? target : behindGate(target, gate));
  }

  readConfig(bdf: Bdf, offset: number, size: AccessSize): number {
    return this.readConfigAt(bdfToNumber(bdf), offset, size);
  }

  writeConfig(bdf: Bdf, offset: number, size: AccessSize, value: number): void {
    this.writeConfigAt(bdfToNumber(bdf), offset, size, value);
  }

  readConfigAt(bdf: number, offset: number, size: AccessSize): number {
    return this.#targets.get(bdf)?.read(offset, size) ?? allOnes(size);
  }

  writeConfigAt(bdf: number, offset: number, size: AccessSize, value: number): void {
    this.#targets.get(bdf)?.write(offset, size, value);
  }
}

function behindGate(target: ConfigTarget, gate: AccessGate): ConfigTarget {
  return {
    read: (offset, size) => (gate.isClosed ? gate.postpone() : target.read(offset, size)),
    write: (offset, size, value) => {
      if (gate.isClosed) gate.postpone();
      else target.write(offset, size, value);
    },
  };
}

/** The window: bus in bits 27:20, device 19:15, function 14:12, register 11:0. */
export class EcamRegion implements IoRegion {
  readonly #access: ConfigAccess;

  constructor(access: ConfigAccess) {
    this.#access = access;
  }

  read(offset: number, size: AccessSize): number {
    return this.#access.readConfigAt(offset >>> 12, offset & 0xfff, size);
  }
  write(offset: number, size: AccessSize, value: number): void {
    this.#access.writeConfigAt(offset >>> 12, offset & 0xfff, size, value);
  }
  /** Configuration registers are accessed by at most a dword (§7.2.2.2). */
  readU64(): bigint {
    return 0xffff_ffff_ffff_ffffn;
  }
  writeU64(): void {}
}
