import {
  chmodSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { describe, expect, onTestFinished, test } from 'vitest';
import { openSoftware, splitRam } from '../../../devicemodel/core/boot/loader.ts';
import type { OvmfImage } from '../../../devicemodel/core/config.ts';
import { ConfigError, HostError } from '../../../devicemodel/core/errors.ts';
import { Log, type LogSink } from '../../../devicemodel/core/log.ts';
import { GuestMemory } from '../../../devicemodel/core/memory.ts';
import { GiB, KiB, MiB } from '../../../devicemodel/core/units.ts';
import { file, noise, temporaryDirectory } from '../../support/images.ts';

const RAM = 256 * MiB;
const TOP = 4 * GiB;

/** Low memory as far as firmware boots need it, and the 2 MiB below 4 GiB. */
function memoryOf(regions: readonly { base: number; sizeBytes: number }[]): GuestMemory {
  const low = { base: 0, bytes: new Uint8Array(1 * MiB), hostAddress: undefined };
  return new GuestMemory([
    low,
    ...regions.map((r) => ({ base: r.base, bytes: new Uint8Array(r.sizeBytes), hostAddress: undefined })),
  ]);
}

function open(image: OvmfImage) {
  const lines: string[] = [];
  const sink: LogSink = { maxLevel: 2, write: (_, line) => lines.push(line) };
  const software = openSoftware({ kind: 'ovmf', image }, splitRam(RAM), new Log([sink]));
  onTestFinished(() => software.close());
  return { software, memory: memoryOf(software.regions), warnings: lines };
}

/** Code and variables of so many bytes. */
const split = (dir: string, codeBytes: number, varsBytes: number, writeBack = false): OvmfImage => ({
  form: 'split',
  codePath: file(dir, 'code', noise('code', codeBytes)),
  varsPath: file(dir, 'vars', noise('vars', varsBytes)),
  writeBack,
});
const single = (path: string, writeBack = false): OvmfImage => ({ form: 'single', path, writeBack });

describe('in memory', () => {
  test('the image ends at 4 GiB and is started at the reset vector', () => {
    const image = noise('fw', 1 * MiB);
    const { software, memory } = open(single(file(temporaryDirectory(), 'OVMF.fd', image)));
    const regs = software.load(memory);
    expect(Buffer.from(memory.read(TOP - image.length, image.length)).equals(image)).toBe(true);
    expect(Number(regs.cs.base) + Number(regs.rip)).toBe(TOP - 16);
    expect(Number(regs.cr0) & 1).toBe(0); // real mode
  });

  test('variables come before the code when they are apart', () => {
    const dir = temporaryDirectory();
    const vars = noise('vars', 100 * KiB);
    const code = noise('code', 1 * MiB);
    const { software, memory } = open({
      form: 'split',
      codePath: file(dir, 'code', code),
      varsPath: file(dir, 'vars', vars),
      writeBack: false,
    });
    software.load(memory);
    const size = vars.length + code.length;
    expect(Buffer.from(memory.read(TOP - size, size)).equals(Buffer.concat([vars, code]))).toBe(true);
  });

  test.each([
    { bytes: 1, region: 2 * MiB },
    { bytes: 2 * MiB, region: 2 * MiB },
    { bytes: 4 * MiB, region: 4 * MiB },
  ])('an image of $bytes bytes needs $region bytes of memory', ({ bytes, region }) => {
    const { software } = open(single(file(temporaryDirectory(), 'fw', noise('x', bytes))));
    expect(software.regions).toEqual([{ base: TOP - region, sizeBytes: region }]);
  });

  test('the memory map is where the firmware looks for it', () => {
    const { software, memory } = open(single(file(temporaryDirectory(), 'fw', noise('x', 4096))));
    software.load(memory);
    expect(Buffer.from(memory.read(0xef000, 4)).toString('latin1')).toBe('820\0');
    expect(memory.readU32(0xef004)).toBeGreaterThan(1);
    expect(memory.readU64(0xef008 + 20 + 8)).toBe(BigInt(RAM - 1 * MiB)); // second entry: RAM from 1 MiB
  });
});

describe('refused', () => {
  test.each([
    ['a missing image', (dir: string) => single(join(dir, 'nope')), 66],
    ['an image of more than 2 MiB', (dir: string) => single(file(dir, 'fw', new Uint8Array(2 * MiB + 1))), 65],
    ['an image of nearly 4 MiB', (dir: string) => single(file(dir, 'fw', new Uint8Array(4 * MiB - 1))), 65],
    ['an image of more than 4 MiB', (dir: string) => single(file(dir, 'fw', new Uint8Array(4 * MiB + 1))), 65],
    ['code of more than 1920 KiB', (dir: string) => split(dir, 1920 * KiB + 1, 1), 65],
    ['variables of more than 128 KiB', (dir: string) => split(dir, 1, 128 * KiB + 1), 65],
    [
      'code of the large layout with variables of the small one',
      (dir: string) => split(dir, 3568 * KiB, 128 * KiB),
      65,
    ],
    [
      'variables of the large layout with code of the small one',
      (dir: string) => split(dir, 1920 * KiB, 528 * KiB),
      65,
    ],
  ])('%s', (_, make, exitCode) => {
    const image = make(temporaryDirectory());
    expect(() => open(image)).toThrow(expect.objectContaining({ exitCode }));
    expect(() => open(image)).toThrow(/^--ovmf: firmware/);
  });

  test('an image that changes its size while the VM is set up', () => {
    const path = file(temporaryDirectory(), 'fw', noise('x', 1 * MiB));
    const { software, memory } = open(single(path));
    writeFileSync(path, noise('x', 2 * MiB));
    expect(() => software.load(memory)).toThrow(/changed its size/);
  });
});

describe('write back', () => {
  // The variables of edk2's two layouts: 128 KiB of 2 MiB, 528 KiB of 4 MiB.
  test.each([
    { imageBytes: 2 * MiB, varsBytes: 128 * KiB },
    { imageBytes: 4 * MiB, varsBytes: 528 * KiB },
  ])('of an image of $imageBytes bytes the first $varsBytes are kept', ({ imageBytes, varsBytes }) => {
    const path = file(temporaryDirectory(), 'fw', noise('fw', imageBytes));
    const { software, memory } = open(single(path, true));
    software.load(memory);
    memory.write(TOP - imageBytes, new Uint8Array(imageBytes));
    software.save(memory);
    const kept = readFileSync(path);
    const end = noise('fw', imageBytes).subarray(varsBytes);
    expect(kept.subarray(0, varsBytes).equals(Buffer.alloc(varsBytes))).toBe(true);
    expect(kept.subarray(varsBytes).equals(end)).toBe(true);
  });

  test.each([
    { codeBytes: 64 * KiB, varsBytes: 128 * KiB },
    { codeBytes: 3568 * KiB, varsBytes: 528 * KiB },
  ])('a file of $varsBytes bytes of variables is kept whole', ({ codeBytes, varsBytes }) => {
    const dir = temporaryDirectory();
    const { software, memory } = open(split(dir, codeBytes, varsBytes, true));
    software.load(memory);
    memory.write(TOP - codeBytes - varsBytes, new Uint8Array(varsBytes + codeBytes));
    software.save(memory);
    expect(readFileSync(join(dir, 'vars')).equals(Buffer.alloc(varsBytes))).toBe(true);
  });

  const image = noise('fw', 1 * MiB);
  const base = TOP - image.length;
  const change = (memory: GuestMemory) => memory.write(base + 0x100, new TextEncoder().encode('a variable'));

  function started() {
    const dir = temporaryDirectory();
    const path = file(dir, 'OVMF.fd', image);
    const opened = open(single(path, true));
    opened.software.load(opened.memory);
    return { dir, path, ...opened };
  }

  test('variables go back to the file, code does not', () => {
    const { path, software, memory } = started();
    change(memory);
    memory.write(base + 128 * KiB, new TextEncoder().encode('code'));
    software.save(memory);
    const saved = readFileSync(path);
    expect(saved.subarray(0x100, 0x10a).toString('latin1')).toBe('a variable');
    expect(saved.subarray(128 * KiB).equals(image.subarray(128 * KiB))).toBe(true);
  });

  test('the file is replaced as a whole and nothing else is left behind', () => {
    const { dir, path, software, memory } = started();
    chmodSync(path, 0o640);
    const before = statSync(path);
    change(memory);
    software.save(memory);
    const after = statSync(path);
    expect(after.ino).not.toBe(before.ino);
    expect(after.mode).toBe(before.mode);
    expect(readdirSync(dir)).toEqual(['OVMF.fd']);
  });

  test('a guest that changed nothing leaves the file alone', () => {
    const { path, software, memory } = started();
    const before = statSync(path);
    software.save(memory);
    expect(statSync(path).ino).toBe(before.ino);
  });

  test('without w nothing is ever written', () => {
    const path = file(temporaryDirectory(), 'fw', image);
    const { software, memory } = open(single(path));
    software.load(memory);
    change(memory);
    software.save(memory);
    expect(readFileSync(path).equals(image)).toBe(true);
  });

  test('a VM that ends before its firmware was loaded, or in the middle of it, saves nothing', () => {
    const dir = temporaryDirectory();
    const path = file(dir, 'OVMF.fd', image);
    const { software, memory } = open(single(path, true));
    software.save(memory);
    expect(readFileSync(path).equals(image)).toBe(true);
    software.load(memory);
    const nextLife = memoryOf(software.regions); // a full reset gives new memory
    software.save(nextLife);
    expect(readFileSync(path).equals(image)).toBe(true);
  });

  test('after a reset the guest finds what it wrote, and can save again', () => {
    const { path, software, memory } = started();
    for (const round of ['first', 'other']) {
      memory.write(base + 0x200, new TextEncoder().encode(round));
      software.save(memory);
      memory.bytes(base, image.length).fill(0);
      software.load(memory);
      expect(Buffer.from(memory.read(base + 0x200, 5)).toString('latin1')).toBe(round);
    }
    expect(readFileSync(path).subarray(0x200, 0x205).toString('latin1')).toBe('other');
  });

  test('through a symbolic link the file is replaced, not the link', () => {
    const dir = temporaryDirectory();
    const path = file(dir, 'real.fd', image);
    symlinkSync(path, join(dir, 'link.fd'));
    const { software, memory } = open(single(join(dir, 'link.fd'), true));
    software.load(memory);
    change(memory);
    software.save(memory);
    expect(readFileSync(path).subarray(0x100, 0x10a).toString('latin1')).toBe('a variable');
    expect(readFileSync(join(dir, 'link.fd')).equals(readFileSync(path))).toBe(true);
  });

  test('of split images only the variables file is written', () => {
    const dir = temporaryDirectory();
    const paths = { codePath: file(dir, 'code', noise('c', 4096)), varsPath: file(dir, 'vars', noise('v', 8192)) };
    const { software, memory } = open({ form: 'split', ...paths, writeBack: true });
    software.load(memory);
    memory.bytes(TOP - 8192 - 4096, 8192 + 4096).fill(0x55);
    software.save(memory);
    expect(readFileSync(paths.varsPath).every((byte) => byte === 0x55)).toBe(true);
    expect(readFileSync(paths.codePath).equals(noise('c', 4096))).toBe(true);
  });

  test('a save that fails says so and leaves the file as it was', () => {
    const { dir, path, software, memory } = started();
    mkdirSync(join(dir, `.OVMF.fd.acrn-dm-${process.pid}`)); // in the way of the new file
    change(memory);
    expect(() => software.save(memory)).toThrow(HostError);
    expect(() => software.save(memory)).toThrow(path);
    expect(readFileSync(path).equals(image)).toBe(true);
  });

  test('a file that its owner replaced meanwhile is not overwritten', () => {
    const { dir, path, software, memory, warnings } = started();
    renameSync(file(dir, 'new.fd', noise('newer', 1 * MiB)), path);
    change(memory);
    software.save(memory);
    expect(readFileSync(path).equals(noise('newer', 1 * MiB))).toBe(true);
    expect(warnings).toEqual([expect.stringContaining('was replaced')]);
  });

  test('two VMs cannot write to one image, before and after a save', () => {
    const { path, software, memory } = started();
    expect(() => open(single(path, true))).toThrow(/in use by another User VM/);
    change(memory);
    software.save(memory);
    expect(() => open(single(path, true))).toThrow(ConfigError);
    software.close();
    expect(() => open(single(path, true))).not.toThrow();
  });

  test('a VM that only reads the image may start while another one writes', () => {
    const { path } = started();
    expect(() => open(single(path))).not.toThrow();
  });

  test('what a killed process left behind does not stop a save', () => {
    const { dir, software, memory } = started();
    const left = file(dir, `.OVMF.fd.acrn-dm-${process.pid}`, 'half of it');
    change(memory);
    software.save(memory);
    expect(existsSync(left)).toBe(false);
  });
});
