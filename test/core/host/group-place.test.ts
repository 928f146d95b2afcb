/** What is in a group's folder may be something else by the time it is used: these tests change it in between. */
import type * as Fs from 'node:fs';
import {
  chmodSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, test, vi } from 'vitest';
import { ensureGroupFolder, giveSocketToGroup, pinGroupSocket } from '../../../devicemodel/core/host/group-place.ts';
import { meetingFolder } from '../../../hypervisor/embedded/meeting-folder.ts';

/** Called before the next rename. */
const meanwhile = vi.hoisted(() => ({ rename: undefined as (() => void) | undefined }));
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
    renameSync: (from: string, to: string) => {
      meanwhile.rename?.();
      real.renameSync(from, to);
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
  meanwhile.rename = undefined;
  hidden.path = '';
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

// Mutation: take whatever was there first: a folder of any mode and owner, or a link.
test.each<[string, () => void, RegExp | undefined]>([
  [
    'a folder that is right',
    () => {
      mkdirSync(folder);
      chmodSync(folder, 0o3770);
    },
    undefined,
  ],
  ['one with another mode', () => mkdirSync(folder, { mode: 0o700 }), /has mode 0700/],
  ['a file', () => writeFileSync(folder, ''), /is no folder/],
])('%s that was there first is looked at as any', (_what, put, said) => {
  meanwhile.rename = () => {
    put();
    // A folder that is not empty is not renamed over.
    if (lstatSync(folder).isDirectory()) writeFileSync(join(folder, 'lock'), '');
  };
  const ensured = expect(() => ensureGroupFolder(folder, GROUP));
  if (said === undefined) ensured.not.toThrow();
  else ensured.toThrow(said);
  expect(readdirSync(top)).toEqual(['group']);
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
