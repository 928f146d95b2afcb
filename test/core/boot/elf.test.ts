import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { checkElf, loadElf } from '../../../devicemodel/core/boot/elf.ts';
import { splitRam } from '../../../devicemodel/core/boot/loader.ts';
import { findMultibootHeader } from '../../../devicemodel/core/boot/multiboot.ts';
import { ConfigError } from '../../../devicemodel/core/errors.ts';
import { silentLog } from '../../../devicemodel/core/log.ts';
import { GuestMemory } from '../../../devicemodel/core/memory.ts';
import { KiB, MiB } from '../../../devicemodel/core/units.ts';
import { bzImage, elf32, elf64, file, noise, temporaryDirectory } from '../../support/images.ts';
import { memoryLog } from '../../support/memory-log.ts';

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

// Old linker scripts count a .bss up to where the next part begins, or beyond.
test('what comes later may lie where an earlier segment has zeros', () => {
  const overlapping = [
    { base: 0x10_0000, fileBytes: 100, memoryBytes: 9000 },
    { base: 0x10_1000, fileBytes: 200, memoryBytes: 8000 },
  ];
  const { memory } = boot(elf32({ entry: 0x10_1000, segments: overlapping }), ram(0xee));
  expect(Buffer.from(memory.read(0x10_1000, 200)).equals(noise('elf1', 200))).toBe(true);
  expect(memory.read(0x10_0064, 0x1000 - 100).every((byte) => byte === 0)).toBe(true);
  expect(memory.read(0x10_1000 + 200, 7800).every((byte) => byte === 0)).toBe(true);
  expect(memory.readU8(0x10_1000 + 8000)).toBe(0xee);
});

test('zeros that come first may be where all of a later segment goes', () => {
  const overlapping = [
    { base: 0x10_1000, fileBytes: 0, memoryBytes: 100 },
    { base: 0x10_0000, fileBytes: 5000, memoryBytes: 5000 },
  ];
  const { memory } = boot(elf32({ entry: 0x10_0000, segments: overlapping }));
  expect(Buffer.from(memory.read(0x10_0000, 5000)).equals(noise('elf1', 5000))).toBe(true);
});

