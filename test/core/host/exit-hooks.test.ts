/** The end of a process that has a thread in a system call which does not return. */
import { spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect, test } from 'vitest';

const hooks = join(import.meta.dirname, '../../../devicemodel/core/host/exit-hooks.ts');

// Mutation tried: `leaveThreadBehind` does nothing: Node waits for the thread for ever.
test('does not wait for it, and runs the hooks', () => {
  const dir = mkdtempSync(join(tmpdir(), 'exit-hooks-'));
  const fifo = join(dir, 'fifo');
  expect(spawnSync('mkfifo', [fifo]).status).toBe(0);
  const code = `
    import { Worker } from 'node:worker_threads';
    const { leaveThreadBehind, onProcessEnd } = await import(${JSON.stringify(hooks)});
    onProcessEnd(() => console.log('the hook ran'));
    const worker = new Worker("require('fs').readFileSync(" + JSON.stringify(${JSON.stringify(fifo)}) + ")", { eval: true, execArgv: [] });
    worker.once('online', () => setTimeout(() => { leaveThreadBehind(); process.exit(3); }, 200));
  `;
  const child = spawnSync(process.execPath, ['--import', 'tsx', '--input-type=module', '-e', code], {
    encoding: 'utf8',
    timeout: 15_000,
    killSignal: 'SIGKILL',
  });
  rmSync(dir, { recursive: true });
  expect([child.status, child.stdout]).toEqual([3, 'the hook ran\n']);
});
