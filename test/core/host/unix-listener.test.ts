/** Who may connect to our sockets, whatever the umask, and which folders are good enough for them. */
import { spawn, spawnSync } from 'node:child_process';
import {
  chmodSync,
  chownSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { Server } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest';
import { ConfigError, ExitCode, HostError } from '../../../devicemodel/core/errors.ts';
import { ensureOwnFolder, FolderMode, makeParents } from '../../../devicemodel/core/host/folders.ts';
import { groupId } from '../../../devicemodel/core/host/groups.ts';
import { isServed } from '../../../devicemodel/core/host/is-served.ts';
import { listenUnix, type UnixListener } from '../../../devicemodel/core/host/unix-listener.ts';
import { Log } from '../../../devicemodel/core/log.ts';
import { FileBackend } from '../../../devicemodel/hw/uart/backends/file.ts';
import { stuckListener } from '../../support/stuck-listener.ts';

let root: string;
const open: UnixListener[] = [];
const umask = process.umask();
beforeEach(() => {
  root = mkdtempSync(join(tmpdir(), 'unix-listener-'));
});
afterEach(() => {
  vi.restoreAllMocks();
  process.umask(umask);
  for (const listener of open.splice(0)) listener.close();
  rmSync(root, { recursive: true, force: true });
});

const mode = (path: string) => (statSync(path).mode & 0o7777).toString(8);
async function listen(path: string, group?: string) {
  open.push(await listenUnix(path, (socket) => socket.destroy(), { group }));
}
const isRoot = process.getuid?.() === 0;

// Mutation: give Node the path as it is: it listens at a TCP port, or says that its options are invalid.
test.each(['5', ' ', '0x10', '1e3', '00'])('a path "%s" is a path, and no port', async (name) => {
  const before = process.cwd();
  process.chdir(root);
  try {
    await listen(name);
    expect(statSync(join(root, name)).isSocket()).toBe(true);
    expect(await isServed(name)).toBe(true);
    open.splice(0).at(-1)?.close();
    expect(readdirSync(root)).toEqual([]);
  } finally {
    process.chdir(before);
  }
});

describe('a socket is for this user alone', () => {
  test.each([0o000, 0o002, 0o022, 0o077, 0o777])('umask %o', async (mask) => {
    process.umask(mask);
    await listen(join(root, 's'));
    expect(mode(join(root, 's'))).toBe('600');
    expect(process.umask()).toBe(mask);
  });

  test('from the moment it is there', async () => {
    const { listen: original } = Server.prototype;
    const modes: string[] = [];
    vi.spyOn(Server.prototype, 'listen').mockImplementation(function (this: Server, ...args: unknown[]) {
      original.apply(this, args as Parameters<typeof original>);
      modes.push(mode(join(root, 's')));
      return this;
    });
    process.umask(0);
    await listen(join(root, 's'));
    expect(modes).toEqual(['600']);
  });

  test.each(['a/s', 'a/b/s', 'a/b/c/d/e/s', './x/../y/s', 'with space/s'])(
    'and so are the folders made for %s',
    async (path) => {
      process.umask(0);
      await listen(join(root, path));
      const made = readdirSync(root, { recursive: true, withFileTypes: true }).filter((entry) => entry.isDirectory());
      expect(made.length).toBeGreaterThan(0);
      for (const entry of made) expect(mode(join(entry.parentPath, entry.name))).toBe('700');
    },
  );

  test.skipIf(!isRoot)('or for a group', async () => {
    process.umask(0o077);
    await listen(join(root, 'd/s'), 'daemon');
    expect([mode(join(root, 'd/s')), mode(join(root, 'd'))]).toEqual(['660', '750']);
    expect([statSync(join(root, 'd/s')).gid, statSync(join(root, 'd')).gid]).toEqual([
      groupId('daemon'),
      groupId('daemon'),
    ]);
  });

  test.each(['nobody-has-this-name', '', '4294967295', '-1', 'a b', 'root\0'])('no group %j', async (group) => {
    await expect(listen(join(root, 's'), group)).rejects.toThrow(ConfigError);
    expect(existsSync(join(root, 's'))).toBe(false);
  });
});

describe('what is in the way', () => {
  test.each([
    { what: 'a file', make: (path: string) => writeFileSync(path, 'mine') },
    { what: 'a folder', make: (path: string) => mkdirSync(path) },
    {
      what: 'a link to a file',
      make: (path: string) => {
        writeFileSync(`${path}2`, '');
        symlinkSync(`${path}2`, path);
      },
    },
    { what: 'a link to nothing', make: (path: string) => symlinkSync('/nowhere/at/all', path) },
    {
      what: 'a file above it',
      make: (path: string) => {
        writeFileSync(`${path}d`, '');
      },
      path: 'sd/s',
    },
  ])('$what stays, status 73', async ({ make, path = 's' }) => {
    make(join(root, 's'));
    const before = readdirSync(root);
    await expect(listen(join(root, path))).rejects.toMatchObject({ exitCode: ExitCode.CannotCreate });
    expect(readdirSync(root)).toEqual(before);
  });

  test('a socket that somebody serves stays', async () => {
    await listen(join(root, 's'));
    await expect(listen(join(root, 's'))).rejects.toThrow('in use');
    expect(existsSync(join(root, 's'))).toBe(true);
  });

  // Mutation: any error of connect(2) counts as nobody. It says EAGAIN to the 130th of a VM that stands still.
  test('a socket whose owner stands still, and is connected to no more, stays', async () => {
    const path = join(root, 's');
    const end = await stuckListener(path);
    try {
      expect(await isServed(path)).toBe(true);
      await expect(listen(path)).rejects.toThrow('in use');
      expect(existsSync(path)).toBe(true);
    } finally {
      end();
    }
    // Killed, it is in nobody's way.
    expect(await isServed(path)).toBe(false);
    await listen(path);
  });

  test('one that nobody serves is replaced, also by several starts at once', async () => {
    const path = join(root, 's');
    const module = pathToFileURL(join(import.meta.dirname, '../../../devicemodel/core/host/unix-listener.ts')).href;
    spawnSync(process.execPath, [
      '-e',
      `require('net').createServer().listen(${JSON.stringify(path)}, () => process.kill(process.pid, 'SIGKILL'))`,
    ]);
    expect(existsSync(path)).toBe(true);
    const code = `
      import { listenUnix } from ${JSON.stringify(module)};
      try { await listenUnix(process.argv[1], () => {}); console.log('listens'); setTimeout(() => process.exit(0), 3000); }
      catch (error) { console.log(error.message.includes('in use') || error.errno === 98 ? 'in use' : error.stack); process.exit(0); }`;
    const outcomes = await Promise.all(
      [1, 2, 3].map(async () => {
        const child = spawn(process.execPath, ['--import', 'tsx', '--input-type=module', '-e', code, path]);
        let text = '';
        child.stdout.setEncoding('utf8').on('data', (part) => (text += part));
        await new Promise((resolve) => child.once('close', resolve));
        return text.trim();
      }),
    );
    expect(outcomes.filter((text) => text === 'listens').length).toBeGreaterThan(0);
    expect(outcomes.filter((text) => text !== 'listens' && text !== 'in use')).toEqual([]);
  });
});

describe('a folder of our own', () => {
  test.each([0, 0o022, 0o077, 0o777])('has its mode with umask %o', (mask) => {
    process.umask(mask);
    ensureOwnFolder(join(root, 'public'), FolderMode.public);
    ensureOwnFolder(join(root, 'private'), FolderMode.private);
    expect([mode(join(root, 'public')), mode(join(root, 'private'))]).toEqual(['755', '700']);
  });

  test.each([
    { what: 'mode 0777', spoil: (path: string) => chmodSync(path, 0o777), said: 'written by others (mode 0777)' },
    { what: 'mode 1777', spoil: (path: string) => chmodSync(path, 0o1777), said: 'written by others (mode 1777)' },
    { what: 'mode 0770', spoil: (path: string) => chmodSync(path, 0o770), said: 'written by others (mode 0770)' },
    {
      what: 'another owner',
      spoil: (path: string) => chownSync(path, 65534, 0),
      said: 'belongs to user 65534',
      root: true,
    },
    {
      what: 'a link',
      spoil: (path: string) => {
        rmSync(path, { recursive: true });
        symlinkSync(tmpdir(), path);
      },
      said: 'is no folder',
    },
    {
      what: 'a file',
      spoil: (path: string) => {
        rmSync(path, { recursive: true });
        writeFileSync(path, '');
      },
      said: 'is no folder',
    },
  ])('is not used if it is $what', ({ spoil, said, root: needsRoot }) => {
    if (needsRoot === true && !isRoot) return;
    const path = join(root, 'ours');
    mkdirSync(path, { mode: 0o700 });
    spoil(path);
    expect(() => ensureOwnFolder(path, FolderMode.private)).toThrow(said);
    expect(() => ensureOwnFolder(path, FolderMode.private)).toThrow(HostError);
  });

  test.each([0o700, 0o755, 0o750, 0o711, 0o500])('is used if it is ours with mode %o', (have) => {
    const path = join(root, 'ours');
    mkdirSync(path);
    chmodSync(path, have);
    ensureOwnFolder(path, FolderMode.private);
    expect(mode(path)).toBe(have.toString(8));
  });

  test('parents that are there are left as they are', () => {
    chmodSync(root, 0o1777);
    makeParents(join(root, 'a/s'));
    expect([mode(root), mode(join(root, 'a'))]).toEqual(['1777', '700']);
  });
});

describe('file: in a folder where everybody may make files', () => {
  const backend = (path: string) => new FileBackend(path, { user: 'com1', log: new Log([]) });

  test.each(['to a file', 'to nothing', 'to a folder', 'to itself', 'to a device'])(
    'does not follow a link %s',
    (target) => {
      chmodSync(root, 0o1777);
      const targets: Record<string, string> = {
        'to a file': join(root, 'victim'),
        'to nothing': join(root, 'made'),
        'to a folder': root,
        'to itself': join(root, 'log'),
        'to a device': '/dev/null',
      };
      writeFileSync(join(root, 'victim'), 'kept');
      symlinkSync(targets[target] as string, join(root, 'log'));
      expect(() => backend(join(root, 'log')).start()).toThrow('ELOOP');
      expect(existsSync(join(root, 'made'))).toBe(false);
    },
  );

  test('follows one in a folder that is ours, and makes files others cannot read', () => {
    process.umask(0);
    symlinkSync(join(root, 'made'), join(root, 'log'));
    const line = backend(join(root, 'log'));
    line.start();
    line.stop();
    expect(mode(join(root, 'made'))).toBe('640');
  });
});
