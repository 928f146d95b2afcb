/**
 * A VFIO with one function for unit tests: configuration space and BARs in memory, nothing of it is a device. Everything
 * that is open is counted. With it goes a made-up `sys` and `dev`.
 */
import { mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { constants, tmpdir } from 'node:os';
import { join } from 'node:path';
import { HostError } from '../../devicemodel/core/errors.ts';
import type {
  Vfio,
  VfioArea,
  VfioContainer,
  VfioDependent,
  VfioDevice,
  VfioGroup,
  VfioRegion,
} from '../../devicemodel/core/host/vfio.ts';
import type { VfioIrqKind } from '../../devicemodel/core/host/vfio-abi.ts';

const E = constants.errno;
const CONFIG_REGION = 7;
const PIN = 0x3d;

/** Where the parts of the made-up function are. */
export const At = { power: 0x40, msi: 0x50, msix: 0x60, table: 0x2000, pending: 0x3000 } as const;
export const VECTORS = 20;
/** BAR 0: memory with the MSI-X table; BAR 1: 64 bits wide; BAR 3: ports. */
export const BAR_BYTES: Readonly<Record<number, number>> = { 0: 0x8000, 1: 0x10_0000, 3: 0x20 };

export class FakeVfioDevice implements VfioDevice {
  hasReset = true;
  hotResetResult = 0;
  readonly config = new Uint8Array(4096);
  readonly view = new DataView(this.config.buffer);
  /** Accesses of BARs, in order: `w 0 10 4 abcd`. */
  readonly accesses: string[] = [];
  /** What is set now. */
  readonly interrupts = new Map<VfioIrqKind, readonly number[]>();
  unmaskFd: number | undefined;
  /** Messages the host has to give. */
  room = Number.POSITIVE_INFINITY;
  readonly mapped = new Map<bigint, string>();
  resets: string[] = [];
  dependentsNow: readonly VfioDependent[] | number = -E.ENODEV;
  isClosed = false;

  constructor() {
    const { view } = this;
    view.setUint32(0, 0x10d3_8086, true);
    view.setUint16(6, 0x10, true);
    this.config[0x34] = At.power;
    this.config[PIN] = 1;
    this.config.set([0x01, At.msi], At.power);
    // 64 bits, masks of its own, four messages.
    this.config.set([0x05, At.msix, 0x84, 0x01], At.msi);
    this.config.set([0x11, 0], At.msix);
    view.setUint16(At.msix + 2, VECTORS - 1, true);
    view.setUint32(At.msix + 4, At.table, true);
    view.setUint32(At.msix + 8, At.pending, true);
  }

  region(index: number): VfioRegion | undefined {
    const sizeBytes = index === CONFIG_REGION ? 4096 : BAR_BYTES[index];
    if (sizeBytes === undefined) return undefined;
    const areas = index === CONFIG_REGION || index === 3 ? [] : [{ offset: 0, sizeBytes }];
    return { sizeBytes, offset: index * 2 ** 40, areas };
  }
  read({ offset: base }: VfioRegion, offset: number, size: number): number {
    const index = base / 2 ** 40;
    if (index !== CONFIG_REGION) {
      this.accesses.push(`r ${index} ${offset.toString(16)} ${size}`);
      return 0x55;
    }
    if (size === 4) return this.view.getUint32(offset, true);
    return size === 2 ? this.view.getUint16(offset, true) : this.view.getUint8(offset);
  }
  write({ offset: base }: VfioRegion, offset: number, size: number, value: number): void {
    const index = base / 2 ** 40;
    if (index !== CONFIG_REGION) {
      this.accesses.push(`w ${index} ${offset.toString(16)} ${size} ${value.toString(16)}`);
      return;
    }
    for (let i = 0; i < size; i++) this.config[offset + i] = (value >>> (8 * i)) & 0xff;
  }
  map({ offset: base }: VfioRegion, { offset, sizeBytes }: VfioArea) {
    const index = base / 2 ** 40;
    const address = 0x7000_0000_0000n + BigInt(index) * 0x100_0000n + BigInt(offset);
    this.mapped.set(address, `${index} ${offset.toString(16)}+${sizeBytes.toString(16)}`);
    return { address, dispose: () => void this.mapped.delete(address) };
  }
  setInterrupts(kind: VfioIrqKind, fds: readonly number[]): number {
    // As vfio-pci: one kind at a time, and no more of them than at first.
    if (kind === 'intx' && this.config[PIN] === 0) return -E.EINVAL;
    const now = this.interrupts.get(kind);
    if (now === undefined ? this.interrupts.size > 0 : fds.length > now.length) return -E.EINVAL;
    if (fds.length > this.room) return this.room;
    this.interrupts.set(kind, fds);
    return 0;
  }
  setUnmask(fd: number): number {
    if (!this.interrupts.has('intx')) return -E.EINVAL;
    this.unmaskFd = fd;
    return 0;
  }
  disableInterrupts(kind: VfioIrqKind): void {
    this.interrupts.delete(kind);
    if (kind === 'intx') this.unmaskFd = undefined;
  }
  dependents(): readonly VfioDependent[] | number {
    return this.dependentsNow;
  }
  hotReset(groups: readonly VfioGroup[]): number {
    this.resets.push(`bus with groups ${groups.map(({ id }) => id).join(', ')}`);
    return this.hotResetResult;
  }
  close(): void {
    this.isClosed = true;
  }
}

export class FakeVfio implements Vfio {
  /** Containers, groups and devices that are open. */
  readonly open = new Set<string>();
  /** Guest memory that devices reach: address and size. */
  readonly dma = new Map<number, number>();
  readonly device = new FakeVfioDevice();
  isViable = true;
  /** What a step answers instead of 0 or success. */
  readonly fails: { group?: number; setIommu?: number; mapDma?: number; device?: number } = {};

  openContainer(): VfioContainer {
    this.open.add('container');
    return {
      setIommu: () => this.fails.setIommu ?? 0,
      mapDma: (iova, sizeBytes) => {
        if (this.fails.mapDma !== undefined) return this.fails.mapDma;
        for (const [at, size] of this.dma) if (iova < at + size && at < iova + sizeBytes) return -E.EEXIST;
        this.dma.set(iova, sizeBytes);
        return 0;
      },
      unmapDma: (iova, sizeBytes) => {
        // As type 1 of version 2: all that lies in the range goes.
        for (const [at, size] of this.dma) if (at >= iova && at + size <= iova + sizeBytes) this.dma.delete(at);
      },
      close: () => {
        this.open.delete('container');
        this.dma.clear();
      },
    };
  }
  openGroup(id: number): VfioGroup {
    if (this.fails.group !== undefined) throw new HostError(`/dev/vfio/${id}: open`, this.fails.group);
    this.open.add(`group ${id}`);
    return {
      id,
      fd: 1000 + id,
      isViable: () => this.isViable,
      setContainer: () => 0,
      openDevice: (name) => {
        if (this.fails.device !== undefined) throw new HostError(name, this.fails.device);
        this.open.add(name);
        const { device } = this;
        device.isClosed = false;
        const close = device.close.bind(device);
        device.close = () => {
          this.open.delete(name);
          close();
        };
        return device;
      },
      close: () => void this.open.delete(`group ${id}`),
    };
  }
}

export interface FakeFunction {
  readonly name: string;
  readonly driver?: string;
  readonly group?: number;
}

/** A directory with `sys` and `dev`. @returns its path and how to remove it. */
export function fakeRoot(functions: readonly FakeFunction[]): { readonly root: string; dispose(): void } {
  const root = mkdtempSync(join(tmpdir(), 'vfio-'));
  const devices = join(root, 'sys/bus/pci/devices');
  mkdirSync(join(root, 'dev/vfio'), { recursive: true });
  writeFileSync(join(root, 'dev/vfio/vfio'), '');
  for (const { name, driver, group } of functions) {
    const at = join(devices, name);
    mkdirSync(at, { recursive: true });
    if (driver !== undefined) symlinkSync(`../../drivers/${driver}`, join(at, 'driver'));
    if (group === undefined) continue;
    const groupAt = join(root, `sys/kernel/iommu_groups/${group}`);
    mkdirSync(join(groupAt, 'devices', name), { recursive: true });
    symlinkSync(groupAt, join(at, 'iommu_group'));
    writeFileSync(join(root, `dev/vfio/${group}`), '');
  }
  return { root, dispose: () => rmSync(root, { recursive: true, force: true }) };
}
