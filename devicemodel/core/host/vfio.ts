/**
 * /dev/vfio, as typed calls: a container is an address space for DMA, a group the functions that the IOMMU cannot tell
 * apart, a device one function. Nothing here decides anything; hypervisor/kvm/vfio does. Numbers are in vfio-abi.ts.
 */
import { HostError } from '../errors.ts';
import { Errno } from './errno.ts';
import { closeFd, OpenFlag, openFile } from './files.ts';
import { ioctlBytes, ioctlNumber } from './ioctl.ts';
import { hostCall, must } from './libc.ts';
import { mapUnseen } from './mapping.ts';
import { sysfsPciName } from './sysfs-pci.ts';
import {
  DeviceFlag,
  DmaFlag,
  GroupFlag,
  IrqSetFlag,
  RegionCap,
  RegionFlag,
  VFIO_API_VERSION,
  VFIO_TYPE1V2_IOMMU,
  VfioCapHeader,
  VfioDependentDevice,
  VfioDeviceInfo,
  VfioDmaMap,
  VfioDmaUnmap,
  VfioGroupStatus,
  VfioHotReset,
  VfioHotResetInfo,
  VfioIoctl,
  VfioIrqIndex,
  type VfioIrqKind,
  VfioIrqSet,
  VfioRegionInfo,
  VfioSparseArea,
  VfioSparseMmap,
} from './vfio-abi.ts';

const VFIO_DIRECTORY = '/dev/vfio';
const CONTAINER_PATH = `${VFIO_DIRECTORY}/vfio`;
const MAX_CAPS = 32;
/** Functions that one reset of a bus reaches. */
const MAX_DEPENDENTS = 256;

const pread = hostCall<[fd: number, bytes: Uint8Array, sizeBytes: number, at: number]>(
  'int64_t pread(int, void *, size_t, int64_t)',
);
const pwrite = hostCall<[fd: number, bytes: Uint8Array, sizeBytes: number, at: number]>(
  'int64_t pwrite(int, const void *, size_t, int64_t)',
);

/** A part of a region that may be mapped, from its start. */
export interface VfioArea {
  readonly offset: number;
  readonly sizeBytes: number;
}

export interface VfioRegion {
  readonly sizeBytes: number;
  /** In the device's descriptor. */
  readonly offset: number;
  /** What may be mapped. */
  readonly areas: readonly VfioArea[];
}

/** Another function that a reset of the bus resets, too. */
export interface VfioDependent {
  readonly group: number;
  /** As `0000:02:00.0`. */
  readonly name: string;
}

/** What the passthrough code asks of VFIO. The fake of the tests has the same shape. */
export interface Vfio {
  /** @throws HostError */
  openContainer(): VfioContainer;
  /** @throws HostError: EBUSY while another process has it. */
  openGroup(id: number): VfioGroup;
}

export interface VfioContainer {
  /** The kind of IOMMU; once a group is in it. @returns 0 or a negative errno. */
  setIommu(): number;
  /** @returns 0 or a negative errno. */
  mapDma(iova: number, sizeBytes: number, hostAddress: bigint, isWritable: boolean): number;
  unmapDma(iova: number, sizeBytes: number): void;
  close(): void;
}

export interface VfioGroup {
  readonly id: number;
  readonly fd: number;
  /** Every function in it belongs to VFIO, or to nobody. */
  isViable(): boolean;
  /** @returns 0 or a negative errno. */
  setContainer(container: VfioContainer): number;
  /** @param name as `0000:02:00.0`. @throws HostError */
  openDevice(name: string): VfioDevice;
  close(): void;
}

export interface VfioDevice {
  /** It can be reset by itself: then it was, when it was opened. */
  readonly hasReset: boolean;
  /** @returns undefined for one it does not have. */
  region(index: number): VfioRegion | undefined;
  /** @returns all ones where the device does not answer. @param sizeBytes 1, 2 or 4. */
  read(region: VfioRegion, offset: number, sizeBytes: number): number;
  write(region: VfioRegion, offset: number, sizeBytes: number, value: number): void;
  /** For a driver that hands it on by its address: nobody reads or writes it here. @throws HostError */
  map(region: VfioRegion, area: VfioArea): { readonly address: bigint; dispose(): void };
  /**
   * Interrupts 0 and up ring these eventfds.
   * @returns 0, a negative errno, or how many there can be if these are too many.
   */
  setInterrupts(kind: VfioIrqKind, fds: readonly number[]): number;
  /** A signal of the eventfd unmasks INTx. @returns 0 or a negative errno. */
  setUnmask(fd: number): number;
  disableInterrupts(kind: VfioIrqKind): void;
  /** What {@link hotReset} reaches. @returns a negative errno where the bus cannot be reset. */
  dependents(): readonly VfioDependent[] | number;
  /** Reset the bus. @param groups all that {@link dependents} are in. @returns 0 or a negative errno. */
  hotReset(groups: readonly VfioGroup[]): number;
  close(): void;
}

