import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { checkBzImage, encodeBootargs, isKernel64Bit, loadBzImage } from '../../../devicemodel/core/boot/bzimage.ts';
import { splitRam } from '../../../devicemodel/core/boot/loader.ts';
import { ConfigError } from '../../../devicemodel/core/errors.ts';
import { silentLog } from '../../../devicemodel/core/log.ts';
import { GuestMemory } from '../../../devicemodel/core/memory.ts';
import { KiB, MiB } from '../../../devicemodel/core/units.ts';
import { bzImage, file, noise, temporaryDirectory } from '../../support/images.ts';

/** Where the whole image goes. */
const KERNEL = 16 * MiB;

function ramOf(sizeBytes: number): GuestMemory {
  return new GuestMemory([{ base: 0, bytes: new Uint8Array(sizeBytes), hostAddress: undefined }]);
}

function boot(parts: { kernel: Uint8Array; ramdisk?: Uint8Array; bootargs?: string; ramBytes?: number }) {
  const dir = temporaryDirectory();
  const config = {
    kind: 'bzimage',
    kernelPath: file(dir, 'kernel', parts.kernel),
    ramdiskPath: parts.ramdisk && file(dir, 'ramdisk', parts.ramdisk),
    bootargs: parts.bootargs,
  } as const;
  const ramBytes = parts.ramBytes ?? 20 * MiB;
  const memory = ramOf(ramBytes);
  checkBzImage(config, splitRam(ramBytes));
  return { memory, ramBytes, regs: loadBzImage(config, memory, splitRam(ramBytes), silentLog) };
}

const kernel = bzImage({ bodyBytes: 5000 });

test('the boot CPU starts behind the setup sectors, in flat protected mode, with the zero page in RSI', () => {
  const { memory, ramBytes, regs } = boot({ kernel: bzImage({ setupSects: 30, bodyBytes: 5000 }) });
  // boot.rst: the boot sector and setup_sects sectors come before the protected-mode kernel.
  expect(regs.rip).toBe(BigInt(KERNEL + 31 * 512));
  expect(regs.rsi).toBe(BigInt(ramBytes - 4 * KiB));
  expect(Number(regs.cr0) & 1).toBe(1);
  const { base, limit } = regs.gdt as { base: bigint; limit: number };
  // boot.rst demands __BOOT_CS 0x10 (code, execute/read) and __BOOT_DS 0x18 (data, read/write), flat 4 GiB.
  expect(limit).toBeGreaterThanOrEqual(0x18 + 7);
  expect(memory.readU64(Number(base) + 0x10)).toBe(0x00cf9b000000ffffn);
  expect(memory.readU64(Number(base) + 0x18)).toBe(0x00cf93000000ffffn);
  expect(regs).toMatchObject({ cs: { selector: 0x10, base: 0n }, ds: 0x18, es: 0x18, ss: 0x18 });
});

test('setup_sects 0 means 4, in the image and in the zero page too', () => {
  const { memory, ramBytes, regs } = boot({ kernel: bzImage({ setupSects: 0 }) });
  expect(regs.rip).toBe(BigInt(KERNEL + 5 * 512));
  expect(memory.readU8(KERNEL + 0x1f1)).toBe(4);
  expect(memory.readU8(ramBytes - 4 * KiB + 0x1f1)).toBe(4);
});

test('the zero page tells of ramdisk, command line, loader and memory', () => {
  const ramdisk = noise('ramdisk', 10_000);
  const { memory, ramBytes } = boot({ kernel, ramdisk, bootargs: 'console=ttyS0' });
  const zeroPage = ramBytes - 4 * KiB;
  const ramdiskAt = memory.readU32(zeroPage + 0x218);
  expect(memory.readU32(zeroPage + 0x21c)).toBe(ramdisk.length);
  expect(ramdiskAt % (4 * KiB)).toBe(0);
  expect(Buffer.from(memory.read(ramdiskAt, ramdisk.length)).equals(ramdisk)).toBe(true);
  const bootargsAt = memory.readU32(zeroPage + 0x228);
  expect(Buffer.from(memory.read(bootargsAt, 14)).toString('latin1')).toBe('console=ttyS0\0');
  expect(memory.readU8(zeroPage + 0x210)).toBe(0xff); // a loader without a number of its own
  expect(memory.readU8(zeroPage + 0x1e8)).toBeGreaterThan(0); // e820 entries
  expect(memory.readU32(zeroPage + 0x2d0 + 16)).toBe(1); // the first is RAM
});

