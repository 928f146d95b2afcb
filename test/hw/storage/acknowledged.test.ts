/**
 * What a disk or a file of ours says is on the medium, of every kind that says so. Once a sync has failed no later one
 * means anything (fsync(2)); a signal that interrupts a call, or a call that does a part, is no error at all.
 */
import type * as Fs from 'node:fs';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { type FileHandle, open } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest';
import { NvStore } from '../../../devicemodel/core/boot/ovmf.ts';
import { GuestBuffers, GuestRam } from '../../../devicemodel/core/guest-buffers.ts';
import { Errno } from '../../../devicemodel/core/host/errno.ts';
import type * as Files from '../../../devicemodel/core/host/files.ts';
import { openFileAside, punchHoleAside } from '../../../devicemodel/core/host/files.ts';
import type * as Libc from '../../../devicemodel/core/host/libc.ts';
import { map } from '../../../devicemodel/core/host/mapping.ts';
import { silentLog } from '../../../devicemodel/core/log.ts';
import { RpmbFileStore } from '../../../devicemodel/hw/pci/virtio/rpmb/file-store.ts';
import { openDiskImage } from '../../../devicemodel/hw/storage/disk-image.ts';
import { ImageIo } from '../../../devicemodel/hw/storage/image-io.ts';
import { SlicedQueue } from '../../../devicemodel/hw/storage/sliced-queue.ts';
import { ahciMachine, DATA } from '../../support/ahci-driver.ts';

/** What the next calls answer instead of being made. */
const faults = vi.hoisted(() => ({
  sync: [] as number[],
  aside: [] as number[],
  fdatasyncSync: [] as string[],
  /** Bytes that the next calls of pread and pwrite move at most. */
  at: [] as number[],
}));
vi.mock('../../../devicemodel/core/host/files.ts', async (original) => {
  const real = await original<typeof Files>();
  const part =
    (call: typeof real.readAt): typeof real.readAt =>
    (fd, address, sizeBytes, at) =>
      call(fd, address, Math.min(sizeBytes, faults.at.shift() ?? sizeBytes), at);
  return {
    ...real,
    readAt: part(real.readAt),
    writeAt: part(real.writeAt),
    syncData: (fd: number) => faults.sync.shift() ?? real.syncData(fd),
    syncDataAside: async (fd: number) => faults.sync.shift() ?? real.syncDataAside(fd),
  };
});
vi.mock('../../../devicemodel/core/host/libc.ts', async (original) => {
  const real = await original<typeof Libc>();
  return {
    ...real,
    asyncCall: (prototype: string) => {
      const call = real.asyncCall(prototype);
      return async (...args: never[]) => faults.aside.shift() ?? call(...args);
    },
  };
});
vi.mock('node:fs', async (original) => {
  const real = await original<typeof Fs>();
  const failing = (code: string) => {
    throw Object.assign(new Error(code), { code, errno: -Errno.EIO });
  };
  return {
    ...real,
    // A file system on which no file takes another's place: variables are written in place.
    renameSync: (from: string, to: string) => (to.endsWith('.fd') ? failing('EXDEV') : real.renameSync(from, to)),
    fdatasyncSync: (fd: number) => {
      const code = faults.fdatasyncSync.shift();
      if (code !== undefined) failing(code);
      real.fdatasyncSync(fd);
    },
  };
});

let dir: string;
const undo: Array<() => unknown> = [];
beforeEach(() => {
  for (const list of Object.values(faults)) list.length = 0;
  dir = mkdtempSync(join(tmpdir(), 'acknowledged-'));
});
afterEach(async () => {
  vi.restoreAllMocks();
  for (const step of undo.splice(0).reverse()) await step();
  rmSync(dir, { recursive: true });
});

function makeImage(sectors = 64): string {
  const path = join(dir, 'image');
  writeFileSync(path, Buffer.alloc(sectors * 512, 0x42));
  return path;
}

async function ahciDisk(options = '') {
  const machine = await ahciMachine(`hd:${makeImage()}${options}`, {
    openQueue: (io, _ram, clock) => new SlicedQueue(io, clock),
  });
  machine.driver.start(0);
  return machine;
}

const FLUSH = { command: 0xe7 } as const;
const WRITE = { command: 0x35, lba: 8, count: 1, memory: [[DATA, 512]] } as const;
/** Error and ready, aborted. */
const FAILED = 0x441;

describe('ahci: after one sync that failed', () => {
  // Mutation: let `ImageIo.flush` and `sync` forget what failed.
  test.each([
    ['FLUSH CACHE', ',writeback', FLUSH],
    ['FLUSH CACHE EXT', ',writeback', { command: 0xea }],
    ['SET FEATURES, write cache off', ',writeback', { command: 0xef, features: 0x82 }],
    ['WRITE DMA EXT of a disk that writes through', '', WRITE],
    ['WRITE DMA of one', '', { ...WRITE, command: 0xca }],
    ['WRITE FPDMA QUEUED with FUA', ',writeback', { ...WRITE, command: 0x61, isFua: true }],
  ])('%s: it fails, and so does every flush from then on, whatever is reset', async (_name, options, request) => {
    const { driver } = await ahciDisk(options);
    const { isFua = false, ...command } = request as typeof WRITE & { isFua?: boolean };
    const asked = isFua ? { ...command, device: 0xc0 } : command;
    faults.sync.push(-Errno.EIO);
    expect(await driver.run(0, asked)).toMatchObject({ failed: true });
    expect(faults.sync).toEqual([]);
    for (const again of [FLUSH, { command: 0xea }, FLUSH]) {
      await driver.restart(0);
      expect(await driver.run(0, again)).toMatchObject({ tfd: FAILED });
    }
    // COMRESET opens nothing.
    driver.set(0, 'cmd', 0x16);
    driver.set(0, 'sctl', 1);
    driver.set(0, 'sctl', 0);
    await driver.restart(0);
    expect(await driver.run(0, FLUSH)).toMatchObject({ tfd: FAILED });
    // What it reads is what it reads.
    await driver.restart(0);
    expect(await driver.run(0, { ...WRITE, command: 0x25 })).toMatchObject({ failed: false });
  });
});

