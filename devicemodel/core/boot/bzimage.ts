/**
 * Linux kernels in bzImage form, started at the 32-bit entry point. Spec: Linux Documentation/arch/x86/boot.rst
 * ("32-bit Boot Protocol"), offsets from the start of the image.
 *
 * Guest memory, top of low RAM downwards:
 *   -4 KiB   zero page (struct boot_params) with the e820 map
 *   -8 KiB   kernel command line
 *   -8 KiB - initrd, rounded to 4 KiB    initrd
 *   2 KiB below that                     GDT
 *   16 MiB   the whole image, setup sectors and all
 */
import type { Gpa } from '../address.ts';
import type { BootConfig } from '../config.ts';
import { ConfigError, ExitCode } from '../errors.ts';
import { buildE820, type E820Input, encodeE820 } from '../firmware/e820.ts';
import type { VcpuRegs } from '../hsm/hsm.ts';
import { Layout } from '../layout.ts';
import type { Log } from '../log.ts';
import type { GuestMemory } from '../memory.ts';
import { alignUp, formatSize, KiB } from '../units.ts';
import { type ImageFile, type ImageRole, withImage } from './image-file.ts';
import { FLAT_CODE, FLAT_DATA, flatSegments, writeGdt } from './protected-mode.ts';

type BzImageConfig = Extract<BootConfig, { kind: 'bzimage' }>;

const KERNEL: ImageRole = { option: '-k', what: 'kernel image' };
const RAMDISK: ImageRole = { option: '-r', what: 'ramdisk image' };

/** Setup header fields (boot.rst, "The Real-Mode Kernel Header"); the same offsets in image and zero page. */
const Setup = {
  setupSects: 0x1f1,
  magic: 0x202,
  loaderType: 0x210,
  loadFlags: 0x211,
  ramdiskImage: 0x218,
  ramdiskSize: 0x21c,
  cmdLinePtr: 0x228,
  end: 0x268,
} as const;
/** struct boot_params outside the header. */
const ZeroPage = { sizeBytes: 4 * KiB, e820Count: 0x1e8, e820: 0x2d0 } as const;

const MAGIC = 0x5372_6448; // "HdrS"
const LOADER_UNDEFINED = 0xff;
const LOAD_FLAG_QUIET = 1 << 5;
/** For setup_sects 0 the real value is 4. */
const DEFAULT_SETUP_SECTS = 4;
const SECTOR = 512;

/** Command lines are shorter than this (C: BOOT_ARG_LEN); the kernel's own limit is 2047 characters, too. */
export const BOOTARGS_BYTES = 2 * KiB;
/** Where things are, from the top of low RAM. */
const ZERO_PAGE_BELOW = 4 * KiB;
const BOOTARGS_BELOW = 8 * KiB;
const GDT_BELOW_RAMDISK = 2 * KiB;

/** Null, unused, flat code (0x10), flat data (0x18): the selectors boot.rst demands. */
const GDT = [0n, 0n, FLAT_CODE, FLAT_DATA];
const Selector = { code: 0x10, data: 0x18 } as const;

/** Bytes of a command line with its NUL. @throws ConfigError if it is too long. */
export function encodeBootargs(bootargs: string): Uint8Array {
  const text = new TextEncoder().encode(bootargs);
  if (text.length >= BOOTARGS_BYTES) {
    throw new ConfigError(
      `-B: the kernel command line has ${text.length} bytes, at most ${BOOTARGS_BYTES - 1} are possible`,
    );
  }
  const out = new Uint8Array(text.length + 1);
  out.set(text);
  return out;
}

function tooSmall(what: string, file: ImageFile, ram: E820Input): ConfigError {
  return new ConfigError(
    `${file.role.option}: ${what} of ${file.sizeBytes} bytes does not fit ${formatSize(ram.lowRamBytes)} of guest memory`,
    { hint: 'give the VM more memory with -m', exitCode: ExitCode.DataError },
  );
}

/** Where each part goes. @throws ConfigError if kernel or ramdisk do not fit. */
function layOut(kernel: ImageFile, ramdisk: ImageFile | undefined, ram: E820Input) {
  const top = ram.lowRamBytes;
  const ramdiskAt = top - alignUp((ramdisk?.sizeBytes ?? 0) + BOOTARGS_BELOW, 4 * KiB);
  const gdtAt = ramdiskAt - GDT_BELOW_RAMDISK;
  if (ramdisk !== undefined && gdtAt <= Layout.kernelLoadBase) throw tooSmall('a ramdisk', ramdisk, ram);
  // Compat: C lets the kernel's last 2 KiB reach where the GDT is written over them.
  if (Layout.kernelLoadBase + kernel.sizeBytes > gdtAt) throw tooSmall('a kernel', kernel, ram);
  return { zeroPage: top - ZERO_PAGE_BELOW, bootargsAt: top - BOOTARGS_BELOW, ramdiskAt, gdtAt };
}

