/** The end of a process that has a thread in a system call which does not return. */
import { spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect, test } from 'vitest';

const hooks = join(import.meta.dirname, '../../../devicemodel/core/host/exit-hooks.ts');

// Mutations tried: `leaveThreadBehind` does nothing, or does not call `update`: Node waits for the thread for ever.
test.each([
  ['one hook', `onProcessEnd(() => console.log('a'));`, '', 'a\n'],
  ['no hook', '', '', ''],
  ['one of files', `onProcessExit(() => console.log('a'));`, '', 'a\n'],
  ['hooks of after', `onProcessExit(() => console.log('a'));`, `onProcessEnd(() => console.log('b'));`, 'a\nb\n'],
  ['one that throws', `onProcessEnd(() => console.log('a'));`, `onProcessEnd(() => { throw 1; });`, 'a\n'],
  ['one that was taken back', `onProcessEnd(() => console.log('a'))();`, '', ''],
])('does not wait for it, and runs its hooks: %s', (_what, before, after, output) => {
  const dir = mkdtempSync(join(tmpdir(), 'exit-hooks-'));
  const fifo = join(dir, 'fifo');
  expect(spawnSync('mkfifo', [fifo]).status).toBe(0);
  const code = `
    import { Worker } from 'node:worker_threads';
    const { leaveThreadBehind, onProcessEnd, onProcessExit } = await import(${JSON.stringify(hooks)});
    ${before}
    const worker = new Worker("require('fs').readFileSync(" + JSON.stringify(${JSON.stringify(fifo)}) + ")", { eval: true, execArgv: [] });
    worker.once('online', () => setTimeout(() => { leaveThreadBehind(); ${after} process.exit(3); }, 200));
  `;
  const child = spawnSync(process.execPath, ['--import', 'tsx', '--input-type=module', '-e', code], {
    encoding: 'utf8',
    timeout: 15_000,
    killSignal: 'SIGKILL',
  });
  rmSync(dir, { recursive: true });
  expect([child.status, child.stdout]).toEqual([3, output]);
});
