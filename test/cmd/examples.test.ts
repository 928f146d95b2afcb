/** The example launch scripts, as acrnctl and a shell see them. */
import { execFileSync, spawnSync } from 'node:child_process';
import { chmodSync, cpSync, existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
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

/** Where ACRN or its program is, a script would find them: it would take CPUs and start a VM. */
const isAcrnHost = existsSync('/sys/devices/virtual/misc/acrn_hsm') || existsSync('/usr/bin/acrn-dm');

/** Copies of the examples, beside which there is no program. */
const alone = scratch.file('alone');
const PATH = `${dirname(process.execPath)}:/usr/bin:/bin`;

// Mutation: leave the check out: bash, node and cp say it in their words, with a stack or the line of the script.
test.each([
  ['launch/soft-demo.sh', [], {}, 69, 'npm run build'],
  ['launch/two-vms.sh', [], {}, 69, 'npm run build'],
  ['launch/soft-demo.sh', [], { DM: '/none/acrn-dm -v' }, 69, 'there is no /none/acrn-dm'],
  ['launch/two-vms.sh', [], { DM: 'none-acrn-dm' }, 69, 'there is no none-acrn-dm'],
  ['launch/acrn-kernel.sh', ['k', 'r'], {}, 69, 'no acrn-dm on PATH'],
  ['launch/acrn-kernel.sh', ['k', 'r'], { DM: '/none/acrn-dm' }, 69, 'DM=/none/acrn-dm: there is no such program'],
  ['launch/acrn-kernel.sh', ['k'], {}, 64, 'usage: acrn-kernel.sh KERNEL RAMDISK'],
  ['launch/acrn-linux.sh', [], {}, 69, 'no acrn-dm on PATH'],
  ['launch/acrn-linux.sh', [], { DM: '/none/acrn-dm' }, 69, 'there is no such program'],
  // A CPU that is there is not taken from a host without ACRN.
  ['launch/acrn-linux.sh', [], { DM: '/bin/true', CPUS: apicIdOfLastCpu(), TAP: 'lo' }, 69, 'no Service VM of ACRN'],
  ['debian-i386/run.sh', [], {}, 69, 'npm run build'],
  ['debian-i386/run.sh', [], { DM: 'none-acrn-dm' }, 69, 'there is no none-acrn-dm'],
  ['debian-i386/run.sh', [], { DM: '/bin/true', DEBIAN_I386: '/proc/none' }, 73, '/proc/none cannot be made'],
  ['debian-i386/fetch.sh', ['/proc/none'], {}, 73, '/proc/none cannot be made'],
  ['debian-i386/mkinitramfs.sh', [], {}, 64, 'usage: mkinitramfs.sh DIR'],
  ['debian-i386/mkinitramfs.sh', ['/none'], {}, 66, '/none has no busybox and modules'],
] as const)('%s %j %j says what is missing', (script, words, env, status, said) => {
  if (isAcrnHost && script.startsWith('launch/acrn-')) return;
  if (script.endsWith('acrn-linux.sh') && 'CPUS' in env && env.CPUS === undefined) return;
  if (/cannot be made/.test(said) && !existsSync('/usr/bin/apt-get')) return;
  cpSync(join(folder, '..'), join(alone, 'examples'), { recursive: true });
  const ended = spawnSync('bash', [join(alone, 'examples', script), ...words], {
    cwd: '/',
    env: { PATH, ...env },
    encoding: 'utf8',
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  expect(ended.stderr.trim().split('\n')).toEqual([expect.stringContaining(said)]);
  expect(ended.status).toBe(status);
});

// Of the checkout, where there is neither DM nor a program on PATH.
test('acrn-kernel.sh starts what is beside it', () => {
  const root = scratch.file('beside');
  cpSync(join(folder, '..'), join(root, 'examples'), { recursive: true });
  mkdirSync(join(root, 'dist'), { recursive: true });
  writeFileSync(join(root, 'dist/acrn-dm.js'), 'console.log(process.argv.slice(2).join(" "))');
  const script = join(root, 'examples/launch/acrn-kernel.sh');
  const said = execFileSync('bash', [script, 'my kernel', 'r', 'VM9'], { cwd: '/', env: { PATH }, encoding: 'utf8' });
  expect(said).toMatch(/^--hypervisor acrn .* -k my kernel -r r .* VM9\n$/);
});

/** undefined: only CPU 0, which nobody gives away. */
function apicIdOfLastCpu(): string | undefined {
  const ids = [...readFileSync('/proc/cpuinfo', 'latin1').matchAll(/^initial apicid\s*: (\d+)/gm)].map((m) => m[1]);
  const last = ids.length - 1;
  return last > 0 && existsSync(`/sys/devices/system/cpu/cpu${last}/online`) ? ids[last] : undefined;
}
