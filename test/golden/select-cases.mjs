/**
 * Which recorded cases of the reference this program is held to: the shell patterns of cases.txt, in order; `!` takes
 * cases out again. As a program it prints their directories: select-cases.mjs GOLDEN_DIR
 */
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';

/** @returns names of the chosen directories of `goldenDir`, sorted. */
export function selectCases(goldenDir) {
  const names = readdirSync(goldenDir, { withFileTypes: true })
    .filter((entry) => entry.isDirectory())
    .map((entry) => entry.name)
    .sort();
  const chosen = new Set();
  for (const line of readFileSync(join(import.meta.dirname, 'cases.txt'), 'utf8').split('\n')) {
    if (line === '' || line.startsWith('#')) continue;
    const out = line.startsWith('!');
    const pattern = new RegExp(`^${line.slice(out ? 1 : 0).replaceAll('*', '.*')}$`);
    for (const name of names.filter((each) => pattern.test(each))) {
      if (out) chosen.delete(name);
      else chosen.add(name);
    }
  }
  return names.filter((name) => chosen.has(name));
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? '').href) {
  const goldenDir = process.argv[2];
  if (goldenDir === undefined) throw new Error('usage: select-cases.mjs GOLDEN_DIR');
  for (const name of selectCases(goldenDir)) console.log(join(goldenDir, name));
}