export const hostVfio: Vfio = {
  openContainer() {
    const fd = openFile(CONTAINER_PATH, OpenFlag.ReadWrite | OpenFlag.CloseOnExec);
    const version = ioctlNumber(fd, VfioIoctl.GET_API_VERSION, 0);
    if (version === VFIO_API_VERSION && ioctlNumber(fd, VfioIoctl.CHECK_EXTENSION, VFIO_TYPE1V2_IOMMU) === 1) {
      return new RealContainer(fd);
    }
    closeFd(fd);
    throw new HostError(`${CONTAINER_PATH}: the kernel has no type 1 IOMMU driver of version 2`, Errno.ENOTTY, {
      hint: 'modprobe vfio_iommu_type1',
    });
  },
  openGroup: (id) => new RealGroup(id, openFile(`${VFIO_DIRECTORY}/${id}`, OpenFlag.ReadWrite | OpenFlag.CloseOnExec)),
};

class RealContainer implements VfioContainer {
  readonly fd: number;

  constructor(fd: number) {
    this.fd = fd;
  }

  setIommu(): number {
    return ioctlNumber(this.fd, VfioIoctl.SET_IOMMU, VFIO_TYPE1V2_IOMMU);
  }

  mapDma(iova: number, sizeBytes: number, vaddr: bigint, isWritable: boolean): number {
    const flags = DmaFlag.read | (isWritable ? DmaFlag.write : 0);
    return ioctlBytes(
      this.fd,
      VfioIoctl.IOMMU_MAP_DMA,
      VfioDmaMap.encode({ argsz: VfioDmaMap.size, flags, vaddr, iova, sizeBytes }),
    );
  }

  unmapDma(iova: number, sizeBytes: number): void {
    const argument = VfioDmaUnmap.encode({ argsz: VfioDmaUnmap.size, flags: 0, iova, sizeBytes });
    ioctlBytes(this.fd, VfioIoctl.IOMMU_UNMAP_DMA, argument);
  }

  close(): void {
    closeFd(this.fd);
  }
}

class RealGroup implements VfioGroup {
  readonly id: number;
  readonly fd: number;

  constructor(id: number, fd: number) {
    this.id = id;
    this.fd = fd;
  }

  isViable(): boolean {
    const status = VfioGroupStatus.encode({ argsz: VfioGroupStatus.size, flags: 0 });
    must(ioctlBytes(this.fd, VfioIoctl.GROUP_GET_STATUS, status), 'VFIO_GROUP_GET_STATUS', `IOMMU group ${this.id}`);
    return (VfioGroupStatus.decode(status).flags & GroupFlag.viable) !== 0;
  }

  setContainer(container: VfioContainer): number {
    const { fd } = container as RealContainer;
    return ioctlBytes(this.fd, VfioIoctl.GROUP_SET_CONTAINER, Int32Array.of(fd));
  }

  openDevice(name: string): VfioDevice {
    const text = new TextEncoder().encode(`${name}\0`);
    const fd = must(ioctlBytes(this.fd, VfioIoctl.GROUP_GET_DEVICE_FD, text), 'VFIO_GROUP_GET_DEVICE_FD', name);
    try {
      return new RealDevice(fd, name);
    } catch (error) {
      closeFd(fd);
      throw error;
    }
  }

  close(): void {
    closeFd(this.fd);
  }
}

class RealDevice implements VfioDevice {
  readonly hasReset: boolean;
  readonly #fd: number;
  readonly #name: string;
  /** Of the access under way. */
  readonly #bytes = new Uint8Array(4);
  readonly #view = new DataView(this.#bytes.buffer);

  constructor(fd: number, name: string) {
    this.#fd = fd;
    this.#name = name;
    const info = VfioDeviceInfo.encode({ argsz: VfioDeviceInfo.size });
    must(ioctlBytes(fd, VfioIoctl.DEVICE_GET_INFO, info), 'VFIO_DEVICE_GET_INFO', name);
    this.hasReset = (VfioDeviceInfo.decode(info).flags & DeviceFlag.reset) !== 0;
  }

