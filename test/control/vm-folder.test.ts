import { existsSync, mkdirSync, readdirSync, readFileSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { claimName } from '../../control/vm-folder.ts';
import { defaultApiSocket, vmFoldersRoot } from '../../control/vm-paths.ts';
import { ExitCode, HostError } from '../../devicemodel/core/errors.ts';
import { listenUnix } from '../../devicemodel/core/host/unix-listener.ts';
import { memoryLog } from '../support/memory-log.ts';
import { scratchDirectory } from '../support/pty.ts';

const before = process.env['ACRN_RUN_DIR'];
let scratch: ReturnType<typeof scratchDirectory>;
beforeEach(() => {
  scratch = scratchDirectory();
  process.env['ACRN_RUN_DIR'] = scratch.file('run');
});
afterEach(() => {
  process.env['ACRN_RUN_DIR'] = before;
  scratch.remove();
});

describe('where the folders of VMs are', () => {
  test.each([
    ['root', {}, 0, '/run/acrn/vm'],
    ['root, whatever the session says', { XDG_RUNTIME_DIR: '/run/user/0' }, 0, '/run/acrn/vm'],
    ['a user', { XDG_RUNTIME_DIR: '/run/user/7' }, 7, '/run/user/7/acrn/vm'],
    ['a user without a session', { XDG_RUNTIME_DIR: '' }, 7, `${tmpdir()}/acrn-7/vm`],
    ['a user whose session says what is no path', { XDG_RUNTIME_DIR: 'run/user/7' }, 7, `${tmpdir()}/acrn-7/vm`],
    ['a user whose session says here', { XDG_RUNTIME_DIR: '.' }, 7, `${tmpdir()}/acrn-7/vm`],
    ['asked for', { ACRN_RUN_DIR: '/x', XDG_RUNTIME_DIR: '/run/user/7' }, 7, '/x/vm'],
  ])('%s', (_who, env, uid, expected) => {
    expect(vmFoldersRoot(env, uid)).toBe(expected);
  });
});

describe('a name', () => {
  test('is taken once, by a process that the refusal names, and free again afterwards', () => {
    const { log } = memoryLog();
    const release = claimName('vm1', log);
    expect(readFileSync(scratch.file('run/vm/vm1/lock'), 'utf8')).toBe(`${process.pid}\n`);
    let refusal: unknown;
    try {
      claimName('vm1', log);
    } catch (error) {
      refusal = error;
    }
    expect(refusal).toBeInstanceOf(HostError);
    expect(refusal).toMatchObject({
      message: `a VM with the name "vm1" runs already, as process ${process.pid}`,
      exitCode: ExitCode.Unavailable,
    });
    claimName('vm2', log)();
    release();
    expect(existsSync(scratch.file('run/vm/vm1'))).toBe(false);
    claimName('vm1', log)();
  });

  test('whose holder is dead is free: a lock file alone means nothing', () => {
    mkdirSync(scratch.file('run/vm/vm1'), { recursive: true, mode: 0o755 });
    writeFileSync(scratch.file('run/vm/vm1/lock'), '4194305\n');
    claimName('vm1', memoryLog().log)();
  });

  /** By name of the file, what is in it. */
  const leftovers: Array<[string, Readonly<Record<string, string>>]> = [
    ['a folder alone: killed before it made the lock', {}],
    ['a lock without a number: killed before it wrote it', { lock: '' }],
    ['a lock', { lock: '4194305\n' }],
    ['a lock and the socket of its API', { lock: '4194305\n', 'api.sock': '' }],
    ['a socket alone: killed at its end', { 'api.sock': '' }],
    ['a lock with a number that another process has by now', { lock: `${process.pid}\n`, 'api.sock': '' }],
    ['a lock with what is no number', { lock: 'x\n' }],
  ];
  function leave(name: string, files: Readonly<Record<string, string>>): string {
    const folder = scratch.file(`run/vm/${name}`);
    mkdirSync(folder, { recursive: true, mode: 0o755 });
    for (const [file, text] of Object.entries(files)) writeFileSync(join(folder, file), text);
    return folder;
  }

  test.each(leftovers)('what a dead VM of another name left goes: %s', (_what, files) => {
    leave('dead', files);
    const release = claimName('vm1', memoryLog().log);
    expect(readdirSync(scratch.file('run/vm'))).toEqual(['vm1']);
    release();
  });

  test.each(leftovers)('what a dead VM of this name left is in nobody’s way: %s', (_what, files) => {
    leave('vm1', files);
    const release = claimName('vm1', memoryLog().log);
    expect(readFileSync(scratch.file('run/vm/vm1/lock'), 'utf8')).toBe(`${process.pid}\n`);
    release();
  });

  test.each<[string, string | undefined, string]>([
    ['its process lives', `${process.pid}\n`, 'api.sock'],
    ['its process has not said which it is', '', 'api.sock'],
    ['its process has the number of one that is gone', '4194305\n', 'api.sock'],
    ['something else is in it', '4194305\n', 'notes'],
  ])('what is another VM’s stays: %s', (_what, pid, file) => {
    const folder = leave('other', { [file]: '' });
    const release = file === 'notes' ? () => {} : claimName('other', memoryLog().log);
    writeFileSync(join(folder, 'lock'), pid ?? '');
    claimName('vm1', memoryLog().log)();
    expect(existsSync(join(folder, file))).toBe(true);
    release();
  });

  test('the socket of a VM that has no lock stays while somebody listens', async () => {
    const folder = leave('other', {});
    const listener = await listenUnix(join(folder, 'api.sock'), () => {});
    claimName('vm1', memoryLog().log)();
    expect(readdirSync(folder)).toEqual(['api.sock']);
    listener.close();
  });

  test.each(['a', 'a/b', 'a/b/c d', 'ä/ö', 'a/./b'])(
    'is taken once also below folders that are not there: %s',
    (below) => {
      process.env['ACRN_RUN_DIR'] = scratch.file(below);
      const { log } = memoryLog();
      const release = claimName('vm1', log);
      expect(() => claimName('vm1', log)).toThrow('runs already');
      release();
      expect(readdirSync(scratch.file(`${below}/vm`))).toEqual([]);
    },
  );

  test('is not guarded where there is no place for it, and the VM runs', () => {
    writeFileSync(scratch.file('file'), '');
    process.env['ACRN_RUN_DIR'] = join(scratch.file('file'), 'run');
    const { log, lines } = memoryLog();
    claimName('vm1', log)();
    expect(lines.join()).toContain('is not guarded');
  });

  test.each([0, 0o022, 0o077, 0o777])('under umask %i nobody else can open its lock, and hold it', (umask) => {
    const before = process.umask(umask);
    try {
      const release = claimName('vm1', memoryLog().log);
      expect(statSync(scratch.file('run/vm/vm1/lock')).mode & 0o777).toBe(0o600);
      expect(statSync(scratch.file('run/vm')).mode & 0o777).toBe(0o755);
      release();
    } finally {
      process.umask(before);
    }
  });

  test('has a folder that nobody else may write to, with the socket of its API', () => {
    const release = claimName('vm1', memoryLog().log);
    expect(statSync(scratch.file('run/vm/vm1')).mode & 0o777).toBe(0o755);
    expect(defaultApiSocket('vm1')).toBe(scratch.file('run/vm/vm1/api.sock'));
    expect(existsSync(defaultApiSocket('vm1'))).toBe(false);
    release();
  });
});
