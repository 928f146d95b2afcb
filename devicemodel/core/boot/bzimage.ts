/**
 * Linux kernels in bzImage form, started at the 32-bit entry point. Spec: Linux Documentation/arch/x86/boot.rst
 * ("32-bit Boot Protocol"), offsets from the start of the image.
 *
 * Guest memory, top of low RAM downwards:
 *   -4 KiB   zero page (struct boot_params) with the e820 map
 *   -8 KiB   kernel command line
 *   -8 KiB - initrd, rounded to 4 KiB    initrd
 *   2 KiB below that                     GDT
 *   16 MiB   the whole image, setup sectors and all; a kernel that cannot relocate itself: where its header wants it
 */
import type { Gpa } from '../address.ts';
import type { BootConfig } from '../config.ts';
import { ConfigError, ExitCode } from '../errors.ts';
import { buildE820, type E820Input, encodeE820, usableLowRam } from '../firmware/e820.ts';
import type { VcpuRegs } from '../hsm/hsm.ts';
import { Layout } from '../layout.ts';
import type { Log } from '../log.ts';
import type { GuestMemory } from '../memory.ts';
import { alignUp, formatSize, KiB } from '../units.ts';
import { type ImageFile, type ImageRole, withImage } from './image-file.ts';
import { FLAT_CODE, FLAT_DATA, flatSegments, writeGdt } from './protected-mode.ts';
import { atLeast, readSetupHeader, runsAt, Setup, type SetupHeader } from './setup-header.ts';

type BzImageConfig = Extract<BootConfig, { kind: 'bzimage' }>;

const KERNEL: ImageRole = { option: '-k', what: 'kernel image' };
const RAMDISK: ImageRole = { option: '-r', what: 'ramdisk image' };

/** struct boot_params outside the header. */
const ZeroPage = { sizeBytes: 4 * KiB, e820Count: 0x1e8, e820: 0x2d0 } as const;

const LOADER_UNDEFINED = 0xff;
const LOAD_FLAG_QUIET = 1 << 5;

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

/** @param at where it insists on being. */
function tooSmall(what: string, file: ImageFile, ram: E820Input, hint: string, at?: Gpa): ConfigError {
  const place = at === undefined ? '' : ` at 0x${at.toString(16)}`;
  return new ConfigError(
    `${file.role.option}: ${what} of ${file.sizeBytes} bytes${place} does not fit ` +
      `${formatSize(ram.lowRamBytes)} of guest memory`,
    { hint, exitCode: ExitCode.DataError },
  );
}

interface Placement {
  /** Where the file goes from byte `fileOffset` on. */
  readonly kernelAt: Gpa;
  readonly fileOffset: number;
  readonly entry: Gpa;
  readonly zeroPage: Gpa;
  readonly bootargsAt: Gpa;
  readonly ramdiskAt: Gpa;
  readonly gdtAt: Gpa;
}

/**
 * Where each part goes. As in C the whole file lies at 16 MiB; only a kernel that cannot relocate itself goes, without
 * its setup sectors, to the address its header asks for, and a ramdisk below the address up to which the kernel looks.
 * @throws ConfigError if kernel or ramdisk do not fit, or lie where the kernel unpacks itself.
 */
function layOut(header: SetupHeader, kernel: ImageFile, ramdisk: ImageFile | undefined, ram: E820Input): Placement {
  const top = usableLowRam(ram);
  const { demands, setupBytes } = header;
  const ramdiskBytes = ramdisk?.sizeBytes ?? 0;
  const initrdAddrMax = ramdisk === undefined ? undefined : demands?.initrdAddrMax;
  const ramdiskEnd = Math.min(top - BOOTARGS_BELOW, (initrdAddrMax ?? top) + 1);
  const ramdiskAt = ramdiskEnd - alignUp(ramdiskBytes + (ramdiskEnd % (4 * KiB)), 4 * KiB);
  const gdtAt = ramdiskAt - GDT_BELOW_RAMDISK;
  const isFixed = demands?.loadAddress !== undefined;
  const kernelAt = demands?.loadAddress ?? Layout.kernelLoadBase;
  const fileOffset = isFixed ? setupBytes : 0;
  const entry = isFixed ? kernelAt : kernelAt + setupBytes;
  const kernelEnd = kernelAt + kernel.sizeBytes - fileOffset;
  const advice = (endsAt: number) =>
    ramdiskEnd < top - BOOTARGS_BELOW
      ? `this kernel looks for a ramdisk below 0x${ramdiskEnd.toString(16)} only: take a smaller one`
      : atLeast(endsAt + (top - gdtAt));
  if (ramdisk !== undefined && gdtAt <= kernelAt) throw tooSmall('a ramdisk', ramdisk, ram, advice(kernelEnd));
  // Compat: C lets the kernel's last 2 KiB reach where the GDT is written over them.
  if (kernelEnd > gdtAt) throw tooSmall('a kernel', kernel, ram, advice(kernelEnd), demands?.loadAddress);
  if (demands !== undefined && demands.initSizeBytes > 0) {
    const needed = runsAt(demands, entry) + demands.initSizeBytes;
    if (needed > gdtAt) throw unpacksOver(kernel, ramdisk, needed, advice(needed));
  }
  return {
    kernelAt,
    fileOffset,
    entry,
    zeroPage: top - ZERO_PAGE_BELOW,
    bootargsAt: top - BOOTARGS_BELOW,
    ramdiskAt,
    gdtAt,
  };
}

