/** docs/compat.md says of every device what it was tried on. */
import { readFileSync } from 'node:fs';
import { expect, test } from 'vitest';
import { pciDrivers, platformDrivers } from '../../devicemodel/hw/registry.ts';

test('each device has a place in the table of what it was tried on', () => {
  const page = readFileSync(new URL('../../docs/compat.md', import.meta.url), 'utf8');
  const section = page.split('\n## ').find((text) => text.startsWith('What each device was tried on'));
  const cells = [...(section ?? '').matchAll(/^\| ([^|]+) \|/gm)].map(([, cell]) => cell);
  const named = cells.flatMap((cell) => (cell ?? '').split(/[ ,()]+/));
  const names = [...pciDrivers.map(({ name }) => name), ...platformDrivers.map(({ name }) => `--${name}`)];
  expect(names.filter((name) => !named.includes(name))).toEqual([]);
});
