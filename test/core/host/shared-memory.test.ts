/** Shared memory has its pages when it is opened: what is missing is an error then, and no fault of a later access. */
import { spawnSync } from 'node:child_process';
import { closeSync, ftruncateSync, openSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { afterEach, describe, expect, test } from 'vitest';
import { openSharedMemory } from '../../../devicemodel/core/host/shared-memory.ts';
import { MiB } from '../../../devicemodel/core/units.ts';

const name = `/mapping-${process.pid}`;
const path = join('/dev/shm', name);
afterEach(() => rmSync(path, { force: true }));

describe('what is there when it is opened', () => {
  test.each([
    { what: 'nothing', make: () => {} },
    { what: 'an empty object', make: () => writeFileSync(path, '') },
    { what: 'one of the same size', make: () => writeFileSync(path, Buffer.alloc(2 * MiB, 1)) },
    {
      what: 'one of the same size without pages',
      make: () => {
        const fd = openSync(path, 'w');
        ftruncateSync(fd, 2 * MiB);
        closeSync(fd);
      },
    },
  ])('$what: all its pages are there then', ({ make }) => {
    make();
    const memory = openSharedMemory(name, 2 * MiB);
    // stat counts blocks of 512 bytes.
    expect(statSync(path).blocks * 512).toBe(2 * MiB);
    memory.bytes.fill(7);
    memory.dispose();
  });

  test.each([1, 4096, 2 * MiB - 1, 2 * MiB + 1, 4 * MiB])(
    'an object of %i bytes is refused and left as it is',
    (have) => {
      writeFileSync(path, Buffer.alloc(have));
      expect(() => openSharedMemory(name, 2 * MiB)).toThrow(`exists with ${have} bytes`);
      expect(statSync(path).size).toBe(have);
    },
  );

  test.each([name, name.slice(1)])('the hint for %s names the file as it is', (given) => {
    writeFileSync(path, Buffer.alloc(4096));
    const hint = expect.stringContaining(`remove ${path} `);
    expect(() => openSharedMemory(given, 2 * MiB)).toThrow(expect.objectContaining({ hint }));
  });
});

const mayMount = spawnSync('unshare', ['-m', 'true']).status === 0;

describe.skipIf(!mayMount)('a /dev/shm without room', () => {
  const module = (file: string) => pathToFileURL(join(import.meta.dirname, '../../..', file)).href;
  const within = (room: string, code: string) =>
    spawnSync(
      'unshare',
      [
        ...['-m', 'sh', '-c', `mount -t tmpfs -o size=${room} none /dev/shm && exec "$@"`, 'sh', process.execPath],
        ...['--import', 'tsx', '--input-type=module', '-e', code],
      ],
      { encoding: 'utf8', cwd: join(import.meta.dirname, '../../..') },
    );

  test.each(['4k', '512k', '1m', '2044k'])('of %s: dm:/ and hv:/ say so, and leave nothing', (room) => {
    const { stdout, stderr, signal } = within(
      room,
      `import { readdirSync, statSync } from 'node:fs';
       import { openSharedMemory } from '${module('devicemodel/core/host/shared-memory.ts')}';
       import { openSharedRegion } from '${module('hypervisor/embedded/shared-region.ts')}';
       for (const open of [() => openSharedMemory('/full', ${2 * MiB}), () => openSharedRegion('hv:/full', ${2 * MiB})]) {
         try { open().bytes.fill(1); console.log('filled'); } catch (error) { console.log(error.message); }
         for (const name of readdirSync('/dev/shm')) console.log('left', name, statSync('/dev/shm/' + name).size);
       }`,
    );
    expect([signal, stderr]).toEqual([null, '']);
    expect(stdout.match(/no room for 2097152 bytes/g)).toHaveLength(2);
    expect(stdout).not.toMatch(/filled|left/);
  });

  // Mutation: remove whatever is empty: an administrator's object, made with its mode beforehand, is gone.
  test('an empty object that was there stays', () => {
    const { stdout } = within(
      '1m',
      `import { chmodSync, statSync, writeFileSync } from 'node:fs';
       import { openSharedMemory } from '${module('devicemodel/core/host/shared-memory.ts')}';
       writeFileSync('/dev/shm/theirs', ''); chmodSync('/dev/shm/theirs', 0o660);
       try { openSharedMemory('theirs', ${2 * MiB}); } catch (error) { console.log(error.message); }
       const { size, mode } = statSync('/dev/shm/theirs'); console.log(size, (mode & 0o777).toString(8));`,
    );
    expect(stdout).toMatch(/no room for 2097152 bytes\n0 660\n$/);
  });

  test('of enough: both are filled', () => {
    const { stdout } = within(
      '4m',
      `import { openSharedMemory } from '${module('devicemodel/core/host/shared-memory.ts')}';
       openSharedMemory('/fits', ${2 * MiB}).bytes.fill(1); console.log('filled');`,
    );
    expect(stdout).toBe('filled\n');
  });
});
