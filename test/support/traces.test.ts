/** What the runner calls a trace: shared memory and sockets whose makers are gone. */
import { spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, expect, test } from 'vitest';
import { sweepDead } from '../../tools/scratch.mjs';
import { filesIn, tracesSince } from './traces.ts';

const dead = spawnSync('true').pid;
const made: string[] = [];
afterEach(() => {
  for (const path of made.splice(0)) rmSync(path, { force: true });
});

test.each([
  [`failing-${dead}`, true],
  [`acrn-soft.0.region${dead}`, true],
  [`vm${dead}.monitor.${dead}.socket`, true],
  [`mapping_${dead}_x`, true],
  [`soak-${dead}.new`, true],
  [`failing-${process.pid}`, false],
  [`keep${dead}.monitor.${process.pid}.socket`, false],
  ['somebody-elses-yNmLQS', false],
])('/dev/shm/%s: %s', (name, isTrace) => {
  const path = `/dev/shm/${name}`;
  made.push(path);
  const before = new Set<string>();
  writeFileSync(path, '');
  expect(tracesSince(before).includes(path)).toBe(isTrace);
  expect(tracesSince(new Set([path])).includes(path)).toBe(false);
});

// Mutation: leave the folder's number unlooked at: the folder of a run beside this one goes.
test.each([
  [`acrn-dm-kind-${dead}-AbCdEf`, false],
  [`acrn-dm-kind-${process.pid}-AbCdEf`, true],
  [`acrn-dm-kind-${process.ppid}-AbCdEf`, true],
  [`acrn-dm-other-${dead}-AbCdEf`, true],
  [`kind-${dead}-AbCdEf`, true],
  ['acrn-dm-kind-AbCdEf', true],
])('what a killed run left goes with the next of its kind: %s', (name, stays) => {
  const parent = mkdtempSync(join(tmpdir(), 'sweep-'));
  try {
    mkdirSync(join(parent, name));
    writeFileSync(join(parent, name, 'disk'), 'x');
    sweepDead(parent, /^acrn-dm-kind-(\d+)-/);
    expect(existsSync(join(parent, name))).toBe(stays);
  } finally {
    rmSync(parent, { recursive: true });
  }
});

test.each([['SIGTERM'], ['SIGINT'], ['SIGHUP'], ['exit'], ['SIGKILL']])('a scratch folder after %s', (how) => {
  const parent = mkdtempSync(join(tmpdir(), 'sweep-'));
  const url = new URL('../../tools/scratch.mjs', import.meta.url).href;
  const end = how === 'exit' ? 'process.exit(3)' : `process.kill(process.pid, '${how}')`;
  const run = (last: string) =>
    spawnSync(process.execPath, [
      '--input-type=module',
      ...[
        '-e',
        `import { makeScratch } from '${url}'; console.log(makeScratch('kind', '${parent}')); ${last}; setTimeout(() => {}, 9e4)`,
      ],
    ]);
  try {
    expect(run(end).stdout.toString()).toContain(parent);
    expect(readdirSync(parent)).toHaveLength(how === 'SIGKILL' ? 1 : 0);
    run('process.exit(0)');
    expect(readdirSync(parent)).toEqual([]);
  } finally {
    rmSync(parent, { recursive: true });
  }
});

test('of the run directory of a plain user folders and locks stay, sockets do not', () => {
  const scratch = mkdtempSync(join(tmpdir(), 'traces-'));
  const run = join(scratch, `acrn-${process.getuid?.()}`);
  for (const folder of ['soft', 'mngr', 'vm/vm1']) mkdirSync(join(run, folder), { recursive: true });
  writeFileSync(join(run, 'soft/lock'), '');
  expect(filesIn(scratch)).toEqual([]);
  writeFileSync(join(run, 'soft/vm-1.sock'), '');
  writeFileSync(join(scratch, 'else'), '');
  expect(filesIn(scratch)).toEqual([join(scratch, 'else'), join(run, 'soft/vm-1.sock')]);
  rmSync(scratch, { recursive: true });
});
