/** Every tool that is called by hand says what it is for, and does nothing else. */
import { spawnSync } from 'node:child_process';
import { readdirSync } from 'node:fs';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { repository } from '../support/program.ts';

/** Imported by the others. */
const parts = new Set(['prepare.mjs', 'root.mjs', 'scratch.mjs', 'usage.mjs']);
const tools = readdirSync(join(repository, 'tools')).filter((name) => name.endsWith('.mjs') && !parts.has(name));

test.each(tools)('%s --help', (tool) => {
  const { status, stdout, stderr } = spawnSync(process.execPath, [join(repository, 'tools', tool), '--help'], {
    encoding: 'utf8',
  });
  expect({ status, stderr }).toEqual({ status: 0, stderr: '' });
  expect(stdout).toMatch(/^\w.*\w/);
  expect(stdout).not.toMatch(/^ ?\*/m);
});
