/** What is done at once is done for a millisecond: a copy on memory that was not touched lately is slow. */
import { closeSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect, onTestFinished, test } from 'vitest';
import { GuestBuffers, GuestRam } from '../../../devicemodel/core/guest-buffers.ts';
import { Errno } from '../../../devicemodel/core/host/errno.ts';
import { map } from '../../../devicemodel/core/host/mapping.ts';
import { silentLog } from '../../../devicemodel/core/log.ts';
import { openDiskImage } from '../../../devicemodel/hw/storage/disk-image.ts';
import { ImageAside, WOULD_WAIT } from '../../../devicemodel/hw/storage/image-aside.ts';
import { ImageIo } from '../../../devicemodel/hw/storage/image-io.ts';

const IMAGE_BYTES = 1 << 20;
const PIECE_BYTES = 64 * 1024;

/** @param stepNs how much later it is at each look at the clock. */
async function setUp(stepNs: number, neverWaits: boolean) {
  const dir = mkdtempSync(join(tmpdir(), 'image-aside-'));
  const path = join(dir, 'image');
  writeFileSync(path, Buffer.alloc(IMAGE_BYTES, 0x5a));
  const ram = map(IMAGE_BYTES, 'test');
  const image = await openDiskImage(path, { ro: false, writeback: true, nocache: false, discard: {} }, silentLog);
  const io = new ImageIo({ ...image, neverWaits });
  let nowNs = 0;
  const clock = { nowNs: () => (nowNs += stepNs) };
  const aside = new ImageAside(io, clock);
  onTestFinished(() => {
    aside.dispose();
    io.dispose();
    closeSync(image.fd);
    ram.dispose();
    rmSync(dir, { recursive: true });
  });
  const buffers = (isRead: boolean) => {
    const all = new GuestBuffers(new GuestRam([{ base: 0, bytes: ram.bytes, hostAddress: ram.address }]));
    all.append(0, 0, IMAGE_BYTES, isRead);
    return all;
  };
  return { io, ram, aside, buffers };
}

// Mutation: without `this.#clock.nowNs() >= endNs` in transferNow all of it is copied, however long that takes.
test.each([
  ['on a slow machine, for a millisecond', 300_000, 4 * PIECE_BYTES],
  ['on a fast one all of it', 10_000, IMAGE_BYTES],
])('what is in memory is copied by pieces: %s', async (_name, stepNs, expected) => {
  const { aside, ram, buffers } = await setUp(stepNs, true);
  expect(aside.transferNow(buffers(true), 0, IMAGE_BYTES, 0, false)).toBe(expected);
  expect(ram.bytes.lastIndexOf(0x5a)).toBe(expected - 1);
  expect(aside.transferNow(buffers(false), 0, IMAGE_BYTES, 0, true)).toBe(expected);
});

// Mutation: without `count > NOW_BYTES` in transferNow, a large read of a file system keeps the thread as long as the host
// reads ahead.
test('of a file system one small piece that is in the cache is read at once, everything else left to others', async () => {
  const { aside, io, buffers } = await setUp(1000, false);
  const pieces: number[] = [];
  io.readCached = (_buffers, at, count) => {
    pieces.push(at);
    return at + count <= 3 * PIECE_BYTES;
  };
  const readAt = (at: number, count: number) => aside.transferNow(buffers(true), at, count, at, false);
  expect(readAt(0, PIECE_BYTES)).toBe(PIECE_BYTES);
  expect(readAt(2 * PIECE_BYTES, 512)).toBe(512);
  expect(readAt(3 * PIECE_BYTES, 512)).toBe(WOULD_WAIT);
  expect(readAt(0, 2 * PIECE_BYTES)).toBe(WOULD_WAIT);
  expect(pieces).toEqual([0, 2, 3].map((i) => i * PIECE_BYTES));
  expect(aside.transferNow(buffers(false), 0, 512, 0, true)).toBe(WOULD_WAIT);
});

test('a failure is an errno, at any piece', async () => {
  const { aside, io, buffers } = await setUp(1000, true);
  io.transfer = (_buffers, at) => (at < PIECE_BYTES ? 0 : Errno.EIO);
  expect(aside.transferNow(buffers(true), 0, IMAGE_BYTES, 0, false)).toBe(-Errno.EIO);
});
