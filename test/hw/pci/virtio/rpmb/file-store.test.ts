/** The file of a simulated memory: what was acknowledged is there whenever the machine stops. */
import { execFileSync } from 'node:child_process';
import {
  chmodSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { type FileHandle, open } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, test, vi } from 'vitest';
import { HostError } from '../../../../../devicemodel/core/errors.ts';
import { RpmbFileStore } from '../../../../../devicemodel/hw/pci/virtio/rpmb/file-store.ts';

const PAGE = 4 * 1024 * 1024;
let dir = '';
let path = '';
const opened: RpmbFileStore[] = [];
beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), 'rpmb-'));
  path = join(dir, 'file');
});
afterEach(async () => {
  vi.restoreAllMocks();
  for (const store of opened.splice(0)) await store.close();
  rmSync(dir, { recursive: true, force: true });
});

async function start(): Promise<{ store: RpmbFileStore; counter: number }> {
  const store = new RpmbFileStore(path);
  opened.push(store);
  const { counter, blockCount } = await store.open();
  expect(blockCount).toBe(16384);
  return { store, counter };
}

const block = (byte: number, count = 1) => Buffer.alloc(256 * count, byte);

test('is made for its owner alone, and keeps blocks and counter', async () => {
  const { store, counter } = await start();
  expect(counter).toBe(0);
  expect(statSync(path).mode & 0o777).toBe(0o600);
  expect(await store.write(200, block(7, 2), 1)).toBe(0);
  expect(await store.write(16383, block(8), 2)).toBe(0);
  await store.close();
  const again = await start();
  expect(again.counter).toBe(2);
  expect(await again.store.read(200, 2)).toEqual(block(7, 2));
  expect(await again.store.read(16383, 1)).toEqual(block(8));
  expect(await again.store.read(202, 1)).toEqual(block(0));
});

test('a write of three blocks is refused whole', async () => {
  const { store } = await start();
  expect(await store.write(200, block(7, 3), 1)).toBe(1);
  expect(await store.read(200, 3)).toEqual(block(0, 3));
});

/** States of the file that a power loss may leave, from the states before and after a write. */
test.each([
  ['only the journal arrived', [PAGE + 512, PAGE + 4096], true],
  ['journal and head arrived, the block did not', [PAGE, PAGE + 4096], true],
  ['journal and block arrived, the head did not', [], true],
  ['nothing arrived', undefined, false],
  ['a part of the journal arrived', [PAGE + 512, PAGE + 700], false],
] as const)('a loss of power when %s', async (_, part, isThere) => {
  const first = await start();
  await first.store.write(200, block(1), 1);
  await first.store.close();
  const before = readFileSync(path);
  const second = await start();
  await second.store.write(201, block(2), 2);
  await second.store.close();
  const after = readFileSync(path);
  const left = Buffer.from(part?.length === 0 ? after : before);
  if (part?.length === 0) before.copy(left, PAGE, PAGE, PAGE + 52);
  else if (part !== undefined) after.copy(left, part[0], part[0], part[1]);
  writeFileSync(path, left);
  const { store, counter } = await start();
  expect(counter).toBe(isThere ? 2 : 1);
  expect(await store.read(200, 1)).toEqual(block(1));
  expect(await store.read(201, 1)).toEqual(block(isThere ? 2 : 0));
});

test('a head that was cut off is made good by the journal; without both the file is refused', async () => {
  const { store } = await start();
  await store.write(200, block(1), 1);
  await store.close();
  const whole = readFileSync(path);
  const cut = Buffer.from(whole);
  cut.fill(0xff, PAGE + 18, PAGE + 60);
  writeFileSync(path, cut);
  const again = await start();
  expect(again.counter).toBe(1);
  await again.store.close();
  cut.fill(0xff, PAGE, PAGE + 600);
  writeFileSync(path, cut);
  await expect(start()).rejects.toThrow('neither its head nor its journal are whole');
});