/** boot.rst, init_size: a ramdisk and what else the kernel reads at its start must not lie there. */
function unpacksOver(kernel: ImageFile, ramdisk: ImageFile | undefined, endsAt: number, hint: string): ConfigError {
  const victim = ramdisk === undefined ? 'its own start-up data' : `the ramdisk of ${formatSize(ramdisk.sizeBytes)}`;
  return new ConfigError(
    `-k: kernel image ${kernel.path} unpacks itself up to 0x${endsAt.toString(16)}, over ${victim}`,
    { hint, exitCode: ExitCode.DataError },
  );
}

/** @throws ConfigError if the kernel says that it takes less. */
function checkBootargs(bootargs: string | undefined, header: SetupHeader): void {
  if (bootargs === undefined) return;
  const length = encodeBootargs(bootargs).length - 1;
  const limit = header.demands?.cmdlineBytes;
  if (limit !== undefined && length > limit) {
    throw new ConfigError(`-B: the kernel command line has ${length} bytes, this kernel takes at most ${limit}`);
  }
}

/** Open kernel and, where given, ramdisk. */
function withImages<T>(boot: BzImageConfig, use: (kernel: ImageFile, ramdisk: ImageFile | undefined) => T): T {
  return withImage(boot.kernelPath, KERNEL, (kernel) =>
    boot.ramdiskPath === undefined
      ? use(kernel, undefined)
      : withImage(boot.ramdiskPath, RAMDISK, (ramdisk) => use(kernel, ramdisk)),
  );
}

/** What of the kernel an engine has to know. @throws ConfigError */
export function isKernel64Bit(kernelPath: string): boolean {
  return withImage(kernelPath, KERNEL, (kernel) => readSetupHeader(kernel).demands?.is64Bit === true);
}

/** Everything that can be wrong with the files, before anything is created. @throws ConfigError */
export function checkBzImage(boot: BzImageConfig, ram: E820Input): void {
  withImages(boot, (kernel, ramdisk) => {
    const header = readSetupHeader(kernel);
    layOut(header, kernel, ramdisk, ram);
    checkBootargs(boot.bootargs, header);
  });
}

/**
 * Put kernel, ramdisk, command line, zero page and GDT into guest memory.
 * @returns how the boot CPU starts.
 * @throws ConfigError if a file cannot be read or does not fit.
 */
export function loadBzImage(boot: BzImageConfig, memory: GuestMemory, ram: E820Input, log: Log): VcpuRegs {
  return withImages(boot, (kernel, ramdisk) => {
    const header = readSetupHeader(kernel);
    const at = layOut(header, kernel, ramdisk, ram);
    checkBootargs(boot.bootargs, header);
    if (ramdisk !== undefined) {
      ramdisk.readToGuest(memory, at.ramdiskAt, ramdisk.sizeBytes);
      log.info(`ramdisk: ${ramdisk.sizeBytes} bytes at 0x${at.ramdiskAt.toString(16)}`);
    }
    kernel.readToGuest(memory, at.kernelAt, kernel.sizeBytes - at.fileOffset, at.fileOffset);
    if (header.demands === undefined) log.warn(`${kernel.path} has no usable bzImage header; started all the same`);
    // As C does, in place: the zero page and a kernel that looks back at its image both see the real number.
    if (at.fileOffset === 0) memory.writeU8(at.kernelAt + Setup.setupSects, header.bytes[0] as number);
    if (boot.bootargs !== undefined) {
      // Compat: C checks for 2047 characters, but copies 1024 and lets the rest of a longer line fall away.
      memory.write(at.bootargsAt, encodeBootargs(boot.bootargs));
    }
    writeZeroPage(memory, at, header, ramdisk?.sizeBytes, ram);
    log.info(`kernel: ${boot.kernelPath} at 0x${at.kernelAt.toString(16)}, entry 0x${at.entry.toString(16)}`);
    return {
      ...flatSegments(Selector.code, 0xc09b, Selector.data),
      gdt: writeGdt(memory, at.gdtAt, GDT),
      rip: BigInt(at.entry),
      rsi: BigInt(at.zeroPage),
    };
  });
}

/** @param ramdiskBytes undefined: there is none. */
function writeZeroPage(
  memory: GuestMemory,
  placement: Placement,
  header: SetupHeader,
  ramdiskBytes: number | undefined,
  ram: E820Input,
): void {
  const at = placement.zeroPage;
  const page = memory.bytes(at, ZeroPage.sizeBytes);
  page.fill(0);
  page.set(header.bytes, Setup.setupSects);
  if (ramdiskBytes !== undefined) {
    memory.writeU32(at + Setup.ramdiskImage, placement.ramdiskAt);
    memory.writeU32(at + Setup.ramdiskSize, ramdiskBytes);
  }
  memory.writeU32(at + Setup.cmdLinePtr, placement.bootargsAt);
  memory.writeU8(at + Setup.loaderType, LOADER_UNDEFINED);
  memory.writeU8(at + Setup.loadFlags, memory.readU8(at + Setup.loadFlags) | LOAD_FLAG_QUIET);
  const map = buildE820(ram);
  memory.writeU8(at + ZeroPage.e820Count, map.length);
  memory.write(at + ZeroPage.e820, encodeE820(map));
}
