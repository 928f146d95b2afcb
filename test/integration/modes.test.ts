/**
 * Everything that a VM with all of it makes on the host, with its mode, whatever the umask of whoever started it: sockets
 * and what a VM keeps for itself are this user's alone, what the command line names to be written follows the umask.
 */
import { spawn } from 'node:child_process';
import {
  chmodSync,
  chownSync,
  existsSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join, relative } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { repository, softVm, whyNoSoftHypervisor } from '../support/program.ts';

const tag = `mode${process.pid % 1_000_000}`;
const DISK_BYTES = 1 << 20;
const OUTPUT = 0o640;

let folder: string;
const at = (name: string) => join(folder, name);
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'modes-'));
  writeFileSync(at('disk'), Buffer.alloc(DISK_BYTES), { mode: 0o600 });
});
afterEach(() => {
  rmSync(folder, { recursive: true, force: true });
  for (const name of readdirSync('/dev/shm')) if (name.includes(tag)) rmSync(join('/dev/shm', name));
  const logs = '/var/log/acrn-dm';
  if (existsSync(logs)) for (const name of readdirSync(logs)) if (name.includes(tag)) rmSync(join(logs, name));
});

function everything(extra: readonly string[]): string[] {
  const sockets = ['--cmd_monitor', at('a/monitor'), '--api-socket', `path=${at('b/api')}`];
  const consoles = [
    ...['-l', `com2,unix:${at('c/com2')}`, '-l', `com3,pty:${at('d/link')}`, '-s', `8,uart,file:${at('com.log')}`],
    ...['-s', `4,virtio-console,@pty:a=${at('e/link')},socket:b=${at('f/console')}:server,file:c=${at('console.log')}`],
  ];
  const screen = ['-s', '9,virtio-gpu,geometry=640x480', '--display', `vnc=unix:${at('g/vnc')}`];
  const memory = ['-s', `5,ivshmem,dm:/${tag},2`, '-s', `6,ivshmem,hv:/${tag},2`];
  const disks = ['-s', `3,virtio-blk,${at('disk')}`, '-s', `7,virtio-rpmb,path=${at('rpmb')}`];
  const told = ['--event-monitor', `path=${at('events')}`, '--logger_setting', 'console,level=4;disk,level=4'];
  return softVm(tag, 'demo=echo', ...sockets, ...consoles, ...screen, ...memory, ...disks, ...told, ...extra);
}

/** What there is, by name: type and mode. */
function listed(): Record<string, string> {
  const found: Record<string, string> = {};
  const look = (path: string, name: string) => {
    const stat = lstatSync(path);
    const type = stat.isSocket() ? 'socket' : stat.isSymbolicLink() ? 'link' : stat.isDirectory() ? 'folder' : 'file';
    found[name] = type === 'link' ? type : `${type} ${(stat.mode & 0o7777).toString(8)}`;
    if (stat.isDirectory()) for (const each of readdirSync(path)) look(join(path, each), join(name, each));
  };
  for (const name of readdirSync(folder)) look(at(name), name);
  for (const shared of ['/dev/shm', '/var/log/acrn-dm']) {
    const names = existsSync(shared) ? readdirSync(shared).filter((name) => name.includes(tag)) : [];
    for (const name of names) look(join(shared, name), relative('/', join(shared, name)));
  }
  return found;
}

/** Runs until the guest prints. @returns what there was then, and after its end. */
async function run(umask: number, extra: readonly string[] = []) {
  const program = [process.execPath, join(repository, 'dist/acrn-dm.js'), ...everything(extra)];
  const child = spawn('sh', ['-c', `umask ${umask.toString(8)}; exec "$@"`, 'sh', ...program], {
    stdio: 'pipe',
    env: { ...process.env, ACRN_RUN_DIR: at('run') },
  });
  let shown = '';
  let said = '';
  const prompted = new Promise<void>((resolve) => {
    child.stdout.on('data', (text: Buffer) => {
      shown += text.toString();
      if (shown.includes('> ')) resolve();
    });
    child.stdout.once('close', resolve);
  });
  child.stderr.on('data', (text: Buffer) => (said += text.toString()));
  const exited = new Promise<number | null>((resolve) => child.once('close', resolve));
  try {
    await prompted;
    expect(shown, said).toContain('> ');
    const running = listed();
    child.kill('SIGINT');
    expect(await exited, said).toBe(0);
    return { running, after: listed(), pid: child.pid };
  } finally {
    child.kill('SIGKILL');
    await exited;
  }
}

