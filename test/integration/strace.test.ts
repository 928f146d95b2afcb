/**
 * System calls of the built program that fail, for real: strace puts the error in the kernel's place. A few of each kind,
 * at the start and in the middle; every call of the host, made to fail inside the process, is `npm run fuzz -- --device faults`.
 */
import { spawn, spawnSync } from 'node:child_process';
import { mkdtempSync, readdirSync, readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { demoGuest, repository, whyNoSoftHypervisor } from '../support/program.ts';

const DISK_BYTES = 1 << 20;
const PATIENCE_MS = 90_000;
/** Names of this run: others run at the same time. */
const tag = `st${process.pid % 1_000_000}`;

let folder: string;
const at = (name: string) => join(folder, name);

function whyNoStrace(): string | undefined {
  const { status } = spawnSync('strace', ['-f', '-qq', '-o', '/dev/null', '-e', 'trace=none', 'true']);
  return status === 0 ? whyNoSoftHypervisor() : 'strace is not installed, or may not trace';
}
const reason = whyNoStrace();
if (reason !== undefined) console.log(`system calls are not made to fail: ${reason}`);

interface Injected {
  readonly status: number | null;
  readonly stderr: string;
  /** How often a call was made to fail. */
  readonly injected: number;
}

/** @param calls of one group, with the error and which of them: `fdatasync:error=EIO:when=1`. @param path only about this file. */
async function run(name: string, calls: string, error: string, path?: string): Promise<Injected> {
  const filter = path === undefined ? [] : ['-P', path];
  const trace = [
    '-f',
    '-qq',
    '-o',
    at(`${name}.trace`),
    ...filter,
    '-e',
    `trace=${calls}`,
    '-e',
    `inject=${calls}:${error}`,
  ];
  const machine = ['--hypervisor', 'soft', '-m', '128M', '-s', '0:0,hostbridge', '-s', '1:0,lpc', '-l', 'com1,stdio'];
  const devices = [
    ...['-s', `3,virtio-blk,${at('disk')}`, '-s', `5,ivshmem,hv:/${tag},2`, '--cmd_monitor', at('monitor')],
    ...['-l', `com2,unix:${at('com2')}`, '-l', `com3,pty:${at('link')}`],
  ];
  const program = [
    join(repository, 'dist/acrn-dm.js'),
    ...machine,
    ...devices,
    '-k',
    demoGuest,
    '-B',
    'demo=tour',
    tag,
  ];
  const child = spawn('strace', [...trace, process.execPath, ...program], {
    stdio: ['ignore', 'ignore', 'pipe'],
    env: { ...process.env, ACRN_RUN_DIR: at('run') },
    // Killed with what it traces.
    detached: true,
  });
  let stderr = '';
  child.stderr.setEncoding('utf8').on('data', (text: string) => {
    stderr += text;
  });
  const patience = setTimeout(() => process.kill(-(child.pid ?? 0), 'SIGKILL'), PATIENCE_MS);
  const status = await new Promise<number | null>((resolve) => child.on('close', resolve));
  clearTimeout(patience);
  const injected = readFileSync(at(`${name}.trace`), 'utf8').match(/\(INJECTED\)/g)?.length ?? 0;
  return { status, stderr, injected };
}

/** Sockets, links and shared memory of the VM. */
function left(): string[] {
  const shared = readdirSync('/dev/shm').filter((name) => name.includes(tag));
  return [...shared, ...readdirSync(folder).filter((name) => ['monitor', 'com2', 'link'].includes(name))];
}

interface Case {
  readonly calls: string;
  readonly error: string;
  /** Of these only calls about this file. */
  readonly file?: 'disk' | 'kernel' | 'shared memory' | 'link';
  readonly statuses: readonly number[];
  /** In what is said. Missing: the VM runs on without. */
  readonly says?: RegExp;
  /** What cannot be removed is left. */
  readonly leaves?: boolean;
}

const cases: Readonly<Record<string, Case>> = {
  'no timer': { calls: 'timerfd_create', error: 'error=ENFILE', statuses: [69], says: /timerfd_create: ENFILE/ },
  'no room in /dev/shm': { calls: 'fallocate', error: 'error=ENOSPC', statuses: [1], says: /\/dev\/shm has no room/ },
  'no size for shared memory': { calls: 'ftruncate', error: 'error=EFBIG', statuses: [1], says: /ftruncate: EFBIG/ },
  'no socket': { calls: 'socket', error: 'error=EMFILE', statuses: [73], says: /monitor: EMFILE/ },
  'a socket on a read-only disk': { calls: 'bind', error: 'error=EROFS', statuses: [73], says: /monitor: EROFS/ },
  'listen, once': { calls: 'listen', error: 'error=EADDRINUSE:when=1', statuses: [73], says: /monitor: EADDRINUSE/ },
  'a kernel on a bad disk': {
    calls: 'read,pread64',
    error: 'error=EIO',
    file: 'kernel',
    statuses: [74],
    says: /cannot be read/,
  },
  'a disk that cannot be looked at': {
    calls: 'statx,fstat,newfstatat',
    error: 'error=EIO',
    file: 'disk',
    statuses: [66, 74],
    says: /disk: cannot be looked at/,
  },
  'a lock server that is gone': { calls: 'fcntl', error: 'error=ENOLCK', file: 'disk', statuses: [0, 1] },
  'no folder': { calls: 'mkdir,mkdirat', error: 'error=ENOSPC', statuses: [0, 1, 73] },
  'no list of a folder': { calls: 'getdents64', error: 'error=EIO', statuses: [0, 1], says: /EIO/ },
  'a link that cannot be made': {
    calls: 'symlink,symlinkat',
    error: 'error=EROFS',
    statuses: [1, 73],
    says: /link.*EROFS/,
  },
  'nothing can be removed': { calls: 'unlink,unlinkat', error: 'error=EBUSY', statuses: [0, 1], leaves: true },
  'a signal in the middle of a read': {
    calls: 'read,pread64',
    error: 'error=EINTR:when=1',
    file: 'kernel',
    statuses: [0],
  },
};

describe.skipIf(reason !== undefined)('a system call that fails', { timeout: 2 * PATIENCE_MS }, () => {
  beforeAll(() => {
    folder = mkdtempSync(join(tmpdir(), 'strace-'));
    writeFileSync(at('disk'), '');
    truncateSync(at('disk'), DISK_BYTES);
  });
  afterAll(() => {
    rmSync(folder, { recursive: true, force: true });
    for (const name of readdirSync('/dev/shm')) if (name.includes(tag)) rmSync(join('/dev/shm', name));
  });

  test.each(Object.entries(cases))('%s', async (name, { calls, error, file, statuses, says, leaves }) => {
    const paths = { disk: at('disk'), kernel: demoGuest, 'shared memory': `/dev/shm/${tag}`, link: at('link') };
    const path = file === undefined ? undefined : paths[file];
    const { status, stderr, injected } = await run(name.replaceAll('/', '_'), calls, error, path);
    expect(injected, stderr).toBeGreaterThan(0);
    expect(statuses, stderr).toContain(status);
    expect(stderr).not.toMatch(/internal error|please report|, (open|scandir|unlink|mkdir|symlink) '|\n {4}at /);
    if (says !== undefined) expect(stderr).toMatch(says);
    if (leaves !== true) expect(left()).toEqual([]);
  });
});
