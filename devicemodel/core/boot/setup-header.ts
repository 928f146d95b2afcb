/**
 * The real-mode setup header of a Linux kernel image. Spec: Linux Documentation/arch/x86/boot.rst, "The Real-Mode Kernel
 * Header"; offsets are from the start of the image, and the same in the zero page.
 */
import { Layout } from '../layout.ts';
import { formatSize, GiB, MiB } from '../units.ts';
import { KIND_BYTES, kindOf } from './file-kind.ts';
import { badImage, type ImageFile } from './image-file.ts';

export const Setup = {
  setupSects: 0x1f1,
  sysSize: 0x1f4,
  bootFlag: 0x1fe,
  magic: 0x202,
  version: 0x206,
  loaderType: 0x210,
  loadFlags: 0x211,
  code32Start: 0x214,
  ramdiskImage: 0x218,
  ramdiskSize: 0x21c,
  cmdLinePtr: 0x228,
  initrdAddrMax: 0x22c,
  kernelAlignment: 0x230,
  relocatable: 0x234,
  xloadFlags: 0x236,
  cmdlineSize: 0x238,
  prefAddress: 0x258,
  initSize: 0x260,
  end: 0x268,
} as const;

const MAGIC = 0x5372_6448; // "HdrS"
const BOOT_SECTOR_SIGNATURE = 0xaa55;
const LOADED_HIGH = 1 << 0;
/** xloadflags: the kernel has a 64-bit entry point, so it is a 64-bit kernel. */
const XLF_KERNEL_64 = 1 << 0;
const SECTOR_BYTES = 512;
/** For setup_sects 0 the real value is 4. */
const DEFAULT_SETUP_SECTS = 4;
/** Where a bzImage goes that cannot say otherwise (protocols before 2.05). */
const DEFAULT_LOAD_ADDRESS = 1 * MiB;
/** Command lines before protocol 2.06. */
const OLD_CMDLINE_BYTES = 255;
/** initrd_addr_max before protocol 2.03. */
const OLD_INITRD_ADDR_MAX = 0x37ff_ffff;

export interface SetupHeader {
  /** The header's bytes from setup_sects to its end, setup_sects made explicit. */
  readonly bytes: Uint8Array;
  /** Boot sector and setup sectors: where the protected-mode kernel begins in the file. */
  readonly setupBytes: number;
  /**
   * What the header demands beyond the load itself, or undefined where there is no header to trust: no magic, or
   * fields that contradict each other. Such an image is started as the C device model starts every image.
   */
  readonly demands: KernelDemands | undefined;
}

export interface KernelDemands {
  /** The address the protected-mode kernel has to be put at; undefined: anywhere, it relocates itself. */
  readonly loadAddress: number | undefined;
  /** A relocatable kernel runs at a multiple of this, and not below `prefAddress`. */
  readonly alignmentBytes: number;
  readonly prefAddress: number;
  /** Memory it needs from where it runs, before it has read its memory map; 0: not said. */
  readonly initSizeBytes: number;
  /** Last byte a ramdisk may have. */
  readonly initrdAddrMax: number;
  /** Longest command line, without its NUL. */
  readonly cmdlineBytes: number;
  readonly is64Bit: boolean;
}

/** @throws ConfigError (65) for what is no kernel image, or one that cannot be entered in 32-bit mode. */
export function readSetupHeader(kernel: ImageFile): SetupHeader {
  const head = new Uint8Array(Setup.end);
  kernel.read(head.subarray(0, Math.min(head.length, kernel.sizeBytes)), 0);
  const view = new DataView(head.buffer);
  const setupSects = head[Setup.setupSects] || DEFAULT_SETUP_SECTS;
  head[Setup.setupSects] = setupSects;
  const setupBytes = (setupSects + 1) * SECTOR_BYTES;
  const bytes = head.subarray(Setup.setupSects);
  if (view.getUint32(Setup.magic, true) !== MAGIC) {
    if (view.getUint16(Setup.bootFlag, true) !== BOOT_SECTOR_SIGNATURE) throw notAKernel(kernel);
    return { bytes, setupBytes, demands: undefined };
  }
  if (kernel.sizeBytes <= setupBytes) {
    throw badImage(
      kernel.role,
      kernel.path,
      `ends at ${kernel.sizeBytes}, within its ${setupBytes} bytes of setup code`,
    );
  }
  return { bytes, setupBytes, demands: demandsOf(view, kernel, setupBytes) };
}

