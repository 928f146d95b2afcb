/**
 * The HSM's ioctls and structs: include/uapi/linux/acrn.h, and devicemodel/include/public/{hsm_ioctl_defs,acrn_common}.h
 * of ACRN for what the mainline header lacks (asyncio, vm events). Little endian, x86-64 only. Sizes, offsets and numbers
 * are compared with the compiler's in test/hypervisor/acrn/abi.test.ts. Pages shared with the hypervisor are in
 * core/hsm/abi.ts.
 */
import { AcrnMmiodev, AcrnPcidev, AcrnPioRegion, AcrnPtdevIrq } from '../../devicemodel/core/hsm/abi.ts';
import { addr, array, bytes, s32, struct, u16, u32, u64 } from '../../devicemodel/core/struct.ts';

const IOC_WRITE = 1;
const IOC_READ = 2;
const ACRN_TYPE = 0xa2;
const ioc = (direction: number, nr: number, sizeBytes: number) =>
  ((direction << 30) | (sizeBytes << 16) | (ACRN_TYPE << 8) | nr) >>> 0;

export const AcrnVmCreation = struct({
  vmid: u16,
  reserved0: u16,
  vcpuNum: u16,
  reserved1: u16,
  /** Mainline calls these 16 bytes `uuid`; the hypervisor takes a name. */
  name: bytes(16),
  vmFlag: u64,
  ioreqBuf: u64,
  cpuAffinity: u64,
});

export const AcrnGpRegs = struct({
  rax: u64,
  rcx: u64,
  rdx: u64,
  rbx: u64,
  rsp: u64,
  rbp: u64,
  rsi: u64,
  rdi: u64,
  r8: u64,
  r9: u64,
  r10: u64,
  r11: u64,
  r12: u64,
  r13: u64,
  r14: u64,
  r15: u64,
});

export const AcrnDescriptorPtr = struct({ limit: u16, base: u64, reserved: array(u16, 3, 0) }, { packed: true });

export const AcrnRegs = struct({
  gprs: AcrnGpRegs,
  gdt: AcrnDescriptorPtr,
  idt: AcrnDescriptorPtr,
  rip: u64,
  csBase: u64,
  cr0: u64,
  cr4: u64,
  cr3: u64,
  ia32Efer: u64,
  rflags: u64,
  reserved64: array(u64, 4, 0n),
  csAr: u32,
  csLimit: u32,
  reserved32: array(u32, 3, 0),
  csSel: u16,
  ssSel: u16,
  dsSel: u16,
  esSel: u16,
  fsSel: u16,
  gsSel: u16,
  ldtSel: u16,
  trSel: u16,
});

export const AcrnVcpuRegs = struct({ vcpuId: u16, reserved: array(u16, 3, 0), vcpuRegs: AcrnRegs });

export const AcrnVmMemmap = struct({ type: u32, attr: u32, userVmPa: addr, hostAddress: u64, len: addr });
export const MemmapType = { Ram: 0, Mmio: 1 } as const;
export const MemmapAttr = {
  Read: 1,
  Write: 2,
  Execute: 4,
  WriteBack: 0x40,
  WriteThrough: 0x80,
  Uncached: 0x100,
  WriteCombining: 0x200,
  WriteProtected: 0x400,
} as const;

export const AcrnMsiEntry = struct({ msiAddr: addr, msiData: u64 });
export const AcrnIoeventfd = struct({ fd: s32, flags: u32, addr: addr, len: u32, reserved: u32, data: u64 });
export const IoeventfdFlag = { Pio: 1, DataMatch: 2, Deassign: 4, Asyncio: 8 } as const;
export const AcrnIrqfd = struct({ fd: s32, flags: u32, msi: AcrnMsiEntry });
export const IrqfdFlag = { Deassign: 1 } as const;
export const AcrnIoreqNotify = struct({ vmid: u16, reserved: u16, vcpu: u32 });

/** Operation of SET_IRQLINE, bits 63:32 of its argument. */
export const IrqLineOpCode = { high: 0, low: 1, 'rising-pulse': 2, 'falling-pulse': 3 } as const;
/** Low byte of the PM_GET_CPU_STATE command. */
export const CpuStateType = { 'px-count': 0, 'px-data': 1, 'cx-count': 2, 'cx-data': 3 } as const;

const VDEV_SIZE = 192;

/** Every ioctl of hsm_ioctl_defs.h, by its name without the prefix. */
export const Ioctl = {
  CREATE_VM: ioc(IOC_READ | IOC_WRITE, 0x10, AcrnVmCreation.size),
  DESTROY_VM: ioc(0, 0x11, 0),
  START_VM: ioc(0, 0x12, 0),
  PAUSE_VM: ioc(0, 0x13, 0),
  RESET_VM: ioc(0, 0x15, 0),
  SET_VCPU_REGS: ioc(IOC_WRITE, 0x16, AcrnVcpuRegs.size),
  INJECT_MSI: ioc(IOC_WRITE, 0x23, AcrnMsiEntry.size),
  VM_INTR_MONITOR: ioc(IOC_WRITE, 0x24, 8),
  SET_IRQLINE: ioc(IOC_WRITE, 0x25, 8),
  NOTIFY_REQUEST_FINISH: ioc(IOC_WRITE, 0x31, AcrnIoreqNotify.size),
  CREATE_IOREQ_CLIENT: ioc(0, 0x32, 0),
  ATTACH_IOREQ_CLIENT: ioc(0, 0x33, 0),
  DESTROY_IOREQ_CLIENT: ioc(0, 0x34, 0),
  CLEAR_VM_IOREQ: ioc(0, 0x35, 0),
  SET_MEMSEG: ioc(IOC_WRITE, 0x41, AcrnVmMemmap.size),
  UNSET_MEMSEG: ioc(IOC_WRITE, 0x42, AcrnVmMemmap.size),
  SET_PTDEV_INTR: ioc(IOC_WRITE, 0x53, AcrnPtdevIrq.size),
  RESET_PTDEV_INTR: ioc(IOC_WRITE, 0x54, AcrnPtdevIrq.size),
  ASSIGN_PCIDEV: ioc(IOC_WRITE, 0x55, AcrnPcidev.size),
  DEASSIGN_PCIDEV: ioc(IOC_WRITE, 0x56, AcrnPcidev.size),
  ASSIGN_MMIODEV: ioc(IOC_WRITE, 0x57, AcrnMmiodev.size),
  DEASSIGN_MMIODEV: ioc(IOC_WRITE, 0x58, AcrnMmiodev.size),
  CREATE_VDEV: ioc(IOC_WRITE, 0x59, VDEV_SIZE),
  DESTROY_VDEV: ioc(IOC_WRITE, 0x5a, VDEV_SIZE),
  ASSIGN_PIO_REGION: ioc(IOC_WRITE, 0x5b, AcrnPioRegion.size),
  DEASSIGN_PIO_REGION: ioc(IOC_WRITE, 0x5c, AcrnPioRegion.size),
  PM_GET_CPU_STATE: ioc(IOC_READ | IOC_WRITE, 0x60, 8),
  IOEVENTFD: ioc(IOC_WRITE, 0x70, AcrnIoeventfd.size),
  IRQFD: ioc(IOC_WRITE, 0x71, AcrnIrqfd.size),
  SETUP_ASYNCIO: ioc(IOC_WRITE, 0x90, 8),
  SETUP_VM_EVENT_RING: ioc(IOC_WRITE, 0xa0, 8),
  SETUP_VM_EVENT_FD: ioc(IOC_WRITE, 0xa1, 4),
} as const;
export type IoctlName = keyof typeof Ioctl;