test('whatever lies over one another: it is refused, or every byte of the file is there', () => {
  const anySegment = fc
    .record({ page: fc.nat(12), fileBytes: fc.nat(3), moreBytes: fc.nat(6) })
    .map(({ page, fileBytes, moreBytes }) => ({
      base: 0x10_0000 + page,
      fileBytes,
      memoryBytes: Math.max(fileBytes + moreBytes, 1),
    }));
  fc.assert(
    fc.property(fc.array(anySegment, { minLength: 1, maxLength: 7 }), (all) => {
      // What loading one after the other would leave of each.
      const owner = new Map<number, number>();
      for (const [i, { base, memoryBytes }] of all.entries()) {
        for (let byte = 0; byte < memoryBytes; byte++) owner.set(base + byte, i);
      }
      const isWhole = all.every(({ base, fileBytes }, i) =>
        Array.from({ length: fileBytes }, (_, byte) => owner.get(base + byte)).every((last) => last === i),
      );
      const image = elf32({ entry: all[0]?.base, segments: all });
      if (isWhole) boot(image);
      else expect(() => boot(image)).toThrow(/two segments at one place/);
    }),
  );
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
  const u32s = (memory: GuestMemory, at: number, count: number) =>
    Array.from({ length: count }, (_, i) => memory.readU32(at + 4 * i));
  const text = (memory: GuestMemory, at: number) => {
    const bytes = Buffer.from(memory.read(at, 256));
    return bytes.subarray(0, bytes.indexOf(0)).toString();
  };

  test('memory: lower up to the video adapter, upper from 1 MiB to the first hole, in KiB (§3.3)', () => {
    const { memory, regs } = boot(elf32({ multibootFlags: 2, entry: 0x10_0020, segments }));
    expect(regs.rax).toBe(0x2bad_b002n);
    expect(regs.rbx).toBe(BigInt(INFO));
    const [flags, lower, upper] = u32s(memory, INFO, 3);
    expect((flags as number) & 1).toBe(1);
    expect(lower).toBe(640);
    expect(upper).toBe(RAM / 1024 - 1024);
  });

  test('the memory map covers exactly the RAM there is', () => {
    const { memory } = boot(elf32({ multibootFlags: 2, segments }));
    expect(memory.readU32(INFO) & (1 << 6)).not.toBe(0);
    const [length, at] = [memory.readU32(INFO + 44), memory.readU32(INFO + 48)];
    const ranges: [number, number][] = [];
    for (let entry = at; entry < at + length; entry += memory.readU32(entry) + 4) {
      if (memory.readU32(entry + 20) === 1) {
        ranges.push([Number(memory.readU64(entry + 4)), Number(memory.readU64(entry + 12))]);
      }
    }
    expect(ranges).toEqual([
      [0, 640 * KiB],
      [1 * MiB, RAM - 1 * MiB],
    ]);
  });

  test('command line, loader name and module arrive', () => {
    const dir = temporaryDirectory();
    const module = noise('module', 5000);
    const config = {
      kind: 'elf',
      imagePath: file(dir, 'image', elf32({ multibootFlags: 3, segments })),
      ramdiskPath: file(dir, 'module', module),
      bootargs: 'console=com1 -- a b',
    } as const;
    const memory = ram(0xee);
    checkElf(config, splitRam(RAM));
    loadElf(config, memory, splitRam(RAM), silentLog);
    const flags = memory.readU32(INFO);
    expect(flags & (1 << 2)).not.toBe(0);
    expect(text(memory, memory.readU32(INFO + 16))).toBe(`${config.imagePath} console=com1 -- a b`);
    expect(flags & (1 << 9)).not.toBe(0);
    expect(text(memory, memory.readU32(INFO + 64))).toMatch(/^acrn-dm/);
    expect(flags & (1 << 3)).not.toBe(0);
    expect(memory.readU32(INFO + 20)).toBe(1);
    const [start, end, name] = u32s(memory, memory.readU32(INFO + 24), 3) as [number, number, number];
    expect(start % 4096).toBe(0);
    expect(Buffer.from(memory.read(start, end - start)).equals(module)).toBe(true);
    expect(text(memory, name)).toBe(config.ramdiskPath);
  });

  test('without a module the list is not said to be there', () => {
    expect(boot(elf32({ multibootFlags: 2, segments })).memory.readU32(INFO) & (1 << 3)).toBe(0);
  });

  test('an image without a header gets none, and no module', () => {
    const { memory, regs } = boot(elf32({ segments }));
    expect(regs.rbx).toBeUndefined();
    expect(memory.readU32(INFO)).toBe(0);
    const dir = temporaryDirectory();
    const config = {
      kind: 'elf',
      imagePath: file(dir, 'image', elf32({ segments })),
      ramdiskPath: file(dir, 'module', noise('m', 10)),
      bootargs: undefined,
    } as const;
    expect(() => checkElf(config, splitRam(RAM))).not.toThrow();
    const { log, lines } = memoryLog();
    const untouched = ram();
    const { ramdiskPath: _, ...alone } = config;
    loadElf(alone, untouched, splitRam(RAM), log);
    expect(lines.filter((line) => line.includes('ignored'))).toEqual([]);
    loadElf(config, memory, splitRam(RAM), log);
    expect(lines.filter((line) => line.includes('ignored'))).toHaveLength(1);
    expect(memory.readU32(INFO)).toBe(untouched.readU32(INFO));
  });

  // §3.1.2: bits 0 and 1 are served, 2..15 must be understood, 17..31 may be ignored.
  test.each([0, 1, 2, 3, 0x2_0003, 0xfffe_0000 | 0])('flags %i start', (flags) => {
    expect(boot(elf32({ multibootFlags: flags >>> 0, segments })).regs.rbx).toBe(BigInt(INFO));
  });
  test.each([4, 8, 7, 0x8000, 0x4002])('flags %i are refused', (flags) => {
    expect(() => boot(elf32({ multibootFlags: flags, segments }))).toThrow(/Multiboot features/);
  });

  test('address fields count before the ELF headers, and without any ELF header (§3.1.3)', () => {
    const kludge = (load: number, loadEnd: number, bssEnd: number) => {
      const image = noise('kludge', 3000).slice();
      const view = new DataView(image.buffer);
      const magic = 0x1bad_b002;
      const flags = 0x1_0003;
      const words = [magic, flags, -(magic + flags), load + 0x40, load, loadEnd, bssEnd, load + 0x80];
      for (const [i, word] of words.entries()) view.setUint32(0x60 + 4 * i, word, true);
      return image;
    };
    // The header lies at 0x60 of the file and at load + 0x40 in memory: the load begins at byte 0x20.
    const image = kludge(0x10_0000, 0x10_0000 + 2000, 0x10_0000 + 9000);
    const { memory, regs } = boot(image, ram(0xee));
    expect(regs.rip).toBe(0x10_0080n);
    expect(Buffer.from(memory.read(0x10_0000, 2000)).equals(image.subarray(0x20, 0x20 + 2000))).toBe(true);
    expect(memory.read(0x10_0000 + 2000, 7000).every((byte) => byte === 0)).toBe(true);
    expect(memory.readU8(0x10_0000 + 9000)).toBe(0xee);
    const whole = boot(kludge(0x10_0000, 0, 0));
    expect(Buffer.from(whole.memory.read(0x10_0000, 3000 - 0x20)).equals(kludge(0x10_0000, 0, 0).subarray(0x20))).toBe(
      true,
    );
    expect(() => boot(kludge(0x10_0000, 0x10_0000 + 4000, 0))).toThrow(/contradict/);
    expect(() => boot(kludge(0x10_0000, 0x10_0000 + 2000, 0x10_0000 + 100))).toThrow(/contradict/);
    expect(() => boot(kludge(RAM - 100, 0, 0))).toThrow(/does not fit/);
  });

  test('a segment where the information goes is refused', () => {
    const low = [{ base: 0x2_1000, fileBytes: 100, memoryBytes: 100 }];
    expect(() => boot(elf32({ multibootFlags: 2, segments: low }))).toThrow(/boot information goes/);
    expect(() => boot(elf32({ segments: low }))).not.toThrow();
  });

  test('a header whose checksum is wrong is none', () => {
    const head = new DataView(new ArrayBuffer(64));
    head.setUint32(16, 0x1bad_b002, true);
    head.setUint32(20, 2, true);
    head.setUint32(24, 12345, true);
    expect(findMultibootHeader(head)).toBeUndefined();
  });
});