test('without a ramdisk the zero page names none', () => {
  const { memory, ramBytes } = boot({ kernel });
  expect(memory.readU32(ramBytes - 4 * KiB + 0x218)).toBe(0);
  expect(memory.readU32(ramBytes - 4 * KiB + 0x21c)).toBe(0);
});

test('a second load finds nothing left of the first', () => {
  const dir = temporaryDirectory();
  const config = {
    kind: 'bzimage',
    kernelPath: file(dir, 'k', kernel),
    ramdiskPath: undefined,
    bootargs: 'a',
  } as const;
  const ram = splitRam(20 * MiB);
  const memory = ramOf(20 * MiB);
  const first = loadBzImage(config, memory, ram, silentLog);
  const zeroPage = 20 * MiB - 4 * KiB;
  const before = memory.read(zeroPage, 4 * KiB);
  memory.bytes(zeroPage, 4 * KiB).fill(0xaa); // the guest used it
  expect(loadBzImage(config, memory, ram, silentLog)).toEqual(first);
  expect(memory.read(zeroPage, 4 * KiB)).toEqual(before);
});

describe('command line', () => {
  test('2047 bytes arrive whole, with a NUL', () => {
    const bootargs = `${'x'.repeat(2046)}y`;
    const { memory, ramBytes } = boot({ kernel, bootargs });
    expect(Buffer.from(memory.read(ramBytes - 8 * KiB, 2048)).toString('latin1')).toBe(`${bootargs}\0`);
  });

  test('2048 bytes are refused, counted in bytes and not in characters', () => {
    expect(() => encodeBootargs('x'.repeat(2048))).toThrow(/-B: .* 2048 bytes, at most 2047/);
    expect(() => encodeBootargs('é'.repeat(1024))).toThrow(ConfigError);
  });
});

describe('what does not fit is refused, with the option and the remedy', () => {
  const ramBytes = 17 * MiB;
  test('a kernel', () => {
    expect(() => boot({ kernel: bzImage({ bodyBytes: 1 * MiB }), ramBytes })).toThrow(/^-k: .* does not fit 17 MiB/);
  });
  test('a ramdisk', () => {
    expect(() => boot({ kernel, ramdisk: new Uint8Array(2 * MiB).fill(1), ramBytes })).toThrow(/^-r: .* does not fit/);
  });
});

test.each([
  ['a missing kernel', '-k', 66, (dir: string) => join(dir, 'nope')],
  ['an empty kernel', '-k', 65, (dir: string) => file(dir, 'empty', '')],
  ['a directory', '-k', 65, (dir: string) => dir],
])('%s is refused before anything happens', (_, option, exitCode, make) => {
  const dir = temporaryDirectory();
  const config = { kind: 'bzimage', kernelPath: make(dir), ramdiskPath: undefined, bootargs: undefined } as const;
  const error = (() => {
    try {
      checkBzImage(config, splitRam(20 * MiB));
    } catch (caught) {
      return caught as ConfigError;
    }
    return undefined;
  })();
  expect(error?.message).toContain(`${option}: kernel image ${config.kernelPath}`);
  expect(error?.exitCode).toBe(exitCode);
});

