/** Writing to memory by its address: what is not there is an error, not a signal. */
import { closeSync, mkdtempSync, openSync, readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, onTestFinished, test } from 'vitest';
import { setIovec } from '../../../devicemodel/core/guest-buffers.ts';
import { Errno } from '../../../devicemodel/core/host/errno.ts';
import { map, mapUnseen } from '../../../devicemodel/core/host/mapping.ts';
import { MemoryWriter } from '../../../devicemodel/core/host/process-memory.ts';
import { MEMORY_DIR } from '../../support/memory-dir.ts';

const PAGE = 4096;

function setUp() {
  const dir = mkdtempSync(join(MEMORY_DIR, 'process-memory-'));
  const path = join(dir, 'file');
  writeFileSync(path, Buffer.alloc(4 * PAGE));
  const fd = openSync(path, 'r+');
  const file = mapUnseen(4 * PAGE, 'test', fd, 0);
  const source = map(2 * PAGE, 'test');
  onTestFinished(() => {
    source.dispose();
    file.dispose();
    closeSync(fd);
    rmSync(dir, { recursive: true });
  });
  source.bytes.fill(1, 0, PAGE).fill(2, PAGE);
  const iov = new DataView(new ArrayBuffer(32));
  // The second page before the first.
  setIovec(iov, 0, Number(source.address) + PAGE, PAGE);
  setIovec(iov, 1, Number(source.address), PAGE);
  const writer = new MemoryWriter();
  const write = (at: number) => writer.write(new Uint8Array(iov.buffer), 2, file.address + BigInt(at), 2 * PAGE);
  return { path, writer, write };
}

test('pieces of memory are written to a file that is mapped, one behind the other', () => {
  const { path, writer, write } = setUp();
  expect(writer.isAllowed).toBe(true);
  expect(write(PAGE + 5)).toBe(2 * PAGE);
  const before = Buffer.alloc(PAGE + 5);
  const after = Buffer.alloc(PAGE - 5);
  expect(readFileSync(path)).toEqual(Buffer.concat([before, Buffer.alloc(PAGE, 2), Buffer.alloc(PAGE, 1), after]));
});

test('behind the end of a file that shrank nothing is written', () => {
  const { path, write } = setUp();
  truncateSync(path, 2 * PAGE);
  expect(write(PAGE)).toBe(PAGE);
  expect(write(2 * PAGE)).toBe(-Errno.EFAULT);
  expect(readFileSync(path)).toEqual(Buffer.concat([Buffer.alloc(PAGE), Buffer.alloc(PAGE, 2)]));
});
