/**
 * The numbers and structs of /dev/kvm: <linux/kvm.h> and <asm/kvm.h> of x86-64. Sizes, offsets and numbers are compared
 * with the compiler's in test/core/host/kvm.test.ts. The calls are in kvm.ts.
 */
import { addr, array, bytes, s32, struct, u8, u16, u32, u64 } from '../struct.ts';

export const KvmIoctl = {
  GET_API_VERSION: 0xae00,
  CREATE_VM: 0xae01,
  GET_MSR_INDEX_LIST: 0xc004_ae02,
  CHECK_EXTENSION: 0xae03,
  GET_VCPU_MMAP_SIZE: 0xae04,
  GET_SUPPORTED_CPUID: 0xc008_ae05,
  CREATE_VCPU: 0xae41,
  SET_USER_MEMORY_REGION: 0x4020_ae46,
  SET_TSS_ADDR: 0xae47,
  SET_IDENTITY_MAP_ADDR: 0x4008_ae48,
  CREATE_IRQCHIP: 0xae60,
  IRQ_LINE: 0x4008_ae61,
  GET_IRQCHIP: 0xc208_ae62,
  SET_IRQCHIP: 0x8208_ae63,
  SET_GSI_ROUTING: 0x4008_ae6a,
  IRQFD: 0x4020_ae76,
  IOEVENTFD: 0x4040_ae79,
  RUN: 0xae80,
  GET_REGS: 0x8090_ae81,
  SET_REGS: 0x4090_ae82,
  GET_SREGS: 0x8138_ae83,
  SET_SREGS: 0x4138_ae84,
  TRANSLATE: 0xc018_ae85,
  GET_MSRS: 0xc008_ae88,
  SET_MSRS: 0x4008_ae89,
  GET_LAPIC: 0x8400_ae8e,
  SET_LAPIC: 0x4400_ae8f,
  SET_CPUID2: 0x4008_ae90,
  GET_MP_STATE: 0x8004_ae98,
  SET_MP_STATE: 0x4004_ae99,
  GET_VCPU_EVENTS: 0x8040_ae9f,
  SET_VCPU_EVENTS: 0x4040_aea0,
  GET_DEBUGREGS: 0x8080_aea1,
  SET_DEBUGREGS: 0x4080_aea2,
  GET_TSC_KHZ: 0xaea3,
  GET_XSAVE: 0x9000_aea4,
  SET_XSAVE: 0x5000_aea5,
  SIGNAL_MSI: 0x4020_aea5,
  CREATE_DEVICE: 0xc00c_aee0,
  SET_DEVICE_ATTR: 0x4018_aee1,
  GET_XCRS: 0x8188_aea6,
  SET_XCRS: 0x4188_aea7,
} as const;

/** KVM_CAP_*: what this engine needs, by the name that is shown where it is missing, and what it uses if it is there. */
export const KvmCap = {
  IRQCHIP: 0,
  USER_MEMORY: 3,
  SET_TSS_ADDR: 4,
  EXT_CPUID: 7,
  NR_MEMSLOTS: 10,
  MP_STATE: 14,
  IRQ_ROUTING: 25,
  IRQFD: 32,
  IOEVENTFD: 36,
  SET_IDENTITY_MAP_ADDR: 37,
  VCPU_EVENTS: 41,
  DEBUGREGS: 50,
  XSAVE: 55,
  XCRS: 56,
  GET_TSC_KHZ: 61,
  MAX_VCPUS: 66,
  TSC_DEADLINE_TIMER: 72,
  SIGNAL_MSI: 77,
  READONLY_MEM: 81,
  IMMEDIATE_EXIT: 136,
} as const;
export type KvmCapName = keyof typeof KvmCap;

/** KVM_EXIT_*. */
export const KvmExit = {
  Unknown: 0,
  Io: 2,
  Debug: 4,
  Hlt: 5,
  Mmio: 6,
  IrqWindowOpen: 7,
  Shutdown: 8,
  FailEntry: 9,
  Intr: 10,
  InternalError: 17,
  SystemEvent: 24,
} as const;

/** struct kvm_run, in bytes from its start. */
export const RunField = {
  immediateExit: 1,
  exitReason: 8,
  io: { direction: 32, size: 33, port: 34, count: 36, dataOffset: 40 },
  mmio: { address: 32, data: 40, length: 48, isWrite: 52 },
  failEntry: { reason: 32, cpu: 40 },
  internal: { suberror: 32, dataCount: 36, data: 40 },
  systemEvent: { type: 32 },
} as const;