describe('physical addresses', () => {
  const high = { base: 0xc100_0000, physical: 0x10_0000, fileBytes: 5000, memoryBytes: 9000 };
  test('a kernel linked high is put at p_paddr, and its entry moves as far (GNU Mach)', () => {
    const { memory, regs } = boot(elf32({ entry: 0xc100_0020, segments: [high] }));
    expect(regs.rip).toBe(0x10_0020n);
    expect(Buffer.from(memory.read(0x10_0000, 5000)).equals(noise('elf0', 5000))).toBe(true);
  });
  test('an entry that is a physical address already stays', () => {
    expect(boot(elf32({ entry: 0x10_0020, segments: [high] })).regs.rip).toBe(0x10_0020n);
  });
  test('a linker that leaves all of them at 0 means the virtual ones', () => {
    const zero = segments.map((segment) => ({ ...segment, physical: 0 }));
    const { memory, regs } = boot(elf32({ entry: 0x10_0020, segments: zero }));
    expect(regs.rip).toBe(0x10_0020n);
    expect(Buffer.from(memory.read(0x20_0000, 100)).equals(noise('elf1', 100))).toBe(true);
  });
});

describe('64 bits', () => {
  const entry = (address: number, width: 4 | 8) => {
    const description = new Uint8Array(width);
    new DataView(description.buffer).setUint32(0, address, true);
    return { type: 18, description };
  };
  const start = (memory: GuestMemory, regs: { rbx?: bigint }) => {
    const at = Number(regs.rbx);
    const u64 = (offset: number) => Number(memory.readU64(at + offset));
    return {
      magic: memory.readU32(at),
      version: memory.readU32(at + 4),
      moduleCount: memory.readU32(at + 12),
      modulesAt: u64(16),
      cmdlineAt: u64(24),
      rsdpAt: u64(32),
      memmapAt: u64(40),
      memmapEntries: memory.readU32(at + 48),
    };
  };

  test.each([4, 8] as const)(
    'a PVH entry in a note of %i bytes: started there, in 32 bits, with the start information',
    (width) => {
      const { memory, regs } = boot(elf64({ note: entry(0x10_0040, width) }));
      expect(Buffer.from(memory.read(0x10_0000, 5000)).equals(noise('elf64', 5000))).toBe(true);
      expect(memory.read(0x10_0000 + 5000, 4000).every((byte) => byte === 0)).toBe(true);
      expect(regs).toMatchObject({ rip: 0x10_0040n, rax: 0n, cr0: 0x31n, cs: { base: 0n, limit: 0xffff_ffff } });
      const info = start(memory, regs);
      expect(info).toMatchObject({ magic: 0x336e_c578, version: 1, moduleCount: 0, modulesAt: 0, rsdpAt: 0xf_2400 });
      expect(memory.readU8(info.cmdlineAt)).toBe(0);
      const ranges = Array.from({ length: info.memmapEntries }, (_, i) => [
        Number(memory.readU64(info.memmapAt + 24 * i)),
        Number(memory.readU64(info.memmapAt + 24 * i + 8)),
        memory.readU32(info.memmapAt + 24 * i + 16),
      ]);
      expect(ranges.slice(0, 2)).toEqual([
        [0, 640 * KiB, 1],
        [1 * MiB, RAM - 1 * MiB, 1],
      ]);
    },
  );

  test('command line and module of a PVH image', () => {
    const directory = temporaryDirectory();
    const config = {
      kind: 'elf',
      imagePath: file(directory, 'vmlinux', elf64({ note: entry(0x10_0040, 8) })),
      bootargs: 'console=ttyS0',
      ramdiskPath: file(directory, 'initrd', noise('initrd', 3000)),
    } as const;
    const memory = ram();
    const info = start(memory, loadElf(config, memory, splitRam(RAM), silentLog));
    expect(Buffer.from(memory.read(info.cmdlineAt, 14)).toString()).toBe('console=ttyS0\0');
    expect(info.moduleCount).toBe(1);
    const [at, size] = [Number(memory.readU64(info.modulesAt)), Number(memory.readU64(info.modulesAt + 8))];
    expect(Buffer.from(memory.read(at, size)).equals(noise('initrd', 3000))).toBe(true);
  });

  test('a Multiboot header comes before the note; the entry moves to where the segment is', () => {
    const { regs } = boot(elf64({ multibootFlags: 2, note: entry(0x10_0040, 4) }));
    expect(regs).toMatchObject({ rip: 0x10_0020n, rax: 0x2bad_b002n });
  });

  test.each([
    ['neither', elf64()],
    ['a note of something else', elf64({ note: { ...entry(0x10_0040, 4), type: 17 } })],
    ['an entry beyond 32 bits', elf64({ note: { type: 18, description: new Uint8Array(8).fill(1) } })],
    ['a note too short', elf64({ note: { type: 18, description: new Uint8Array(2) } })],
  ])('%s is refused', (_, image) => {
    expect(() => boot(image)).toThrow('64-bit ELF file that does not say how it starts');
  });

  test('damaged files end in a ConfigError', () => {
    fc.assert(
      fc.property(fc.integer({ min: 0, max: 600 }), fc.integer({ min: 0, max: 255 }), (at, value) => {
        const image = elf64({ note: entry(0x10_0040, 8) });
        image[at] = value;
        try {
          boot(image);
        } catch (error) {
          expect(error).toBeInstanceOf(ConfigError);
        }
      }),
      { numRuns: 60 },
    );
  });
});

