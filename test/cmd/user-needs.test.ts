/**
 * What users of the C program ran into (issue numbers of projectacrn/acrn-hypervisor), as far as the command line
 * decides it: an error in one line that says what, where and what to do, and a status that is not 0.
 */
import { describe, expect, test } from 'vitest';
import { parseCommandLine } from '../../cmd/cli.ts';
import { errorLines, exitCodeOf } from '../../cmd/report.ts';
import { problemsOf } from '../../config/preflight.ts';
import { HsmError } from '../../devicemodel/core/hsm/errors.ts';
import { pciDrivers } from '../../devicemodel/hw/registry.ts';
import { affinityOf, vcpuLapicIds } from '../../hypervisor/acrn/cpus.ts';

const EPERM = 1;
const EINVAL = 22;

/** What the user sees of a command line that is refused, with the status. */
function refusal(...argv: string[]): { readonly lines: string[]; readonly status: number } {
  try {
    const parsed = parseCommandLine(argv, pciDrivers);
    const [problem] = parsed.action === 'run' ? problemsOf(parsed.config) : [];
    if (problem !== undefined) return { lines: errorLines(problem), status: exitCodeOf(problem) };
  } catch (error) {
    return { lines: errorLines(error), status: exitCodeOf(error) };
  }
  throw new Error(`not refused: ${argv.join(' ')}`);
}

function expectOneLineAndHint({ lines, status }: { lines: string[]; status: number }): void {
  expect(lines).toHaveLength(2);
  expect(lines[0]).toMatch(/^acrn-dm: /);
  expect(lines[1]).toMatch(/^hint: /);
  expect(status).toBeGreaterThanOrEqual(64);
  expect(status).toBeLessThan(124);
}

describe('crashes of the C program', () => {
  test('#5637: a VM name and nothing else', () => {
    expectOneLineAndHint(refusal('test-vm-not-exist'));
    const seen = refusal('test-vm');
    expectOneLineAndHint(seen);
    expect(seen.lines[0]).toContain('has no boot image');
    expect(seen.lines[1]).toContain('--help');
  });
  test.each([
    ['a size without number', ['-m', 'M', 'vm']],
    ['an option without its value', ['vm', '-m']],
    ['two words for one', ['-B', 'root=/dev/vda', 'rw', 'vm']],
    ['no words at all', []],
  ])('#463: improper parameters: %s', (_, argv) => {
    expectOneLineAndHint(refusal(...argv));
  });
  test('#2584: a GVT-g device is dropped, not fatal', () => {
    const parsed = parseCommandLine(['-s', '2,pci-gvt', '-G', '64 448 8', '-k', 'k', 'vm'], pciDrivers);
    expect(parsed).toMatchObject({ action: 'run', config: { pci: [] } });
  });
  test('--logger_setting without a level', () => {
    expectOneLineAndHint(refusal('--logger_setting', 'console', '-k', 'k', 'vm'));
  });
  test('ivshmem without options, and without a size', () => {
    for (const text of ['5,ivshmem', '5,ivshmem,hv:/a', '5,ivshmem,dm:/a,', '5,ivshmem,,2']) {
      const seen = refusal('-s', text, '-k', 'k', 'vm');
      expectOneLineAndHint(seen);
      expect(seen.lines[1]).toContain('usage: -s SLOT,ivshmem');
    }
  });
  test('--pm_notify_channel uart is accepted', () => {
    expect(parseCommandLine(['--pm_notify_channel', 'uart', '-k', 'k', 'vm'], pciDrivers)).toMatchObject({
      action: 'run',
    });
  });
  test('an ivshmem size that overflows 32 bits is refused', () => {
    // 4098 MiB is 2 MiB modulo 2^32.
    expectOneLineAndHint(refusal('-s', '5,ivshmem,hv:/a,4098', '-k', 'k', 'vm'));
  });
});

describe('errors that did not help', () => {
  test('#8234, #5990: the hypervisor does not know an ivshmem region of this VM', () => {
    const error = new HsmError('CREATE_VDEV', EINVAL, { what: 'ivshmem hv:/shm_region_0 (2 MiB) at 00:08.0' });
    const [line, hint] = errorLines(error);
    expect(line).toContain('hv:/shm_region_0 (2 MiB) at 00:08.0');
    expect(hint).toMatch(/VM name.*scenario.*region or vUART.*size/);
  });
  test('#8323: EPERM is explained as the generic refusal it is', () => {
    expect(errorLines(new HsmError('INJECT_MSI', EPERM)).at(-1)).toContain('EPERM is its generic error');
  });
  test('#3272, #2807: CREATE_VM refused says what to look at', () => {
    expect(errorLines(new HsmError('CREATE_VM', EINVAL)).at(-1)).toMatch(/scenario.*cpu_affinity.*still running/);
  });
  test('#4139: lines on a raw terminal do not stair-step, and text cannot break them', () => {
    expect(errorLines(new Error('first\r\n second'))[0]).toBe('acrn-dm: internal error: first second');
  });
  test('zephyr#23800: --lapic_pt without --rtvm never reaches the hypervisor', () => {
    const parsed = parseCommandLine(['--lapic_pt', '-k', 'k', 'vm'], pciDrivers);
    expect(parsed).toMatchObject({ config: { lapicPt: false }, notices: [{ level: 'warn' }] });
  });
  test('#4135: CPUs that are not there are named, with those that are', () => {
    expect(affinityOf([99], [0, 2, 4]).unknownIds).toEqual([99]);
    expectOneLineAndHint(refusal('--cpu_affinity', 'zero', '-k', 'k', 'vm'));
    try {
      vcpuLapicIds(0n, 1, [0, 2, 4]);
      expect.unreachable();
    } catch (error) {
      expect(errorLines(error)).toEqual([
        'acrn-dm: --cpu_affinity is missing: which CPUs does this VM run on? ACRN needs to know',
        'hint: give a local APIC id for each vCPU; this host has 0, 2, 4',
      ]);
    }
  });
  test('#5052: an unknown device, a slot taken twice', () => {
    expect(refusal('-s', '5,ivshmen,hv:/a,2', 'vm').lines[1]).toBe('hint: did you mean "ivshmem"?');
    expect(refusal('-s', '5,uart,stdio', '-s', '5,ivshmem,hv:/a,2', 'vm').lines[0]).toContain(
      'pci slot 5:0 is already occupied by -s 5,uart,stdio',
    );
  });
  test('#5936: a script made for the life manager starts without it', () => {
    const argv = ['--pm_notify_channel', 'uart', '--pm_by_vuart', 'tty,/dev/ttyS1', '-k', 'k', 'vm'];
    expect(parseCommandLine(argv, pciDrivers)).toMatchObject({ action: 'run' });
  });
});

describe('dependencies', () => {
  test('#5854, #7880: no iasl is looked for, wherever it is said to be', () => {
    const parsed = parseCommandLine(['--iasl', '/nonexistent/iasl', '-k', 'k', 'vm'], pciDrivers);
    expect(parsed).toMatchObject({ action: 'run', notices: [{ level: 'info' }] });
  });
});
