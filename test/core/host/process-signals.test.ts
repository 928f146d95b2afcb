/** Signals after whoever listened has stopped: the process is ending, and nothing may end it in the middle of that. */
import { spawnSync } from 'node:child_process';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { signalActions } from '../../../devicemodel/core/host/process-signals.ts';

const root = join(import.meta.dirname, '../../..');

// Mutation: without `!hadListener` in onSignal, the first of them ends the process.
test('to its last line a process that had a VM is ended by none', () => {
  const code = `
    import { listenForSignals } from '${join(root, 'devicemodel/core/host/process-signals.ts')}';
    listenForSignals(() => {})();
    for (const name of ${JSON.stringify(Object.keys(signalActions))}) process.kill(process.pid, name);
    setTimeout(() => console.log('still here'), 100);`;
  const args = ['--import', 'tsx', '--input-type=module', '-e', code];
  const { stdout, signal } = spawnSync(process.execPath, args, { encoding: 'utf8', cwd: root });
  expect([signal, stdout]).toEqual([null, 'still here\n']);
});
