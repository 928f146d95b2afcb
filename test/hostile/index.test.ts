/** docs/hostile-guests.md says where each defect is tried: there it is. */
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, test } from 'vitest';

const root = join(import.meta.dirname, '../..');
const page = readFileSync(join(root, 'docs/hostile-guests.md'), 'utf8');
const files = readdirSync(join(root, 'test'), { recursive: true, encoding: 'utf8' });

/** The rows of the table below a heading. */
function tableOf(heading: string): [what: string, where: string][] {
  const section = page.split('\n## ').find((text) => text.startsWith(`${heading}\n`)) ?? '';
  const rows = [...section.matchAll(/^\| (.+) \| (.+) \|$/gm)].map((row): [string, string] => [
    `${row[1]}`,
    `${row[2]}`,
  ]);
  if (rows.length < 2) throw new Error(`no table below "${heading}"`);
  return rows.slice(1);
}

/** The texts of the test files that a row names. */
function textsOf(where: string): string[] {
  const names = [...where.matchAll(/([a-z0-9-]+\.test\.ts)/g)].map((match) => match[1] as string);
  expect(names).not.toEqual([]);
  return names.map((name) => {
    const path = files.find((file) => file.endsWith(`/${name}`));
    expect([name, path]).not.toEqual([name, undefined]);
    return readFileSync(join(root, 'test', path as string), 'utf8');
  });
}

test.each(tableOf('Defects of other device models, as tests'))('%s', (defect, where) => {
  const texts = textsOf(where);
  const ids = defect.match(/CVE-\d+-\d+|SA-26:72|PR 5353|#3149|QEMU 3882|asa (?=\d)/g) ?? [];
  expect(ids.length).toBeGreaterThan(0);
  for (const id of ids) expect([id, texts.some((text) => text.includes(id))]).toEqual([id, true]);
});

// No number to look for: the files are there.
test.each(tableOf('Found here'))('%s', (_what, where) => {
  textsOf(where);
});
