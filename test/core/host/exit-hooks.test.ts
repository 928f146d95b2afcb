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

/** The program of a process whose thread does nothing but load native code, and ends with `end` in the midst of that. */
const threadProgram = (end: string) => `
  import { createRequire } from 'node:module';
  const { onProcessExit } = await import(${JSON.stringify(hooks)});
  const { startWorker } = await import(${JSON.stringify(join(hooks, '../worker.ts'))});
  const koffi = createRequire(${JSON.stringify(hooks)}).resolve('koffi');
  const load = 'for (;;) { require(' + JSON.stringify(koffi) + '); for (const key in require.cache) delete require.cache[key]; }';
  const worker = startWorker(load, { eval: true, execArgv: ['--input-type=commonjs'] }, 'thread');
  process.on('exit', (status) => console.log('heard', status));
  worker.once('online', () => setTimeout(() => { ${end} }, 50));
`;

// Without whileThreadRuns in startWorker, Node ends some of these processes by SIGABRT.
test('a thread that is just loading native code does not abort the process, and all listeners are heard', () => {
  const ends = ['process.exit(3)', 'process.exitCode = 3; process.exit()', `onProcessExit(() => {}); process.exit(3)`];
  for (let i = 0; i < 12; i++) {
    const end = ends[i % ends.length] as string;
    const child = spawnSync(process.execPath, ['--import', 'tsx', '--input-type=module', '-e', threadProgram(end)], {
      encoding: 'utf8',
      timeout: 15_000,
      killSignal: 'SIGKILL',
    });
    expect([child.status, child.signal, child.stdout, child.stderr]).toEqual([3, null, 'heard 3\n', '']);
  }
}, 120_000);
