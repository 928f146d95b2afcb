import { describe, expect, test } from 'vitest';
import type { BootConfig } from '../../../devicemodel/core/config.ts';
import { GiB, MiB } from '../../../devicemodel/core/units.ts';
import { softNotes, softProblems } from '../../../hypervisor/soft/limits.ts';
import { bzImage, elf32, elf64, file, temporaryDirectory } from '../../support/images.ts';

/** A kernel as Linux builds it: relocatable, fields that hold together. */
function kernel(xloadFlags: number): BootConfig {
  const image = bzImage();
  const view = new DataView(image.buffer);
  view.setUint32(0x1f4, 100_000 / 16, true);
  view.setUint32(0x230, 2 * MiB, true);
  view.setUint8(0x234, 1);
  view.setUint16(0x236, xloadFlags, true);
  return {
    kind: 'bzimage',
    kernelPath: file(temporaryDirectory(), 'kernel', image),
    ramdiskPath: undefined,
    bootargs: undefined,
  };
}

const problems = (config: { memoryBytes?: number; boot?: BootConfig }) =>
  softProblems({ memoryBytes: 256 * MiB, boot: undefined, ...config }).map((p) => `${p.exitCode} ${p.message}`);

describe('what the software CPU cannot run is said before the start, with status 69', () => {
  test.each([
    ['more memory than 32 bits reach', () => problems({ memoryBytes: 2 * GiB }), /^69 .* 2 GiB of memory/],
    ['a 64-bit kernel', () => problems({ boot: kernel(1) }), /^69 -k: .* 64-bit kernel \(xloadflags\)/],
    ['a 64-bit kernel with EFI stub', () => problems({ boot: kernel(0x2b) }), /64-bit kernel/],
    [
      'a 64-bit ELF image',
      () => {
        const imagePath = file(temporaryDirectory(), 'vmlinux', elf64());
        return problems({ boot: { kind: 'elf', imagePath, bootargs: undefined } });
      },
      /^69 -E: .* 64-bit one/,
    ],
    [
      'firmware',
      () => problems({ boot: { kind: 'ovmf', image: { form: 'single', path: '/x', writeBack: false } } }),
      /^69 --ovmf: .* cannot run firmware/,
    ],
  ])('%s', (_, find, words) => {
    expect(find()).toEqual([expect.stringMatching(words)]);
  });

  test('everything wrong is listed', () => {
    expect(problems({ memoryBytes: 4 * GiB, boot: kernel(1) })).toHaveLength(2);
  });

  test('a 32-bit kernel and an ELF image run', () => {
    expect(problems({ boot: kernel(0) })).toEqual([]);
    const imagePath = file(temporaryDirectory(), 'image', elf32());
    expect(problems({ boot: { kind: 'elf', imagePath, bootargs: undefined } })).toEqual([]);
  });
});

test('more CPUs than there will be are noted', () => {
  expect(softNotes({ cpuAffinity: [] })).toEqual([]);
  expect(softNotes({ cpuAffinity: [3] })).toEqual([]);
  expect(softNotes({ cpuAffinity: [0, 1] })).toEqual([expect.stringMatching(/names 2 CPUs.* one vCPU/)]);
});
