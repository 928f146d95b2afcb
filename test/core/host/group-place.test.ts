/** What is in a group's folder may be something else by the time it is used: these tests change it in between. */
import { chmodSync, mkdtempSync, rmSync, statSync, symlinkSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { ensureGroupFolder, giveSocketToGroup } from '../../../devicemodel/core/host/group-place.ts';

/** Whoever runs the tests is of it. */
const GROUP = process.getegid?.() ?? 0;
let top: string;
let folder: string;
const cleanUp: Array<() => void> = [];
beforeEach(() => {
  top = mkdtempSync(join(tmpdir(), 'place-'));
  folder = join(top, 'group');
});
afterEach(() => {
  for (const step of cleanUp.splice(0).reverse()) step();
  rmSync(top, { recursive: true, force: true });
});

const modeOf = (path: string) => (statSync(path).mode & 0o7777).toString(8);

test('it is made with its mode, and what was found wrong of one that is there is said', () => {
  ensureGroupFolder(folder, GROUP);
  expect(modeOf(folder)).toBe('3770');
  chmodSync(folder, 0o3777);
  expect(() => ensureGroupFolder(folder, GROUP)).toThrow('has mode 3777');
});

// Mutation: change what has the name, not what was looked at: a link gives any file of this user's to the group.
test.each<[string, (path: string, precious: string) => void]>([
  ['a link', (path, precious) => symlinkSync(precious, path)],
  ['a file', (path) => writeFileSync(path, '', { mode: 0o600 })],
])('%s in the place of a socket is not given to the group', (_what, put) => {
  const precious = join(top, 'precious');
  writeFileSync(precious, '', { mode: 0o600 });
  const path = join(top, 'vm-1.sock');
  put(path, precious);
  expect(() => giveSocketToGroup(path, GROUP)).toThrow(/ELOOP|something else is in its place/);
  expect([modeOf(precious), modeOf(path)]).toEqual(['600', '600']);
});

test('a socket is', async () => {
  const path = join(top, 'vm-1.sock');
  const server = createServer();
  cleanUp.push(() => server.close());
  await new Promise<void>((resolve) => server.listen(path, resolve));
  chmodSync(path, 0o600);
  giveSocketToGroup(path, GROUP);
  expect(modeOf(path)).toBe('660');
});
