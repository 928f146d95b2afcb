/**
 * Layouts of memory that a hypervisor of any kind shares with the device model, acrn_common.h of ACRN. Little endian.
 * Also what ptdev.ts and host-regions.ts check before an ioctl.
 * Everything else that only travels by ioctl is hypervisor/acrn/abi.ts.
 */
import { addr, array, bytes, struct, u8, u16, u32, u64 } from '../struct.ts';

/** Interrupt counts by line, and orders to delay one: struct acrn_intr_monitor. */
export const AcrnIntrMonitor = struct({ cmd: u32, bufCnt: u32, buffer: array(u64, 48, 0n) });

/** Header of the pages shared with the hypervisor (asyncio, vm events); data follows. */
export const SharedBuf = struct({
  magic: u64,
  eleNum: u32,
  eleSize: u32,
  head: u32,
  tail: u32,
  flags: u32,
  reserved: u32,
  overrunCnt: u32,
  size: u32,
  padding: array(u32, 6, 0),
});
export const SHARED_BUF_MAGIC = 0x5aa57aa71aa13aa3n;

export const AcrnPtdevIrq = struct({
  type: u32,
  virtBdf: u16,
  physBdf: u16,
  virtPin: u32,
  physPin: u32,
  isPicPin: u32,
});

export const AcrnPcidev = struct({
  type: u32,
  virtBdf: u16,
  physBdf: u16,
  intrLine: u8,
  intrPin: u8,
  bar: array(u32, 6, 0),
});

export const AcrnMmioRes = struct({ userVmPa: addr, hostPa: addr, size: addr, memType: u64 });
export const AcrnMmiodev = struct({
  name: bytes(8),
  res: array(AcrnMmioRes, 3, { userVmPa: 0, hostPa: 0, size: 0, memType: 0n }),
});

/** Release 3.3 of ACRN only; mainline never had it. */
export const AcrnPioRegion = struct({ name: bytes(8), port: u16, size: u16 });
