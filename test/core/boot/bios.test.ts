/** Firmware of the BIOS kind in guest memory. */
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { checkSoftware, isFirmware, openSoftware, splitRam } from '../../../devicemodel/core/boot/loader.ts';
import { silentLog } from '../../../devicemodel/core/log.ts';
import { GuestMemory } from '../../../devicemodel/core/memory.ts';
import { GiB, KiB, MiB } from '../../../devicemodel/core/units.ts';
import { file, noise, temporaryDirectory } from '../../support/images.ts';

const ram = splitRam(128 * MiB);

function load(sizeBytes: number) {
  const image = noise('bios', sizeBytes);
  const imagePath = file(temporaryDirectory(), 'bios.bin', image);
  const software = openSoftware({ kind: 'bios', imagePath }, ram, silentLog);
  const memory = new GuestMemory([
    { base: 0, bytes: new Uint8Array(1 * MiB), hostAddress: undefined },
    ...software.regions.map((r) => ({ base: r.base, bytes: new Uint8Array(r.sizeBytes), hostAddress: undefined })),
  ]);
  return { image, memory, regs: software.load(memory) };
}

describe('in memory', () => {
  // Mutation: 128 KiB of it below 1 MiB, as other machines show it, and SeaBIOS runs into zeros: it copies nothing.
  test.each([128 * KiB, 256 * KiB, 512 * KiB])('%i bytes end at 4 GiB, and their last 256 KiB at 1 MiB', (size) => {
    const { image, memory } = load(size);
    expect(Buffer.compare(memory.read(4 * GiB - size, size), image)).toBe(0);
    const low = Math.min(size, 256 * KiB);
    expect(Buffer.compare(memory.read(1 * MiB - low, low), image.subarray(size - low))).toBe(0);
    expect(memory.read(1 * MiB - low - 16, 16).every((byte) => byte === 0)).toBe(true);
  });

  test('the CPU starts at the reset vector, in real mode', () => {
    const { regs } = load(128 * KiB);
    expect(Number(regs.cs.base) + Number(regs.rip)).toBe(4 * GiB - 16);
    expect(regs.cr0 & 1n).toBe(0n);
  });
});

describe('refused', () => {
  const check = (imagePath: string) => () => checkSoftware({ kind: 'bios', imagePath }, ram);

  test('what is no whole number of 64 KiB, too large, empty or not there', () => {
    const dir = temporaryDirectory();
    expect(check(file(dir, 'odd', noise('a', 100_000)))).toThrow(/--bios: .*odd has 100000 bytes, not a multiple/);
    expect(check(file(dir, 'large', new Uint8Array(2 * MiB + 64 * KiB)))).toThrow(/--bios: .*too large/);
    expect(check(file(dir, 'empty', new Uint8Array(0)))).toThrow(/--bios: .*is empty/);
    expect(check(join(dir, 'none'))).toThrow(/--bios: .*none cannot be opened/);
  });
});

// Mutation: check sizes alone. A CPU that finds nothing at its reset vector runs on for ever, and nobody hears why.
describe('what is no firmware', () => {
  const ended = (sizeBytes: number, fill: number) => noise('fw', sizeBytes).fill(fill, sizeBytes - 16);
  const begun = (text: string, sizeBytes = 128 * KiB - 100) => {
    const image = noise('fw', sizeBytes);
    image.set(Buffer.from(text, 'latin1'));
    return image;
  };
  const blank = (image: Uint8Array) => image.fill(0, image.length - 16);
  const kinds: [string, Uint8Array, RegExp][] = [
    ['zeros', new Uint8Array(128 * KiB), /its last 16 bytes, the reset vector, are all 0x0/],
    ['an erased chip', new Uint8Array(128 * KiB).fill(0xff), /are all 0xff/],
    ['the file with the variables', ended(128 * KiB, 0xff), /nothing to start/],
    ['nothing at its end', ended(128 * KiB, 0), /nothing to start/],
    ['a packed image', begun('\x1f\x8b\x08'), /is no firmware: it is compressed by gzip/],
    ['an EFI program', begun('MZ'), /is no firmware: it is a Windows or EFI program/],
    ['an ELF file', begun('\x7fELF'), /is no firmware: it is an ELF file/],
    ['a text', new TextEncoder().encode('0123456789abcde\n'.repeat(8 * KiB - 1)), /is no firmware: it is a text file/],
    ['an EFI program of whole pages', blank(begun('MZ', 128 * KiB)), /is no firmware: it is a Windows or EFI program/],
  ];
  test.each(kinds)('--bios, --ovmf: %s', (_, image, words) => {
    const path = file(temporaryDirectory(), 'fw', image);
    const refused = expect.objectContaining({ message: expect.stringMatching(words), exitCode: 65 });
    const ovmf = { form: 'single', path, writeBack: false } as const;
    const apart = { form: 'split', varsPath: path, codePath: path, writeBack: false } as const;
    expect(() => checkSoftware({ kind: 'bios', imagePath: path }, ram)).toThrow(refused);
    expect(() => checkSoftware({ kind: 'ovmf', image: ovmf }, ram)).toThrow(refused);
    expect(() => checkSoftware({ kind: 'ovmf', image: apart }, ram)).toThrow(refused);
  });
  // A guest writes what it likes into its variables, which are kept with `w`: its next start must not end there.
  // Mutation: look at the head of every image.
  test.each([
    ['the mark of an EFI program', 0, 'MZ'],
    ['the mark of an ext4 file system', 1080, '\x53\xef'],
    ['a text', 0, 'written by a guest, who may '.repeat(3)],
  ])('%s in the variables of one image for both is none of ours', (_, at, text) => {
    const image = noise('fw', 2 * MiB);
    image.set(Buffer.from(text, 'latin1'), at);
    const path = file(temporaryDirectory(), 'OVMF.fd', image);
    const config = { kind: 'ovmf', image: { form: 'single', path, writeBack: true } } as const;
    expect(() => checkSoftware(config, ram)).not.toThrow();
  });
  test('variables may be an erased chip', () => {
    const dir = temporaryDirectory();
    const codePath = file(dir, 'code', noise('code', 128 * KiB));
    const image = {
      form: 'split',
      varsPath: file(dir, 'vars', ended(64 * KiB, 0xff)),
      codePath,
      writeBack: false,
    } as const;
    expect(() => checkSoftware({ kind: 'ovmf', image }, ram)).not.toThrow();
  });
});

test('after S3 firmware starts at its reset vector again, a kernel does not', () => {
  expect(isFirmware({ kind: 'bios', imagePath: '' })).toBe(true);
  expect(isFirmware({ kind: 'elf', imagePath: '', bootargs: undefined })).toBe(false);
});
