/** The file of a region stands where everybody may make files. */
import {
  chmodSync,
  chownSync,
  lstatSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, expect, test } from 'vitest';
import { forgetSharedRegions, openSharedRegion } from '../../../hypervisor/embedded/shared-region.ts';

const NAME = `hv:/joint${process.pid}`;
const path = `/dev/shm/acrn-soft.${process.getuid?.()}.joint${process.pid}`;
const isRoot = process.getuid?.() === 0;
afterEach(() => {
  forgetSharedRegions();
  rmSync(path, { force: true });
});

test('what is made is this user’s alone, and gone with its last user', () => {
  const region = openSharedRegion(NAME, 4096);
  expect(lstatSync(path).mode & 0o777).toBe(0o600);
  region?.dispose();
  forgetSharedRegions();
  expect(lstatSync(path, { throwIfNoEntry: false })).toBeUndefined();
});

test('what a crash left is taken over, zeroed', () => {
  writeFileSync(path, Buffer.alloc(4096, 0xee), { mode: 0o600 });
  const region = openSharedRegion(NAME, 4096);
  expect(region?.bytes.every((byte) => byte === 0)).toBe(true);
  region?.dispose();
});

// Mutation: without checkOurs, a file that others can read becomes guests' memory.
test.each([
  ['belongs to another user', () => chownSync(path, 65534, -1), isRoot],
  ['may be read by others', () => chmodSync(path, 0o644), true],
])('a file that %s is not used, and stays as it is', (_what, change, isPossible) => {
  if (!isPossible) return;
  writeFileSync(path, 'theirs', { mode: 0o600 });
  change();
  expect(() => openSharedRegion(NAME, 4096)).toThrow(/not a file of this user alone/);
  expect(readFileSync(path, 'utf8')).toBe('theirs');
});

// Mutation: without NoFollow, the file it points to is cut to nothing.
test('a link is not followed', () => {
  const dir = mkdtempSync(join(tmpdir(), 'shared-region-'));
  writeFileSync(join(dir, 'precious'), 'precious', { mode: 0o600 });
  symlinkSync(join(dir, 'precious'), path);
  expect(() => openSharedRegion(NAME, 4096)).toThrow();
  expect(readFileSync(join(dir, 'precious'), 'utf8')).toBe('precious');
  rmSync(dir, { recursive: true });
});