export const KvmMemoryRegion = struct({ slot: u32, flags: u32, gpa: addr, sizeBytes: addr, hostAddress: u64 });
export const KVM_MEM_READONLY = 2;
export const KvmMsi = struct({
  addressLow: u32,
  addressHigh: u32,
  data: u32,
  flags: u32,
  deviceId: u32,
  pad: bytes(12),
});
export const KvmIrqfd = struct({ fd: u32, gsi: u32, flags: u32, resampleFd: u32, pad: bytes(16) });
export const IrqfdFlag = { deassign: 1, resample: 2 } as const;
export const KvmIoeventfd = struct({
  dataMatch: u64,
  address: addr,
  length: u32,
  fd: s32,
  flags: u32,
  pad: bytes(36),
});
export const KvmCreateDevice = struct({ type: u32, fd: u32, flags: u32 });
export const KvmDeviceAttr = struct({ flags: u32, group: u32, attr: u64, addr: u64 });
export const KVM_DEV_TYPE_VFIO = 4;
/** Of that device: a group of VFIO joins or leaves. */
export const KvmVfioGroup = { group: 1, add: 1n, remove: 2n } as const;
export const IoeventfdFlag = { dataMatch: 1, pio: 2, deassign: 4 } as const;

export const KvmSegment = struct({
  base: u64,
  limit: u32,
  selector: u16,
  type: u8,
  present: u8,
  dpl: u8,
  db: u8,
  s: u8,
  l: u8,
  g: u8,
  avl: u8,
  unusable: u8,
  padding: u8,
});
export type KvmSegmentValue = ReturnType<typeof KvmSegment.decode>;
export const KvmDtable = struct({ base: u64, limit: u16, padding: array(u16, 3, 0) });
export const KvmSregs = struct({
  cs: KvmSegment,
  ds: KvmSegment,
  es: KvmSegment,
  fs: KvmSegment,
  gs: KvmSegment,
  ss: KvmSegment,
  tr: KvmSegment,
  ldt: KvmSegment,
  gdt: KvmDtable,
  idt: KvmDtable,
  cr0: u64,
  cr2: u64,
  cr3: u64,
  cr4: u64,
  cr8: u64,
  efer: u64,
  apicBase: u64,
  interruptBitmap: array(u64, 4, 0n),
});
export type KvmSregsValue = ReturnType<typeof KvmSregs.decode>;
export const KvmRegs = struct({
  rax: u64,
  rbx: u64,
  rcx: u64,
  rdx: u64,
  rsi: u64,
  rdi: u64,
  rsp: u64,
  rbp: u64,
  r8: u64,
  r9: u64,
  r10: u64,
  r11: u64,
  r12: u64,
  r13: u64,
  r14: u64,
  r15: u64,
  rip: u64,
  rflags: u64,
});
export type KvmRegsValue = ReturnType<typeof KvmRegs.decode>;
export const KvmTranslation = struct({
  linearAddress: u64,
  physicalAddress: u64,
  valid: u8,
  writeable: u8,
  usermode: u8,
  pad: bytes(5),
});

/** One leaf of CPUID. */
export const KvmCpuidEntry = struct({
  leaf: u32,
  subleaf: u32,
  flags: u32,
  eax: u32,
  ebx: u32,
  ecx: u32,
  edx: u32,
  padding: array(u32, 3, 0),
});
export type CpuidEntry = Pick<
  ReturnType<typeof KvmCpuidEntry.decode>,
  'leaf' | 'subleaf' | 'flags' | 'eax' | 'ebx' | 'ecx' | 'edx'
>;
/** Header of struct kvm_cpuid2, kvm_msrs and kvm_irq_routing: a count, then something, then the entries. */
export const LIST_HEADER_BYTES = 8;
export const KvmMsrEntry = struct({ index: u32, reserved: u32, data: u64 });
/** struct kvm_irq_routing_entry; the union is 32 bytes. */
export const KvmRoute = struct({ gsi: u32, type: u32, flags: u32, pad: u32, union: array(u32, 8, 0) });

/** An interrupt source (GSI) and where it goes. */
export type GsiRoute =
  | { readonly gsi: number; readonly chip: 'pic' | 'pic-slave' | 'ioapic'; readonly pin: number }
  | { readonly gsi: number; readonly address: number; readonly data: number };

export const RouteType = { irqchip: 1, msi: 2 } as const;
/** KVM_IRQCHIP_*. */
export const KvmIrqchip = { pic: 0, 'pic-slave': 1, ioapic: 2 } as const;
export const IRQCHIP_BYTES = 520;

/** KVM_MP_STATE_*. */
export const MpState = { Runnable: 0, Uninitialized: 1 } as const;

/** What has a size of its own and is only kept and given back. */
export const Blob = {
  events: { get: KvmIoctl.GET_VCPU_EVENTS, set: KvmIoctl.SET_VCPU_EVENTS, sizeBytes: 64 },
  debugRegisters: { get: KvmIoctl.GET_DEBUGREGS, set: KvmIoctl.SET_DEBUGREGS, sizeBytes: 128 },
  xsave: { get: KvmIoctl.GET_XSAVE, set: KvmIoctl.SET_XSAVE, sizeBytes: 4096 },
  xcrs: { get: KvmIoctl.GET_XCRS, set: KvmIoctl.SET_XCRS, sizeBytes: 392 },
  lapic: { get: KvmIoctl.GET_LAPIC, set: KvmIoctl.SET_LAPIC, sizeBytes: 1024 },
} as const;
export type VcpuBlob = keyof typeof Blob;
export const vcpuBlobs = Object.keys(Blob) as VcpuBlob[];
