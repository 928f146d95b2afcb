/**
 * PCI functions of the host as sysfs shows them: Linux Documentation/ABI/testing/sysfs-bus-pci. Everything is read when
 * it is asked for, since a function can be pulled out at any time. The tree may be one that was saved elsewhere.
 */
import {
  closeSync,
  constants,
  existsSync,
  openSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  readSync,
  writeSync,
} from 'node:fs';
import { basename, join } from 'node:path';
import { Cfg } from '../../../chips/pci-config-space.ts';
import { type AccessSize, allOnes } from '../../../core/address.ts';
import { formatHostAddress, type HostAddress, parseHostAddress, shortHostAddress } from './address.ts';

/** Where the functions of the host are, below the root. */
const DEVICES = 'sys/bus/pci/devices';
/** Configuration space of PCI Express; a conventional function's file ends earlier. */
const CONFIG_BYTES = 4096;
const BAR_COUNT = 6;
/** Bits 6:0 of the header type (PCI 3.0 §6.1): 0 is a function, 1 and 2 are bridges. */
const HEADER_LAYOUT = 0x7f;
const NAME = /^[0-9a-f]{4,}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]$/;

/** Flags of a line of `resource`: include/linux/ioport.h, IORESOURCE_*. */
export const ResourceFlag = { Io: 0x100, Memory: 0x200, Prefetch: 0x2000, Mem64: 0x10_0000 } as const;

/** One line of `resource`. */
export interface HostResource {
  readonly base: number;
  readonly sizeBytes: number;
  readonly flags: number;
}

export class HostFunction {
  readonly address: HostAddress;
  /** Its directory in sysfs. */
  readonly path: string;
  readonly #access: Uint8Array = new Uint8Array(4);
  readonly #view = new DataView(this.#access.buffer);

  constructor(address: HostAddress, path: string) {
    this.address = address;
    this.path = path;
  }

  /** `02:00.0`, for messages. */
  get name(): string {
    return shortHostAddress(this.address);
  }

  // Configuration space.

  /** All of it that may be read: 64 bytes for anybody, the rest for root. Empty if the function is gone. */
  readConfigSpace(): Uint8Array {
    try {
      return readFileSync(join(this.path, 'config')).subarray(0, CONFIG_BYTES);
    } catch {
      return new Uint8Array(0);
    }
  }

  /** A register of the device itself; all ones if it has none there, or is gone. */
  readConfig(offset: number, size: AccessSize): number {
    let fd: number | undefined;
    try {
      fd = openSync(join(this.path, 'config'), 'r');
      if (readSync(fd, this.#access, 0, size, offset) !== size) return allOnes(size);
      const view = this.#view;
      return size === 4 ? view.getUint32(0, true) : size === 2 ? view.getUint16(0, true) : view.getUint8(0);
    } catch {
      return allOnes(size);
    } finally {
      if (fd !== undefined) closeSync(fd);
    }
  }

  /** @returns whether the device took it. */
  writeConfig(offset: number, size: AccessSize, value: number): boolean {
    let fd: number | undefined;
    try {
      fd = openSync(join(this.path, 'config'), constants.O_WRONLY);
      this.#view.setUint32(0, value, true);
      return writeSync(fd, this.#access, 0, size, offset) === size;
    } catch {
      return false;
    } finally {
      if (fd !== undefined) closeSync(fd);
    }
  }

  /** Of the six base address registers; missing lines have no size. */
  readResources(): HostResource[] {
    const lines = (this.#text('resource') ?? '').split('\n');
    return Array.from({ length: BAR_COUNT }, (_, i) => {
      const [start = 0, end = 0, flags = 0] = (lines[i] ?? '').trim().split(/\s+/).map(Number);
      const sizeBytes = end > start || (end === start && start !== 0) ? end - start + 1 : 0;
      return { base: start, sizeBytes, flags };
    });
  }

  // What it is. A virtual function answers with all ones for its ids; sysfs knows them.

  get vendorId(): number {
    return this.#number('vendor') ?? this.readConfig(Cfg.VendorId, 2);
  }
  get deviceId(): number {
    return this.#number('device') ?? this.readConfig(Cfg.DeviceId, 2);
  }
  get subsystemVendorId(): number {
    return this.#number('subsystem_vendor') ?? this.readConfig(Cfg.SubsystemVendorId, 2);
  }
  get subsystemId(): number {
    return this.#number('subsystem_device') ?? this.readConfig(Cfg.SubsystemId, 2);
  }
  /** Class 23:16, subclass 15:8, programming interface 7:0. */
  get classCode(): number {
    return this.#number('class') ?? this.readConfig(Cfg.RevisionId, 4) >>> 8;
  }
  get revisionId(): number {
    return this.readConfig(Cfg.RevisionId, 1);
  }
  get isBridge(): boolean {
    return (this.readConfig(Cfg.HeaderType, 1) & HEADER_LAYOUT) !== 0;
  }
  /** SR-IOV: made by a physical function. */
  get isVirtualFunction(): boolean {
    return this.#link('physfn') !== undefined;
  }

  // Who has it.

  /** Name of the kernel driver that holds it. */
  get driver(): string | undefined {
    return this.#link('driver');
  }
  get iommuGroup(): string | undefined {
    return this.#link('iommu_group');
  }
  /** Functions of its IOMMU group, itself included, by their names in sysfs. */
  get iommuGroupMembers(): string[] {
    return names(join(this.path, 'iommu_group', 'devices'));
  }
  /** The kernel's number of its INTx line; 0 if it has none. */
  get irq(): number {
    return this.#number('irq') ?? 0;
  }
  get resetPath(): string {
    return join(this.path, 'reset');
  }
  /** Whether the kernel knows a way to reset it. */
  get hasReset(): boolean {
    return existsSync(this.resetPath);
  }

  #text(file: string): string | undefined {
    try {
      return readFileSync(join(this.path, file), 'latin1');
    } catch {
      return undefined;
    }
  }

  #number(file: string): number | undefined {
    const text = this.#text(file)?.trim();
    return text === undefined || !/^(0x[0-9a-f]+|\d+)$/i.test(text) ? undefined : Number(text);
  }

  #link(file: string): string | undefined {
    try {
      return basename(readlinkSync(join(this.path, file)));
    } catch {
      return undefined;
    }
  }
}

/** @param root where `sys` is: empty for this machine, a directory for a saved tree. */
export function hostFunction(root: string, address: HostAddress): HostFunction | undefined {
  const path = join(root === '' ? '/' : root, DEVICES, formatHostAddress(address));
  return existsSync(join(path, 'config')) ? new HostFunction(address, path) : undefined;
}

/** Every function of the host, by address. */
export function hostFunctions(root: string): HostFunction[] {
  const devices = join(root === '' ? '/' : root, DEVICES);
  return names(devices).flatMap((name) => hostFunction(root, parseHostAddress(name)) ?? []);
}

/** Names of functions in a directory, sorted; none if there is no such directory. */
function names(directory: string): string[] {
  try {
    return readdirSync(directory)
      .filter((name) => NAME.test(name))
      .sort();
  } catch {
    return [];
  }
}
