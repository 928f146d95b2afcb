/** The client as a process, against the API of a VM that notes what is asked of it. */
import { execFile, spawn } from 'node:child_process';
import {
  chmodSync,
  chownSync,
  closeSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { createServer } from 'node:http';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { build } from 'esbuild';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { glanceAt } from '../../cmd/acrnvm/client.ts';
import { iommu, kvm } from '../../cmd/acrnvm/doctor.ts';
import { openApiDoor } from '../../control/api-door.ts';
import { managerFolder } from '../../control/manager-folder.ts';
import { claimName } from '../../control/vm-folder.ts';
import { defaultApiSocket, vmFolder } from '../../control/vm-paths.ts';
import { tallyRead } from '../../devicemodel/core/counters.ts';
import { ExitCode } from '../../devicemodel/core/errors.ts';
import { tryLock } from '../../devicemodel/core/host/file-lock.ts';
import { closeFd } from '../../devicemodel/core/host/files.ts';
import { groupFolder } from '../../devicemodel/core/host/group-folders.ts';
import { openGroupFile } from '../../devicemodel/core/host/group-place.ts';
import { regionPath } from '../../devicemodel/core/host/region-files.ts';
import { listenAt } from '../../devicemodel/core/host/wary-socket.ts';
import { forgetSharedRegions, openSharedRegion } from '../../hypervisor/embedded/shared-region.ts';
import { FakeVmm } from '../support/fake-vmm.ts';
import { memoryLog } from '../support/memory-log.ts';
import { scratchDirectory, until } from '../support/pty.ts';

const root = fileURLToPath(new URL('../..', import.meta.url));
const program = join(root, 'node_modules/.cache/acrn-dm-test/acrnvm.mjs');
const scratch = scratchDirectory();
const before = process.env['ACRN_RUN_DIR'];
beforeAll(async () => {
  await build({
    absWorkingDir: root,
    entryPoints: ['cmd/acrnvm/main.ts'],
    outfile: program,
    bundle: true,
    platform: 'node',
    format: 'esm',
    packages: 'external',
  });
  process.env['ACRN_RUN_DIR'] = scratch.file('run');
});
afterAll(() => {
  process.env['ACRN_RUN_DIR'] = before;
  scratch.remove();
});

let vmm: FakeVmm;
let close: () => unknown;
beforeEach(async () => {
  vmm = new FakeVmm();
  const door = await openApiDoor({ at: { kind: 'path', path: defaultApiSocket('vm1') }, vmm, log: memoryLog().log });
  close = () => door.close();
});
afterEach(() => close());

function acrnvm(...args: string[]): Promise<{ status: number; stdout: string; stderr: string }> {
  return new Promise((resolve) => {
    execFile(process.execPath, [program, ...args], (error, stdout, stderr) => {
      resolve({ status: error === null ? 0 : Number(error.code), stdout, stderr });
    });
  });
}

test.each([
  [['reset', 'vm1'], 'reset: asked by the API'],
  [['pause', 'vm1'], 'pause'],
  [['resume', 'vm1'], 'resume'],
  [['wake', 'vm1'], 'wake'],
  [['button', 'vm1'], 'power button'],
  [['disk', 'vm1', '4', '/disk.img,ro'], 'medium of 4 port 0: /disk.img,ro'],
  // Mutation: leave it to the VM, which was started elsewhere.
  [['disk', 'vm1', '4', 'disk.img,ro'], `medium of 4 port 0: ${join(process.cwd(), 'disk.img,ro')}`],
  [['disk', 'vm1', '5@1', '/cd.iso'], 'medium of 5 port 1: /cd.iso'],
  [['eject', 'vm1', '5'], 'medium of 5 port 0: out'],
  [['resize', 'vm1', '3', '2G'], 'size of 3: 2147483648'],
  [['resize', 'vm1', '3'], 'size of 3: as it is'],
  [['link', 'vm1', '4', 'down'], 'link of 4: down'],
])('%j is an order', async (argv, call) => {
  if (argv[0] === 'wake') vmm.state = 'suspended';
  const result = await acrnvm(...argv);
  expect(vmm.asked).toEqual([call]);
  expect(result.status).toBe(0);
});

test('ls and info, for people and for programs', async () => {
  mkdirSync(vmFolder('killed'), { recursive: true });
  writeFileSync(join(vmFolder('killed'), 'lock'), '4194305\n');
  expect((await acrnvm('ls')).stdout).toMatch(
    /^NAME +STATE .*\nkilled +dead\nvm1 +running +soft +256 MiB +0 s +\d+\n$/,
  );
  expect(JSON.parse((await acrnvm('ls', '--json')).stdout)).toMatchObject([
    { name: 'killed', state: 'dead' },
    { name: 'vm1', state: 'running' },
  ]);
  expect(JSON.parse((await acrnvm('info', 'vm1', '--json')).stdout)).toMatchObject({
    name: 'vm1',
    consoles: [{ id: 'com1' }],
  });
  expect((await acrnvm('info', 'vm1')).stdout).toContain('com1 pty /dev/pts/7');
  expect((await acrnvm('prune')).stdout).toMatch(/^removed: killed(,.*)?\n$/);
  expect([existsSync(vmFolder('killed')), existsSync(vmFolder('vm1'))]).toEqual([false, true]);
});

test('a VM is there as long as its lock is, whoever has its number', async () => {
  // Before the others are left: who takes a name clears them away.
  const release = claimName('deaf', memoryLog().log);
  for (const [name, pid] of [
    ['number-of-another', process.pid],
    ['killed-at-once', ''],
  ]) {
    mkdirSync(vmFolder(String(name)), { recursive: true });
    writeFileSync(join(vmFolder(String(name)), 'lock'), `${pid}`);
  }
  try {
    expect(JSON.parse((await acrnvm('ls', '--json')).stdout)).toMatchObject([
      { name: 'deaf', state: 'without an API' },
      { name: 'killed-at-once', state: 'dead' },
      { name: 'number-of-another', state: 'dead' },
      { name: 'vm1', state: 'running' },
    ]);
    expect((await acrnvm('prune')).stdout).toMatch(/^removed: killed-at-once, number-of-another(,.*)?\n$/);
    expect(existsSync(vmFolder('deaf'))).toBe(true);
  } finally {
    release();
  }
});

test('a VM whose API is elsewhere is found by its name', async () => {
  const path = scratch.file('of-libvirt.sock');
  const door = await openApiDoor({ at: { kind: 'path', path }, vmm, log: memoryLog().log });
  const releases = [
    claimName('elsewhere', memoryLog().log, path),
    claimName('nowhere', memoryLog().log, scratch.file('nobody.sock')),
  ];
  try {
    expect(JSON.parse((await acrnvm('info', 'elsewhere', '--json')).stdout)).toMatchObject({ state: 'running' });
    expect(await acrnvm('reset', 'elsewhere')).toMatchObject({ status: 0 });
    expect(vmm.asked).toEqual(['reset: asked by the API']);
    expect(await acrnvm('info', 'nowhere')).toMatchObject({
      status: ExitCode.Unavailable,
      stderr: expect.stringContaining(`nobody is there (${scratch.file('nobody.sock')})`),
    });
    expect(JSON.parse((await acrnvm('ls', '--json')).stdout)).toMatchObject([
      { name: 'elsewhere', state: 'running' },
      { name: 'nowhere', state: 'without an API' },
      { name: 'vm1', state: 'running' },
    ]);
  } finally {
    for (const release of releases) release();
    await door.close();
  }
});

// Mutation: believe the lock of a VM that was killed.
test('what a killed VM says of its API may be about another one by now', async () => {
  mkdirSync(vmFolder('gone'), { recursive: true });
  writeFileSync(join(vmFolder('gone'), 'lock'), `${process.pid}\n${defaultApiSocket('vm1')}\n`);
  expect(JSON.parse((await acrnvm('ls', '--json')).stdout)).toMatchObject([
    { name: 'gone', state: 'dead' },
    { name: 'vm1', state: 'running' },
  ]);
  expect((await acrnvm('stop', '-f', 'gone')).stderr).toContain('nobody is there');
  expect(vmm.asked).toEqual([]);
  rmSync(vmFolder('gone'), { recursive: true });
});

test('a place that cannot be looked into is not one where nothing runs', async () => {
  const place = process.env['ACRN_RUN_DIR'];
  const file = scratch.file('no-folder');
  mkdirSync(file);
  writeFileSync(join(file, 'vm'), '');
  process.env['ACRN_RUN_DIR'] = file;
  try {
    for (const verb of ['ls', 'prune', 'top']) {
      const stderr = `acrnvm: ${join(file, 'vm')} cannot be read: ENOTDIR\n`;
      expect(await acrnvm(verb)).toMatchObject({ status: ExitCode.Unavailable, stdout: '', stderr });
    }
    const found = JSON.parse((await acrnvm('doctor', '--json')).stdout);
    expect(found).toContainEqual(
      expect.objectContaining({ verdict: 'fail', detail: expect.stringContaining('ENOTDIR') }),
    );
    process.env['ACRN_RUN_DIR'] = scratch.file('nothing-ran-here');
    expect(await acrnvm('ls')).toMatchObject({ status: 0, stdout: 'no VM runs here\n' });
  } finally {
    process.env['ACRN_RUN_DIR'] = place;
  }
});

test('what is said of every command may stand before it', async () => {
  expect(JSON.parse((await acrnvm('--json', 'ls')).stdout)).toMatchObject([{ name: 'vm1' }]);
  expect(await acrnvm('--version')).toMatchObject({ status: 0, stdout: expect.stringMatching(/^acrnvm \S+\n$/) });
});

// Any VM of the embedded hypervisor that starts on this machine meanwhile takes the first as well: then once more.
// Mutation: remove what has no lock, whatever it is, without taking the lock.
test('prune takes the memory of regions that nobody has any more, and of no other', async () => {
  const [left, used, others] = ['left', 'used', 'others'].map((name) => `hv:/prune-${name}-${process.pid}`) as [
    string,
    string,
    string,
  ];
  const region = openSharedRegion(used, 4096);
  try {
    writeFileSync(regionPath(others), 'readable by others', { mode: 0o644 });
    let doctor = '';
    let prune = '';
    for (
      let tries = 0;
      tries < 5 && !(doctor.includes(regionPath(left)) && prune.includes(regionPath(left)));
      tries++
    ) {
      writeFileSync(regionPath(left), 'left', { mode: 0o600 });
      doctor = (await acrnvm('doctor')).stdout;
      prune = (await acrnvm('prune')).stdout;
    }
    expect([left, used, others].map((name) => doctor.includes(regionPath(name)))).toEqual([true, false, false]);
    expect([left, used, others].map((name) => prune.includes(regionPath(name)))).toEqual([true, false, false]);
    expect([left, used, others].map((name) => existsSync(regionPath(name)))).toEqual([false, true, true]);
  } finally {
    rmSync(regionPath(others), { force: true });
    region?.dispose();
    forgetSharedRegions();
  }
});

// Mutation: sweep the place as a VM does that starts: root's prune takes what others left, and what it holds in memory.
test('prune takes what dead VMs of this user left in the place of a group, and nothing of others', async () => {
  const groupId = process.getegid?.() ?? 0;
  const folder = groupFolder(groupId);
  const at = (name: string) => join(folder, name);
  mkdirSync(folder, { recursive: true });
  chmodSync(folder, 0o3770);
  const fds: number[] = [];
  const put = (name: string) => {
    const fd = openGroupFile(at(name), groupId, { isMade: true });
    fds.push(fd);
    return fd;
  };
  try {
    put('lock');
    const dead = { 'vm-1.sock': 'bytes', 'vm-1.bells': 'packets', 'vm-3.sock': 'bytes' } as const;
    for (const [name, kind] of Object.entries(dead)) closeFd(listenAt(at(name), kind));
    fds.push(listenAt(at('vm-2.sock'), 'bytes'), listenAt(at('vm-2.bells'), 'packets'));
    for (const name of ['region.left', 'region.used', 'region.theirs', 'vm-4.sock']) put(name);
    tryLock(fds.at(-3) as number, 'shared', 'region.used');
    // Only root can show it.
    const isRoot = process.geteuid?.() === 0;
    for (const name of ['vm-3.sock', 'region.theirs']) if (isRoot) chownSync(at(name), 4242, groupId);
    writeFileSync(at('region.theirs'), 'theirs');
    const left = ['region.left', 'vm-1.bells', 'vm-1.sock', ...(isRoot ? [] : ['region.theirs', 'vm-3.sock'])].sort();
    const doctor = (await acrnvm('doctor')).stdout;
    expect(left.filter((name) => !doctor.includes(at(name)))).toEqual([]);
    expect(doctor).not.toMatch(/region\.used|vm-2/);
    const before = readdirSync(folder);
    const { stdout } = await acrnvm('prune');
    const after = readdirSync(folder);
    expect(before.filter((name) => !after.includes(name)).sort()).toEqual(left);
    expect(left.filter((name) => !stdout.includes(at(name)))).toEqual([]);
    if (isRoot) expect(readFileSync(at('region.theirs'), 'utf8')).toBe('theirs');
  } finally {
    for (const fd of fds) closeFd(fd);
    rmSync(folder, { recursive: true });
  }
});

test('prune takes the sockets that acrnctl would take for running VMs, and none of a process that is there', async () => {
  mkdirSync(managerFolder(), { recursive: true });
  const [dead, alive] = [4194305, process.pid].map((pid) => join(managerFolder(), `vm7.monitor.${pid}.socket`));
  for (const path of [dead, alive]) writeFileSync(path as string, '');
  expect((await acrnvm('doctor')).stdout).toContain('vm7');
  expect((await acrnvm('prune')).stdout).toMatch(/^removed: vm7(,.*)?\n$/);
  expect([dead, alive].map((path) => existsSync(path as string))).toEqual([false, true]);
});

test.each([
  [['link', 'vm1', '4', 'sideways'], 'up or down'],
  [['resize', 'vm1', '3', 'large'], '"large" is no size'],
  [['top', '--interval', '0'], '--interval 0'],
  [['log', '--level', 'loud', 'vm1'], 'error, warn, notice, info, debug'],
])('%j is a mistake, and one line says which', async (argv, text) => {
  const { status, stderr } = await acrnvm(...argv);
  expect([status, stderr]).toEqual([ExitCode.Usage, expect.stringContaining(text)]);
  expect(stderr.trimEnd().split('\n').length).toBeLessThanOrEqual(2);
});

test('log: the newest lines, and more of them from now on', async () => {
  vmm.logTail.write('warn', 'disk full');
  expect((await acrnvm('log', 'vm1')).stdout).toMatch(/^\d{4}-.*Z warn {3}disk full\n$/);
  expect(JSON.parse((await acrnvm('log', 'vm1', '--json')).stdout)).toMatchObject({
    level: 'warn',
    message: 'disk full',
  });
  // What a guest can put into a line moves no cursor and begins no line of its own.
  vmm.logTail.write('info', 'disk \x1b[2Jgone\n2026-01-01 error forged');
  expect((await acrnvm('log', 'vm1')).stdout).toContain('disk \\x1b[2Jgone\n  2026-01-01 error forged\n');
  expect((await acrnvm('log', '--level', 'debug', 'vm1')).stdout).toBe('console: level 4\n');
  expect((await acrnvm('log', '--level', 'error', '--sink', 'console', 'vm1')).status).toBe(0);
  expect(vmm.calls).toEqual(['log level 5 of all', 'log level 1 of console']);
  const refused = await acrnvm('log', '--level', 'error', '--sink', 'kmsg', 'vm1');
  expect([refused.status, refused.stderr]).toEqual([ExitCode.Unavailable, expect.stringContaining('no log to kmsg')]);
});

test('log -f: lines as they come', async () => {
  vmm.logTail.write('info', 'a line before');
  const child = spawn(process.execPath, [program, 'log', '-f', 'vm1'], { stdio: ['ignore', 'pipe', 'inherit'] });
  let seen = '';
  child.stdout.on('data', (data: Buffer) => {
    seen += data.toString();
  });
  await until(() => seen.includes('a line before\n'), 'what was there');
  vmm.logTail.write('info', 'a line behind');
  await until(() => seen.includes('a line behind\n'), 'a line of the log');
  expect(seen.match(/a line/g)).toHaveLength(2);
  child.kill();
});

test('top: rates between two looks', async () => {
  const counts = vmm.counters.of('disk', '00:03.0');
  tallyRead(counts.own, 5000);
  const timer = setInterval(() => tallyRead(counts.own, 100), 5);
  const { stdout } = await acrnvm('top', '-n', '1', '--interval', '0.8', '--json', 'vm1');
  clearInterval(timer);
  const [load] = JSON.parse(stdout) as [{ name: string; diskOpsPerS: number; diskBytesPerS: number; lagMs: number }];
  expect(load.lagMs).toBeGreaterThanOrEqual(0);
  expect(load).toMatchObject({ name: 'vm1', state: 'running', netBytesPerS: 0 });
  expect(load.diskOpsPerS).toBeGreaterThan(0);
  expect(load.diskBytesPerS / load.diskOpsPerS).toBeCloseTo(100, -1);
  const [byPath] = JSON.parse(
    (await acrnvm('top', '-n', '1', '--interval', '0.1', '--json', defaultApiSocket('vm1'))).stdout,
  );
  expect(byPath).toMatchObject({ name: defaultApiSocket('vm1'), state: 'running' });
  expect((await acrnvm('top', '-n', '1', '--interval', '0.1')).stdout).toMatch(
    /^NAME +STATE +CPU .*\nvm1 +running +\d+ %/,
  );
});

test('doctor: whatever is not well has the command that mends it', async () => {
  const findings = JSON.parse((await acrnvm('doctor', '--json')).stdout) as {
    what: string;
    verdict: string;
    mend?: string;
  }[];
  expect(findings.map(({ what }) => what)).toEqual(
    expect.arrayContaining(['ACRN', 'KVM', 'huge pages', 'offline CPUs', 'IOMMU', 'taps', 'vhost-net', 'open files']),
  );
  expect(findings.filter(({ verdict, mend }) => verdict !== 'ok' && mend === undefined)).toEqual([]);
  // A machine of two CPUs has no third to take offline.
  const files = findings.flatMap(({ mend = '' }) => mend.match(/\/sys\/\S+/g) ?? []);
  expect(files.filter((path) => !existsSync(path))).toEqual([]);
});

// Mutation: say that it did not answer, and no more.
test('a VM whose process stands still is told with the command that lets it go on', async () => {
  const folder = mkdtempSync(scratch.file('still-'));
  const process_ = spawn('sleep', ['60'], { stdio: 'ignore' });
  const server = createServer(() => {}).listen(join(folder, 'api.sock'));
  try {
    process_.kill('SIGSTOP');
    writeFileSync(join(folder, 'lock'), `${process_.pid}\n`);
    await expect(glanceAt(join(folder, 'api.sock'))).rejects.toMatchObject({
      message: expect.stringContaining(`process ${process_.pid} is stopped`),
      hint: `kill -CONT ${process_.pid} lets it go on`,
    });
  } finally {
    process_.kill('SIGKILL');
    server.close();
  }
});

// Mutation: take /dev/kvm for KVM. It may be there on a CPU that runs no guests.
test('doctor looks for VT-x and AMD-V, and not for /dev/kvm alone', () => {
  const asVm = 'vendor_id\t: AuthenticAMD\nflags\t\t: fpu sse2 hypervisor\n';
  expect(kvm(asVm)).toMatchObject({ verdict: 'warn', detail: expect.stringContaining('neither VT-x nor AMD-V') });
  expect(kvm(asVm.replace('fpu', 'fpu svm')).detail).toContain('/dev/kvm');
  // Where /proc/cpuinfo cannot be read the device has the word.
  expect(kvm('').detail).toContain('/dev/kvm');
});

// Mutation: tell an AMD machine of intel_iommu=on.
test('doctor: an IOMMU of AMD wants no option of the kernel', () => {
  const found = iommu('vendor_id\t: AuthenticAMD\n');
  if (found.verdict !== 'ok') expect(found.mend).not.toContain('intel_iommu');
});

// Mutation: look at /run/acrn alone, whatever ACRN_RUN_DIR says and whatever is below.
test.each([
  ['the folder of all', '.', (path: string) => chmodSync(path, 0o777), 'may be written by others'],
  ['that of the VMs', 'vm', (path: string) => chmodSync(path, 0o775), 'may be written by others'],
  ["that of acrnctl's sockets", 'mngr', (path: string) => chmodSync(path, 0o757), 'may be written by others'],
  ['a file in its place', 'mngr', (path: string) => replaceByFile(path), 'is no folder'],
  ['nothing of that', 'vm', () => {}, ''],
])('doctor looks where VMs would refuse to start: %s', async (_what, name, spoil, detail) => {
  const place = process.env['ACRN_RUN_DIR'];
  const own = mkdtempSync(scratch.file('doctor-'));
  for (const folder of ['vm', 'mngr']) mkdirSync(join(own, folder));
  spoil(join(own, name));
  process.env['ACRN_RUN_DIR'] = own;
  try {
    const findings = JSON.parse((await acrnvm('doctor', '--json')).stdout) as Record<string, string>[];
    expect(findings.find(({ what }) => what === 'folder for sockets')).toMatchObject(
      detail === ''
        ? { verdict: 'ok', detail: own }
        : {
            verdict: 'fail',
            detail: expect.stringContaining(`${join(own, name)} ${detail}`),
            mend: expect.stringContaining(join(own, name)),
          },
    );
  } finally {
    process.env['ACRN_RUN_DIR'] = place;
  }
});
function replaceByFile(path: string): void {
  rmSync(path, { recursive: true });
  writeFileSync(path, '');
}

// Mutation: every error of standard output is a reader that has gone.
test.each(['ls', 'metrics', 'events'])('%s that cannot be written is a failure', async (verb) => {
  vmm.events.emit('vm', 'booted');
  const full = openSync('/dev/full', 'w');
  const child = spawn(process.execPath, [program, verb, ...(verb === 'ls' ? [] : ['vm1'])], {
    stdio: ['ignore', full, 'pipe'],
  });
  let stderr = '';
  child.stderr?.on('data', (data) => {
    stderr += data;
  });
  const status = await new Promise((resolve) => child.on('close', resolve));
  closeSync(full);
  expect([status, stderr]).toEqual([
    ExitCode.IoError,
    expect.stringMatching(/^acrnvm: standard output: .*ENOSPC.*\n$/),
  ]);
});

test('metrics as JSON', async () => {
  const metrics = JSON.parse((await acrnvm('metrics', 'vm1', '--json')).stdout) as { name: string }[];
  expect(metrics.map(({ name }) => name)).toContain('acrn_vm_state');
});

describe('stop', () => {
  test('asks the guest and waits until it is gone', async () => {
    const stopped = acrnvm('stop', 'vm1');
    await until(() => vmm.asked.length === 1, 'asked');
    expect(vmm.asked).toEqual(['patient shutdown: asked by the API']);
    vmm.isBooted = false;
    vmm.config = undefined;
    expect(await stopped).toMatchObject({ status: 0, stderr: '' });
  });
  test('says when the guest does not, and -f does not ask', async () => {
    const result = await acrnvm('stop', '-t', '0.2', 'vm1');
    expect(result).toMatchObject({
      status: ExitCode.Unavailable,
      stderr: expect.stringContaining('hint: acrnvm stop -f'),
    });
    await acrnvm('stop', '-f', '-t', '0.1', 'vm1');
    expect(vmm.asked.at(-1)).toBe('forced poweroff: asked by the API');
  });
  test('a guest that is only being built is asked like any other', async () => {
    vmm.state = 'created';
    const stopped = acrnvm('stop', 'vm1');
    await until(() => vmm.asked.length === 1, 'asked');
    vmm.isBooted = false;
    vmm.config = undefined;
    expect(await stopped).toMatchObject({ status: 0 });
  });
  // Mutation: whoever does not answer is gone.
  test('a VM that does not answer any more is not gone', async () => {
    const hung = createServer((request, response) => {
      if (request.method === 'PUT') response.writeHead(204).end();
    });
    const path = scratch.file('hung.sock');
    await new Promise<void>((resolve) => hung.listen(path, resolve));
    const result = await acrnvm('stop', '-t', '0.2', path);
    hung.closeAllConnections();
    await new Promise((resolve) => hung.close(resolve));
    expect(result).toMatchObject({ status: ExitCode.Unavailable, stderr: expect.stringContaining('no answer within') });
  });
  test('a process that stayed after its guest ends by -f only', async () => {
    Object.assign(vmm, { isBooted: false, hasRun: true });
    expect(await acrnvm('stop', 'vm1')).toMatchObject({
      status: ExitCode.Unavailable,
      stderr: expect.stringContaining('hint: acrnvm stop -f'),
    });
    expect(vmm.calls).toEqual([]);
    const stopped = acrnvm('stop', '-f', 'vm1');
    await until(() => vmm.calls.includes('quit'), 'asked');
    await close();
    expect(await stopped).toMatchObject({ status: 0, stderr: '' });
  });
});

test('events, those there were and those that come', async () => {
  vmm.events.emit('vm', 'booted');
  expect((await acrnvm('events', 'vm1')).stdout).toMatch(/^\d{4}-\S+Z vm\.booted\n$/);
  const child = spawn(process.execPath, [program, 'events', '-f', '--json', 'vm1']);
  let seen = '';
  child.stdout.on('data', (data) => {
    seen += data;
  });
  await until(() => seen.includes('booted'), 'the kept one');
  vmm.events.emit('vm', 'paused');
  await until(() => seen.includes('"paused"'), 'the new one');
  const exited = new Promise((resolve) => child.on('exit', resolve));
  await close();
  expect(await exited).toBe(0);
});

test('more events than are kept: those that are, and a number that is too old is one', async () => {
  for (let i = 1; i <= 300; i++) vmm.events.emit('vm', `e${i}`);
  const { status, stdout } = await acrnvm('events', 'vm1');
  expect([status, stdout.split('\n').length - 1]).toEqual([0, 256]);
  for (const argv of [['events'], ['events', '-f']]) {
    expect(await acrnvm(...argv, '--since', '3', 'vm1')).toMatchObject({
      status: ExitCode.Unavailable,
      stderr: expect.stringContaining('events behind 3 are not kept any more'),
    });
  }
});

test('a console whose input ends is read until it is quiet', async () => {
  const child = spawn(process.execPath, [program, 'console', 'vm1']);
  let seen = '';
  child.stdout.on('data', (data) => {
    seen += data;
  });
  const exited = new Promise((resolve) => child.on('exit', resolve));
  child.stdin.end('ls\n');
  await until(() => vmm.typed === 'ls\n', 'typed');
  for (const tell of vmm.listeners) tell(Buffer.from('bin etc'));
  expect(await exited).toBe(0);
  expect(seen).toBe('login: bin etc');
});

test('a console is the standard input and output of the client', async () => {
  const child = spawn(process.execPath, [program, 'console', 'vm1']);
  let seen = '';
  child.stdout.on('data', (data) => {
    seen += data;
  });
  await until(() => vmm.listeners.size === 1 && seen === 'login: ', 'attached, with what was there');
  child.stdin.write('root\n');
  await until(() => vmm.typed === 'root\n', 'typed');
  for (const tell of vmm.listeners) tell(Buffer.from('# '));
  await until(() => seen === 'login: # ', 'shown');
  const exited = new Promise((resolve) => child.on('exit', resolve));
  child.stdin.end();
  expect(await exited).toBe(0);
});

test('metrics, and the host', async () => {
  expect((await acrnvm('metrics', 'vm1')).stdout).toContain('acrn_vm_info{name="vm1"');
  const { stdout } = await acrnvm('doctor', '--json');
  const findings = JSON.parse(stdout) as { what: string; verdict: string }[];
  expect(findings.map(({ what }) => what)).toContain('huge pages');
  expect(findings.every(({ verdict }) => ['ok', 'warn', 'fail'].includes(verdict))).toBe(true);
});

test.each(['bash', 'zsh', 'fish'])('completion for %s knows every command', async (shell) => {
  const { stdout } = await acrnvm('completion', shell);
  for (const verb of ['ls', 'stop', 'console', 'doctor']) expect(stdout).toContain(verb);
  if (shell === 'bash') {
    writeFileSync(
      scratch.file('c.sh'),
      `${stdout}\nCOMP_WORDS=(acrnvm st); COMP_CWORD=1; _acrnvm; echo "\${COMPREPLY[*]}"\n`,
    );
    expect(await new Promise((resolve) => execFile('bash', [scratch.file('c.sh')], (_, out) => resolve(out)))).toBe(
      'stop\n',
    );
  }
});

describe('mistakes', () => {
  test.each([
    [[], ExitCode.Usage, ''],
    [['stpo', 'vm1'], ExitCode.Usage, 'did you mean stop?'],
    [['stop'], ExitCode.Usage, 'the name of the VM is missing'],
    [['stop', '--frob', 'vm1'], ExitCode.Usage, '--frob'],
    [['info', 'nobody'], ExitCode.Unavailable, 'acrnvm ls lists'],
    [['console', 'vm1', 'com9'], ExitCode.Unavailable, 'there is no console "com9"'],
    [['completion', 'csh'], ExitCode.Usage, 'csh'],
    [['completion'], ExitCode.Usage, 'the shell is missing'],
    [['info', ''], ExitCode.Usage, 'the name of the VM is missing'],
    // Each of them would stop one VM of two, or none of those that are meant.
    [['stop', '-f', 'vm1', 'vm2'], ExitCode.Usage, '"vm2" is one word too many'],
    [['ls', 'vm1'], ExitCode.Usage, '"vm1" is one word too many'],
    [['prune', 'vm1'], ExitCode.Usage, 'one word too many'],
    [['resize', 'vm1', '3', '1G', '2G'], ExitCode.Usage, 'one word too many'],
    [['stop', '-t', '-1', 'vm1'], ExitCode.Usage, 'option -t needs a value'],
    [['stop', '-t'], ExitCode.Usage, 'option --timeout needs a value'],
    [['ls', '--json=x'], ExitCode.Usage, 'option --json takes no value'],
    [['top', 'nobody'], ExitCode.Unavailable, 'no VM "nobody" runs here'],
    [['top', '/nobody.sock'], ExitCode.Unavailable, 'no VM "/nobody.sock" runs here'],
    [['top', '--interval', '3000000'], ExitCode.Usage, '--interval 3000000'],
    [['run'], ExitCode.Usage, 'the file is missing'],
    [['config'], ExitCode.Usage, 'convert, argv, check or schema is missing'],
    [['config', 'frob'], ExitCode.Usage, 'config frob'],
    [['events', '--since', 'x', 'vm1'], ExitCode.Usage, 'since'],
    [['log', '--level', 'info', '--sink', 'moon', 'vm1'], ExitCode.Usage, 'moon'],
  ])('%j', async (argv, status, text) => {
    const result = await acrnvm(...argv);
    expect(result).toMatchObject({ status, stderr: expect.stringContaining(text) });
    expect(result.stderr.trimEnd().split('\n').length, 'a line, and one for the hint').toBeLessThanOrEqual(2);
    expect(result.stderr).not.toContain('    at ');
    expect(vmm.asked).toEqual([]);
  });
});

test('its command line does not name the device model: ACRN waits for those to go before it powers the machine off', async () => {
  const child = spawn(process.execPath, [program, 'events', '-f', 'vm1']);
  await until(() => readFileSync(`/proc/${child.pid}/cmdline`, 'latin1').startsWith('acrnvm'), 'its own name');
  expect(readFileSync(`/proc/${child.pid}/cmdline`, 'latin1')).not.toContain('acrn-dm');
  child.kill();
});
