/**
 * Lines that are wrong, through the program twice: `--dry-run` ends with the status and the first line of a start. What
 * can be told by files alone is in test/config/paths.test.ts.
 */
import { spawnSync } from 'node:child_process';
import { mkdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test, vi } from 'vitest';
import { ExitCode } from '../../devicemodel/core/errors.ts';
import { demoGuest, repository, whyNoSoftHypervisor } from '../support/program.ts';

const folder = join(tmpdir(), `acrn-dry-${process.pid}`);
const at = (name: string) => join(folder, name);
const { DataError, NoInput, Unavailable, Usage } = ExitCode;
/** Of one run; a test has two. */
const PATIENCE_MS = 60_000;
vi.setConfig({ testTimeout: 2 * PATIENCE_MS });

/** Status, and the first line that is no warning. */
function outcome(args: readonly string[]) {
  const argv = [join(repository, 'dist/acrn-dm.js'), ...args, `dry-${process.pid}`];
  const { status, stderr } = spawnSync('node', argv, {
    encoding: 'utf8',
    stdio: ['ignore', 'pipe', 'pipe'],
    timeout: PATIENCE_MS,
  });
  const said = stderr.split('\n').find((line) => /^acrn-dm: (?!warning: )/.test(line));
  return { status, said };
}

const boot = ['-k', demoGuest, '-s', '0:0,hostbridge', '-s', '1:0,lpc'];

describe.skipIf(whyNoSoftHypervisor() !== undefined)('a dry run ends as a start would', () => {
  beforeAll(() => {
    mkdirSync(folder);
    writeFileSync(at('text'), 'no image\n');
  });
  afterAll(() => rmSync(folder, { recursive: true }));

  test.each<[string, number, readonly string[]]>([
    ['ports of com5 that com1 has', Usage, [...boot, '-l', 'com1,pty', '-l', 'com5,pty,0x3fc,5']],
    ['stdio twice, by ports', Usage, [...boot, '-l', 'com1,stdio', '-l', 'com2,stdio']],
    ['stdio twice, in a console', Usage, [...boot, '-s', '3,virtio-console,@stdio:a,@stdio:b']],
    ['stdio twice, port and console', Usage, [...boot, '-l', 'com1,stdio', '-s', '3,virtio-console,@stdio:a']],
    ['stdio twice, port and vUART', Usage, [...boot, '-l', 'com1,stdio', '-s', '3,uart,stdio']],
    ['no such function', Unavailable, [...boot, '-s', '3,passthru,0/1e/6']],
    ['device memory', Unavailable, [...boot, '--mmiodev_pt', '0xfed40000,0x5000']],
    ['a descriptor that is no socket', Usage, [...boot, '--api-socket', 'fd=0']],
    ['two mistakes: the disk comes first', NoInput, ['-k', at('text'), '-s', `3,virtio-blk,${at('none')}`]],
    ['two mistakes: the engine comes first', Unavailable, ['--ovmf', at('text')]],
    ['two mistakes: a group, then a kernel', Usage, ['-k', at('text'), '--socket-group', 'no_such_group_x']],
    ['a text file', DataError, ['-k', at('text')]],
  ])('%s', (_what, status, args) => {
    const dry = outcome(['--dry-run', '--hypervisor', 'soft', ...args]);
    expect(dry).toEqual({ status, said: expect.stringMatching(/^acrn-dm: (?!internal)/) });
    expect(outcome(['--hypervisor', 'soft', ...args])).toEqual(dry);
  });

  test.each([
    ['0x402', 'pm1a event'],
    ['0xcf8', 'reset'],
    ['0x70', 'rtc'],
    ['0x60', 'i8042 data'],
    ['0xb2', 'smi command'],
  ])('ports of com5 at %s, where the PC has its own', (port, holder) => {
    const { status, said } = outcome(['--dry-run', ...boot, '-l', `com5,pty,${port},5`]);
    expect({ status, said }).toEqual({
      status: Usage,
      said: expect.stringMatching(new RegExp(`^acrn-dm: -l com5: of its ports, ${port} to 0x.*, ${holder} has`)),
    });
  });

  test('the ids of CPUs are the host’s on ACRN only', () => {
    expect(outcome(['--dry-run', '--hypervisor', 'soft', '--cpu_affinity', '300', ...boot]).status).toBe(ExitCode.Ok);
    expect(outcome(['--dry-run', '--hypervisor', 'acrn', '--cpu_affinity', '300', ...boot]).status).not.toBe(0);
  });
});