function demandsOf(view: DataView, kernel: ImageFile, setupBytes: number): KernelDemands | undefined {
  const version = view.getUint16(Setup.version, true);
  const u32 = (at: number, since: number, otherwise: number) =>
    version >= since ? view.getUint32(at, true) : otherwise;
  const alignmentBytes = u32(Setup.kernelAlignment, 0x205, MiB);
  const relocatable = version >= 0x205 ? view.getUint8(Setup.relocatable) : 0;
  const isPlausible = relocatable <= 1 && isPowerOfTwo(alignmentBytes) && alignmentBytes <= GiB;
  if (!isPlausible) return undefined;
  if ((view.getUint8(Setup.loadFlags) & LOADED_HIGH) === 0) {
    throw badImage(kernel.role, kernel.path, 'is a zImage, which is loaded low', 'only bzImage kernels can be started');
  }
  const code32Start = view.getUint32(Setup.code32Start, true);
  if (code32Start === 0) {
    throw badImage(
      kernel.role,
      kernel.path,
      'has no 32-bit entry point (code32_start is 0)',
      'it is made for the real mode of a PC BIOS, as iPXE is',
    );
  }
  // In units of 16 bytes, rounded up; two bytes of it, and not to be trusted, before protocol 2.04.
  const wholeBytes = setupBytes + 16 * u32(Setup.sysSize, 0x204, 0);
  if (kernel.sizeBytes <= wholeBytes - 16) {
    throw badImage(
      kernel.role,
      kernel.path,
      `is cut off: it has ${kernel.sizeBytes} bytes, its header says ${wholeBytes}`,
      'copy it again',
    );
  }
  const prefAddress = version >= 0x20a ? Number(view.getBigUint64(Setup.prefAddress, true)) : 0;
  const fixedAddress = version < 0x205 ? DEFAULT_LOAD_ADDRESS : prefAddress || code32Start;
  return {
    loadAddress: relocatable === 1 ? undefined : fixedAddress,
    alignmentBytes,
    prefAddress,
    initSizeBytes: u32(Setup.initSize, 0x20a, 0),
    initrdAddrMax: u32(Setup.initrdAddrMax, 0x203, OLD_INITRD_ADDR_MAX),
    cmdlineBytes: u32(Setup.cmdlineSize, 0x206, OLD_CMDLINE_BYTES) || OLD_CMDLINE_BYTES,
    is64Bit: version >= 0x20c && (view.getUint16(Setup.xloadFlags, true) & XLF_KERNEL_64) !== 0,
  };
}

function isPowerOfTwo(value: number): boolean {
  return value > 0 && Number.isInteger(Math.log2(value));
}

function notAKernel(kernel: ImageFile) {
  const start = new Uint8Array(Math.min(KIND_BYTES, kernel.sizeBytes));
  kernel.read(start, 0);
  const kind = kindOf(start);
  const found =
    kind?.name ??
    (kernel.sizeBytes < SECTOR_BYTES ? 'shorter than a boot sector' : 'without a boot sector signature at 510');
  return badImage(kernel.role, kernel.path, `is no kernel image: it is ${found}`, kind?.hint ?? 'give a bzImage');
}

/** For hints: what to do about an image that needs memory from 0 to `bytes`. */
export function atLeast(bytes: number): string {
  return bytes > Layout.lowRamLimit
    ? `no VM has memory there: below 4 GiB it ends at ${formatSize(Layout.lowRamLimit)}`
    : `give the VM at least -m ${Math.ceil(bytes / MiB)}M`;
}

/** Where a kernel that was put at `loadedAt` will run: where it unpacks itself to. */
export function runsAt(demands: KernelDemands, loadedAt: number): number {
  if (demands.loadAddress !== undefined) return demands.loadAddress;
  const aligned = Math.ceil(loadedAt / demands.alignmentBytes) * demands.alignmentBytes;
  return Math.max(aligned, demands.prefAddress);
}
