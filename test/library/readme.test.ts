/** The example in README.md is run as it stands there, in an empty folder in which the packed tarball is installed. */
import { spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { installPacked } from '../support/packed.ts';
import { repository, whyNoSoftHypervisor } from '../support/program.ts';

const blocks = readFileSync(join(repository, 'README.md'), 'utf8').matchAll(/^```ts\n(.*?)^```$/gms);
const [example, ...others] = [...blocks].map(([, code]) => code as string).filter((code) => code.includes("'acrn-dm'"));

test('there is one example, of about ten lines', () => {
  expect(others).toEqual([]);
  expect(example?.trim().split('\n').length).toBeLessThan(16);
});

describe.skipIf(whyNoSoftHypervisor() !== undefined)('the example', () => {
  let folder: string;
  beforeAll(() => {
    folder = mkdtempSync(join(tmpdir(), 'acrn-dm-readme-'));
    installPacked(folder);
    writeFileSync(join(folder, 'package.json'), '{ "type": "module" }');
    writeFileSync(join(folder, 'example.mjs'), example as string);
    writeFileSync(join(folder, 'example.ts'), example as string);
  }, 60_000);
  afterAll(() => rmSync(folder, { recursive: true, force: true }));

  test('runs', () => {
    const result = spawnSync(process.execPath, ['example.mjs'], { cwd: folder, encoding: 'utf8', timeout: 60_000 });
    expect(result).toMatchObject({ status: 0, stderr: '' });
    expect(result.stdout).toContain('acrn-dm demo guest');
    expect(result.stdout).toContain('Goodbye');
    expect(result.stdout.trimEnd().split('\n').at(-1)).toBe('demo ended: guest entered ACPI S5');
  }, 60_000);

  const check = (file: string) => {
    const types = ['--typeRoots', join(repository, 'node_modules/@types'), '--types', 'node'];
    const options = [
      '--noEmit',
      '--strict',
      '--exactOptionalPropertyTypes',
      '--module',
      'nodenext',
      '--target',
      'es2022',
    ];
    const tsc = join(repository, 'node_modules/typescript/bin/tsc');
    return spawnSync(process.execPath, [tsc, ...options, ...types, file], { cwd: folder, encoding: 'utf8' });
  };

  /** The libraries' declarations are checked with it. */
  test('is typed', () => {
    expect(check('example.ts')).toMatchObject({ status: 0, stdout: '' });
  }, 60_000);

  /** Mutation: the package's `types` are not found, and everything is `any`. */
  test('a wrong word in it is found by the compiler', () => {
    writeFileSync(join(folder, 'wrong.ts'), (example as string).replace("'128M'", '128'));
    expect(check('wrong.ts').stdout).toMatch(/^wrong\.ts.*Type 'number' is not assignable to type 'string'/m);
  }, 60_000);
});