describe('a signal that interrupts', () => {
  // Mutation: let `punchHoleAside`, `openFileAside` or `interrupted` pass it on.
  test.each<[string, () => Promise<unknown>]>([
    [
      'a discard',
      async () => {
        const image = await openDiskImage(makeImage(), { ro: false, writeback: false, nocache: false }, silentLog);
        faults.aside.push(-Errno.EINTR, -Errno.EINTR);
        return punchHoleAside(image.fd, 0, 4096);
      },
    ],
    [
      'the opening of an image',
      async () => {
        const path = makeImage();
        faults.aside.push(-Errno.EINTR);
        return (await openFileAside(path, 0)) > 2 ? 0 : -1;
      },
    ],
    [
      'a read of a replay protected memory',
      async () => {
        const store = await rpmb();
        await spyOn('read', async () => {
          throw Object.assign(new Error('EINTR'), { code: 'EINTR' });
        });
        return Buffer.compare(Buffer.from((await store.read(0, 1)) as Uint8Array), Buffer.alloc(256));
      },
    ],
  ])('%s is no error', async (_name, work) => {
    expect(await work()).toBe(0);
    expect(faults.aside).toEqual([]);
  });
});

async function rpmb(): Promise<RpmbFileStore> {
  const store = new RpmbFileStore(join(dir, 'rpmb'));
  undo.push(() => store.close());
  await store.open();
  return store;
}

/** The next call of each file handle is this one's. */
async function spyOn(name: 'read' | 'write' | 'datasync', once: (...args: never[]) => Promise<unknown>): Promise<void> {
  const handle = await open('/dev/null');
  const prototype = Object.getPrototypeOf(handle) as FileHandle;
  await handle.close();
  vi.spyOn(prototype, name).mockImplementationOnce(once as never);
}

describe('a call that does a part', () => {
  test('a replay protected memory is read and written on', async () => {
    const store = await rpmb();
    const handle = await open('/dev/null');
    const { read, write } = Object.getPrototypeOf(handle) as FileHandle;
    await handle.close();
    const partly = (real: unknown) =>
      function (this: FileHandle, bytes: Uint8Array, at: number, count: number, position: number) {
        return Reflect.apply(real as () => unknown, this, [bytes, at, Math.min(count, 100), position]);
      };
    await spyOn('write', partly(write) as never);
    expect(await store.write(7, Buffer.alloc(512, 9), 1)).toBe(0);
    await spyOn('read', partly(read) as never);
    expect(await store.read(7, 2)).toEqual(Buffer.alloc(512, 9));
  });

  // Mutation: call `readAt` once in `#transferBounced`: zeros, or what was in the buffer, get into the file.
  test.each([
    ['the read around it', [512]],
    ['the read around it, twice', [512, 512]],
    ['the write', [4096, 512]],
    ['both', [1024, 4096, 512, 1024]],
    ['nothing', []],
  ])('a write that is not aligned keeps what is around it: %s', async (_name, parts) => {
    const path = makeImage(16);
    const options = { ro: false, writeback: true, nocache: true, sectorSize: { logical: 4096, physical: 4096 } };
    const io = new ImageIo(await openDiskImage(path, options, silentLog));
    const ram = map(8192, 'test');
    undo.push(() => ram.dispose());
    undo.push(() => io.dispose());
    ram.bytes.fill(0xee);
    const buffers = new GuestBuffers(new GuestRam([{ base: 0, bytes: ram.bytes, hostAddress: ram.address }]));
    buffers.append(0, 3, 700, false);
    faults.at.push(...parts);
    expect(io.transfer(buffers, 0, 700, 512, true)).toBe(0);
    const expected = Buffer.alloc(16 * 512, 0x42).fill(0xee, 512, 1212);
    expect(Buffer.compare(readFileSync(path), expected)).toBe(0);
  });
});

// Mutation: leave `#lost` out: the file reads as it should, and the second save has nothing to do.
test('variables whose sync failed are never said to be saved', () => {
  const path = join(dir, 'vars.fd');
  writeFileSync(path, Buffer.alloc(8192));
  const role = { option: '--ovmf', what: 'variables', maxBytes: 8192, orBytes: 16384 };
  const store = new NvStore(path, role, silentLog);
  undo.push(() => store.close());
  const variables = new Uint8Array(8192).fill(7);
  faults.fdatasyncSync.push('EIO');
  expect(() => store.save(variables)).toThrow('could not be saved');
  expect(() => store.save(variables)).toThrow('could not be saved');
  expect(() => store.save(new Uint8Array(8192).fill(8))).toThrow('could not be saved');
});
