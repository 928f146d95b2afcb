/** Two files that import each other fail the check, even if they only want types. */
import { spawnSync } from 'node:child_process';
import { copyFileSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { repository } from '../support/program.ts';

let folder: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'acrn-dm-circle-'));
  copyFileSync(join(repository, 'biome.json'), join(folder, 'biome.json'));
});
afterEach(() => rmSync(folder, { recursive: true, force: true }));

/** @returns what the linter says about a tree that consists of these files. */
function lint(files: Record<string, string>): string {
  for (const [path, text] of Object.entries(files)) {
    mkdirSync(dirname(join(folder, path)), { recursive: true });
    writeFileSync(join(folder, path), text);
  }
  const biome = join(repository, 'node_modules/@biomejs/biome/bin/biome');
  const result = spawnSync(process.execPath, [biome, 'lint'], { cwd: folder, encoding: 'utf8' });
  return result.stdout + result.stderr;
}

/** Mutation: `ignoreTypes` is true, or the rule is off. */
test('a circle of types', () => {
  const output = lint({
    'devicemodel/core/a.ts': "import type { B } from './b.ts';\nexport type A = B | 1;\n",
    'devicemodel/core/b.ts': "import type { A } from './a.ts';\nexport type B = A | 2;\n",
  });
  expect(output).toMatch(/core\/a\.ts:1:\d+ lint\/suspicious\/noImportCycles/);
  expect(output).toMatch(/core\/b\.ts:1:\d+ lint\/suspicious\/noImportCycles/);
});

test('a circle over three files', () => {
  const output = lint({
    'control/a.ts': "import { b } from './b.ts';\nexport const a = () => b;\n",
    'control/b.ts': "import { c } from './c.ts';\nexport const b = () => c;\n",
    'control/c.ts': "import type { a } from './a.ts';\nexport const c = (f: typeof a) => f;\n",
  });
  expect(output).toContain('noImportCycles');
});

test('no circle, no complaint', () => {
  const output = lint({
    'control/a.ts': "import type { B } from './b.ts';\nexport type A = B | 1;\n",
    'control/b.ts': 'export type B = 2;\n',
  });
  expect(output).not.toContain('noImportCycles');
});
