/** The example launch scripts, as acrnctl and a shell see them. */
import { execFileSync } from 'node:child_process';
import { chmodSync, existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, expect, test } from 'vitest';
import { parseCommandLine } from '../../cmd/cli.ts';
import { pciDrivers } from '../../devicemodel/hw/registry.ts';
import { goRound } from '../support/go-round.ts';
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

/** The command lines an example starts the program with. */
function linesOf(script: string, ...words: string[]): string[][] {
  const bin = scratch.file('bin');
  const lines = scratch.file('lines');
  mkdirSync(bin, { recursive: true });
  mkdirSync(lines, { recursive: true });
  const recorder = join(bin, 'acrn-dm');
  writeFileSync(recorder, `#!/bin/sh\nfor word; do printf '%s\\0' "$word"; done > ${lines}/$$\n`);
  chmodSync(recorder, 0o755);
  // A CPU that there is none of, and a network that is there: nothing of the host is changed.
  const env = { ...process.env, DM: recorder, CPUS: '4095', TAP: 'lo' };
  execFileSync('bash', [join(folder, script), ...words], { env, stdio: ['ignore', 'ignore', 'inherit'] });
  const found = readdirSync(lines).map((name) => readFileSync(join(lines, name), 'utf8').split('\0').slice(0, -1));
  rmSync(lines, { recursive: true });
  return found;
}

test.each([
  ['soft-demo.sh', 1, []],
  ['two-vms.sh', 2, []],
  ['acrn-kernel.sh', 1, ['bzImage', 'initrd', 'VM7']],
  ['acrn-linux.sh', 1, ['VM8']],
] as const)('%s says the same as a file', (script, count, words) => {
  if (script === 'acrn-linux.sh' && !existsSync('/sys/class/net/lo')) return;
  const lines = linesOf(script, ...words);
  expect(lines).toHaveLength(count);
  for (const argv of lines) {
    goRound(argv, pciDrivers);
    expect(parseCommandLine(argv, pciDrivers)).toMatchObject({ action: 'run' });
  }
});

test('every example is looked at', () => {
  const scripts = readdirSync(folder).filter((name) => name.endsWith('.sh'));
  expect(scripts.sort()).toEqual(['acrn-kernel.sh', 'acrn-linux.sh', 'soft-demo.sh', 'two-vms.sh']);
});