test('whatever the sizes: it is refused, or nothing overlaps and everything is there', () => {
  const dir = temporaryDirectory();
  const sizes = fc.record({
    bodyBytes: fc.integer({ min: 1, max: 1200 * KiB }),
    ramdiskBytes: fc.integer({ min: 0, max: 1200 * KiB }),
    ramBytes: fc.integer({ min: 8, max: 18 * 256 }).map((pages) => pages * 4 * KiB),
    argsLength: fc.integer({ min: 0, max: 2047 }),
  });
  fc.assert(
    fc.property(sizes, ({ bodyBytes, ramdiskBytes, ramBytes, argsLength }) => {
      // Every part is filled with a byte of its own: content that another part overwrote would show.
      const image = new Uint8Array(8 * 512 + bodyBytes).fill(0x4b);
      image[0x1f1] = 7;
      image.set([0x55, 0xaa], 0x1fe); // without a setup header it is started as C starts it
      writeFileSync(join(dir, 'kernel'), image);
      writeFileSync(join(dir, 'ramdisk'), new Uint8Array(ramdiskBytes).fill(0x52));
      const config = {
        kind: 'bzimage',
        kernelPath: join(dir, 'kernel'),
        ramdiskPath: ramdiskBytes > 0 ? join(dir, 'ramdisk') : undefined,
        bootargs: 'A'.repeat(argsLength),
      } as const;
      const memory = ramOf(ramBytes);
      try {
        loadBzImage(config, memory, splitRam(ramBytes), silentLog);
      } catch (error) {
        expect(error).toBeInstanceOf(ConfigError);
        return;
      }
      expect(Buffer.from(memory.read(KERNEL, image.length)).equals(image)).toBe(true);
      const zeroPage = ramBytes - 4 * KiB;
      const ramdisk = memory.read(memory.readU32(zeroPage + 0x218), ramdiskBytes);
      expect(ramdisk.every((byte) => byte === 0x52)).toBe(true);
      const args = memory.read(ramBytes - 8 * KiB, argsLength + 1);
      expect(args.every((byte, i) => byte === (i < argsLength ? 0x41 : 0))).toBe(true);
    }),
    { numRuns: 60 },
  );
});

/** A kernel with a header whose fields hold together, as every released Linux has it. */
function linux(fields: {
  version?: number;
  relocatable?: number;
  loadFlags?: number;
  code32Start?: number;
  prefAddress?: number;
  initSizeBytes?: number;
  initrdAddrMax?: number;
  cmdlineSize?: number;
  xloadFlags?: number;
  /** What the header says of the file behind its setup code. */
  bodyBytes?: number;
}): Uint8Array {
  const image = bzImage({ bodyBytes: 5000 });
  const view = new DataView(image.buffer);
  view.setUint32(0x1f4, Math.ceil((fields.bodyBytes ?? 5000) / 16), true);
  view.setUint16(0x206, fields.version ?? 0x20f, true);
  view.setUint8(0x211, fields.loadFlags ?? 1);
  view.setUint32(0x214, fields.code32Start ?? 0x10_0000, true);
  view.setUint32(0x22c, fields.initrdAddrMax ?? 0x7fff_ffff, true);
  view.setUint32(0x230, 2 * MiB, true);
  view.setUint8(0x234, fields.relocatable ?? 1);
  view.setUint16(0x236, fields.xloadFlags ?? 0, true);
  view.setUint32(0x238, fields.cmdlineSize ?? 2047, true);
  view.setBigUint64(0x258, BigInt(fields.prefAddress ?? 16 * MiB), true);
  view.setUint32(0x260, fields.initSizeBytes ?? 1 * MiB, true);
  return image;
}

