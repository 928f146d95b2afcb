/** The example launch scripts, as acrnctl and a shell see them. */
import { execFileSync } from 'node:child_process';
import { chmodSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, expect, test } from 'vitest';
import { parseCommandLine } from '../../cmd/cli.ts';
import { scratchDirectory } from '../support/pty.ts';
import { allDrivers } from './drivers.ts';

const folder = fileURLToPath(new URL('../../examples/launch', import.meta.url));
const scratch = scratchDirectory();
afterAll(() => scratch.remove());

/** As `acrnctl add` does: the first line that begins with the program has it replaced, and the script runs. */
test('acrn-kernel.sh can be added by acrnctl', () => {
  const text = readFileSync(join(folder, 'acrn-kernel.sh'), 'utf8');
  const line = /^[ \t]*(\S*acrn-dm)(?= )/m;
  expect(text).toMatch(line);
  const recorder = scratch.file('recorder');
  writeFileSync(recorder, '#!/bin/sh\nfor word; do printf "%s\\0" "$word"; done\n');
  chmodSync(recorder, 0o755);
  const script = scratch.file('s.sh');
  writeFileSync(script, text.replace(line, recorder));
  const argv = execFileSync('bash', [script, 'bzImage', 'initrd', 'VM7'], { encoding: 'utf8' })
    .split('\0')
    .slice(0, -1);
  expect(argv.at(-1)).toBe('VM7');
  const order = parseCommandLine(argv, allDrivers);
  expect(order).toMatchObject({ action: 'run', config: { name: 'VM7', boot: { kernelPath: 'bzImage' } } });
});

test('so can acrn-linux.sh: a line begins with the program, and the name is the last word of its command', () => {
  const text = readFileSync(join(folder, 'acrn-linux.sh'), 'utf8').replaceAll('\\\n', ' ');
  expect(text).toMatch(/^acrn-dm .* "\$vm_name"$/m);
});
