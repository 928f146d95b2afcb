/**
 * V8's code cache is used when it is whole and of this bundle; otherwise it costs time, and nothing else. What the
 * caches here hold is seen by the version the program prints: a text in the cached code, and in the bundle.
 */
import { execFileSync, spawnSync } from 'node:child_process';
import {
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { crc32 } from 'node:zlib';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { repository, whyNoSoftHypervisor } from '../support/program.ts';

/** CRC-32, then four bytes of nothing. */
const HEADER_BYTES = 8;
const OTHER_VERSION = '9.8.7';

describe.skipIf(whyNoSoftHypervisor() !== undefined)('the code cache', () => {
  let dist: string;
  let cachePath: string;
  let bundle: Buffer;
  let cache: Buffer;
  let version: string;

  beforeAll(() => {
    // Below the repository, so that packages are found.
    const parent = join(repository, 'node_modules/.cache');
    mkdirSync(parent, { recursive: true });
    dist = mkdtempSync(join(parent, 'acrn-dm-cache-'));
    for (const name of readdirSync(join(repository, 'dist'))) {
      if (name !== 'lib') cpSync(join(repository, 'dist', name), join(dist, name), { recursive: true });
    }
    version = (JSON.parse(readFileSync(join(repository, 'package.json'), 'utf8')) as { version: string }).version;
    expect(version).toHaveLength(OTHER_VERSION.length);
    // A run that prints the version has it in its cache.
    execFileSync(process.execPath, [join(repository, 'tools/bundle/write-code-cache.cjs'), dist, '--version']);
    cachePath = join(dist, `acrn-dm.${process.versions.v8}.cache`);
    bundle = readFileSync(join(dist, 'acrn-dm.bundle.cjs'));
    cache = readFileSync(cachePath);
  }, 60_000);
  afterAll(() => rmSync(dist, { recursive: true, force: true }));

  const node = (...args: string[]) => {
    const result = spawnSync(process.execPath, args, { encoding: 'utf8' });
    return { status: result.status, signal: result.signal, stdout: result.stdout, stderr: result.stderr };
  };
  const start = (...args: string[]) => node(join(dist, 'acrn-dm.js'), ...args);
  const answer = (shown: string) => ({
    status: 0,
    signal: null,
    stdout: `DM version is: 3.4 (acrn-dm ${shown})\n`,
    stderr: '',
  });
  /** With another word beside it, the program answers. */
  const startsAs = (shown: string) => expect(start('--debug', '--version')).toEqual(answer(shown));

  /** The cache with another version in it, as a damage would have left it. */
  const altered = () => {
    const copy = Buffer.from(cache);
    const at = copy.indexOf(version, HEADER_BYTES, 'latin1');
    expect(at).toBeGreaterThan(0);
    copy.write(OTHER_VERSION, at, 'latin1');
    return copy;
  };
  const withChecksum = (file: Buffer, over: Buffer) => {
    const copy = Buffer.from(file);
    copy.writeUInt32LE(crc32(copy.subarray(HEADER_BYTES), crc32(over)));
    return copy;
  };

  /** Mutation: `cachedData` is never set. Also shows that V8 itself does not notice. */
  test('is what runs, when its checksum is right', () => {
    writeFileSync(cachePath, withChecksum(altered(), bundle));
    startsAs(OTHER_VERSION);
  });

  /** Mutation: the checksum is not compared, or leaves out the cache. */
  test('is not used when a text in it has changed', () => {
    writeFileSync(cachePath, altered());
    startsAs(version);
  });

  /** Mutation: the checksum leaves out the bundle. V8 only compares the length. */
  test('is not used for another bundle of the same length', () => {
    const other = Buffer.from(bundle.toString('latin1').replaceAll(`"${version}"`, `"${OTHER_VERSION}"`), 'latin1');
    expect(other).toHaveLength(bundle.length);
    expect(other).not.toEqual(bundle);
    writeFileSync(cachePath, cache);
    try {
      writeFileSync(join(dist, 'acrn-dm.bundle.cjs'), other);
      startsAs(OTHER_VERSION);
    } finally {
      writeFileSync(join(dist, 'acrn-dm.bundle.cjs'), bundle);
    }
  });

  test('with bits flipped in 100 places, costs time only', () => {
    const damaged = Buffer.from(cache);
    for (let place = 0; place < 100; place++) {
      const at = HEADER_BYTES + Math.floor(((place + 0.5) * (cache.length - HEADER_BYTES)) / 100);
      damaged[at] = (damaged[at] as number) ^ (1 << (place % 8));
    }
    writeFileSync(cachePath, damaged);
    startsAs(version);
  });

  test.each([0, 7, 8, 0.5, 0.999])('cut off at %d (bytes, or a share of it), costs time only', (end) => {
    writeFileSync(cachePath, cache.subarray(0, end < 1 ? Math.floor(cache.length * end) : end));
    startsAs(version);
  });

  describe('and what Node wants to be rid of', () => {
    const strict = ['--pending-deprecation', '--throw-deprecation'];
    const versionInCache = (...options: string[]) => {
      writeFileSync(cachePath, withChecksum(altered(), bundle));
      return node(...options, join(dist, 'acrn-dm.js'), '--debug', '--version');
    };

    /** Mutation: process.binding() is called while Node still tells of it. */
    test('the program does not die of it, and says nothing', () => {
      expect(versionInCache(...strict)).toEqual(answer(OTHER_VERSION));
      expect(versionInCache('--pending-deprecation')).toEqual(answer(OTHER_VERSION));
    });

    /** Mutation: process.noDeprecation is not put back. */
    test.each(['undefined', 'true'])('process.noDeprecation is %s as before', (before) => {
      const setsAndShows = join(dist, 'no-deprecation.cjs');
      const set = before === 'true' ? 'process.noDeprecation = true;' : '';
      writeFileSync(setsAndShows, `${set} process.on('exit', () => console.error(process.noDeprecation));`);
      expect(versionInCache('--require', setsAndShows)).toEqual({ ...answer(OTHER_VERSION), stderr: `${before}\n` });
    });

    /** Mutation: one try for both, so that the cache is given up. */
    test.each(['undefined', '() => { throw new Error("gone"); }', '() => ({})'])(
      'with %s for process.binding the cache is used',
      (binding) => {
        const without = join(dist, 'without-binding.cjs');
        writeFileSync(without, `process.binding = ${binding};`);
        expect(versionInCache('--require', without)).toEqual(answer(OTHER_VERSION));
      },
    );

    /** Mutation: the library calls process.binding(), too. */
    test("another's program that loads the library does not use it", () => {
      writeFileSync(cachePath, cache);
      const loads = `process.binding = () => process.exit(9); require(${JSON.stringify(join(dist, 'library.js'))});`;
      expect(node(...strict, '-e', loads)).toEqual({ status: 0, signal: null, stdout: '', stderr: '' });
    });
  });

  test('that V8 refuses, costs time only', () => {
    const refused = Buffer.from(cache);
    // V8's own version hash.
    refused.fill(0xff, HEADER_BYTES + 4, HEADER_BYTES + 8);
    writeFileSync(cachePath, withChecksum(refused, bundle));
    startsAs(version);
  });

  test('may be missing', () => {
    rmSync(cachePath, { force: true });
    startsAs(version);
  });

  /** Mutation: without the branch in tools/bundle/acrn-dm.js, or with it for other words. */
  test('is not even read for --version alone, nor is the bundle', () => {
    writeFileSync(join(dist, 'acrn-dm.bundle.cjs'), 'not a program');
    try {
      expect(start('--version')).toEqual(answer(version));
      expect(start('-v')).toEqual(answer(version));
      expect(start('--debug', '--version').status).toBe(1);
    } finally {
      writeFileSync(join(dist, 'acrn-dm.bundle.cjs'), bundle);
    }
  });

  describe('as a build makes it', () => {
    let folder: string;
    beforeAll(() => {
      folder = mkdtempSync(join(tmpdir(), 'acrn-dm-cache-'));
    });
    afterAll(() => rmSync(folder, { recursive: true, force: true }));

    /** @param tmp the folder for temporary files, where nothing may be left. */
    const make = (tmp: string) => {
      mkdirSync(tmp);
      const module = join(repository, 'tools/bundle/code-cache.mjs');
      const script = `import(${JSON.stringify(module)}).then((made) => made.makeCodeCache(${JSON.stringify(dist)}))`;
      const ofThisUser = join(folder, 'run');
      const { status, stderr } = spawnSync(process.execPath, ['-e', script], {
        encoding: 'utf8',
        env: { ...process.env, TMPDIR: tmp, ACRN_RUN_DIR: ofThisUser },
      });
      expect({ status, left: readdirSync(tmp), isUserTouched: existsSync(ofThisUser) }).toEqual({
        status: 0,
        left: [],
        isUserTouched: false,
      });
      return { stderr, bytes: statSync(cachePath).size };
    };

    /** Mutations: the VM is a plan; the VM's failure is not told of; the VM is where this user's VMs meet. */
    test('it is that of a VM; where the VM fails, that of a plan, and it says so', () => {
      const ofVm = make(join(folder, 'short'));
      expect(ofVm.stderr).toBe('');
      // Sockets of the VM do not fit.
      const ofPlan = make(join(folder, 'long'.repeat(25)));
      expect(ofPlan.stderr).toMatch(
        /^build: a smaller code cache, since the VM that it comes from failed \(status \d+\): /,
      );
      startsAs(version);
      expect(ofVm.bytes).toBeGreaterThan(ofPlan.bytes * 1.1);
    }, 60_000);
  });
});
