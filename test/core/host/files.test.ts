/** What files in memory are. Room for one while signals come: the kernel here is one before Linux 6.10, whose tmpfs undoes what it did at a signal. */
import { closeSync, fstatSync, openSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, onTestFinished, test, vi } from 'vitest';
import { MiB } from '../../../devicemodel/core/units.ts';

/** So many bytes are done between two signals. */
const BETWEEN_SIGNALS = 0x2_0000;
let tries = 0;
vi.mock('../../../devicemodel/core/host/libc.ts', async (original) => {
  const real = await original<typeof import('../../../devicemodel/core/host/libc.ts')>();
  const hostCall: typeof real.hostCall = (prototype) => {
    const call = real.hostCall(prototype);
    if (!prototype.startsWith('int fallocate(')) return call;
    return (...args) => {
      tries++;
      // It would be made again, for ever.
      if ((args[3] as number) > BETWEEN_SIGNALS) throw new Error('EINTR');
      return call(...args);
    };
  };
  return { ...real, hostCall };
});
const { isInMemory, reserveSpace, setFileSize } = await import('../../../devicemodel/core/host/files.ts');
const { createHugeMemfd } = await import('../../../devicemodel/core/host/memfd.ts');

const path = join('/dev/shm', `files-${process.pid}`);
let fd: number;
beforeEach(() => {
  fd = openSync(path, 'w+');
  tries = 0;
});
afterEach(() => {
  closeSync(fd);
  rmSync(path);
});

// Mutation: ask for all of it at once.
test.each([4096, 2 * MiB, 3 * MiB - 4096])('%i bytes are reserved by pieces that fit between two signals', (bytes) => {
  reserveSpace(fd, bytes, 'a file');
  const { size, blocks } = fstatSync(fd);
  // stat counts blocks of 512 bytes.
  expect({ size, reserved: blocks * 512 }).toEqual({ size: 0, reserved: bytes });
  expect(tries).toBeLessThan(30);
});

// Mutation: without KEEP_SIZE: who opens shared memory meanwhile is told that it has another size.
test('a file keeps its length until it is set, and what was reserved goes with it', () => {
  reserveSpace(fd, MiB, 'a file');
  setFileSize(fd, MiB, 'a file');
  expect(fstatSync(fd).blocks * 512).toBe(MiB);
  reserveSpace(fd, 2 * MiB, 'a file');
  expect(fstatSync(fd).size).toBe(MiB);
  // As a failure puts it back.
  setFileSize(fd, MiB, 'a file');
  expect(fstatSync(fd).blocks * 512).toBe(MiB);
});

// Mutation: hugetlbfs is one, where write(2) fails and a write to memory does not.
test('a file of huge pages is none of a file system in memory', async () => {
  expect(await isInMemory(fd)).toBe(true);
  const huge = createHugeMemfd('test', 2 * MiB, 0, 'test');
  onTestFinished(() => closeSync(huge));
  expect(await isInMemory(huge)).toBe(false);
});
