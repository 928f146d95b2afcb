/**
 * The numbers and structs of /dev/vfio: <linux/vfio.h> of x86-64. They are compared with the compiler's in
 * test/core/host/vfio.test.ts. The calls are in vfio.ts.
 */
import { addr, struct, u8, u16, u32, u64 } from '../struct.ts';

export const VfioIoctl = {
  GET_API_VERSION: 0x3b64,
  CHECK_EXTENSION: 0x3b65,
  SET_IOMMU: 0x3b66,
  GROUP_GET_STATUS: 0x3b67,
  GROUP_SET_CONTAINER: 0x3b68,
  GROUP_GET_DEVICE_FD: 0x3b6a,
  DEVICE_GET_INFO: 0x3b6b,
  DEVICE_GET_REGION_INFO: 0x3b6c,
  DEVICE_SET_IRQS: 0x3b6e,
  DEVICE_GET_PCI_HOT_RESET_INFO: 0x3b70,
  DEVICE_PCI_HOT_RESET: 0x3b71,
  IOMMU_MAP_DMA: 0x3b71,
  IOMMU_UNMAP_DMA: 0x3b72,
} as const;

export const VFIO_API_VERSION = 0;
/** Mappings of any size that are taken back as they were made. */
export const VFIO_TYPE1V2_IOMMU = 3;

export const GroupFlag = { viable: 1 } as const;
export const DeviceFlag = { reset: 1 } as const;
export const RegionFlag = { mmap: 4, caps: 8 } as const;
export const RegionCap = { sparseMmap: 1 } as const;
export const IrqSetFlag = { none: 1, eventfd: 4, unmask: 1 << 4, trigger: 1 << 5 } as const;
export const DmaFlag = { read: 1, write: 2 } as const;

/** Regions of vfio-pci beside its BARs, 0 to 5. */
export const VfioRegionIndex = { config: 7 } as const;
/** Interrupts of vfio-pci. */
export const VfioIrqIndex = { intx: 0, msi: 1, msix: 2 } as const;
export type VfioIrqKind = keyof typeof VfioIrqIndex;

export const VfioGroupStatus = struct({ argsz: u32, flags: u32 });
export const VfioDeviceInfo = struct({ argsz: u32, flags: u32, regionCount: u32, irqCount: u32, capOffset: u32 });
export const VfioRegionInfo = struct({
  argsz: u32,
  flags: u32,
  index: u32,
  capOffset: u32,
  sizeBytes: addr,
  offset: addr,
});
export const VfioCapHeader = struct({ id: u16, version: u16, next: u32 });
export const VfioSparseMmap = struct({ header: u64, areaCount: u32, reserved: u32 });
export const VfioSparseArea = struct({ offset: addr, sizeBytes: addr });
/** Before the data. */
export const VfioIrqSet = struct({ argsz: u32, flags: u32, index: u32, start: u32, count: u32 });
/** Before the entries. */
export const VfioHotResetInfo = struct({ argsz: u32, flags: u32, count: u32 });
export const VfioDependentDevice = struct({ groupId: u32, segment: u16, bus: u8, devfn: u8 });
/** Before the descriptors of the groups. */
export const VfioHotReset = struct({ argsz: u32, flags: u32, count: u32 });
export const VfioDmaMap = struct({ argsz: u32, flags: u32, vaddr: u64, iova: addr, sizeBytes: addr });
export const VfioDmaUnmap = struct({ argsz: u32, flags: u32, iova: addr, sizeBytes: addr });
