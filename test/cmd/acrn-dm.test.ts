/** The program as a process: what goes to which stream, and the status it ends with. */
import { spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { build } from 'esbuild';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { ExitCode } from '../../devicemodel/core/errors.ts';
import { FakeHostPci } from '../support/fake-host-pci.ts';

const root = fileURLToPath(new URL('../..', import.meta.url));
/** Below node_modules, so that packages are found from there. */
const program = join(root, 'node_modules/.cache/acrn-dm-test/acrn-dm.mjs');

beforeAll(async () => {
  await build({
    absWorkingDir: root,
    entryPoints: ['cmd/acrn-dm.ts'],
    outfile: program,
    bundle: true,
    platform: 'node',
    format: 'esm',
    packages: 'external',
    define: { ACRN_DM_VERSION: '"1.2.3"' },
  });
});

const DEMO = join(root, 'examples/guest/demo.bzimage');
const SCRIPT = join(root, 'examples/launch/soft-demo.sh');
/** Looks like firmware of 1 MiB: no-operation instructions. */
const FIRMWARE = join(mkdtempSync(join(tmpdir(), 'acrn-dm-test-')), 'OVMF.fd');
writeFileSync(FIRMWARE, new Uint8Array(1024 * 1024).fill(0x90));
afterAll(() => rmSync(dirname(FIRMWARE), { recursive: true }));

function acrnDm(...args: string[]) {
  const result = spawnSync(process.execPath, [program, ...args], {
    encoding: 'utf8',
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  return { status: result.status, stdout: result.stdout, stderr: result.stderr };
}

describe('acrn-dm', () => {
  test('help goes to standard output', () => {
    const { status, stdout, stderr } = acrnDm('--help');
    expect({ status, stderr }).toEqual({ status: ExitCode.Ok, stderr: '' });
    expect(stdout).toMatch(/^Usage: acrn-dm \[OPTIONS\] NAME/);
    for (const option of ['--memsize', '--pci_slot', '--dry-run', '--gvtargs', '-W']) expect(stdout).toContain(option);
  });
  test('so do the drivers and the version', () => {
    expect(acrnDm('-s', 'help')).toMatchObject({ status: ExitCode.Ok, stdout: expect.stringContaining('ivshmem') });
    // libvirt's ACRN driver wants this beginning.
    expect(acrnDm('-v').stdout).toBe('DM version is: 3.4 (acrn-dm 1.2.3)\n');
  });
  test('a benchmark runs a guest, and says what the documentation says', () => {
    const { status, stdout, stderr } = acrnDm('--benchmark=json', '--hypervisor', 'soft');
    expect({ status, stderr }).toEqual({ status: ExitCode.Ok, stderr: '' });
    const found = JSON.parse(stdout) as Record<string, unknown>;
    const text = readFileSync(join(root, 'docs/embedded-hypervisor.md'), 'utf8');
    const [, section = ''] = /^## How fast it is$(.*?)^## /ms.exec(text) ?? [];
    const members = [...section.matchAll(/^\| `(\w+)` \|/gm)].map(([, name]) => name);
    expect(members).toEqual(Object.keys(found));
    expect(found).toMatchObject({ schemaVersion: 1, version: '1.2.3', hypervisor: 'soft', vcpus: 1 });
    // As many as a loop of the guest has, and an exit for each read: far below what any machine does, and above nothing.
    expect(found['instructionsPerSecond']).toBeGreaterThan(1_000_000);
    expect(found['portExitsPerSecond']).toBeGreaterThan(1000);
    expect(found['mmioExitsPerSecond']).toBeGreaterThan(1000);
  }, 60_000);
  test('a reader that goes away is no error', () => {
    const shell = spawnSync(
      'sh',
      ['-c', `"$0" "$1" --help | head -n 1; "$0" "$1" --help >&-`, process.execPath, program],
      {
        encoding: 'utf8',
      },
    );
    expect(shell).toMatchObject({ status: ExitCode.Ok, stdout: 'Usage: acrn-dm [OPTIONS] NAME\n', stderr: '' });
  });
  test('an error is one line and a hint on standard error', () => {
    expect(acrnDm('--frobnicate', 'vm')).toEqual({
      status: ExitCode.Usage,
      stdout: '',
      stderr: 'acrn-dm: unknown option --frobnicate\nhint: acrn-dm --help lists all options\n',
    });
  });
  test('a stack is shown with --debug only', () => {
    expect(acrnDm('-m', '1', 'vm').stderr).not.toMatch(/^ {4}at /m);
    expect(acrnDm('--debug', '-m', '1', 'vm').stderr).toMatch(/^ {4}at /m);
  });
  test('a dry run prints the machine, warnings aside, and ends with 0', () => {
    const { status, stdout, stderr } = acrnDm('--dry-run', '-A', '-s', '0:0,hostbridge', '-k', DEMO, 'vm');
    expect({ status, stderr }).toEqual({
      status: ExitCode.Ok,
      stderr: 'acrn-dm: warning: -A: obsolete, ignored: ACPI tables are always there\n',
    });
    expect(stdout).toContain('00:00.0');
  });
  test.each([
    ['a missing kernel', 66, ['-k', '/nonexistent']],
    ['a kernel below a file', 66, ['-k', `${DEMO}/k`]],
    ['a kernel that is none', 65, ['-k', SCRIPT]],
    ['a missing ramdisk', 66, ['-k', DEMO, '-r', '/nonexistent']],
    ['a missing disk', 66, ['-k', DEMO, '-s', '3,virtio-blk,/nonexistent']],
    ['a disk below a file', 66, ['-k', DEMO, '-s', `3,virtio-blk,${DEMO}/d`]],
    ['a name that is too long', 66, ['-k', DEMO, '-s', `3,virtio-blk,/${'d'.repeat(300)}`]],
    ['memory out of the engine’s reach', 69, ['-k', DEMO, '-m', '4G', '--hypervisor', 'soft']],
    ['firmware on an engine without', 69, ['--ovmf', FIRMWARE, '--hypervisor', 'soft']],
    ['a group that is none', 64, ['-k', DEMO, '--socket-group', 'no_such_group_x']],
    ['a socket below a file', 73, ['-k', DEMO, '--cmd_monitor', `${DEMO}/s`]],
    ['a descriptor that is none', 64, ['-k', DEMO, '--api-socket', 'fd=987']],
    ['no CPUs on ACRN', 64, ['-k', DEMO, '--hypervisor', 'acrn']],
  ])('a dry run reports what a start would: %s, status %i', (_, status, args) => {
    const result = acrnDm('--dry-run', ...args, '-s', '0:0,hostbridge', '-s', '1:0,lpc', 'vm');
    expect(result.status).toBe(status);
    expect(result.stderr).toMatch(/^acrn-dm: /);
    expect(result.stderr).not.toContain('internal error');
    expect(result.stdout).toContain('00:00.0');
  });
  test('a dry run says what the engine makes of the CPUs, as a start does', () => {
    const plan = ['--dry-run', '-k', DEMO, '-s', '0:0,hostbridge', '--hypervisor', 'soft', 'vm'];
    const { status, stderr } = acrnDm('--cpu_affinity', '0,1', ...plan);
    expect(status).toBe(ExitCode.Ok);
    expect(stderr).toBe('acrn-dm: warning: --cpu_affinity names 2 CPUs; the software engine gives the VM one vCPU\n');
    expect(acrnDm('--cpu_affinity', '1', ...plan).stderr).toBe('');
  });
  test('where no engine was named, what this machine cannot run is a warning: the plan may be for another', () => {
    const { status, stderr } = acrnDm('--dry-run', '-k', DEMO, '-m', '4G', '-s', '0:0,hostbridge', 'vm');
    expect(status).toBe(ExitCode.Ok);
    expect(stderr).toMatch(/warning: not on this machine.* 4 GiB/);
  });
  // Mutation: ask whether the engine that was chosen is here, which it always is.
  test('and so is a function that this machine does not have', () => {
    const plan = ['--dry-run', '-k', DEMO, '-s', '0:0,hostbridge', '-s', '6,passthru,fe/1f/7', 'vm'];
    expect(acrnDm(...plan)).toMatchObject({
      status: ExitCode.Ok,
      stderr: expect.stringMatching(/warning: .*passthru.*fe:1f\.7/),
    });
    expect(acrnDm('--hypervisor', 'soft', ...plan).status).toBe(ExitCode.Unavailable);
  });
  test('a dry run looks at functions of the host it is for', () => {
    // Mutation: functions looked for on this machine, where they are not, and so nothing said of them.
    const host = new FakeHostPci().add('02:00.0', { hasMsi: true, driver: 'igc', iommuGroup: '7' });
    try {
      const slots = (text: string) => ['-s', '0:0,hostbridge', '-s', `6,passthru,02/00/0${text}`, 'vm'];
      const plan = ['--dry-run', '--hypervisor', 'kvm', '--host-root', host.root, '-k', DEMO];
      expect(acrnDm(...plan, ...slots(''))).toMatchObject({
        status: ExitCode.Unavailable,
        stderr: expect.stringContaining('0000:02:00.0 is bound to igc, not to vfio-pci'),
      });
      expect(acrnDm(...plan, ...slots(',managed'))).toMatchObject({ status: ExitCode.Ok });
    } finally {
      host.dispose();
    }
  });
  test('a dry run as JSON is nothing but JSON', () => {
    expect(JSON.parse(acrnDm('--dry-run=json', '-k', 'k', 'vm').stdout)).toMatchObject({ name: 'vm' });
  });
  test('a dry run of a VM that cannot be run says so by its status', () => {
    const { status, stdout, stderr } = acrnDm('--dry-run', '-k', '/nonexistent/bzImage', 'vm');
    expect(status).toBe(ExitCode.NoInput);
    expect(stdout).toContain('vm');
    // Mutation: let the embedded hypervisor say it again, as if it were for the want of ACRN.
    expect(stderr.trimEnd().split('\n')).toEqual([expect.stringContaining('/nonexistent/bzImage')]);
  });
  // Mutation: add what the machine says that cannot be put together.
  test('two that want the same are told once', () => {
    const plan = ['--dry-run', '-k', DEMO, '-s', '0:0,hostbridge', '-s', '1:0,lpc', '-l', 'com1,stdio'];
    const { status, stderr } = acrnDm(...plan, '-l', 'com2,stdio', 'vm');
    expect(status).toBe(ExitCode.Usage);
    expect(stderr.match(/stdio/g)).toHaveLength(3);
    expect(stderr).toContain('-l com2,stdio: -l com1,stdio has stdio already');
  });
  test('a missing kernel is found before a hypervisor is asked', () => {
    const { status, stderr } = acrnDm('--hypervisor', 'soft', '-k', '/nonexistent/bzImage', 'vm');
    expect(status).toBe(ExitCode.NoInput);
    expect(stderr).toContain('/nonexistent/bzImage');
  });
});
