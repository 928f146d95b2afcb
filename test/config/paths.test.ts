/**
 * Every option that takes a path, times every way in which a path can be wrong, as a start and `--dry-run` look at them
 * before there is a VM: a documented status, one line that names the path, no words of Node's. What is a matter of rights
 * takes another user: test/integration/paths.test.ts.
 */
import { execFileSync, spawn } from 'node:child_process';
import {
  chmodSync,
  copyFileSync,
  mkdirSync,
  mkdtempSync,
  realpathSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { createServer, type Server } from 'node:net';
import { tmpdir } from 'node:os';
import { basename, dirname, join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { parseCommandLine, type VmOrder } from '../../cmd/cli.ts';
import { errorLines, exitCodeOf } from '../../cmd/report.ts';
import { readConfigFile } from '../../config/config-file.ts';
import { checkHost, hostProblems, imageProblems } from '../../config/preflight.ts';
import { ExitCode } from '../../devicemodel/core/errors.ts';
import { pciDrivers } from '../../devicemodel/hw/registry.ts';
import { demoGuest } from '../support/program.ts';

const folder = realpathSync(mkdtempSync(join(tmpdir(), 'acrn-paths-')));
const at = (name: string) => join(folder, name);
const { NoInput, DataError, CannotCreate, Usage, Config, Unavailable, IoError } = ExitCode;

const badPaths: Readonly<Record<string, string>> = {
  ENOENT: at('none/x'),
  'ENOENT, a link to nothing': at('dangling'),
  'ENOENT, in /proc': '/proc/none/x',
  'ENOENT, an odd name in /sys': '/sys/kernel/none',
  'ENOENT, a descriptor': '/proc/self/fd/987',
  ENOTDIR: at('file/x'),
  'ENOTDIR, a slash at the end': `${at('file')}/`,
  'ELOOP, in the middle': at('loop/x'),
  'ELOOP, at the end': at('loop'),
  'ENAMETOOLONG, one name': at('n'.repeat(300)),
  'ENAMETOOLONG, a folder': at(`${'n'.repeat(300)}/x`),
  'ENAMETOOLONG, as bytes': at('ü'.repeat(140)),
  'ENAMETOOLONG, in all': at(`n${'/n'.repeat(2500)}`),
  EISDIR: at('folder'),
  'EISDIR, a slash at the end': `${at('folder')}/`,
  'EISDIR, /': '/',
  ENXIO: at('socket'),
  ETXTBSY: at('running'),
  'a named pipe': at('pipe'),
  'no terminal': '/dev/zero',
  'a link in a folder for everybody': at('sticky/link'),
  'control characters': at('a\x1b[31m\nb'),
};

interface PathOption {
  readonly args: (path: string) => readonly string[];
  /** Every status that may be; 0 where the thing is made, or only the start can tell. */
  readonly statuses: readonly number[];
}

const boot = ['-k', demoGuest];
const reading = [NoInput, DataError, Usage];
/** Output: what is there is written to. */
const written = [0, CannotCreate, Usage];
const slot = (text: string) => [...boot, '-s', `3,${text}`];
const display = ['-s', '4,virtio-gpu,geometry=640x480', '--display'];

const options: Readonly<Record<string, PathOption>> = {
  '-k': { args: (p) => ['-k', p], statuses: reading },
  // Any file can be a RAM disk.
  '-r': { args: (p) => [...boot, '-r', p], statuses: [0, ...reading] },
  '-E': { args: (p) => ['-E', p], statuses: reading },
  '--ovmf': { args: (p) => ['--ovmf', p], statuses: [0, ...reading] },
  '--ovmf vars=': { args: (p) => ['--ovmf', `w,code=${at('code')},vars=${p}`], statuses: [0, ...reading] },
  '--bios': { args: (p) => ['--bios', p, '--fw_cfg='], statuses: reading },
  '--config': { args: (p) => [...boot, '--config', p], statuses: [...reading, Config] },
  '--fw_cfg file=': { args: (p) => [...boot, '--fw_cfg', `opt/a,file=${p}`], statuses: [0, ...reading] },
  'virtio-blk': { args: (p) => slot(`virtio-blk,${p}`), statuses: reading },
  'virtio-blk, two': { args: (p) => [...slot('virtio-blk,nodisk'), '-s', `5,virtio-blk,${p},ro`], statuses: reading },
  ahci: { args: (p) => slot(`ahci,hd:${p}`), statuses: reading },
  'ahci-cd': { args: (p) => slot(`ahci-cd,${p}`), statuses: reading },
  'virtio-rpmb': { args: (p) => slot(`virtio-rpmb,path=${p}`), statuses: [...written, DataError] },
  'virtio-input': { args: (p) => slot(`virtio-input,${p}`), statuses: [NoInput] },
  'virtio-gpio': { args: (p) => slot(`virtio-gpio,@${p}{0=a}`), statuses: [Usage] },
  'virtio-i2c': { args: (p) => slot(`virtio-i2c,${p}:20`), statuses: [Usage] },
  'ivshmem dm:': { args: (p) => slot(`ivshmem,dm:${p},2`), statuses: [Usage] },
  'passthru romfile=': { args: (p) => slot(`passthru,0/1f/7,romfile=${p}`), statuses: [...reading, Unavailable] },
  'passthru dsdt=': { args: (p) => slot(`passthru,0/1f/7,dsdt=${p}`), statuses: [...reading, Unavailable] },
  'virtio-net tap=': { args: (p) => slot(`virtio-net,tap=${p}`), statuses: [Usage] },
  '--vtpm2': { args: (p) => [...boot, '--vtpm2', `sock_path=${p}`], statuses: [0, NoInput, Usage] },
  'virtio-console file': { args: (p) => slot(`virtio-console,file:a=${p}`), statuses: written },
  'virtio-console tty': { args: (p) => slot(`virtio-console,tty:a=${p}`), statuses: [NoInput] },
  'virtio-console pty': { args: (p) => slot(`virtio-console,pty:a=${p}`), statuses: written },
  'virtio-console server': { args: (p) => slot(`virtio-console,socket:a=${p}:server`), statuses: written },
  'virtio-console client': { args: (p) => slot(`virtio-console,socket:a=${p}:client`), statuses: [0, NoInput] },
  '-l file:': { args: (p) => [...boot, '-s', '1,lpc', '-l', `com2,file:${p}`], statuses: written },
  '-l unix:': { args: (p) => [...boot, '-s', '1,lpc', '-l', `com2,unix:${p}`], statuses: written },
  '-l pty:': { args: (p) => [...boot, '-s', '1,lpc', '-l', `com2,pty:${p}`], statuses: written },
  '-l TTY': { args: (p) => [...boot, '-s', '1,lpc', '-l', `com2,${p}`], statuses: [NoInput] },
  uart: { args: (p) => slot(`uart,${p}`), statuses: [NoInput] },
  '--cmd_monitor': { args: (p) => [...boot, '--cmd_monitor', p], statuses: written },
  '--api-socket': { args: (p) => [...boot, '--api-socket', `path=${p}`], statuses: written },
  '--event-monitor': { args: (p) => [...boot, '--event-monitor', `path=${p}`], statuses: written },
  '--crash-dump': { args: (p) => [...boot, '--crash-dump', p], statuses: written },
  '--display vnc=unix:': { args: (p) => [...boot, ...display, `vnc=unix:${p}`], statuses: written },
  '--display password-file=': {
    args: (p) => [...boot, ...display, `vnc=127.0.0.1:5901,password-file=${p}`],
    statuses: [0, ...reading],
  },
  '--pm_by_vuart pty': {
    args: (p) => [...boot, '--pm_notify_channel', 'uart', '--pm_by_vuart', `pty,${p}`],
    statuses: written,
  },
  '--pm_by_vuart tty': {
    args: (p) => [...boot, '--pm_notify_channel', 'uart', '--pm_by_vuart', `tty,${p}`],
    statuses: [NoInput],
  },
};

/** What each kind makes of what is written: the same for every option that writes. */
const refusedOutputs = Object.keys(badPaths).filter((kind) => !/^(a named pipe|no terminal|control)/.test(kind));

async function problemsWith(argv: readonly string[]): Promise<{ status: number; lines: readonly string[] }> {
  try {
    const order = parseCommandLine([...argv, 'vm1'], pciDrivers, readConfigFile) as VmOrder;
    const found = await checkHost(order.config, { root: '', isPlan: false });
    const [problem] = [...(await hostProblems(order.config)), ...found.problems, ...imageProblems(order.config)];
    return { status: problem?.exitCode ?? 0, lines: problem === undefined ? [] : errorLines(problem) };
  } catch (error) {
    return { status: exitCodeOf(error), lines: errorLines(error) };
  }
}

const RAW = /internal error|, (open|l?stat|access|mkdir|connect|read|scandir|statfs)\b|Error:|undefined|\p{Cc}/u;

describe('a path that is wrong', () => {
  let server: Server;
  let running: ReturnType<typeof spawn>;
  beforeAll(async () => {
    mkdirSync(at('folder'));
    mkdirSync(at('sticky'));
    chmodSync(at('sticky'), 0o1777);
    writeFileSync(at('sticky/real'), 'x');
    symlinkSync('real', at('sticky/link'));
    writeFileSync(at('file'), 'x');
    writeFileSync(at('code'), Buffer.alloc(1 << 20, 0x90));
    symlinkSync('loop', at('loop'));
    symlinkSync('gone/x', at('dangling'));
    execFileSync('mkfifo', [at('pipe')]);
    copyFileSync('/bin/sleep', at('running'));
    chmodSync(at('running'), 0o755);
    running = spawn(at('running'), ['600'], { stdio: 'ignore' });
    await new Promise((resolve) => running.once('spawn', resolve));
    server = createServer((socket) => socket.destroy());
    await new Promise<void>((resolve) => server.listen(at('socket'), resolve));
  });
  afterAll(async () => {
    running.kill();
    await new Promise((resolve) => server.close(resolve));
    rmSync(folder, { recursive: true });
  });

  test.each(Object.entries(options))('%s', async (_name, { args, statuses }) => {
    const wrong: unknown[] = [];
    for (const [kind, path] of Object.entries(badPaths)) {
      const { status, lines } = await problemsWith(args(path));
      const [said = ''] = lines;
      // A long word is shown by its ends; a path by its own name, its folder or its size.
      const names = [
        path.replace(/\/$/, ''),
        basename(path),
        dirname(path),
        `${Buffer.byteLength(path)} bytes`,
        'nnn',
        'üüü',
        '1023',
        '255',
        'control characters',
      ];
      const isSaid = status === 0 || (said.startsWith('acrn-dm: ') && names.some((name) => said.includes(name)));
      const isRaw = lines.some((line) => RAW.test(line)) || lines.filter((line) => !/^hint:/.test(line)).length > 1;
      if (!statuses.includes(status) || !isSaid || isRaw) wrong.push({ kind, status, lines });
    }
    expect(wrong).toEqual([]);
  });

  // As a start finds them: each of these was status 0 of a dry run once.
  test.each([
    ['-l file:', ['ENOENT, a link to nothing', 'ENOENT, an odd name in /sys', 'ENOENT, a descriptor', 'ETXTBSY']],
    ['--event-monitor', ['ENOENT, a link to nothing', 'ETXTBSY', 'a link in a folder for everybody']],
    ['--crash-dump', ['ENOENT, a link to nothing', 'ETXTBSY', 'a link in a folder for everybody', 'ENXIO']],
    ['virtio-rpmb', ['ENOENT, a link to nothing', 'a named pipe', 'no terminal', 'ETXTBSY']],
    ['--cmd_monitor', ['ENOENT, in /proc', 'ENOENT, an odd name in /sys', 'ENOENT, a descriptor', 'ETXTBSY']],
    ['--api-socket', ['ENOENT, in /proc', 'ENOENT, a descriptor', 'ELOOP, in the middle']],
    ['-l pty:', ['ENOENT, in /proc', 'ENOENT, an odd name in /sys', 'ENOTDIR']],
    ['--pm_by_vuart pty', ['ENOENT, in /proc', 'ENOTDIR', 'EISDIR', 'ELOOP, in the middle']],
    ['--pm_by_vuart tty', ['ENOENT', 'no terminal', 'EISDIR', 'ENXIO']],
    ['virtio-input', ['no terminal', 'EISDIR', 'a named pipe', 'ETXTBSY']],
    ['uart', ['no terminal', 'a named pipe']],
  ])('%s: a dry run says what a start does', async (name, kinds) => {
    const { args } = options[name] as PathOption;
    for (const kind of kinds) {
      const { status } = await problemsWith(args(badPaths[kind] as string));
      expect([kind, status]).toEqual([kind, expect.toSatisfy((s: number) => s !== 0 && s !== IoError)]);
    }
  });

  test('of what is written to', async () => {
    const { args } = options['-l file:'] as PathOption;
    for (const kind of refusedOutputs) {
      expect([kind, (await problemsWith(args(badPaths[kind] as string))).status]).toEqual([kind, CannotCreate]);
    }
  });
});