describe('Multiboot 2', () => {
  /** A header with these tags, at the start of the first segment. */
  function image(tags: readonly (readonly [type: number, flags: number, ...words: number[]])[], bits: 32 | 64 = 32) {
    const words = tags.flatMap(([type, flags, ...more]) => {
      const padding = more.length % 2 === 1 ? [0] : [];
      return [type | (flags << 16), 8 + 4 * more.length, ...more, ...padding];
    });
    const all = [...words, 0, 8];
    const length = 16 + 4 * all.length;
    const header = Uint32Array.from([0xe852_50d6, 0, length, -(0xe852_50d6 + length), ...all]);
    const made = bits === 32 ? elf32({ entry: 0x10_0020, segments }) : elf64();
    made.set(new Uint8Array(header.buffer), 4096);
    return made;
  }

  function info(memory: GuestMemory, at: number) {
    const total = memory.readU32(at);
    const tags = new Map<number, number>();
    let place = at + 8;
    for (; memory.readU32(place) !== 0; place += Math.ceil(memory.readU32(place + 4) / 8) * 8) {
      expect(place % 8).toBe(0);
      tags.set(memory.readU32(place), place);
    }
    expect(place + 8).toBe(at + total);
    return tags;
  }

  test.each([32, 64] as const)('starts an image of %i bits with command line, memory and map', (bits) => {
    const directory = temporaryDirectory();
    const path = file(directory, 'kernel', image([[1, 0, 1, 4, 6]], bits));
    const module = file(directory, 'module', noise('module', 100));
    const config = { kind: 'elf', imagePath: path, bootargs: 'a b', ramdiskPath: module } as const;
    const memory = ram();
    const regs = loadElf(config, memory, splitRam(RAM), silentLog);
    expect(regs).toMatchObject({ rip: 0x10_0020n, rax: 0x36d7_6289n, rbx: BigInt(INFO) });
    const tags = info(memory, INFO);
    expect([...tags.keys()]).toEqual([1, 2, 3, 4, 6, 15]);
    expect(Buffer.from(memory.read((tags.get(1) as number) + 8, 4)).toString()).toBe('a b\0');
    const [start, end] = [8, 12].map((at) => memory.readU32((tags.get(3) as number) + at)) as [number, number];
    expect(Buffer.from(memory.read(start, end - start)).equals(noise('module', 100))).toBe(true);
    expect(memory.readU32((tags.get(4) as number) + 8)).toBe(640);
    const map = tags.get(6) as number;
    expect([8, 12].map((at) => memory.readU32(map + at))).toEqual([24, 0]);
    expect(Number(memory.readU64(map + 16 + 24 + 8))).toBe(RAM - MiB);
  });

  test('addresses and entry of the header count before those of ELF', () => {
    const { memory, regs } = boot(
      image([
        [2, 0, 0x20_0000, 0x20_0000, 0x20_1000, 0x20_2000],
        [3, 0, 0x20_0044],
      ]),
      ram(0xee),
    );
    expect(regs.rip).toBe(0x20_0044n);
    expect(memory.readU32(0x20_0000)).toBe(0xe852_50d6);
    expect([memory.readU8(0x20_1fff), memory.readU8(0x20_2000)]).toEqual([0, 0xee]);
  });

  test.each([
    ['information that is not there', [[1, 0, 1, 12]] as const, /insists on Multiboot 2 information 12/],
    ['a tag nobody knows', [[77, 0]] as const, /insists on Multiboot 2 tag 77/],
    ['addresses without an entry', [[2, 0, 0x20_0000, 0x20_0000, 0x20_1000, 0]] as const, /without an entry/],
  ])('%s is refused', (_, tags, message) => {
    expect(() => boot(image(tags))).toThrow(message);
  });

  test('what is optional, a screen, and EFI are done without', () => {
    expect(
      boot(
        image([
          [1, 1, 12],
          [77, 1],
          [5, 0, 1024, 768, 32],
          [7, 0],
        ]),
      ).regs.rax,
    ).toBe(0x36d7_6289n);
  });

  test('tags that lead nowhere end the header', () => {
    expect(
      boot(
        image([
          [4, 0],
          [3, 0],
        ]),
      ).regs.rip,
    ).toBe(0x10_0020n);
  });
});

