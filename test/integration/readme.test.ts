/** What README.md says of operating a VM, line by line, as a new user types it. */
import { type ChildProcess, execFile, spawn } from 'node:child_process';
import { mkdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, afterEach, describe, expect, test } from 'vitest';
import { repository, whyNoSoftHypervisor } from '../support/program.ts';
import { scratchDirectory } from '../support/pty.ts';

/** The commands of a section, block by block; comments behind them are the reader's. */
function blocksOf(section: string): string[] {
  const text = readFileSync(join(repository, 'README.md'), 'utf8');
  const from = text.indexOf(`## ${section}`);
  const part = text.slice(from, text.indexOf('\n## ', from + 1));
  return [...part.matchAll(/```sh\n([\s\S]*?)```/g)].map(([, block]) => block as string);
}

const scratch = scratchDirectory();
const env = {
  ...process.env,
  HOME: scratch.path,
  ACRN_RUN_DIR: scratch.file('run'),
  PATH: `${scratch.path}/.local/bin:${process.env['PATH']}`,
};
const started: ChildProcess[] = [];
afterEach(() => {
  for (const child of started.splice(0)) child.kill('SIGKILL');
});

afterAll(() => scratch.remove());

function shell(command: string): Promise<{ readonly status: number; readonly output: string }> {
  return new Promise((resolve) => {
    const child = execFile('bash', ['-ec', command], { cwd: repository, env }, (error, stdout, stderr) =>
      resolve({ status: error === null ? 0 : Number(error.code), output: stdout + stderr }),
    );
    child.stdin?.end();
  });
}

describe.skipIf(whyNoSoftHypervisor() !== undefined)('README, "Operate it"', () => {
  test('start from a file, see what runs, look at its console and its events, stop it', async () => {
    mkdirSync(scratch.file('run'), { mode: 0o700 });
    const [links, start, operate] = blocksOf('Operate it') as [string, string, string];
    expect(await shell(links)).toEqual({ status: 0, output: '' });
    // Files that it makes are not for the repository.
    const [convert = '', run = ''] = start
      .replaceAll('demo1.json', scratch.file('demo1.json'))
      .split(/(?=^acrn-dm --config)/m);
    expect(await shell(convert)).toEqual({ status: 0, output: '' });
    const vm = spawn('bash', ['-c', `exec ${run.trim().replace(/&$/, '')}`], { cwd: repository, env, stdio: 'ignore' });
    started.push(vm);
    const ended = new Promise((resolve) => vm.once('exit', resolve));

    const [ls, consoleOf, events, stop] = operate
      .trim()
      .split('\n')
      .map((line) => line.replace(/\s+#.*/, ''));
    await expect.poll(async () => (await shell(ls as string)).output, { timeout: 10_000 }).toMatch(/^demo1 +running/m);
    // The guest says it when it is up; the reader looks until it does.
    await expect
      .poll(async () => (await shell(consoleOf as string)).output, { timeout: 10_000 })
      .toContain('button: waiting');
    expect((await shell(events as string)).output).toMatch(/vmm\.starting[\s\S]*vm\.booted/);
    expect(await shell(stop as string)).toEqual({ status: 0, output: '' });
    expect(await ended).toBe(0);
    expect((await shell(ls as string)).output).toBe('no VM runs here\n');
  });
});
