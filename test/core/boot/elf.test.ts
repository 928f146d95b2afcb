import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { checkElf, loadElf, multibootFlags } from '../../../devicemodel/core/boot/elf.ts';
import { splitRam } from '../../../devicemodel/core/boot/loader.ts';
import { ConfigError } from '../../../devicemodel/core/errors.ts';
import { silentLog } from '../../../devicemodel/core/log.ts';
import { GuestMemory } from '../../../devicemodel/core/memory.ts';
import { KiB, MiB } from '../../../devicemodel/core/units.ts';
import { elf32, file, noise, temporaryDirectory } from '../../support/images.ts';

const RAM = 4 * MiB;
const INFO = 0x2_0000;

function ram(fill = 0): GuestMemory {
  return new GuestMemory([{ base: 0, bytes: new Uint8Array(RAM).fill(fill), hostAddress: undefined }]);
}

function boot(image: Uint8Array, memory = ram()) {
  const config = { kind: 'elf', imagePath: file(temporaryDirectory(), 'image', image), bootargs: undefined } as const;
  checkElf(config, splitRam(RAM));
  return { memory, regs: loadElf(config, memory, splitRam(RAM), silentLog) };
}

const segments = [
  { base: 0x10_0000, fileBytes: 5000, memoryBytes: 9000 },
  { base: 0x20_0000, fileBytes: 100, memoryBytes: 70_000 },
];

test('segments go to their addresses, and what the file does not fill is zero', () => {
  const { memory } = boot(elf32({ entry: 0x10_0020, segments }), ram(0xee));
  expect(Buffer.from(memory.read(0x10_0000, 5000)).equals(noise('elf0', 5000))).toBe(true);
  expect(memory.read(0x10_0000 + 5000, 4000).every((byte) => byte === 0)).toBe(true);
  expect(Buffer.from(memory.read(0x20_0000, 100)).equals(noise('elf1', 100))).toBe(true);
  expect(memory.read(0x20_0064, 69_900).every((byte) => byte === 0)).toBe(true);
  expect(memory.readU8(0x20_0000 + 70_000)).toBe(0xee);
});

test('the boot CPU starts at the entry point in flat protected mode', () => {
  const { memory, regs } = boot(elf32({ entry: 0x10_0020, segments }));
  expect(regs.rip).toBe(0x10_0020n);
  const { base } = regs.gdt as { base: bigint };
  expect(memory.readU64(Number(base) + 0x08)).toBe(0x00cf9b000000ffffn);
  expect(memory.readU64(Number(base) + 0x10)).toBe(0x00cf93000000ffffn);
  expect(regs).toMatchObject({ cs: { selector: 8 }, ds: 0x10, es: 0x10, ss: 0x10, fs: 0x10, gs: 0x10 });
});

describe('Multiboot', () => {
  test('an image that asks for memory information gets it in EBX', () => {
    const { memory, regs } = boot(elf32({ multibootFlags: 2, entry: 0x10_0020, segments }));
    expect(regs.rax).toBe(0x2bad_b002n);
    expect(regs.rbx).toBe(BigInt(INFO));
    expect(memory.readU32(INFO)).toBe(1); // the memory fields are valid, nothing else
    expect(memory.readU32(INFO + 8)).toBe((RAM - 64 * KiB) / 1024);
  });

  test('an image without a header gets none', () => {
    const { memory, regs } = boot(elf32({ segments }));
    expect(regs.rbx).toBeUndefined();
    expect(memory.readU32(INFO)).toBe(0);
  });

  test.each([0, 1, 3, 4, 0x1_0002])('an image that asks for flags %i is refused', (flags) => {
    expect(() => boot(elf32({ multibootFlags: flags, segments }))).toThrow(/Multiboot features/);
  });

  test('a header whose checksum is wrong is none', () => {
    const head = new DataView(new ArrayBuffer(64));
    head.setUint32(16, 0x1bad_b002, true);
    head.setUint32(20, 2, true);
    head.setUint32(24, 12345, true);
    expect(multibootFlags(head)).toBeUndefined();
  });
});

describe('refused', () => {
  const change = (at: number, value: number) => {
    const image = elf32({ segments });
    image[at] = value;
    return image;
  };
  test.each([
    ['not an ELF file', change(3, 0x58), /is not an ELF file/],
    ['shorter than a header', elf32({ segments }).subarray(0, 40), /is not an ELF file/],
    ['64-bit', change(4, 2), /64-bit/],
    ['big-endian', change(5, 2), /big-endian/],
    ['program headers behind the end', change(30, 0xff), /program headers/],
    ['a segment behind the end of the file', elf32({ segments }).subarray(0, 6000), /damaged/],
    ['more in the file than in memory', change(52 + 21, 0), /damaged/],
    ['outside RAM', elf32({ segments: [{ base: RAM - 100, fileBytes: 10, memoryBytes: 200 }] }), /does not fit 4 MiB/],
    [
      'wraps at 4 GiB',
      elf32({ segments: [{ base: 0xffff_f000, fileBytes: 10, memoryBytes: 0x2000 }] }),
      /does not fit/,
    ],
  ])('%s', (_, image, message) => {
    expect(() => boot(image)).toThrow(message);
    expect(() => boot(image)).toThrow(ConfigError);
  });
});

test('damaged files are refused or loaded, never worse', () => {
  const dir = temporaryDirectory();
  const imagePath = join(dir, 'image');
  const good = elf32({ multibootFlags: 2, segments });
  const damage = fc.array(fc.tuple(fc.nat(200), fc.nat(255)), { minLength: 1, maxLength: 8 });
  fc.assert(
    fc.property(damage, fc.nat(good.length), (changes, keepBytes) => {
      const image = good.slice(0, keepBytes);
      for (const [at, value] of changes) image[at] = value;
      writeFileSync(imagePath, image);
      try {
        loadElf({ kind: 'elf', imagePath, bootargs: undefined }, ram(), splitRam(RAM), silentLog);
      } catch (error) {
        expect(error).toBeInstanceOf(ConfigError);
      }
    }),
    { numRuns: 200 },
  );
});
