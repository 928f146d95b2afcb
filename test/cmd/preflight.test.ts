import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { afterAll, describe, expect, test } from 'vitest';
import { parseCommandLine, type VmOrder } from '../../cmd/cli.ts';
import { checkBootFiles, problemsOf } from '../../cmd/preflight.ts';
import type { BootConfig } from '../../devicemodel/core/config.ts';
import { ConfigError, ExitCode, HostError } from '../../devicemodel/core/errors.ts';
import { KiB, MiB } from '../../devicemodel/core/units.ts';
import { anyTextDriver } from './drivers.ts';

const directory = fs.mkdtempSync(path.join(os.tmpdir(), 'acrn-dm-preflight-'));
afterAll(() => fs.rmSync(directory, { recursive: true }));

function file(name: string, sizeBytes: number): string {
  const full = path.join(directory, name);
  fs.writeFileSync(full, '');
  fs.truncateSync(full, sizeBytes);
  return full;
}
const missing = path.join(directory, 'missing');
const empty = file('empty', 0);
const small = file('small', 100);

const bzimage = (kernelPath: string, ramdiskPath?: string): BootConfig => ({
  kind: 'bzimage',
  kernelPath,
  ramdiskPath,
  bootargs: undefined,
});
const ovmf = (imagePath: string): BootConfig => ({
  kind: 'ovmf',
  image: { form: 'single', path: imagePath, writeBack: false },
});
const split = (codePath: string, varsPath: string): BootConfig => ({
  kind: 'ovmf',
  image: { form: 'split', codePath, varsPath, writeBack: false },
});

function thrown(boot: BootConfig): unknown {
  try {
    checkBootFiles(boot);
  } catch (error) {
    return error;
  }
  return undefined;
}

describe('boot files', () => {
  test('files that are there pass', () => {
    expect(thrown(bzimage(small, small))).toBeUndefined();
    expect(thrown({ kind: 'elf', imagePath: small, bootargs: undefined })).toBeUndefined();
    expect(thrown(ovmf(file('ovmf', 2 * MiB)))).toBeUndefined();
    expect(thrown(split(file('code', 2 * MiB - 128 * KiB), file('vars', 128 * KiB)))).toBeUndefined();
  });
  test.each([
    ['kernel', bzimage(missing), '--kernel'],
    ['RAM disk', bzimage(small, missing), '--ramdisk'],
    ['ELF image', { kind: 'elf', imagePath: missing, bootargs: undefined } as const, '--elf_file'],
    ['firmware', ovmf(missing), '--ovmf'],
  ])('a missing %s is named with its absolute path and errno', (_, boot, option) => {
    const error = thrown(boot);
    expect(error).toBeInstanceOf(HostError);
    expect((error as HostError).message).toBe(
      `${option} ${missing}: cannot be opened: ENOENT: no such file or directory`,
    );
    expect((error as HostError).exitCode).toBe(ExitCode.NoInput);
  });
  test('a relative path is shown absolute', () => {
    expect(thrown(bzimage('no/such/kernel'))).toMatchObject({
      message: expect.stringContaining(`${process.cwd()}/no/such/kernel: cannot be opened`),
    });
  });
  test.each([
    ['an empty kernel', bzimage(empty), 'the file is empty'],
    ['a directory', bzimage(directory), 'is a directory'],
    ['firmware of more than 2 MiB', ovmf(file('big', 2 * MiB + 1)), 'at most 2 MiB are possible'],
    ['code of more than 1920 KiB', split(file('bigcode', 2 * MiB), small), 'at most 1920 KiB are possible'],
    ['variables of more than 128 KiB', split(small, file('bigvars', 129 * KiB)), 'at most 128 KiB are possible'],
  ])('%s is refused', (_, boot, message) => {
    const error = thrown(boot);
    expect(error).toBeInstanceOf(ConfigError);
    expect((error as ConfigError).message).toContain(message);
    expect((error as ConfigError).exitCode).toBe(ExitCode.DataError);
  });
});

describe('an order that cannot be run', () => {
  const order = (...argv: string[]) => parseCommandLine(argv, [anyTextDriver('lpc')]) as VmOrder;

  test('a VM without boot image', () => {
    expect(problemsOf(order('vm1')).map((p) => p.message)).toEqual(['VM "vm1" has no boot image']);
  });
  test('devices that come later are answered with one line for all', () => {
    const [problem, ...more] = problemsOf(order('-k', 'k', '-s', '3,virtio-gpu', '-s', '4:1,xhci,1-1', 'vm1'));
    expect(more).toEqual([]);
    expect(problem).toMatchObject({
      message: '-s 3,virtio-gpu, -s 4:1,xhci,1-1: this device comes in a later version',
      exitCode: ExitCode.Unavailable,
    });
  });
  test('a whole VM has no problem', () => {
    expect(problemsOf(order('-k', 'k', '-s', '1,lpc', 'vm1'))).toEqual([]);
  });
});
