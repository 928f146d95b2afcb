import { describe, expect, test } from 'vitest';
import { parseCommandLine, type VmOrder } from '../../cmd/cli.ts';
import { problemsOf } from '../../cmd/preflight.ts';
import { ExitCode } from '../../devicemodel/core/errors.ts';
import { anyTextDriver } from './drivers.ts';

describe('an order that cannot be run', () => {
  const problems = (...argv: string[]) => problemsOf(parseCommandLine(argv, [anyTextDriver('lpc')]) as VmOrder);

  test('a VM without boot image', () => {
    expect(problems('vm1').map((p) => p.message)).toEqual(['VM "vm1" has no boot image']);
  });
  test('devices that come later are answered with one line for all', () => {
    const [problem, ...more] = problems('-k', 'k', '-s', '3,virtio-gpu', '-s', '4:1,xhci,1-1', 'vm1');
    expect(more).toEqual([]);
    expect(problem).toMatchObject({
      message: '-s 3,virtio-gpu, -s 4:1,xhci,1-1: this device comes in a later version',
      exitCode: ExitCode.Unavailable,
    });
  });
  test('a whole VM has no problem', () => {
    expect(problems('-k', 'k', '-s', '1,lpc', 'vm1')).toEqual([]);
  });
});
