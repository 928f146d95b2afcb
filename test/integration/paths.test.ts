/**
 * Every option that takes a path, with every way in which a path can be wrong, through the program as a process: one
 * line that names the path, a documented status, no waiting for a pipe or a device without an end, never "internal
 * error" or Node's own words.
 */
import { execFileSync, spawn } from 'node:child_process';
import { chmodSync, chownSync, mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { createServer, type Server } from 'node:net';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { ExitCode } from '../../devicemodel/core/errors.ts';
import { demoGuest, repository, whyNoSoftHypervisor } from '../support/program.ts';

const program = join(repository, 'dist/acrn-dm.js');
const NOBODY = 65534;
/** A start that waits for something is killed, and the test fails. */
const PATIENCE_MS = 20_000;

/** Somebody else must get there too. */
const folder = mkdtempSync(join(process.getuid?.() === 0 ? '/tmp' : tmpdir(), 'acrn-paths-'));
const at = (name: string) => join(folder, name);
const { NoInput, NoPermission, DataError, Usage } = ExitCode;

interface BadPath {
  readonly path: string;
  /** As somebody who is not root. */
  readonly asNobody?: boolean;
}

const badPaths: Readonly<Record<string, BadPath>> = {
  'ENOENT, below a file’s sibling': { path: at('none/none') },
  'ENOENT, a link to nothing': { path: at('dangling') },
  'ENOENT, in /proc': { path: '/proc/none/x' },
  ENOTDIR: { path: at('file/x') },
  'EACCES, of the folder': { path: at('locked/x'), asNobody: true },
  'EACCES, of the file': { path: at('secret'), asNobody: true },
  'ELOOP, in the middle': { path: at('loop/x') },
  'ELOOP, at the end': { path: at('loop') },
  'ENAMETOOLONG, one name': { path: at('n'.repeat(300)) },
  EISDIR: { path: at('folder') },
  'a named pipe': { path: at('pipe') },
  'a socket': { path: at('socket') },
  'an empty file': { path: at('empty') },
  'a device without an end': { path: '/dev/zero' },
};

interface PathOption {
  readonly args: (path: string) => readonly string[];
  /** Every status that may be; 0 where the thing is made, or is only a warning. */
  readonly statuses: readonly number[];
  /** With `--dry-run`: what is not to be touched is looked at. */
  readonly dryRun?: boolean;
  /** Only what is a matter of rights: test/config/paths.test.ts has the rest. */
  readonly isOfRights?: boolean;
}

const boot = ['-k', demoGuest, '-B', 'demo=idle,0'];
const reading = [NoInput, NoPermission, DataError, Usage];
/** The software CPU has none, and says so first. */
const firmware = [ExitCode.Unavailable, Usage];
/** What is made or written, and terminals that have to be there: looked at before there is a VM. */
const made = [0, NoInput, NoPermission, ExitCode.CannotCreate, Usage];

/** @param refused status of what this user has no rights to. */
const rights = (refused: number) => ({ statuses: [refused, NoInput], dryRun: true, isOfRights: true });

const options: Readonly<Record<string, PathOption>> = {
  '-k': { args: (p) => ['-k', p], statuses: reading, dryRun: true },
  '-r': { args: (p) => [...boot, '-r', p], statuses: reading, dryRun: true },
  '-E': { args: (p) => ['-E', p], statuses: reading, dryRun: true },
  '--ovmf': { args: (p) => ['--ovmf', p], statuses: firmware, dryRun: true },
  '--ovmf w,': { args: (p) => ['--ovmf', `w,${p}`], statuses: firmware, dryRun: true },
  '--ovmf vars=': { args: (p) => ['--ovmf', `w,code=${at('code')},vars=${p}`], statuses: firmware, dryRun: true },
  '--scenario': { args: (p) => [...boot, '--scenario', p], statuses: reading, dryRun: true },
  '--host-root': {
    args: (p) => [...boot, '--host-root', p],
    statuses: reading,
    dryRun: true,
  },
  '--config': { args: (p) => ['--config', p], statuses: [...reading, ExitCode.Config], dryRun: true },
  ahci: { args: (p) => [...boot, '-s', `3,ahci,hd:${p}`], statuses: reading },
  'virtio-gpio': { args: (p) => [...boot, '-s', `3,virtio-gpio,@${p}{0=a}`], statuses: [Usage], dryRun: true },
  'virtio-i2c': { args: (p) => [...boot, '-s', `3,virtio-i2c,${p}:20`], statuses: [Usage] },
  'ivshmem dm:': { args: (p) => [...boot, '-s', `3,ivshmem,dm:${p},2`], statuses: [Usage], dryRun: true },
  'passthru romfile=': {
    args: (p) => [...boot, '-s', `3,passthru,0/1f/7,romfile=${p}`],
    statuses: [...reading, ExitCode.Unavailable],
    dryRun: true,
  },
  'passthru dsdt=': {
    args: (p) => [...boot, '-s', `3,passthru,0/1f/7,dsdt=${p}`],
    statuses: [...reading, ExitCode.Unavailable],
    dryRun: true,
  },
  '--acpidev_pt': { args: (p) => [...boot, '--acpidev_pt', p], statuses: [Usage], dryRun: true },
  '--mmiodev_pt': { args: (p) => [...boot, '--mmiodev_pt', p], statuses: [Usage], dryRun: true },
  '--fw_cfg file=': { args: (p) => [...boot, '--fw_cfg', `opt/a,file=${p}`], ...rights(NoPermission) },
  '--bios': { args: (p) => ['--bios', p, '--fw_cfg='], ...rights(NoPermission) },
  'ahci-cd': { args: (p) => [...boot, '-s', `3,ahci-cd,${p}`], ...rights(NoPermission) },
  'virtio-blk, dry': { args: (p) => [...boot, '-s', `3,virtio-blk,${p}`], ...rights(NoPermission) },
  'virtio-rpmb': { args: (p) => [...boot, '-s', `3,virtio-rpmb,path=${p}`], ...rights(ExitCode.CannotCreate) },
  '--api-socket': { args: (p) => [...boot, '--api-socket', `path=${p}`], ...rights(ExitCode.CannotCreate) },
  '--event-monitor': { args: (p) => [...boot, '--event-monitor', `path=${p}`], ...rights(ExitCode.CannotCreate) },
  '--crash-dump': { args: (p) => [...boot, '--crash-dump', p], ...rights(ExitCode.CannotCreate) },
  '--display vnc=unix:': {
    args: (p) => [...boot, '-s', '3,virtio-gpu,geometry=640x480', '--display', `vnc=unix:${p}`],
    ...rights(ExitCode.CannotCreate),
  },
  '--display password-file=': {
    args: (p) => [
      ...[...boot, '-s', '3,virtio-gpu,geometry=640x480'],
      ...['--display', `vnc=127.0.0.1:5901,password-file=${p}`],
    ],
    ...rights(NoPermission),
  },
  'virtio-input, dry': { args: (p) => [...boot, '-s', `3,virtio-input,${p}`], ...rights(NoPermission) },
  '-l TTY': { args: (p) => [...boot, '-l', `com2,${p}`], ...rights(NoPermission) },
  '--pm_by_vuart tty, dry': {
    args: (p) => [...boot, '--pm_notify_channel', 'uart', '--pm_by_vuart', `tty,${p}`],
    ...rights(NoPermission),
  },
  // A socket may be there.
  '--vtpm2': {
    args: (p) => [...boot, '--vtpm2', `sock_path=${p}`],
    statuses: [0, NoInput, NoPermission, Usage],
    dryRun: true,
  },
  'virtio-blk': { args: (p) => [...boot, '-s', `3,virtio-blk,${p}`], statuses: reading },
  'virtio-input': { args: (p) => [...boot, '-s', `3,virtio-input,${p}`], statuses: [...reading, ExitCode.VmFailed] },
  'virtio-console file': { args: (p) => [...boot, '-s', `3,virtio-console,file:a=${p}`], statuses: made },
  'virtio-console tty': { args: (p) => [...boot, '-s', `3,virtio-console,tty:a=${p}`], statuses: made },
  'virtio-console socket': { args: (p) => [...boot, '-s', `3,virtio-console,socket:a=${p}:server`], statuses: made },
  'virtio-console client': { args: (p) => [...boot, '-s', `3,virtio-console,socket:a=${p}:client`], statuses: made },
  '-l file:': { args: (p) => [...boot, '-l', `com2,file:${p}`], statuses: made },
  '-l unix:': { args: (p) => [...boot, '-l', `com2,unix:${p}`], statuses: made },
  '-l pty:': { args: (p) => [...boot, '-l', `com2,pty:${p}`], statuses: made },
  '-s uart': { args: (p) => [...boot, '-s', `4,uart,${p}`], statuses: made },
  '--cmd_monitor': { args: (p) => [...boot, '--cmd_monitor', p], statuses: [0, Usage, ExitCode.CannotCreate] },
  '--pm_by_vuart pty': {
    args: (p) => [...boot, '--pm_notify_channel', 'uart', '--pm_by_vuart', `pty,${p}`],
    statuses: [0, Usage, ExitCode.CannotCreate],
  },
  '--pm_by_vuart tty': {
    args: (p) => [...boot, '--pm_notify_channel', 'uart', '--pm_by_vuart', `tty,${p}`],
    statuses: [NoInput, NoPermission, Usage, ExitCode.Unavailable],
  },
};

let server: Server;
function makeFolder(): void {
  rmSync(folder, { recursive: true, force: true });
  mkdirSync(folder);
  chmodSync(folder, 0o777);
  mkdirSync(at('folder'));
  mkdirSync(at('nobody'), { mode: 0o755 });
  if (process.getuid?.() === 0) chownSync(at('nobody'), NOBODY, NOBODY);
  mkdirSync(at('locked'), { mode: 0o700 });
  writeFileSync(at('locked/x'), 'x');
  for (const [name, mode] of [
    ['file', 0o644],
    ['secret', 0o600],
    ['empty', 0o644],
  ] as const) {
    writeFileSync(at(name), name === 'empty' ? '' : 'x', { mode });
  }
  writeFileSync(at('code'), Buffer.alloc(1 << 20, 0x90));
  symlinkSync('loop', at('loop'));
  symlinkSync('gone/x', at('dangling'));
  execFileSync('mkfifo', [at('pipe')]);
  // Root lets somebody else try them; another user shuts itself out.
  if (process.getuid?.() !== 0) for (const name of ['locked', 'secret']) chmodSync(at(name), 0);
}

interface Ended {
  readonly code: number | null;
  readonly stderr: string;
}

/** Runs until the program ends, or until its VM has started, which it then leaves. */
function run(args: readonly string[], asNobody: boolean): Promise<Ended> {
  const isNobody = asNobody && process.getuid?.() === 0;
  const who = isNobody ? { uid: NOBODY, gid: NOBODY } : {};
  // The place of root's VMs is not somebody else's.
  const place = isNobody ? { ACRN_RUN_DIR: at('nobody') } : {};
  const machine = ['--hypervisor', 'soft', '-m', '128M', '-s', '0:0,hostbridge', '-s', '1:0,lpc'];
  const child = spawn(process.execPath, [program, ...machine, ...args, `paths${process.pid % 100_000}x${serial++}`], {
    stdio: ['ignore', 'ignore', 'pipe'],
    cwd: folder,
    env: { ...process.env, TMPDIR: folder, ...place },
    ...who,
  });
  let stderr = '';
  child.stderr.setEncoding('utf8').on('data', (text: string) => {
    stderr += text;
    if (/kernel: .* entry/.test(text)) child.kill('SIGINT');
  });
  const patience = setTimeout(() => child.kill('SIGKILL'), PATIENCE_MS);
  return new Promise((resolve) => {
    child.on('close', (code) => {
      clearTimeout(patience);
      resolve({ code, stderr });
    });
  });
}
let serial = 0;
/** ACRN_TEST_ALL=1: every path for every option, two minutes of CPU. */
const takesAll = process.env['ACRN_TEST_ALL'] === '1';

/** Whether somebody else can read this tree: without, nobody cannot run the program. */
function canRunAsNobody(): boolean {
  if (process.getuid?.() !== 0) return true;
  try {
    execFileSync(process.execPath, [program, '--version'], { uid: NOBODY, gid: NOBODY, stdio: 'ignore' });
    return true;
  } catch {
    return false;
  }
}

describe.skipIf(whyNoSoftHypervisor() !== undefined)('a path that is wrong', () => {
  let hasNobody = false;
  beforeAll(async () => {
    makeFolder();
    hasNobody = canRunAsNobody();
    server = createServer((socket) => socket.destroy());
    await new Promise<void>((resolve) => server.listen(at('socket'), resolve));
  });
  afterAll(async () => {
    await new Promise((resolve) => server.close(resolve));
    chmodSync(at('locked'), 0o700);
    rmSync(folder, { recursive: true });
  });

  test.each(Object.entries(options))(
    '%s',
    async (_name, { args, statuses, dryRun, isOfRights }) => {
      const wrong: unknown[] = [];
      const isWrong = async ([kind, { path, asNobody }]: readonly [string, BadPath]) => {
        if (asNobody === true && !hasNobody) return;
        const { code, stderr } = await run(
          [...args(path), ...(dryRun === true ? ['--dry-run'] : [])],
          asNobody === true,
        );
        const lines = stderr.trimEnd().split('\n');
        const names = [path, `folder ${dirname(path)}`, `the path has ${path.length} bytes`, 'nnn'];
        const isSaid = code === 0 || (/^acrn-dm: /.test(lines.at(0) ?? '') && names.some((n) => stderr.includes(n)));
        const isRaw = /internal error|, (open|l?stat|mkdir|symlink|connect|read) '|Error:|\n {4}at /.test(stderr);
        // What shows only when it is tried: whether a pipe has a reader, or a folder can be made that may be written to.
        const isExpected =
          code !== null &&
          (statuses.includes(code) ||
            (code === ExitCode.VmFailed && (path.startsWith('/proc/') || path === at('pipe'))));
        if (!isExpected || !isSaid || isRaw) wrong.push({ kind, code, stderr });
      };
      // A start costs half a second: of two options that start each takes the half that the other leaves.
      const half = serial++ % 2;
      const turns = Object.entries(badPaths).filter(([, { asNobody }], i) =>
        isOfRights === true ? asNobody === true : dryRun === true || takesAll || i % 2 === half,
      );
      for (let i = 0; i < turns.length; i += 2) await Promise.all(turns.slice(i, i + 2).map(isWrong));
      // What a start made is in the way of the next option's.
      rmSync(at('none'), { recursive: true, force: true });
      rmSync(at('gone'), { recursive: true, force: true });
      symlink('loop', 'loop');
      symlink('gone/x', 'dangling');
      expect(wrong).toEqual([]);
    },
    120_000,
  );
});

/** Make a link anew: a pty link or a socket may have replaced it. */
function symlink(target: string, name: string): void {
  rmSync(at(name), { recursive: true, force: true });
  symlinkSync(target, at(name));
}
