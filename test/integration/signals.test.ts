/** Every signal that can be caught, sent to the built program before, while and after its VM runs: what docs/exit-codes.md says. */
import { execFileSync, spawn, spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, readdirSync, readFileSync, readlinkSync, rmSync, symlinkSync } from 'node:fs';
import { constants, tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { SignalAction, signalActions } from '../../devicemodel/core/host/process-signals.ts';
import { FAULTS } from '../../devicemodel/core/host/signals.ts';
import { Program, repository, softVm, whyNoSoftHypervisor } from '../support/program.ts';

const reason = whyNoSoftHypervisor();
const TIMEOUT_MS = 120_000;
const KICK_SIGNAL = 40;
const OTHERS = [...FAULTS, 32, 33, 34, KICK_SIGNAL, 50, 63, 64];
const enders = Object.entries(signalActions).flatMap(([name, action]) =>
  action === SignalAction.ignore ? [] : [name],
);
const ignored = Object.entries(signalActions).flatMap(([name, action]) =>
  action === SignalAction.ignore ? [name] : [],
);

let folder: string;
const running: Program[] = [];
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'signals-'));
});
afterEach(async () => {
  await Promise.all(running.splice(0).map((program) => program.end()));
  rmSync(folder, { recursive: true, force: true });
});

const vmName = (tag: string) => `sig${process.pid}${tag}`.slice(0, 15);
const regionName = (tag: string) => `sig${process.pid}_${tag}`;

function start(tag: string): Program {
  const monitor = ['--cmd_monitor', join(folder, `${tag}.sock`)];
  const region = ['-s', `5,ivshmem,hv:/${regionName(tag)},2`];
  const program = new Program(softVm(vmName(tag), 'demo=echo', ...monitor, ...region));
  running.push(program);
  return program;
}

/** kill(2) by number: Node knows no real-time signals. @returns false when the process is gone. */
function kill(pid: number, ...signals: readonly (string | number)[]): boolean {
  const numbers = signals.map((s) => (typeof s === 'number' ? s : constants.signals[s as NodeJS.Signals]));
  try {
    execFileSync('/bin/sh', ['-c', numbers.map((n) => `kill -${n} ${pid}`).join(' && ')], { stdio: 'ignore' });
    return true;
  } catch {
    return false;
  }
}

/** Socket files, shared memory and neighbours' sockets of a VM. */
function left(tag: string, pid: number): string[] {
  const found = [join(folder, `${tag}.sock`)].filter((path) => existsSync(path));
  const inFolder = (path: string, part: string) =>
    existsSync(path)
      ? readdirSync(path)
          .filter((name) => name.includes(part))
          .map((name) => join(path, name))
      : [];
  return [...found, ...inFolder('/dev/shm', regionName(tag)), ...inFolder('/run/acrn/mngr', `.monitor.${pid}.`)];
}

describe.skipIf(reason !== undefined)('the built program', { timeout: TIMEOUT_MS }, () => {
  test('what is ignored by design leaves the VM alone, also many at once', async () => {
    const program = start('ign');
    await program.console('> ');
    for (let round = 0; round < 3; round++) expect(kill(program.pid, ...ignored, ...OTHERS)).toBe(true);
    program.type('still here\r');
    await program.console('echo: "still here"');
    expect(listeningPorts(program.pid)).toEqual([]);
    program.signal('SIGINT');
    const { code, signal, stderr } = await program.exited;
    expect({ code, signal, left: left('ign', program.pid) }).toEqual({ code: 0, signal: null, left: [] });
    expect(stderr).not.toMatch(/error|Debugger/);
  });

  test.each(enders)('%s ends a running VM in good order, status 0, nothing left', async (name) => {
    const tag = name.slice(3).toLowerCase();
    const program = start(tag);
    await program.console('> ');
    expect(kill(program.pid, name)).toBe(true);
    const { code, signal, stderr } = await program.exited;
    expect({ code, signal, left: left(tag, program.pid) }).toEqual({ code: 0, signal: null, left: [] });
    expect(stderr).toContain(`received ${name}`);
  });

  test('all are held before anything else is loaded', async () => {
    const { pid } = start('first');
    const ofProcess = (file: string) => readFileSync(`/proc/${pid}/${file}`, 'latin1');
    // The C library's functions come first of what is loaded, long before there is a VM.
    while (!ofProcess('maps').includes('koffi.node')) await sleep(0);
    const caught = BigInt(`0x${/^SigCgt:\s*(\w+)$/m.exec(ofProcess('status'))?.[1]}`);
    const isCaught = (name: string) => ((caught >> BigInt(constants.signals[name as NodeJS.Signals] - 1)) & 1n) === 1n;
    expect(Object.keys(signalActions).filter((name) => !isCaught(name))).toEqual([]);
  });

  test('everything at once while the VM ends changes nothing', async () => {
    const program = start('end');
    await program.console('> ');
    kill(program.pid, 'SIGHUP');
    for (let i = 0; i < 40 && kill(program.pid, ...enders, ...ignored, ...OTHERS); i++) await sleep(1);
    const { code, signal } = await program.exited;
    expect({ code, signal, left: left('end', program.pid) }).toEqual({ code: 0, signal: null, left: [] });
  });

  test.each([0, 20, 45, 60, 80, 110, 160, 250])('ended %i ms after its start: nothing left', async (delayMs) => {
    for (const name of ['SIGTERM', 'SIGQUIT', 'SIGINT']) {
      const tag = `early${delayMs}`;
      const program = start(tag);
      await sleep(delayMs);
      kill(program.pid, name, 'SIGHUP');
      const { code, signal, stderr } = await program.exited;
      // Before it is asked for a VM the process ends as any program does.
      expect(code === 0 || signal !== null, `${code} ${signal} ${stderr}`).toBe(true);
      if (signal !== null) expect([name, 'SIGHUP']).toContain(signal);
      expect(left(tag, program.pid)).toEqual([]);
    }
  });
});

