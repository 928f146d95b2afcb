import { describe, expect, test } from 'vitest';
import { parseCommandLine, type VmOrder } from '../../cmd/cli.ts';
import { checkHostPaths, checkHypervisor, problemsOf } from '../../config/preflight.ts';
import { ConfigError, ExitCode } from '../../devicemodel/core/errors.ts';
import { pciDrivers } from '../../devicemodel/hw/registry.ts';
import { anyTextDriver } from '../cmd/drivers.ts';

describe('an order that cannot be run', () => {
  const problems = (...argv: string[]) => {
    const { config } = parseCommandLine(argv, [anyTextDriver('lpc')]) as VmOrder;
    return problemsOf(config);
  };

  test('a VM without boot image', () => {
    expect(problems('vm1').map((p) => p.message)).toEqual(['VM "vm1" has no boot image']);
  });
  test('--ssram without regions does not stop a VM', () => {
    expect(problems('--ssram', '-k', 'k', 'vm1')).toEqual([]);
  });
  test('a whole VM has no problem', () => {
    expect(problems('-k', 'k', '-s', '1,lpc', 'vm1')).toEqual([]);
  });
});

describe('what devices need of the host', () => {
  const check = (slot: string) =>
    checkHostPaths((parseCommandLine(['-k', 'k', '-s', slot, 'vm1'], pciDrivers) as VmOrder).config);

  test.each([
    ['3,virtio-blk,/nonexistent/disk,writeback', '/nonexistent/disk'],
    ['3,virtio-input,/nonexistent/event99', '/nonexistent/event99'],
    ['3,virtio-i2c,987654:1c', '/dev/i2c-987654'],
  ])('%s is parsed anywhere and refused where it is to run', (slot, path) => {
    expect(() => check(slot)).toThrow(ConfigError);
    expect(() => check(slot)).toThrow(`-s ${slot}: ${path}: no such file or device`);
  });
  test.each(['3,virtio-blk,nodisk', '3,virtio-rnd', '3,virtio-net,tap=none0'])(
    '%s needs nothing that is missing',
    (slot) => expect(() => check(slot)).not.toThrow(),
  );
});

describe('a device the hypervisor does not offer', () => {
  const { config } = parseCommandLine(
    ['-k', 'k', '-s', '0,hostbridge', '-s', '6,root-port,ptm', '-s', '1:0:0,virtio-rnd', 'vm1'],
    pciDrivers,
  ) as VmOrder;

  test('is refused by its slot, with what else to do', () => {
    expect(() => checkHypervisor(config, {})).toThrow(
      expect.objectContaining({
        message: expect.stringMatching(/^-s 6,root-port,ptm: a root port of ACRN stands for a physical one/),
        hint: expect.stringContaining('enable_ptm'),
        exitCode: ExitCode.Usage,
      }),
    );
  });
  test('is taken where the hypervisor has it', () => {
    checkHypervisor(config, { ownRootPorts: true });
  });
});

describe('a function of the host', () => {
  const { config } = parseCommandLine(['-k', 'k', '-s', '6,passthru,02/00/0', 'vm1'], pciDrivers) as VmOrder;

  test('needs a hypervisor that gives it', () => {
    checkHypervisor(config, { givesHostFunctions: true });
    expect(() => checkHypervisor(config, { ownRootPorts: true })).toThrow(
      expect.objectContaining({
        message: expect.stringMatching(/^-s 6,passthru,02\/00\/0: this hypervisor cannot/),
        exitCode: ExitCode.Unavailable,
      }),
    );
  });
});