describe('what the setup header asks for (boot.rst)', () => {
  const body = (image: Uint8Array) => Buffer.from(image.subarray(8 * 512));

  test.each([
    ['relocatable 0, protocol 2.10 and later: pref_address', { relocatable: 0, prefAddress: 3 * MiB }, 3 * MiB],
    ['relocatable 0, no pref_address: code32_start (memtest86+)', { relocatable: 0, prefAddress: 0 }, 1 * MiB],
    ['relocatable 0, protocol 2.05: code32_start', { relocatable: 0, version: 0x205, code32Start: 2 * MiB }, 2 * MiB],
    ['protocol 2.04 has no relocatable kernels: 1 MiB', { version: 0x204, relocatable: 1 }, 1 * MiB],
    ['protocol 2.02: 1 MiB', { version: 0x202, relocatable: 1, code32Start: 5 * MiB }, 1 * MiB],
  ])('%s', (_, fields, address) => {
    const image = linux(fields);
    const { memory, regs } = boot({ kernel: image });
    expect(regs.rip).toBe(BigInt(address));
    expect(Buffer.from(memory.read(address, image.length - 8 * 512)).equals(body(image))).toBe(true);
    expect(memory.readU32(KERNEL + 0x202)).toBe(0); // not at 16 MiB as well
  });

  test('a relocatable kernel stays where the C device model has it', () => {
    expect(boot({ kernel: linux({}) }).regs.rip).toBe(BigInt(KERNEL + 8 * 512));
  });

  test('a ramdisk goes below the highest address at which the kernel looks for it', () => {
    const limit = 21 * MiB - 1;
    const ramdisk = noise('ramdisk', 10_000);
    const { memory, ramBytes } = boot({ kernel: linux({ initrdAddrMax: limit }), ramdisk, ramBytes: 24 * MiB });
    const at = memory.readU32(ramBytes - 4 * KiB + 0x218);
    expect(at + ramdisk.length - 1).toBeLessThanOrEqual(limit);
    expect(at % (4 * KiB)).toBe(0);
    expect(Buffer.from(memory.read(at, ramdisk.length)).equals(ramdisk)).toBe(true);
  });

  test('where that leaves no room, more memory is not the advice', () => {
    const kernel = linux({ initrdAddrMax: 19 * MiB - 1 });
    expect(exitCode(() => boot({ kernel, ramdisk: noise('r', 10_000), ramBytes: 24 * MiB }))?.text).toMatch(
      /this kernel looks for a ramdisk below 0x1300000 only/,
    );
  });

  const exitCode = (act: () => unknown) => {
    try {
      act();
    } catch (error) {
      return {
        status: (error as ConfigError).exitCode,
        text: `${(error as Error).message}; ${(error as ConfigError).hint}`,
      };
    }
    return undefined;
  };

  test('a kernel that unpacks itself over its ramdisk is refused, with the memory it takes', () => {
    const ramdisk = new Uint8Array(2 * MiB).fill(1);
    const kernel = linux({ initSizeBytes: 30 * MiB });
    const refused = exitCode(() => boot({ kernel, ramdisk, ramBytes: 48 * MiB }));
    expect(refused).toMatchObject({ status: 65 });
    // It runs at 18 MiB, the first multiple of 2 MiB behind its setup sectors: 18 + 30 + 2 and what lies at the top.
    expect(refused?.text).toMatch(/unpacks itself .* over the ramdisk of 2 MiB; give the VM at least -m 51M/);
    expect(exitCode(() => boot({ kernel, ramdisk, ramBytes: 51 * MiB }))).toBeUndefined();
    expect(exitCode(() => boot({ kernel, ramBytes: 48 * MiB }))?.text).toMatch(/start-up data; .* -m 49M/);
  });

  test('a command line longer than the kernel takes is refused', () => {
    expect(exitCode(() => boot({ kernel: linux({ cmdlineSize: 255 }), bootargs: 'x'.repeat(256) }))).toMatchObject({
      status: 64,
      text: expect.stringMatching(/256 bytes, this kernel takes at most 255/),
    });
    expect(exitCode(() => boot({ kernel: linux({ cmdlineSize: 255 }), bootargs: 'x'.repeat(255) }))).toBeUndefined();
    expect(exitCode(() => boot({ kernel: linux({ version: 0x205 }), bootargs: 'x'.repeat(256) }))?.status).toBe(64);
  });

  test.each([
    ['no 32-bit entry (ipxe.lkrn)', linux({ code32Start: 0, relocatable: 0 }), /no 32-bit entry point/],
    ['a zImage', linux({ loadFlags: 0 }), /is a zImage/],
    ['a text file', new TextEncoder().encode('#!/bin/sh\necho hello\n'.repeat(100)), /it is a text file/],
    ['an ELF file', new Uint8Array(9000).fill(1).map((b, i) => [0x7f, 0x45, 0x4c, 0x46][i] ?? b), /an ELF file; .* -E/],
    ['gzip', new Uint8Array(9000).fill(1).map((b, i) => [0x1f, 0x8b][i] ?? b), /compressed by gzip/],
    ['zeroes', new Uint8Array(9000), /without a boot sector signature/],
    ['one byte', new Uint8Array(1), /only 1 bytes long|is no kernel image/],
    ['an EFI program', new Uint8Array(9000).fill(1).map((b, i) => [0x4d, 0x5a][i] ?? b), /--ovmf/],
    ['cut within its setup code', linux({}).subarray(0, 3000), /ends at 3000/],
  ])('%s: status 65 with what was found', (_, kernel, words) => {
    expect(exitCode(() => boot({ kernel }))).toMatchObject({ status: 65, text: expect.stringMatching(words) });
  });

  // Mutation: look at the first bytes alone, and only at compressed ones: "without a boot sector signature" says nothing.
  const beginning = (text: string, at = 0) => {
    const image = new Uint8Array(9000);
    image.set(Buffer.from(text, 'latin1'), at);
    return image;
  };
  test.each([
    ['bzip2', beginning('BZh9'), /compressed by bzip2; unpack/],
    ['a kernel of arm64', beginning('ARM\x64', 56), /a kernel for arm64; take one for x86/],
    ['a kernel of RISC-V', beginning('RSC\x05', 56), /a kernel for RISC-V; take one for x86/],
    ['an image of U-Boot', beginning('\x27\x05\x19\x56'), /U-Boot/],
    ['a ramdisk', beginning('070701'), /a ramdisk .*; .* -r/],
    ['a tar archive', beginning('ustar', 257), /a tar archive/],
    ['a disk with a file system', beginning('\x53\xef', 1080), /ext4 file system; disks are given .*virtio-blk/],
    ['a qcow2 disk', beginning('QFI\xfb'), /a qcow2 disk; .*qemu-img/],
    ['a package', beginning('!<arch>\n'), /a package/],
    [
      'half a download',
      linux({ bodyBytes: 100_000 }),
      /is cut off: it has 9096 bytes, its header says 104096; copy it again/,
    ],
    ['short by one unit', linux({ bodyBytes: 5000 + 16 }), /is cut off/],
    [
      'linked where no VM has memory',
      linux({ relocatable: 0, prefAddress: 2 ** 40 }),
      /at 0x10000000000 does not fit .*no VM/,
    ],
    ['linked above this VM', linux({ relocatable: 0, prefAddress: 200 * MiB }), /does not fit 20 MiB.*; .* -m 201M/],
    [
      'unpacks itself beyond any VM',
      linux({ initSizeBytes: 0xffff_ffff }),
      /unpacks itself .*; no VM has memory there/,
    ],
  ])('%s: status 65, what was found and what to do', (_, kernel, words) => {
    expect(exitCode(() => boot({ kernel }))).toMatchObject({ status: 65, text: expect.stringMatching(words) });
  });

  test.each([
    ['the size of the kernel rounded up (iPXE, memtest86+)', linux({ bodyBytes: 5000 + 8 })],
    ['more behind the kernel (a signature, padding)', linux({ bodyBytes: 4000 })],
    ['no size', linux({ bodyBytes: 0 })],
    ['a protocol whose size has two bytes', linux({ bodyBytes: 0x7fff_0000, version: 0x203 })],
    ['an address no ramdisk may have, and no ramdisk', linux({ initrdAddrMax: 0 })],
  ])('%s: starts', (_, kernel) => {
    expect(exitCode(() => boot({ kernel }))).toBeUndefined();
  });

  test('a ramdisk for which the kernel leaves no place: more memory is not the advice', () => {
    const ramdisk = noise('r', 10_000);
    const refused = exitCode(() => boot({ kernel: linux({ initrdAddrMax: 1 * MiB - 1 }), ramdisk }));
    expect(refused?.text).toMatch(/^-r: .*; this kernel looks for a ramdisk below 0x100000 only/);
  });

  test.each([
    [{ xloadFlags: 1 }, true],
    [{ xloadFlags: 0 }, false],
    [{ xloadFlags: 1, version: 0x20b }, false],
  ])('xloadflags %o: 64-bit %s', (fields, expected) => {
    expect(isKernel64Bit(file(temporaryDirectory(), 'k', linux(fields)))).toBe(expected);
  });
});