/** TCP ports on which a process listens. */
function listeningPorts(pid: number): string[] {
  let inodes: string[];
  try {
    inodes = readdirSync(`/proc/${pid}/fd`).flatMap((fd) => {
      try {
        return /^socket:\[(\d+)\]$/.exec(readlinkSync(`/proc/${pid}/fd/${fd}`))?.[1] ?? [];
      } catch {
        return [];
      }
    });
  } catch {
    return [];
  }
  const lines = ['tcp', 'tcp6'].flatMap((table) => readFileSync(`/proc/net/${table}`, 'utf8').split('\n').slice(1));
  return lines.flatMap((line) => {
    const [, local, , state, , , , , , inode] = line.trim().split(/\s+/);
    return state === '0A' && inodes.includes(inode ?? '') ? [local ?? ''] : [];
  });
}

describe.skipIf(reason !== undefined)('SIGUSR1 all the time', { timeout: TIMEOUT_MS }, () => {
  test('no port of a debugger, from exec on', async () => {
    const args = softVm(vmName('usr1'), 'demo=echo');
    const child = spawn(join(repository, 'dist/acrn-dm.js'), args, { stdio: 'pipe' });
    const exited = new Promise((resolve) => child.once('close', (code) => resolve(code)));
    const pid = child.pid ?? -1;
    let output = '';
    child.stdout.setEncoding('utf8').on('data', (text) => (output += text));
    child.stderr.resume();
    // Until Node handles it at all the signal would end the process before it is ours.
    const caught = () => /SigCgt:\s*(\w+)/.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1] ?? '0';
    while ((BigInt(`0x${caught()}`) & (1n << 9n)) === 0n) await sleep(1);
    const open: string[] = [];
    let looks = 0;
    for (const endMs = Date.now() + 60_000; !output.includes('> ') && Date.now() < endMs; ) {
      process.kill(pid, 'SIGUSR1');
      looks++;
      open.push(...listeningPorts(pid).map((port) => `${port} at look ${looks}`));
      await sleep(1);
    }
    for (let i = 0; i < 100; i++) {
      process.kill(pid, 'SIGUSR1');
      open.push(...listeningPorts(pid));
      await sleep(1);
    }
    process.kill(pid, 'SIGINT');
    expect(await exited).toBe(0);
    expect(open).toEqual([]);
    expect(looks).toBeGreaterThan(5);
  });

  test('NODE_OPTIONS is not for this process, which has one id from exec on', async () => {
    const child = spawn(join(repository, 'dist/acrn-dm.js'), ['--version'], {
      env: { ...process.env, NODE_OPTIONS: '--require=/nowhere/at/all' },
      stdio: 'pipe',
    });
    let text = '';
    child.stdout.setEncoding('utf8').on('data', (part) => (text += part));
    expect(await new Promise((resolve) => child.once('close', resolve))).toBe(0);
    expect(text).toMatch(/^DM version is: \d/);
  });
});

/** A process and all it started. */
function familyOf(pid: number): number[] {
  try {
    const children = readFileSync(`/proc/${pid}/task/${pid}/children`, 'utf8').trim().split(' ').filter(Boolean);
    return [pid, ...children.flatMap((child) => familyOf(Number(child)))];
  } catch {
    return [];
  }
}