test('an acknowledged write was synced after its journal, and the one before it had been put in its place', async () => {
  const { store } = await start();
  const handle = await open(path);
  const prototype = Object.getPrototypeOf(handle) as FileHandle;
  await handle.close();
  const calls: string[] = [];
  const { write, datasync } = prototype;
  vi.spyOn(prototype, 'write').mockImplementation(function (this: FileHandle, ...args: unknown[]) {
    calls.push(`write ${args[3]}`);
    return (write as (...all: unknown[]) => never).apply(this, args);
  } as never);
  vi.spyOn(prototype, 'datasync').mockImplementation(async function (this: FileHandle) {
    await datasync.call(this);
    calls.push('synced');
  });
  await store.write(200, block(1), 1);
  expect(calls).toEqual([`write ${PAGE + 512}`, 'synced', `write ${200 * 256}`, `write ${PAGE}`]);
  calls.length = 0;
  await store.write(201, block(2), 2);
  expect(calls).toEqual(['synced', `write ${PAGE + 512}`, 'synced', `write ${201 * 256}`, `write ${PAGE}`]);
});

test('after a failure nothing is written until the file is opened anew', async () => {
  const { store } = await start();
  const handle = await open(path);
  const prototype = Object.getPrototypeOf(handle) as FileHandle;
  await handle.close();
  const spy = vi.spyOn(prototype, 'datasync').mockRejectedValue(new Error('EIO'));
  expect(await store.write(200, block(1), 1)).toBe(5);
  spy.mockRestore();
  expect(await store.write(200, block(2), 1)).toBe(5);
  await store.close();
  const again = await start();
  expect(await again.store.write(200, block(3), again.counter + 1)).toBe(0);
});

test('one file is one VM’s', async () => {
  await start();
  await expect(start()).rejects.toThrow('in use by another User VM');
});

test('a file of the C device model is taken over with its counter', async () => {
  const old = Buffer.alloc(PAGE);
  old.write('key_sim', 0);
  old.writeUInt32LE(41, 39);
  old.fill(9, 300 * 256, 301 * 256);
  writeFileSync(path, old);
  const { store, counter } = await start();
  expect(counter).toBe(41);
  expect(await store.read(300, 1)).toEqual(block(9));
  expect(await store.write(301, block(8), 42)).toBe(0);
  await store.close();
  expect((await start()).counter).toBe(42);
});

test.each([
  ['of another size', () => truncateSync(path, 5000), 'it has 5000 bytes'],
  ['that is something else', () => truncateSync(path, PAGE), 'it does not begin as one'],
])('a file %s is left alone', async (_, make, why) => {
  writeFileSync(path, 'x');
  make();
  const before = readFileSync(path);
  await expect(start()).rejects.toThrow(why);
  expect(readFileSync(path).equals(before)).toBe(true);
});

// Mutation: leave the length as it is: the next start finds a file of the right size without head and journal.
test('a disk that is full while the file is made leaves none that is broken for ever', async () => {
  const probe = await open(join(dir, 'probe'), 'w+');
  const handle = Object.getPrototypeOf(probe) as FileHandle;
  await probe.close();
  const full = Object.assign(new Error('ENOSPC: no space left on device, write'), {
    code: 'ENOSPC',
    errno: -28,
    syscall: 'write',
  });
  const sync = vi.spyOn(handle, 'sync').mockRejectedValueOnce(full);
  await expect(start()).rejects.toThrow(`${path}: ENOSPC: no space left on device`);
  expect(sync).toHaveBeenCalledTimes(1);
  expect(statSync(path).size).toBe(0);
  for (const store of opened.splice(0)) await store.close();
  expect((await start()).counter).toBe(0);
});

test.each([
  ['a folder', () => {}, () => dir],
  ['a device', () => {}, () => '/dev/zero'],
  ['a pipe', () => execFileSync('mkfifo', [path]), () => path],
  ['a terminal', () => {}, () => '/dev/ptmx'],
  ['a link in a folder for everybody', () => symlinkSync('target', path), () => path],
])('%s is none', async (_, make, place) => {
  chmodSync(dir, 0o1777);
  make();
  const store = new RpmbFileStore(place());
  opened.push(store);
  await expect(store.open()).rejects.toThrow(HostError);
});
