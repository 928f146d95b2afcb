/** What the runner calls a trace: shared memory and sockets whose makers are gone. */
import { spawnSync } from 'node:child_process';
import { rmSync, writeFileSync } from 'node:fs';
import { afterEach, expect, test } from 'vitest';
import { tracesSince } from './traces.ts';

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
