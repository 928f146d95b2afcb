/** What is installed: how much, and that it starts. */
import { spawnSync } from 'node:child_process';
import { mkdtempSync, readdirSync, rmSync, statSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { type Installed, installPacked } from '../support/packed.ts';
import { repository, whyNoSoftHypervisor } from '../support/program.ts';

/** Bytes on disk: whole blocks, as du counts. Links are not followed. */
function diskBytes(path: string): number {
  let sum = 0;
  for (const entry of readdirSync(path, { withFileTypes: true })) {
    const inner = join(path, entry.name);
    if (entry.isDirectory()) sum += diskBytes(inner);
    else if (entry.isFile()) sum += statSync(inner).blocks * 512;
  }
  return sum;
}

describe.skipIf(whyNoSoftHypervisor() !== undefined)('the packed tarball, installed in an empty folder', () => {
  let folder: string;
  let installed: Installed;
  beforeAll(() => {
    folder = mkdtempSync(join(tmpdir(), 'acrn-dm-package-'));
    installed = installPacked(folder);
  }, 60_000);
  afterAll(() => rmSync(folder, { recursive: true, force: true }));

  const acrnDm = (...args: string[]) =>
    spawnSync(process.execPath, [join(installed.path, 'dist/acrn-dm.js'), ...args], { cwd: folder, encoding: 'utf8' });

  /** Mutation: yargs in `dependencies` brings six more. */
  test('v86 aside, is five packages in at most 12 MB', () => {
    expect([...installed.packages].sort()).toEqual([
      '@koromix/koffi-linux-x64',
      'acrn-dm',
      'eventemitter3',
      'koffi',
      'valibot',
    ]);
    expect(diskBytes(join(folder, 'node_modules'))).toBeLessThan(12e6);
  });

  /** Mutation: `minify: false` in tools/build.mjs. */
  test('the bundle is at most 600 KB', () => {
    expect(statSync(join(installed.path, 'dist/acrn-dm.bundle.cjs')).size).toBeLessThan(600e3);
  });

  /** The help is made by yargs, which comes with the package. Mutation: dist/yargs.cjs is not built. */
  test('starts', () => {
    expect(acrnDm('--version').stdout).toMatch(/^DM version is: \d+\.\d+ \(acrn-dm \d+\.\d+\.\d+\)\n$/);
    expect(acrnDm('--help').stdout).toMatch(/^Usage: acrn-dm \[OPTIONS\] NAME/);
    expect(acrnDm('--dry-run', '-k', join(repository, 'examples/guest/demo.bzimage'), 'vm')).toMatchObject({
      status: 0,
      stderr: '',
    });
  });

  /** Mutation: `sourcemap` left out of tools/build.mjs. */
  test('a stack names places in the sources', () => {
    const stack = acrnDm('--debug', '-m', '1', 'vm')
      .stderr.split('\n')
      .filter((line) => line.startsWith('    at '));
    expect(stack[0]).toMatch(/^ {4}at config\/slot\.ts:\d+:\d+$/);
    expect(stack.join('\n')).toMatch(/at cmd\/acrn-dm\.ts:\d+:\d+/);
  });
});
