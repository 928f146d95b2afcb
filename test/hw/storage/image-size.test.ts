/** What can be a disk, found out before a VM is asked for. */
import { mkdtempSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, expect, test } from 'vitest';
import { checkHostPaths } from '../../../config/preflight.ts';
import { parseSlots } from '../../../config/slot.ts';
import type { VmConfig } from '../../../devicemodel/core/config.ts';
import { type DmError, ExitCode } from '../../../devicemodel/core/errors.ts';
import { pciDrivers } from '../../../devicemodel/hw/registry.ts';
import { diskPart, inspectImage } from '../../../devicemodel/hw/storage/image-size.ts';

const undo: Array<() => void> = [];
afterEach(() => {
  for (const step of undo.splice(0).reverse()) step();
});

function scratch(): string {
  const dir = mkdtempSync(join(tmpdir(), 'image-size-'));
  undo.push(() => rmSync(dir, { recursive: true }));
  return dir;
}

function imageOf(sizeBytes: number): string {
  const path = join(scratch(), 'disk');
  writeFileSync(path, '');
  truncateSync(path, sizeBytes);
  return path;
}

function thrown(what: () => void): DmError | undefined {
  try {
    what();
    return undefined;
  } catch (error) {
    return error as DmError;
  }
}

test.each([
  [0, 512],
  [1, 512],
  [511, 512],
  [513, 1024],
  [1_000_000, 1_000_448],
  [2 ** 40 + 7, 2 ** 40 + 512],
])('an image of %i bytes: status 65, and the command that mends it', (sizeBytes, mendedBytes) => {
  const path = imageOf(sizeBytes);
  const error = thrown(() => inspectImage(path));
  expect(error?.exitCode).toBe(ExitCode.DataError);
  expect(error?.message).toBe(`${path}: the size must be a multiple of 512 bytes, it is ${sizeBytes}`);
  expect(error?.hint).toBe(`truncate -s ${mendedBytes} ${path}`);
  truncateSync(path, mendedBytes);
  expect(thrown(() => inspectImage(path))).toBeUndefined();
});

test.each([
  ['a directory', (dir: string) => dir],
  ['a character device', () => '/dev/null'],
])('%s is no disk: status 65', (_name, pathOf) => {
  const error = thrown(() => inspectImage(pathOf(scratch())));
  expect([error?.exitCode, error?.message]).toEqual([
    ExitCode.DataError,
    expect.stringMatching(/neither a file nor a block device/),
  ]);
});

const SECTORS = 2048;
test.each([
  ['the whole', {}, 0, SECTORS],
  ['all of it', { range: { startLba: 0, sectors: SECTORS } }, 0, SECTORS],
  ['the last sector', { range: { startLba: SECTORS - 1, sectors: 1 } }, SECTORS - 1, 1],
  ['large sectors', { range: { startLba: 1, sectors: 255 }, sectorSize: { logical: 4096, physical: 4096 } }, 8, 2040],
])('part of an image: %s', (_name, options, first, sectors) => {
  expect(diskPart('disk', SECTORS * 512, options)).toEqual({ base: first * 512, sizeBytes: sectors * 512 });
});

const fourK = { logical: 4096, physical: 4096 };
test.each([
  ['one sector too many', { range: { startLba: 0, sectors: SECTORS + 1 } }, 'range=0/2048 goes up to the end'],
  ['the end is beyond', { range: { startLba: 2000, sectors: 49 } }, 'range=2000/48 goes up to the end'],
  ['the start is the end', { range: { startLba: SECTORS, sectors: 1 } }, 'the first sector and how many'],
  ['the start is beyond', { range: { startLba: 2 ** 40, sectors: 2 ** 40 } }, 'the first sector and how many'],
  ['sectors are large', { range: { startLba: 1, sectors: 256 }, sectorSize: fourK }, 'range=1/255 goes up to the end'],
])('a range that the file does not have: %s', (_name, options, hint) => {
  const path = imageOf(SECTORS * 512);
  const error = thrown(() => inspectImage(path, options));
  const { startLba, sectors } = options.range;
  expect(error?.message).toContain(
    `${path}: range=${startLba}/${sectors} ends at sector ${startLba + sectors}, there are`,
  );
  expect([error?.exitCode, error?.hint]).toEqual([ExitCode.DataError, expect.stringContaining(hint)]);
});

// Mutation: leave options out of the call in one of the drivers.
test.each([
  ['virtio-blk', '{PATH},range=0/5000'],
  ['virtio-blk', 'range=0/5000,{PATH}'],
  ['ahci', 'hd:{PATH},range=1/2048'],
  ['ahci-hd', '{PATH},sectorsize=4096,range=0/257'],
  ['ahci-cd', '{PATH},range=2048/1'],
])('%s,%s is refused before a VM is asked for', (driver, words) => {
  const text = words.replace('{PATH}', imageOf(SECTORS * 512));
  const { pci } = parseSlots([`3,${driver},${text}`], pciDrivers);
  const error = thrown(() => checkHostPaths({ pci, com: [], platform: [] } as unknown as VmConfig));
  expect(error?.message).toMatch(/^-s 3,ahci|^-s 3,virtio-blk/);
  expect([error?.exitCode, error?.message]).toEqual([ExitCode.DataError, expect.stringContaining('ends at sector')]);
});

// Mutation: leave `inspectHost` out of checkHostPaths, or of the options of virtio-blk.
test('it is said with the slot, before a VM is asked for', () => {
  const path = imageOf(700);
  const slot = { bdf: { bus: 0, device: 3, function: 0 }, driver: 'virtio-blk', options: { path }, text: path };
  const error = thrown(() => checkHostPaths({ pci: [slot], platform: [] } as unknown as VmConfig));
  expect(error?.message).toMatch(new RegExp(`^-s 3,virtio-blk,${path}: .*multiple of 512`));
  expect([error?.exitCode, error?.hint]).toEqual([ExitCode.DataError, `truncate -s 1024 ${path}`]);
});
