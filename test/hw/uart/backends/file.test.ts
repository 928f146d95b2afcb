import { execFileSync } from 'node:child_process';
import { closeSync, constants, openSync, readFileSync, readSync, writeFileSync } from 'node:fs';
import { afterEach, expect, test } from 'vitest';
import { HostError } from '../../../../devicemodel/core/errors.ts';
import { openCharBackend } from '../../../../devicemodel/hw/uart/backends/open.ts';
import { memoryLog } from '../../../support/memory-log.ts';
import { scratchDirectory, until, writeText } from '../../../support/pty.ts';

const cleanUp: Array<() => unknown> = [];
afterEach(async () => {
  for (const step of cleanUp.splice(0).reverse()) await step();
});

function scratch() {
  const directory = scratchDirectory();
  cleanUp.push(() => directory.remove());
  return directory;
}

async function started(path: string) {
  const { log, lines } = memoryLog();
  const backend = openCharBackend(`file:${path}`, { user: 'com1', log });
  await backend.start();
  cleanUp.push(() => backend.stop());
  return { backend, lines };
}

test('appends every byte, in the file at the end of the turn', async () => {
  const path = scratch().file('log');
  writeFileSync(path, 'before\n');
  const { backend } = await started(path);
  writeText(backend, 'x'.repeat(100_000));
  expect(readFileSync(path, 'latin1')).toBe(`before\n${'x'.repeat(100_000)}`);
  expect(backend.read()).toBe(-1);
});

test('a full disk is said once, and what fits the queue is kept', async () => {
  const { backend, lines } = await started('/dev/full');
  writeText(backend, 'a');
  writeText(backend, 'b');
  expect(lines.filter((l) => l.startsWith('warn'))).toHaveLength(1);
  expect(lines[0]).toMatch(/com1: file \/dev\/full: ENOSPC/);
});

test('a directory, and a pipe without reader, are refused', async () => {
  const directory = scratch();
  await expect(started(directory.path)).rejects.toThrow(HostError);
  execFileSync('mkfifo', [directory.file('fifo')]);
  await expect(started(directory.file('fifo'))).rejects.toThrow(/ENXIO/);
});

test('a named pipe with a slow reader gets everything', async () => {
  const path = scratch().file('fifo');
  execFileSync('mkfifo', [path]);
  const reader = openSync(path, constants.O_RDONLY | constants.O_NONBLOCK);
  cleanUp.push(() => closeSync(reader));
  const { backend } = await started(path);
  writeText(backend, 'p'.repeat(200_000));
  let received = 0;
  const chunk = Buffer.alloc(10_000);
  await until(() => {
    try {
      received += readSync(reader, chunk);
    } catch {
      // Nothing there at the moment.
    }
    return received === 200_000;
  }, 'everything');
});

// Mutation: leave out `#warnLoss` in stop(): a panic at the end of a long boot is gone without a word.
test.each([
  ['a pipe whose reader reads nothing', 'fifo', 200_000, 200_000 - 65_536],
  ['the same, with more than the queue holds', 'fifo', 1_200_000, (1 << 20) - 65_536],
  ['a full disk', '/dev/full', 3, 3],
  ['a pipe that had room', 'fifo', 1000, 0],
  ['nobody wants it', '/dev/null', 1000, 0],
])('what is lost at the end is counted: %s', async (_name, where, written, lost) => {
  const path = where === 'fifo' ? scratch().file('fifo') : where;
  if (where === 'fifo') {
    execFileSync('mkfifo', [path]);
    const reader = openSync(path, constants.O_RDONLY | constants.O_NONBLOCK);
    cleanUp.push(() => closeSync(reader));
  }
  const { backend, lines } = await started(path);
  writeText(backend, 'x'.repeat(written));
  await backend.stop();
  const said = lines.filter((line) => line.includes('bytes are lost'));
  const end = `com1: file ${path} takes no output: the last ${lost} bytes are lost`;
  expect(said.filter((line) => line.includes('the last'))).toEqual(lost === 0 ? [] : [expect.stringContaining(end)]);
});
