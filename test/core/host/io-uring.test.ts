/** io_uring on a file, as far as this kernel lets us. */
import { closeSync, mkdtempSync, openSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, describe, expect, test } from 'vitest';
import { Errno } from '../../../devicemodel/core/host/errno.ts';
import { createEventfd, Eventfd, signalEventfd } from '../../../devicemodel/core/host/eventfd.ts';
import { IoUring, UringOp } from '../../../devicemodel/core/host/io-uring.ts';
import { map } from '../../../devicemodel/core/host/mapping.ts';

const isAllowed = (() => {
  try {
    new IoUring(2).dispose();
    return true;
  } catch {
    return false;
  }
})();

const undo: Array<() => void> = [];
afterEach(() => {
  for (const step of undo.splice(0).reverse()) step();
});

/** A file of `bytes`, a ring, and memory whose first 4 KiB are for struct iovecs. */
function setUp(bytes: Uint8Array) {
  const dir = mkdtempSync(join(tmpdir(), 'io-uring-'));
  undo.push(() => rmSync(dir, { recursive: true }));
  const path = join(dir, 'file');
  writeFileSync(path, bytes);
  const fd = openSync(path, 'r+');
  undo.push(() => closeSync(fd));
  const memory = map(64 * 1024, 'test');
  undo.push(() => memory.dispose());
  const ring = new IoUring(8);
  undo.push(() => ring.dispose());
  const view = new DataView(memory.bytes.buffer);
  /** Entry `n` of the iovecs is `length` bytes at `offset` of the memory. @returns its address. */
  const iovec = (n: number, offset: number, length: number) => {
    view.setBigUint64(n * 16, memory.address + BigInt(offset), true);
    view.setBigUint64(n * 16 + 8, BigInt(length), true);
    return Number(memory.address) + n * 16;
  };
  return { path, fd, memory, ring, iovec };
}

