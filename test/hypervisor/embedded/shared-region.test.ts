/** The file of a region stands where everybody may make files. */
import { spawn, spawnSync } from 'node:child_process';
import {
  chmodSync,
  chownSync,
  existsSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { tryLock } from '../../../devicemodel/core/host/file-lock.ts';
import { closeFd, OpenFlag, openFile } from '../../../devicemodel/core/host/files.ts';
import { silentLog } from '../../../devicemodel/core/log.ts';
import { forgetSharedRegions, openSharedRegion, sweepDeadRegions } from '../../../hypervisor/embedded/shared-region.ts';
import { openSoftHsm, type SoftHsmOptions } from '../../../hypervisor/soft/open.ts';
import { ivshmemOf } from '../../support/vdevs.ts';

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

// Mutation: compare the sizes at once: a start beside the end of another VM fails for a size that nobody asked for.
test('a file that was just emptied is no region of another size: it is tried again', () => {
  writeFileSync(path, '', { mode: 0o600 });
  const fd = openFile(path, OpenFlag.ReadWrite | OpenFlag.CloseOnExec);
  tryLock(fd, 'shared', path);
  expect(() => openSharedRegion(NAME, 4096, { folder: '' }, 50)).toThrow('somebody has kept it locked');
  closeFd(fd);
  const region = openSharedRegion(NAME, 4096);
  expect(region?.bytes.length).toBe(4096);
  region?.dispose();
});

// Mutation: leave it to CREATE_VDEV: the thread stands still, SIGTERM is not heard, and no other VM of the process goes on.
describe('a region that somebody else has locked', () => {
  const config = {
    name: 'vm',
    scenarioPath: undefined,
    pci: [{ bdf: { bus: 0, device: 5, function: 0 }, driver: 'ivshmem', options: { name: NAME, size: 2 } }],
  } as unknown as SoftHsmOptions['config'];
  const spec = { name: 'vm', flags: 0n, cpuAffinity: 1n };
  const vdev = ivshmemOf(NAME);
  let runDirectory: string;
  let fd: number;
  beforeEach(() => {
    runDirectory = mkdtempSync(join(tmpdir(), 'shared-region-'));
    writeFileSync(path, '', { mode: 0o600 });
    fd = openFile(path, OpenFlag.ReadWrite | OpenFlag.CloseOnExec);
    tryLock(fd, 'exclusive', path);
  });
  afterEach(() => rmSync(runDirectory, { recursive: true }));

  test('is waited for before there is a VM, with the thread free; then CREATE_VDEV has it at once', async () => {
    const hsm = await openSoftHsm({ config, log: silentLog, runDirectory });
    let isMade = false;
    const made = hsm.createVm(spec).then(() => {
      isMade = true;
    });
    await new Promise((resolve) => setTimeout(resolve, 20));
    expect(isMade).toBe(false);
    closeFd(fd);
    await made;
    expect(lstatSync(path).size).toBe(vdev.sizeBytes);
    hsm.createVdev(vdev);
    hsm.close();
  });

  test('keeps nobody who is to end', async () => {
    const hsm = await openSoftHsm({ config, log: silentLog, runDirectory });
    const ending = new AbortController();
    const made = hsm.createVm(spec, ending.signal);
    ending.abort(new Error('power off'));
    await expect(made).rejects.toThrow('power off');
    hsm.close();
    closeFd(fd);
  });

  // Mutation: hear the wish to end alone: whoever closes the handle finds the VM's start going on for a minute.
  test('keeps nobody who closes the handle', async () => {
    const hsm = await openSoftHsm({ config, log: silentLog, runDirectory });
    const made = hsm.createVm(spec);
    hsm.close();
    await expect(made).rejects.toThrow('EBADF');
    closeFd(fd);
  });
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

// Mutation: leave out the sweep, the lock, the owner or NoFollow: memory of killed VMs piles up, or somebody else's goes.
test.each([
  ['a killed VM left', () => writeFileSync(path, 'left', { mode: 0o600 }), true, false],
  ['a killed VM left empty', () => writeFileSync(path, '', { mode: 0o600 }), true, false],
  ['a VM of this process has', () => openSharedRegion(NAME, 4096)?.dispose(), true, true],
  ['others may read', () => writeFileSync(path, '', { mode: 0o644 }), true, true],
  [
    'belongs to another user',
    () => {
      writeFileSync(path, '', { mode: 0o600 });
      chownSync(path, 65534, -1);
    },
    isRoot,
    true,
  ],
  ['is a link', () => symlinkSync('/dev/null', path), true, true],
  ['is a folder', () => mkdirSync(path), true, true],
])('what %s goes, or stays', (_what, make, isPossible, stays) => {
  if (!isPossible) return;
  make();
  sweepDeadRegions();
  expect(lstatSync(path, { throwIfNoEntry: false }) !== undefined).toBe(stays);
  rmSync(path, { recursive: true, force: true });
});

test('what a VM of another process has stays', async () => {
  const url = new URL('../../../hypervisor/embedded/shared-region.ts', import.meta.url).href;
  const code = `import('${url}').then((m) => { m.openSharedRegion('${NAME}', 4096); console.log('has'); setInterval(() => {}, 1e6); })`;
  const other = spawn(process.execPath, ['--import', 'tsx', '-e', code], { stdio: ['ignore', 'pipe', 'inherit'] });
  try {
    await new Promise((resolve) => other.stdout.once('data', resolve));
    sweepDeadRegions();
    expect(existsSync(path)).toBe(true);
  } finally {
    other.kill('SIGKILL');
    await new Promise((resolve) => other.once('exit', resolve));
  }
  sweepDeadRegions();
  expect(existsSync(path)).toBe(false);
});

// Mutation: without isReplaced, the next VM has memory that no other VM sees.
test.skipIf(spawnSync('unshare', ['-m', 'true']).status !== 0)(
  'what became memory of this process alone is not kept for the next VM',
  () => {
    const url = new URL('../../../hypervisor/embedded/shared-region.ts', import.meta.url).href;
    const SIZE = 1 << 20;
    const code = `
      const { readFileSync, rmSync, truncateSync, writeFileSync } = require('node:fs');
      import('${url}').then(({ openSharedRegion }) => {
        const first = openSharedRegion('${NAME}', ${SIZE});
        truncateSync('${path}', 0);
        try { writeFileSync('/dev/shm/full', Buffer.alloc(4 << 20)); } catch {}
        first.bytes[0] = 1;
        // Another VM that comes while the first one runs has what the first one has.
        const beside = openSharedRegion('${NAME}', ${SIZE});
        const was = [first.isReplaced(), beside.bytes[0]];
        first.dispose();
        beside.dispose();
        rmSync('/dev/shm/full');
        const next = openSharedRegion('${NAME}', ${SIZE});
        const found = next.bytes[0];
        next.bytes[0] = 2;
        console.log(JSON.stringify([...was, next.isReplaced(), found, readFileSync('${path}')[0]]));
      });`;
    // A /dev/shm of its own, with room for no more than this.
    const mount = 'mount -t tmpfs -o size=3m none /dev/shm && exec "$@"';
    const node = [process.execPath, '--import', 'tsx', '-e', code];
    const { stdout, stderr } = spawnSync('unshare', ['-m', 'sh', '-c', mount, 'sh', ...node], { encoding: 'utf8' });
    expect({ stdout, stderr }).toEqual({ stdout: '[true,1,false,0,2]\n', stderr: '' });
  },
  60_000,
);
