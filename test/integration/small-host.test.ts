/**
 * A host with file systems that are full or read-only, for real, in a mount namespace: what a dry run says, a start says
 * with the same status, in one line and without "internal error".
 */
import { execFileSync, spawnSync } from 'node:child_process';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { ExitCode } from '../../devicemodel/core/errors.ts';
import { demoGuest, repository, whyNoSoftHypervisor } from '../support/program.ts';

const program = join(repository, 'dist/acrn-dm.js');
const { CannotCreate, NoInput, Ok, Unavailable } = ExitCode;

function whyNot(): string | undefined {
  if (process.getuid?.() !== 0) return 'root only';
  try {
    execFileSync('unshare', ['-m', 'mount', '-t', 'tmpfs', 'tmpfs', '/mnt'], { stdio: 'ignore' });
    return whyNoSoftHypervisor();
  } catch {
    return 'no mount namespaces here';
  }
}

/** @param setUp commands of a shell, in a namespace of their own. */
function run(setUp: string, args: readonly string[], env: NodeJS.ProcessEnv = {}) {
  const machine = ['--hypervisor', 'soft', '-m', '128M', '-s', '0:0,hostbridge', '-s', '1:0,lpc'];
  const boot = ['-k', demoGuest, '-B', 'demo=idle,0'];
  const command = `${setUp}; exec "$@"`;
  const words = [process.execPath, program, ...machine, ...boot, ...args, `small${process.pid % 100_000}`];
  const { status, stderr } = spawnSync('unshare', ['-m', 'sh', '-ec', command, 'sh', ...words], {
    encoding: 'utf8',
    env: { PATH: process.env['PATH'], ...env },
    stdio: ['ignore', 'ignore', 'pipe'],
    timeout: 60_000,
  });
  return { status, stderr };
}

const full = 'mount -t tmpfs -o nr_inodes=1 tmpfs /mnt';
const readOnly = 'mount -t tmpfs -o ro tmpfs /mnt';
const shm = (size: string) => `mount -t tmpfs -o size=${size},mode=1777 tmpfs /dev/shm`;
const as4242 = 'setpriv --reuid 4242 --regid 4242 --clear-groups';

interface Case {
  readonly setUp: string;
  readonly args: readonly string[];
  readonly status: number;
  readonly says: RegExp;
  readonly env?: NodeJS.ProcessEnv;
}