/** Until Node handles it at all, SIGUSR1 would end a process; one that was forked handles it as its parent did, until exec. */
function takesUsr1(pid: number, isForked: boolean): boolean {
  try {
    if (isForked && !readFileSync(`/proc/${pid}/cmdline`, 'latin1').includes('/dist/acrn-dm.js')) return false;
    const status = readFileSync(`/proc/${pid}/status`, 'utf8');
    return (BigInt(`0x${/SigCgt:\s*(\w+)/.exec(status)?.[1] ?? '0'}`) & (1n << 9n)) !== 0n;
  } catch {
    return false;
  }
}

// Mutation: build acrnvm with "#!/usr/bin/env node", or let `startVm` pass on process.env: those of acrnvm fail.
describe.skipIf(reason !== undefined)('a caller who asks for a debugger gets none', { timeout: TIMEOUT_MS }, () => {
  const dist = (name: string) => join(repository, 'dist', name);
  const vm = (tag: string) => softVm(vmName(tag), 'demo=echo');
  const linked = (name: string, target: string) => {
    const link = join(folder, name);
    symlinkSync(dist(target), link);
    return link;
  };
  test.each<[string, string, (tag: string) => readonly string[]]>([
    ['acrn-dm', '--inspect=127.0.0.1:0', (tag) => [dist('acrn-dm.js'), ...vm(tag)]],
    ['a link to it', '--inspect-brk=127.0.0.1:0', (tag) => [linked('acrn-dm', 'acrn-dm.js'), ...vm(tag)]],
    ['acrnvm run', '--inspect=0', (tag) => [dist('acrnvm.js'), 'run', '--', ...vm(tag)]],
    ['a link to acrnvm', '--inspect-brk=0', (tag) => [linked('acrnvm', 'acrnvm.js'), 'run', '--', ...vm(tag)]],
    ['acrnvm run, no port asked for', '--no-warnings', (tag) => [dist('acrnvm.js'), 'run', '--', ...vm(tag)]],
    [
      'the VM of an acrnvm that node was given',
      '--inspect-port=127.0.0.1:0',
      (tag) => [process.execPath, dist('acrnvm.js'), 'run', '--', ...vm(tag)],
    ],
  ])('%s, NODE_OPTIONS=%s, SIGUSR1 all the time', async (name, nodeOptions, argvOf) => {
    const [file = '', ...args] = argvOf(`no${name.length}`);
    const child = spawn(file, args, { env: { ...process.env, NODE_OPTIONS: nodeOptions }, stdio: 'pipe' });
    const exited = new Promise((resolve) => child.once('close', (code) => resolve(code)));
    let output = '';
    child.stdout.setEncoding('utf8').on('data', (text) => (output += text));
    let said = '';
    child.stderr.setEncoding('utf8').on('data', (text) => (said += text));
    const pid = child.pid ?? -1;
    const open = new Set<string>();
    const looked = new Set<number>();
    for (let left = 20; left > 0 && child.exitCode === null; left -= output.includes('> ') ? 1 : 0) {
      for (const each of familyOf(pid).filter((one) => takesUsr1(one, one !== pid))) {
        process.kill(each, 'SIGUSR1');
        looked.add(each);
        // Node without its options may open one before the first line, and only the VM is nobody's to debug.
        if (file === process.execPath && each === pid) continue;
        for (const port of listeningPorts(each)) open.add(port);
      }
      await sleep(5);
    }
    kill(familyOf(pid).at(-1) ?? pid, 'SIGINT');
    expect(await exited, said).toBe(0);
    expect([...open]).toEqual([]);
    if (file !== process.execPath) expect(said).not.toContain('Debugger listening');
    expect(looked.size).toBe(args.includes('run') ? 2 : 1);
  });

  test('acrnvm by itself says nothing of one either', async () => {
    const { stdout, stderr } = spawnSync(dist('acrnvm.js'), ['help'], {
      env: { ...process.env, NODE_OPTIONS: '--inspect=127.0.0.1:0' },
      encoding: 'utf8',
    });
    expect(stdout).toContain('acrnvm');
    expect(stderr).toBe('');
  });
});

test('docs/exit-codes.md has the same table', () => {
  const text = readFileSync(join(repository, 'docs/exit-codes.md'), 'utf8');
  const rows = [...text.matchAll(/^\| ((?:SIG\w+(?:, )?)+) \| ([^|]+) \|/gm)].flatMap(([, names, what]) =>
    (names ?? '').split(', ').map((name) => [name, (what ?? '').trim()]),
  );
  expect(Object.fromEntries(rows)).toEqual(signalActions);
});
