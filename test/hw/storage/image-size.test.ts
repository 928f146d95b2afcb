/** What can be a disk, found out before a VM is asked for. */
import { mkdtempSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, expect, test } from 'vitest';
import { checkHostPaths } from '../../../config/preflight.ts';
import type { VmConfig } from '../../../devicemodel/core/config.ts';
import { type DmError, ExitCode } from '../../../devicemodel/core/errors.ts';
import { inspectImage } from '../../../devicemodel/hw/storage/image-size.ts';

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

// Mutation: leave `inspectHost` out of checkHostPaths, or of the options of virtio-blk.
test('it is said with the slot, before a VM is asked for', () => {
  const path = imageOf(700);
  const slot = { bdf: { bus: 0, device: 3, function: 0 }, driver: 'virtio-blk', options: { path }, text: path };
  const error = thrown(() => checkHostPaths({ pci: [slot], platform: [] } as unknown as VmConfig));
  expect(error?.message).toMatch(new RegExp(`^-s 3,virtio-blk,${path}: .*multiple of 512`));
  expect([error?.exitCode, error?.hint]).toEqual([ExitCode.DataError, `truncate -s 1024 ${path}`]);
});