const cases: Readonly<Record<string, Case>> = {
  'a region that /dev/shm is too small for': {
    setUp: shm('4m'),
    args: ['-s', '3,ivshmem,dm:/a,8'],
    status: Unavailable,
    says: /-s 3,ivshmem,dm:\/a,8: \/dev\/shm has no room for shared memory of 8 MiB, 4 MiB are free/,
  },
  'two regions that fit one by one': {
    setUp: shm('4m'),
    args: ['-s', '3,ivshmem,dm:/a,4', '-s', '4,ivshmem,dm:/b,2'],
    status: Unavailable,
    says: /no room for 2 shared memories of 6 MiB/,
  },
  'a region of the hypervisor': {
    setUp: shm('4m'),
    args: ['-s', '3,ivshmem,hv:/a,8'],
    status: Unavailable,
    says: /no room for shared memory of 8 MiB/,
  },
  'regions of both kinds': {
    setUp: shm('4m'),
    args: ['-s', '3,ivshmem,hv:/a,4', '-s', '4,ivshmem,dm:/b,2'],
    status: Unavailable,
    says: /no room for 2 shared memories of 6 MiB/,
  },
  'a region beside a file that fills it': {
    setUp: `${shm('4m')}; head -c 3M /dev/zero > /dev/shm/x`,
    args: ['-s', '3,ivshmem,dm:/a,2'],
    status: Unavailable,
    says: /of 2 MiB, 1 MiB are free/,
  },
  'a region of another size': {
    setUp: `${shm('8m')}; truncate -s 4M /dev/shm/a`,
    args: ['-s', '3,ivshmem,dm:/a,2'],
    status: Unavailable,
    says: /shared memory a exists with 4194304 bytes, 2097152 were asked for/,
  },
  'a region that is a folder': {
    setUp: `${shm('8m')}; mkdir /dev/shm/a`,
    args: ['-s', '3,ivshmem,dm:/a,2'],
    status: NoInput,
    says: /\/dev\/shm\/a is no file/,
  },
  'a /dev/shm that is read-only': {
    setUp: 'mount -t tmpfs -o ro tmpfs /dev/shm',
    args: ['-s', '3,ivshmem,dm:/a,2'],
    status: CannotCreate,
    says: /folder \/dev\/shm: EROFS/,
  },
  'a /run that is read-only': {
    setUp: 'mount -t tmpfs -o ro tmpfs /run',
    args: [],
    status: CannotCreate,
    says: /\/run\/acrn\/soft, where the VMs of this host meet: folder \/run: EROFS: read-only file system\nhint: ACRN_RUN_DIR=/,
  },
  'an ACRN_RUN_DIR that is read-only': {
    setUp: readOnly,
    args: [],
    env: { ACRN_RUN_DIR: '/mnt/a' },
    status: CannotCreate,
    says: /\/mnt\/a\/soft, where .*: folder \/mnt: EROFS/,
  },
  'an ACRN_RUN_DIR that is a file': {
    setUp: 'true',
    args: [],
    env: { ACRN_RUN_DIR: '/etc/passwd' },
    status: CannotCreate,
    says: /\/etc\/passwd\/soft, where .*: folder \/etc\/passwd.*: ENOTDIR/,
  },
  'an ACRN_RUN_DIR that is too long': {
    setUp: 'true',
    args: [],
    env: { ACRN_RUN_DIR: `/tmp/${'n'.repeat(90)}` },
    status: CannotCreate,
    says: /socket path has \d+ bytes/,
  },
  'a --cmd_monitor on a read-only file system': {
    setUp: readOnly,
    args: ['--cmd_monitor', '/mnt/s'],
    status: CannotCreate,
    says: /--cmd_monitor: .*\/mnt.*: EROFS/,
  },
  'a link on a read-only file system': {
    setUp: readOnly,
    args: ['-l', 'com2,pty:/mnt/l'],
    status: CannotCreate,
    says: /\/mnt\/l.*: EROFS/,
  },
  'a file of a console on a read-only file system': {
    setUp: readOnly,
    args: ['-s', '3,virtio-console,file:a=/mnt/f'],
    status: CannotCreate,
    says: /\/mnt.*: EROFS/,
  },
  'a disk on a read-only file system': {
    setUp: 'mount -t tmpfs tmpfs /mnt; truncate -s 1M /mnt/d; mount -o remount,ro /mnt',
    args: ['-s', '3,virtio-blk,/mnt/d'],
    status: Ok,
    says: /^/,
  },
};

describe.skipIf(whyNot() !== undefined)('on a host with', () => {
  test.each(Object.entries(cases))('%s', { timeout: 120_000 }, (_, { setUp, args, status, says, env = {} }) => {
    const plan = run(setUp, ['--dry-run', ...args], env);
    expect(plan).toEqual({ status, stderr: expect.stringMatching(says) });
    if (status === Ok) return;
    const start = run(setUp, args, env);
    expect(start).toEqual({ status, stderr: expect.stringMatching(says) });
  });

  test.each([
    ['without a free inode', full],
    ['read-only', readOnly],
  ])('a /mnt that is %s: nothing of a VM is said to be there', { timeout: 60_000 }, (_, setUp) => {
    const { status, stderr } = run(`${setUp}; mount --bind /mnt /run`, []);
    expect([ExitCode.VmFailed, CannotCreate]).toContain(status);
    expect(stderr).not.toMatch(/internal error/);
  });

  const isOthersToo = spawnSync('sh', ['-c', `${as4242} test -r "$1"`, 'sh', program]).status === 0;
  test.skipIf(!isOthersToo)('a user without any place of its own', { timeout: 60_000 }, () => {
    // By a bind: this repository may be below it.
    const readOnlyTmp = 'mount --bind /tmp /tmp; mount -o remount,bind,ro /tmp';
    const { status, stderr } = run(`${readOnlyTmp}; set -- ${as4242} "$@"`, ['--dry-run']);
    expect(stderr).toMatch(/\/tmp\/acrn-4242\/soft, where .*: folder \/tmp[^:]*: E(ROFS|ACCES)/);
    expect(status).toBe(CannotCreate);
  });
});