/** @param open mode of sockets, and of folders made for them; the group whose VMs meet, if they do. */
function expected(umask: number, pid: number | undefined, open: Open = { socket: '600', folder: '700' }) {
  const uid = process.getuid?.();
  const output = `file ${(OUTPUT & ~umask).toString(8)}`;
  const socket = `socket ${open.socket}`;
  const places = { a: 'monitor', b: 'api', c: 'com2', f: 'console', g: 'vnc' };
  const meeting =
    open.groupId === undefined
      ? {
          ...{ 'run/soft': 'folder 700', 'run/soft/lock': 'file 600', 'run/soft/vm-1.sock': 'socket 600' },
          [`dev/shm/acrn-soft.${uid}.${tag}`]: 'file 600',
        }
      : {
          [`run/group-${open.groupId}`]: 'folder 3770',
          [`run/group-${open.groupId}/lock`]: 'file 660',
          [`run/group-${open.groupId}/vm-1.sock`]: 'socket 660',
          [`run/group-${open.groupId}/region.${tag}`]: 'file 660',
        };
  const kept = { disk: 'file 600', rpmb: 'file 600', 'com.log': output, 'console.log': output, events: output };
  const lasting = {
    ...kept,
    [`dev/shm/${tag}`]: 'file 600',
    ...(uid === 0 ? { [`var/log/acrn-dm/${tag}_log_0`]: output } : {}),
  };
  return {
    lasting,
    running: {
      ...lasting,
      ...Object.fromEntries(
        Object.entries(places).flatMap(([place, name]) => [
          [place, `folder ${open.folder}`],
          [join(place, name), socket],
        ]),
      ),
      ...{ d: 'folder 700', 'd/link': 'link', e: 'folder 700', 'e/link': 'link' },
      ...{ run: 'folder 755', 'run/mngr': 'folder 755', 'run/vm': 'folder 755', [`run/vm/${tag}`]: 'folder 755' },
      ...{ [`run/mngr/${tag}.monitor.${pid}.socket`]: socket, [`run/vm/${tag}/lock`]: 'file 600' },
      ...meeting,
    },
  };
}

interface Open {
  readonly socket: string;
  readonly folder: string;
  readonly groupId?: number;
}

const isRoot = process.getuid?.() === 0;
const reason = isRoot ? whyNoSoftHypervisor() : 'the places are those of root';

describe.skipIf(reason !== undefined)('the modes of everything there is', { timeout: 120_000 }, () => {
  // Mutation: take withUmask from any of those who use it.
  test.each(['000', '022', '077', '177', '777'])('umask %s', async (text) => {
    const umask = Number.parseInt(text, 8);
    const { running, after, pid } = await run(umask);
    const { lasting, running: wanted } = expected(umask, pid);
    expect(running).toEqual(wanted);
    expect(after).toMatchObject(lasting);
    expect(Object.entries(after).filter(([, what]) => /socket|link/.test(what))).toEqual([]);
  });

  test('for a group: sockets, the folders made for them, where its VMs meet, and nothing else', async () => {
    // As root makes it once, for all members.
    const meeting = at('run/group-1');
    mkdirSync(meeting, { recursive: true });
    chownSync(meeting, 0, 1);
    chmodSync(meeting, 0o3770);
    const { running, pid } = await run(0o077, ['--socket-group', '1']);
    expect(running).toEqual(expected(0o077, pid, { socket: '660', folder: '750', groupId: 1 }).running);
  });

  // The group of what is made in such a folder is the folder's.
  test.each(['2755', '2777', '1777'])('in folders of mode %s that are there', async (text) => {
    const mode = Number.parseInt(text, 8);
    for (const name of ['a', 'b', 'c', 'd', 'e', 'f', 'g']) {
      mkdirSync(at(name));
      chmodSync(at(name), mode);
    }
    const { running, pid } = await run(0);
    const own = `folder ${mode.toString(8)}`;
    const there = Object.fromEntries(['a', 'b', 'c', 'd', 'e', 'f', 'g'].map((name) => [name, own]));
    expect(running).toEqual({ ...expected(0, pid).running, ...there });
  });
});