  region(index: number): VfioRegion | undefined {
    // Asked once for how long the answer is.
    let bytes = VfioRegionInfo.encode({ argsz: VfioRegionInfo.size, index });
    if (ioctlBytes(this.#fd, VfioIoctl.DEVICE_GET_REGION_INFO, bytes) < 0) return undefined;
    const { argsz } = VfioRegionInfo.decode(bytes);
    if (argsz > VfioRegionInfo.size) {
      bytes = new Uint8Array(argsz);
      bytes.set(VfioRegionInfo.encode({ argsz, index }));
      if (ioctlBytes(this.#fd, VfioIoctl.DEVICE_GET_REGION_INFO, bytes) < 0) return undefined;
    }
    const { flags, sizeBytes, offset, capOffset } = VfioRegionInfo.decode(bytes);
    if (sizeBytes === 0) return undefined;
    const caps = (flags & RegionFlag.caps) === 0 ? [] : capsOf(bytes, capOffset);
    const sparse = caps.find(({ id }) => id === RegionCap.sparseMmap);
    const whole = (flags & RegionFlag.mmap) === 0 ? [] : [{ offset: 0, sizeBytes }];
    return {
      sizeBytes,
      offset,
      areas: sparse === undefined ? whole : sparseAreas(bytes, sparse.at),
    };
  }

  read({ offset: base }: VfioRegion, offset: number, sizeBytes: number): number {
    this.#bytes.fill(0xff);
    if (pread(this.#fd, this.#bytes, sizeBytes, base + offset) !== sizeBytes) this.#bytes.fill(0xff);
    if (sizeBytes === 4) return this.#view.getUint32(0, true);
    return sizeBytes === 2 ? this.#view.getUint16(0, true) : this.#view.getUint8(0);
  }

  write({ offset: base }: VfioRegion, offset: number, sizeBytes: number, value: number): void {
    this.#view.setUint32(0, value, true);
    pwrite(this.#fd, this.#bytes, sizeBytes, base + offset);
  }

  map(region: VfioRegion, { offset, sizeBytes }: VfioArea): { readonly address: bigint; dispose(): void } {
    return mapUnseen(sizeBytes, this.#name, this.#fd, region.offset + offset);
  }

  setInterrupts(kind: VfioIrqKind, fds: readonly number[]): number {
    return this.#setIrqs(IrqSetFlag.eventfd | IrqSetFlag.trigger, kind, fds);
  }

  setUnmask(fd: number): number {
    return this.#setIrqs(IrqSetFlag.eventfd | IrqSetFlag.unmask, 'intx', [fd]);
  }

  disableInterrupts(kind: VfioIrqKind): void {
    this.#setIrqs(IrqSetFlag.none | IrqSetFlag.trigger, kind, []);
  }

  #setIrqs(flags: number, kind: VfioIrqKind, fds: readonly number[]): number {
    const bytes = new Uint8Array(VfioIrqSet.size + 4 * fds.length);
    const head = { argsz: bytes.length, flags, index: VfioIrqIndex[kind], start: 0, count: fds.length };
    bytes.set(VfioIrqSet.encode(head));
    bytes.set(new Uint8Array(Int32Array.from(fds).buffer), VfioIrqSet.size);
    return ioctlBytes(this.#fd, VfioIoctl.DEVICE_SET_IRQS, bytes);
  }

  dependents(): readonly VfioDependent[] | number {
    const bytes = new Uint8Array(VfioHotResetInfo.size + MAX_DEPENDENTS * VfioDependentDevice.size);
    bytes.set(VfioHotResetInfo.encode({ argsz: bytes.length }));
    const result = ioctlBytes(this.#fd, VfioIoctl.DEVICE_GET_PCI_HOT_RESET_INFO, bytes);
    if (result < 0) return result;
    const view = new DataView(bytes.buffer);
    return Array.from({ length: VfioHotResetInfo.decode(bytes).count }, (_, i) => {
      const entry = VfioDependentDevice.read(view, VfioHotResetInfo.size + i * VfioDependentDevice.size);
      const { segment, bus, devfn } = entry;
      const name = sysfsPciName({ bus, device: devfn >>> 3, function: devfn & 7 }, segment);
      return { group: entry.groupId, name };
    });
  }

  hotReset(groups: readonly VfioGroup[]): number {
    const bytes = new Uint8Array(VfioHotReset.size + 4 * groups.length);
    bytes.set(VfioHotReset.encode({ argsz: bytes.length, flags: 0, count: groups.length }));
    const fds = Int32Array.from(groups, (group) => group.fd);
    bytes.set(new Uint8Array(fds.buffer), VfioHotReset.size);
    return ioctlBytes(this.#fd, VfioIoctl.DEVICE_PCI_HOT_RESET, bytes);
  }

  close(): void {
    closeFd(this.#fd);
  }
}

/** Places of the capabilities behind a region's info. */
function capsOf(bytes: Uint8Array, first: number): { readonly id: number; readonly at: number }[] {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const caps: { readonly id: number; readonly at: number }[] = [];
  for (let at = first; at !== 0 && at + VfioCapHeader.size <= bytes.length && caps.length < MAX_CAPS; ) {
    const { id, next } = VfioCapHeader.read(view, at);
    caps.push({ id, at });
    at = next;
  }
  return caps;
}

function sparseAreas(bytes: Uint8Array, at: number): VfioArea[] {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const { areaCount } = VfioSparseMmap.read(view, at);
  return Array.from({ length: areaCount }, (_, i) =>
    VfioSparseArea.read(view, at + VfioSparseMmap.size + i * VfioSparseArea.size),
  );
}