describe.skipIf(!isAllowed)('io_uring', () => {
  test('reads and writes several at once, each with its own answer', () => {
    const { path, fd, memory, ring, iovec } = setUp(Uint8Array.from({ length: 4096 }, (_, i) => i >> 8));
    memory.bytes.fill(0xee, 8192, 8192 + 256);
    ring.prepare(UringOp.Readv, fd, iovec(0, 4096, 256), 1, 5 * 256, 0, 7);
    ring.prepare(UringOp.Writev, fd, iovec(1, 8192, 256), 1, 2 * 256, 0, 8);
    ring.prepare(UringOp.Readv, fd, iovec(2, 12288, 512), 1, 4096 - 100, 0, 9);
    expect(ring.submit(3)).toBe(0);
    const results = new Map<number, number>();
    while (ring.next()) results.set(ring.userData, ring.result);
    expect(results).toEqual(
      new Map([
        [7, 256],
        [8, 256],
        [9, 100],
      ]),
    );
    expect(memory.bytes[4096]).toBe(5);
    expect(readFileSync(path)[2 * 256 + 255]).toBe(0xee);
  });

  /** No operation of any kernel. */
  const REFUSED = 0xff;
  // Mutation: without the loop in `submit`, what is behind a refused entry is never begun, and nobody hears of it.
  test.each([
    ['first', [REFUSED, 1, 1]],
    ['in the middle', [1, REFUSED, 1]],
    ['last', [1, 1, REFUSED]],
    ['every other one', [REFUSED, 1, REFUSED, 1]],
    ['all but the last', [REFUSED, REFUSED, REFUSED, 1]],
    ['all', [REFUSED, REFUSED]],
  ])('each entry has its answer, also beside those that the kernel refuses: %s', (_which, ops) => {
    const { fd, ring, iovec } = setUp(new Uint8Array(4096));
    for (const [i, op] of ops.entries()) ring.prepare(op, fd, iovec(i, 4096 + 256 * i, 256), 1, 0, 0, i);
    expect(ring.submit(ops.length)).toBe(0);
    const results: number[] = [];
    while (ring.next()) results[ring.userData] = ring.result;
    expect(results).toEqual(ops.map((op) => (op === REFUSED ? -Errno.EINVAL : 256)));
  });

  // Mutation: without ENTER_EXT_ARG the wait has no end.
  test('waits for what was handed over, as long as it is told to', () => {
    const { ring, iovec } = setUp(new Uint8Array(512));
    const counter = createEventfd({ blocking: true });
    undo.push(() => closeSync(counter));
    ring.prepare(UringOp.Readv, counter, iovec(0, 4096, 8), 1, 0, 0, 5);
    expect(ring.submitFor(1, 1_000_000)).toBe(0);
    expect(ring.hasCompletions).toBe(false);
    signalEventfd(counter);
    expect(ring.submitFor(1, 900_000_000)).toBe(0);
    expect(ring.next()).toBe(true);
    expect([ring.userData, ring.result, ring.hasCompletions]).toEqual([5, 8, false]);
  });

  // Mutation: without the `submit` behind the wait, what is behind a refused entry stays where it is.
  test('hands over what is behind an entry that the kernel refuses, when it waits, too', () => {
    const { fd, ring, iovec } = setUp(new Uint8Array(4096));
    for (const [i, op] of [UringOp.Readv, 0xff, UringOp.Readv].entries()) {
      ring.prepare(op, fd, iovec(i, 4096 + 256 * i, 256), 1, 0, 0, i);
    }
    expect(ring.submitFor(3, 900_000_000)).toBe(0);
    expect(ring.submitFor(3, 900_000_000)).toBe(0);
    const results: number[] = [];
    while (ring.next()) results[ring.userData] = ring.result;
    expect(results).toEqual([256, -Errno.EINVAL, 256]);
  });

  test('rings an eventfd for what is complete, while that is wanted', () => {
    const { fd, ring, iovec } = setUp(new Uint8Array(512));
    const bell = new Eventfd();
    undo.push(() => bell.dispose());
    expect(ring.ringBy(bell.fd)).toBe(true);
    const read = () => {
      ring.prepare(UringOp.Readv, fd, iovec(0, 4096, 4), 1, 0, 0, 5);
      expect(ring.submit(1)).toBe(0);
      expect(ring.next()).toBe(true);
      return bell.take();
    };
    expect(read()).toBe(0);
    ring.rings = true;
    expect(read()).toBe(1);
    ring.rings = false;
    expect(read()).toBe(0);
  });

  test('goes round the ring many times, in places beyond 4 GiB as well', () => {
    const { fd, memory, ring, iovec } = setUp(new Uint8Array(512));
    const far = 5 * 2 ** 30;
    for (let i = 0; i < 100; i++) {
      memory.bytes.fill(i, 4096, 4096 + 16);
      ring.prepare(UringOp.Writev, fd, iovec(0, 4096, 16), 1, far + i * 16, 0, i);
      expect(ring.submit(1)).toBe(0);
      expect(ring.next()).toBe(true);
      expect([ring.userData, ring.result]).toEqual([i, 16]);
      expect(ring.next()).toBe(false);
    }
    ring.prepare(UringOp.Readv, fd, iovec(0, 8192, 16), 1, far + 42 * 16, 0, 0);
    ring.submit(1);
    ring.next();
    expect(memory.bytes[8192]).toBe(42);
  });

  test('what fails is answered with its errno', () => {
    const { ring, iovec } = setUp(new Uint8Array(512));
    ring.prepare(UringOp.Readv, 12_345, iovec(0, 4096, 16), 1, 0, 0, 1);
    ring.submit(1);
    expect(ring.next()).toBe(true);
    expect(ring.result).toBe(-Errno.EBADF);
  });

  test('nothing prepared costs nothing', () => {
    const { ring } = setUp(new Uint8Array(512));
    expect(ring.submit()).toBe(0);
    expect(ring.next()).toBe(false);
  });
});
