import { readlinkSync, renameSync, symlinkSync, unlinkSync } from 'node:fs';
import { dirname } from 'node:path';
import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest';
import { openCharBackend } from '../../../../devicemodel/hw/uart/backends/open.ts';
import { memoryLog } from '../../../support/memory-log.ts';
import { scratchDirectory } from '../../../support/pty.ts';

const atExit = vi.hoisted(() => new Set<() => void>());
vi.mock(import('../../../../devicemodel/core/host/exit-hooks.ts'), async (importOriginal) => ({
  ...(await importOriginal()),
  onProcessExit: (hook: () => void) => {
    atExit.add(hook);
    return () => void atExit.delete(hook);
  },
}));

const directory = scratchDirectory();
const link = directory.file('vm1/com1');
const folder = dirname(link);
const aside = directory.file('aside');

async function started() {
  const backend = openCharBackend(`pty:${link}`, { user: 'com1', log: memoryLog().log, requestTurn: () => {} });
  await backend.start();
  return backend;
}

/** Whatever is asked of a path below the folder is answered ELOOP. */
function obstruct(): void {
  renameSync(folder, aside);
  symlinkSync(folder, folder);
}

function takeOver(): void {
  unlinkSync(link);
  symlinkSync('/dev/pts/other', link);
}

function clear(): void {
  unlinkSync(folder);
  renameSync(aside, folder);
}

beforeEach(() => atExit.clear());
afterEach(() => directory.remove());

describe('the link of a pty', () => {
  test('that could not be removed when its port closed goes with the process', async () => {
    const backend = await started();
    obstruct();
    await backend.stop();
    clear();
    expect(atExit.size).toBe(1);
    for (const hook of atExit) hook();
    expect(() => readlinkSync(link)).toThrow(/ENOENT/);
  });

  test.each([
    ['was removed', () => {}],
    ['was gone', () => unlinkSync(link)],
    ['has become a link of somebody else', () => takeOver()],
    ['has lost its folder', () => renameSync(folder, aside)],
  ])('that %s is not looked at again', async (_what, happens) => {
    const backend = await started();
    happens();
    await backend.stop();
    expect(atExit.size).toBe(0);
  });
});