describe('refused', () => {
  const change = (at: number, value: number) => {
    const image = elf32({ segments });
    image[at] = value;
    return image;
  };
  const many = <T>(count: number, segment: T): T[] => new Array<T>(count).fill(segment);
  /** One segment of so many bytes, with the entry in it. */
  const at = (base: number, bytes: number) =>
    elf32({ entry: base, segments: [{ base, fileBytes: bytes, memoryBytes: bytes }] });
  test.each([
    ['not an ELF file', change(3, 0x58), /is not an ELF file/],
    ['shorter than a header', elf32({ segments }).subarray(0, 40), /is not an ELF file/],
    ['64-bit', change(4, 2), /is not an ELF file|program headers|64-bit/],
    ['big-endian', change(5, 2), /big-endian/],
    ['program headers behind the end', change(30, 0xff), /program headers/],
    ['a segment behind the end of the file', elf32({ segments }).subarray(0, 6000), /damaged/],
    ['more in the file than in memory', change(52 + 21, 0), /damaged/],
    ['without entry', elf32({ entry: 0, segments }), /no entry point/],
    ['nothing to load', elf32({ segments: [] }), /nothing to load/],
    ['outside RAM', elf32({ segments: [{ base: RAM - 100, fileBytes: 10, memoryBytes: 200 }] }), /does not fit 4 MiB/],
    [
      'wraps at 4 GiB',
      elf32({ segments: [{ base: 0xffff_f000, fileBytes: 10, memoryBytes: 0x2000 }] }),
      /does not fit/,
    ],
    ['for Arm', change(18, 40), /is for another CPU: Arm/],
    ['for MIPS', change(18, 8), /is for another CPU: MIPS/],
    ['for RISC-V', change(18, 243), /is for another CPU: RISC-V/],
    ['for a CPU nobody knows', change(18, 99), /is for another CPU: machine 99/],
    ['of a class nobody knows', change(4, 3), /ELF class 3/],
    ['an object file', change(16, 1), /is an object file/],
    ['a core dump', change(16, 4), /is a core dump/],
    ['an entry in no segment', elf32({ entry: 0x18_0000, segments }), /entry point, 0x180000, in none of its segments/],
    [
      'two segments at one place',
      elf32({
        entry: 0x10_0000,
        segments: [
          { base: 0x10_0000, fileBytes: 5000, memoryBytes: 9000 },
          { base: 0x10_1000, fileBytes: 100, memoryBytes: 100 },
        ],
      }),
      /two segments at one place, 0x101000/,
    ],
    [
      'zeros over what was loaded before',
      elf32({
        entry: 0x10_0000,
        segments: [
          { base: 0x10_1000, fileBytes: 100, memoryBytes: 100 },
          { base: 0x10_0000, fileBytes: 100, memoryBytes: 9000 },
        ],
      }),
      /two segments at one place, 0x101000/,
    ],
    [
      'a large segment around a small one and another',
      elf32({
        entry: 0x10_0000,
        segments: [
          { base: 0x10_0000, fileBytes: 100, memoryBytes: 0x3000 },
          { base: 0x10_1000, fileBytes: 100, memoryBytes: 100 },
          { base: 0x10_2000, fileBytes: 0x100, memoryBytes: 0x100 },
          { base: 0x10_2080, fileBytes: 0x100, memoryBytes: 0x100 },
        ],
      }),
      /two segments at one place, 0x102080/,
    ],
    ['over the VGA', at(0x9_f000, 0x2000), /a segment at 0x9f000 \(8 KiB\) in video memory and firmware's tables/],
    ['under the VGA', at(0xa_0000, 16), /a segment at 0xa0000 .* in video memory/],
    ["over firmware's tables", at(0xf_2400, 100), /a segment at 0xf2400 .* in video memory/],
    ['up to 1 MiB', at(0xf_ffff, 1), /a segment at 0xfffff .* in video memory/],
    [
      'zeros down into it',
      elf32({
        entry: 0x10_0000,
        segments: [
          { base: 0x10_0000, fileBytes: 100, memoryBytes: 100 },
          { base: 0x9_0000, fileBytes: 100, memoryBytes: 0x7_0000 },
        ],
      }),
      /a segment at 0x90000 \(448 KiB\) in video memory/,
    ],
    [
      'more zeros than memory, over one another',
      elf32({ entry: 0x10_0000, segments: many(9, { base: 0x10_0000, fileBytes: 0, memoryBytes: MiB }) }),
      /9 segments of 9 MiB in all, one over another in 4 MiB of memory/,
    ],
    [
      'all the segments there can be, at one place',
      elf32({ entry: 0x10_0000, segments: many(65_535, { base: 0x10_0000, fileBytes: 0, memoryBytes: MiB }) }),
      /65535 segments of .* in all, one over another/,
    ],
    [
      'all the segments there can be, and the last wipes the first',
      elf32({
        entry: 0x10_0000,
        segments: [
          { base: 0x10_0000, fileBytes: 32, memoryBytes: 32 },
          ...many(65_534, { base: 0x10_0000, fileBytes: 0, memoryBytes: 32 }),
        ],
      }),
      /two segments at one place, 0x100000/,
    ],
    ['a bzImage', bzImage(), /is not an ELF file/],
    ['a script', new TextEncoder().encode('#!/bin/sh\n'.repeat(20)), /is not an ELF file: it is a text file/],
    ['packed', new Uint8Array(100).map((_, i) => [0x1f, 0x8b][i] ?? 0), /not an ELF file: it is compressed by gzip/],
    ['where the GDT goes', at(RAM - 66_000, 2000), /does not fit 4 MiB/],
  ])('%s', (_, image, message) => {
    expect(() => boot(image)).toThrow(message);
    expect(() => boot(image)).toThrow(ConfigError);
  });

  test.each([
    ['more than this VM has', 0x100_0000, 'give the VM at least -m 17M'],
    ['where no VM has memory', 0xf000_0000, 'no VM has memory there: below 4 GiB it ends at 2 GiB'],
  ])('%s: says what to do', (_, base, hint) => {
    expect(() => boot(at(base, 100))).toThrow(expect.objectContaining({ hint, exitCode: 65 }));
  });

  test('a module that does not fit is named as one', () => {
    const dir = temporaryDirectory();
    const config = {
      kind: 'elf',
      imagePath: file(dir, 'image', elf32({ multibootFlags: 2, entry: 0x10_0020, segments })),
      ramdiskPath: file(dir, 'module', new Uint8Array(3 * MiB)),
      bootargs: undefined,
    } as const;
    // The image ends at 0x211170, and 64 KiB at the end are the GDT's.
    expect(() => checkElf(config, splitRam(RAM))).toThrow(
      expect.objectContaining({
        message: expect.stringMatching(/^-r: a module of 3 MiB does not fit .* ends at 0x211170/),
        hint: 'give the VM at least -m 6M',
      }),
    );
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