/** Open kernel and, where given, ramdisk. */
function withImages<T>(boot: BzImageConfig, use: (kernel: ImageFile, ramdisk: ImageFile | undefined) => T): T {
  return withImage(boot.kernelPath, KERNEL, (kernel) =>
    boot.ramdiskPath === undefined
      ? use(kernel, undefined)
      : withImage(boot.ramdiskPath, RAMDISK, (ramdisk) => use(kernel, ramdisk)),
  );
}

/** Everything that can be wrong with the files, before anything is created. @throws ConfigError */
export function checkBzImage(boot: BzImageConfig, ram: E820Input): void {
  withImages(boot, (kernel, ramdisk) => layOut(kernel, ramdisk, ram));
  if (boot.bootargs !== undefined) encodeBootargs(boot.bootargs);
}

/**
 * Put kernel, ramdisk, command line, zero page and GDT into guest memory.
 * @returns how the boot CPU starts.
 * @throws ConfigError if a file cannot be read or does not fit.
 */
export function loadBzImage(boot: BzImageConfig, memory: GuestMemory, ram: E820Input, log: Log): VcpuRegs {
  return withImages(boot, (kernel, ramdisk) => {
    const { zeroPage, bootargsAt, ramdiskAt, gdtAt } = layOut(kernel, ramdisk, ram);
    if (ramdisk !== undefined) {
      ramdisk.readToGuest(memory, ramdiskAt, ramdisk.sizeBytes);
      log.info(`ramdisk: ${ramdisk.sizeBytes} bytes at 0x${ramdiskAt.toString(16)}`);
    }
    kernel.readToGuest(memory, Layout.kernelLoadBase, kernel.sizeBytes);
    const entry = kernelEntry(memory, kernel, log);
    if (boot.bootargs !== undefined) {
      // Compat: C checks for 2047 characters, but copies 1024 and lets the rest of a longer line fall away.
      memory.write(bootargsAt, encodeBootargs(boot.bootargs));
    }
    writeZeroPage(memory, zeroPage, bootargsAt, ramdisk && { at: ramdiskAt, sizeBytes: ramdisk.sizeBytes }, ram);
    log.info(`kernel: ${boot.kernelPath} at 0x${Layout.kernelLoadBase.toString(16)}, entry 0x${entry.toString(16)}`);
    return {
      ...flatSegments(Selector.code, 0xc09b, Selector.data),
      gdt: writeGdt(memory, gdtAt, GDT),
      rip: BigInt(entry),
      rsi: BigInt(zeroPage),
    };
  });
}

/** Where the protected-mode part begins: right after the boot sector and the setup sectors. */
function kernelEntry(memory: GuestMemory, kernel: ImageFile, log: Log): Gpa {
  const base = Layout.kernelLoadBase;
  if (memory.readU32(base + Setup.magic) !== MAGIC)
    log.warn(`${kernel.path} has no bzImage header; started all the same`);
  // As C does, in place: the zero page and a kernel that looks back at its image both see the real number.
  if (memory.readU8(base + Setup.setupSects) === 0) memory.writeU8(base + Setup.setupSects, DEFAULT_SETUP_SECTS);
  return base + (memory.readU8(base + Setup.setupSects) + 1) * SECTOR;
}

function writeZeroPage(
  memory: GuestMemory,
  at: Gpa,
  bootargsAt: Gpa,
  ramdisk: { readonly at: Gpa; readonly sizeBytes: number } | undefined,
  ram: E820Input,
): void {
  const page = memory.bytes(at, ZeroPage.sizeBytes);
  page.fill(0);
  page.set(memory.read(Layout.kernelLoadBase + Setup.setupSects, Setup.end - Setup.setupSects), Setup.setupSects);
  if (ramdisk !== undefined) {
    memory.writeU32(at + Setup.ramdiskImage, ramdisk.at);
    memory.writeU32(at + Setup.ramdiskSize, ramdisk.sizeBytes);
  }
  memory.writeU32(at + Setup.cmdLinePtr, bootargsAt);
  memory.writeU8(at + Setup.loaderType, LOADER_UNDEFINED);
  memory.writeU8(at + Setup.loadFlags, memory.readU8(at + Setup.loadFlags) | LOAD_FLAG_QUIET);
  const map = buildE820(ram);
  memory.writeU8(at + ZeroPage.e820Count, map.length);
  memory.write(at + ZeroPage.e820, encodeE820(map));
}
