/** docs/hostile-guests.md says where each defect is tried: there it is. */
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, test } from 'vitest';

const root = join(import.meta.dirname, '../..');
const page = readFileSync(join(root, 'docs/hostile-guests.md'), 'utf8');
const rows = page.split('\n').flatMap((line) => /^\| (.+) \| (.+) \|$/.exec(line)?.slice(1) ?? []);
const files = readdirSync(join(root, 'test'), { recursive: true, encoding: 'utf8' });

test.each(
  rows
    .filter((_, i) => i % 2 === 0)
    .map((defect, i) => [defect, rows[2 * i + 1] as string] as const)
    .filter(([defect]) => defect !== 'Defect'),
)('%s', (defect, where) => {
  const names = [...where.matchAll(/([a-z0-9-]+\.test\.ts)/g)].map((match) => match[1] as string);
  const texts = names.map((name) => {
    const path = files.find((file) => file.endsWith(`/${name}`));
    expect([name, path]).not.toEqual([name, undefined]);
    return readFileSync(join(root, 'test', path as string), 'utf8');
  });
  const ids = defect.match(/CVE-\d+-\d+|SA-26:72|PR 5353|#3149|QEMU 3882|asa (?=\d)/g) ?? [];
  expect(ids.length).toBeGreaterThan(0);
  for (const id of ids) expect([id, texts.some((text) => text.includes(id))]).toEqual([id, true]);
});
