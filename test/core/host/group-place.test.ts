/** The folder of a group, and what is in it: anything may be there, under any name. */
import type * as Fs from 'node:fs';
import { chmodSync, mkdirSync, mkdtempSync, readdirSync, rmSync, statSync, symlinkSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, test, vi } from 'vitest';
import { findGroupFolder, giveSocketToGroup, pinGroupSocket } from '../../../devicemodel/core/host/group-place.ts';
import { meetingFolder } from '../../../hypervisor/embedded/meeting-folder.ts';

/** What cannot be looked at: a file system of some user's own lets nobody else. */
const hidden = vi.hoisted(() => ({ path: '' }));
vi.mock('node:fs', async (original) => {
  const real = await original<typeof Fs>();
  const look = (path: unknown) => {
    if (path === hidden.path) throw Object.assign(new Error(), { code: 'EACCES', errno: -13 });
  };
  return {
    ...real,
    lstatSync: (...args: Parameters<typeof real.lstatSync>) => {
      look(args[0]);
      return real.lstatSync(...args);
    },
    fstatSync: (...args: Parameters<typeof real.fstatSync>) => {
      look(real.readlinkSync(`/proc/self/fd/${args[0]}`));
      return real.fstatSync(...args);
    },
  };
});

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
  hidden.path = '';
  for (const step of cleanUp.splice(0).reverse()) step();
  rmSync(top, { recursive: true, force: true });
});

const modeOf = (path: string) => (statSync(path).mode & 0o7777).toString(8);

// Mutation: make it where it is missing: what a VM of root's has made, nobody's next start of the machine makes.
test('the folder is not made, and what is wrong of one that is there is said', () => {
  expect(() => findGroupFolder(folder, GROUP)).toThrow('is not there');
  expect(readdirSync(top)).toEqual([]);
  mkdirSync(folder);
  chmodSync(folder, 0o3770);
  findGroupFolder(folder, GROUP);
  chmodSync(folder, 0o3777);
  expect(() => findGroupFolder(folder, GROUP)).toThrow('has mode 3777');
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

// Mutation: let it throw: nobody's VM starts, and each look costs a descriptor.
test('what cannot be looked at is strange, nobody’s, and not free', () => {
  const path = join(top, 'vm-1.sock');
  writeFileSync(path, '');
  hidden.path = path;
  const before = readdirSync('/proc/self/fd').length;
  expect(pinGroupSocket(path, GROUP)).toBe('strange');
  expect(readdirSync('/proc/self/fd').length).toBe(before);
  const place = meetingFolder({ folder: top, groupId: GROUP });
  expect(place.isOf(1, process.geteuid?.())).toBe(false);
  expect(place.clear(1, 'sock')).toBe(false);
});
