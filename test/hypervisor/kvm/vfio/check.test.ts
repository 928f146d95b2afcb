/** What is in the way of VFIO, said before there is a VM. */
import { rmSync } from 'node:fs';
import { join } from 'node:path';
import { expect, onTestFinished, test } from 'vitest';
import { wantedHostFunctions } from '../../../../devicemodel/core/config.ts';
import { ExitCode } from '../../../../devicemodel/core/errors.ts';
import { hostFunctionProblems, problemsBelow } from '../../../../hypervisor/kvm/vfio/check.ts';
import { type FakeFunction, fakeRoot } from '../../../support/fake-vfio.ts';

const NAME = '0000:02:00.0';

function check(functions: readonly FakeFunction[], isManaged = false, prepare: (root: string) => void = () => {}) {
  const { root, dispose } = fakeRoot(functions);
  onTestFinished(dispose);
  prepare(root);
  return problemsBelow(root, [{ name: NAME, isManaged }]);
}

test('one that is bound to vfio-pci, alone in its group, can be had', () => {
  expect(check([{ name: NAME, driver: 'vfio-pci', group: 7 }])).toEqual([]);
});

test('a bridge and a stub in the group do not matter', () => {
  const functions = [
    { name: NAME, driver: 'vfio-pci', group: 7 },
    { name: '0000:00:1c.0', driver: 'pcieport', group: 7 },
    { name: '0000:02:00.1', driver: 'pci-stub', group: 7 },
    { name: '0000:02:00.2', group: 7 },
  ];
  expect(check(functions)).toEqual([]);
});

test.each([
  ['no IOMMU', [{ name: NAME, driver: 'vfio-pci' }], /behind no IOMMU/, /intel_iommu=on/],
  [
    'another driver',
    [{ name: NAME, driver: 'e1000e', group: 7 }],
    /02:00\.0 is bound to e1000e, not to vfio-pci$/,
    /^add managed, or: modprobe vfio-pci; echo vfio-pci > .*driver_override; echo 0000:02:00\.0 > .*unbind; echo .*drivers_probe$/,
  ],
  ['no driver', [{ name: NAME, group: 7 }], /has no driver, not to vfio-pci$/, /^((?!unbind).)*$/],
  [
    'a group in use',
    [
      { name: NAME, driver: 'vfio-pci', group: 7 },
      { name: '0000:02:00.1', driver: 'snd_hda_intel', group: 7 },
    ],
    /IOMMU group 7 of 0000:02:00\.0 .*0000:02:00\.1 \(snd_hda_intel\)/,
    /0000:02:00\.1\/driver\/unbind/,
  ],
] as const)('%s is refused with what to do, status 69', (_what, functions, message, hint) => {
  expect(check(functions)).toEqual([
    expect.objectContaining({
      message: expect.stringMatching(message),
      hint: expect.stringMatching(hint),
      exitCode: ExitCode.Unavailable,
    }),
  ]);
});

test('managed moves it from its driver, and its node is not there before', () => {
  const functions = [{ name: NAME, driver: 'e1000e', group: 7 }];
  expect(check(functions, true, (root) => rmSync(join(root, 'dev/vfio/7')))).toEqual([]);
});

test('without the driver of VFIO there is no node, and a line says which module brings it', () => {
  const functions = [{ name: NAME, driver: 'vfio-pci', group: 7 }];
  const problems = check(functions, false, (root) => rmSync(join(root, 'dev/vfio/vfio')));
  expect(problems).toEqual([expect.objectContaining({ hint: 'modprobe vfio-pci vfio_iommu_type1' })]);
});

test('of a saved tree, all but the rights to its device nodes', () => {
  const { root, dispose } = fakeRoot([
    { name: NAME, driver: 'vfio-pci', group: 7 },
    { name: '0000:03:00.0', driver: 'igc', group: 8 },
  ]);
  onTestFinished(dispose);
  rmSync(join(root, 'dev'), { recursive: true });
  const wanted = [NAME, '0000:03:00.0'].map((name) => ({ name, isManaged: false }));
  expect(hostFunctionProblems(wanted, root).map(({ message }) => message)).toEqual([
    '0000:03:00.0 is bound to igc, not to vfio-pci',
  ]);
});

test('one that is not there is for others to say', () => {
  expect(check([])).toEqual([]);
});

test('functions are found among the slots of a VM by what they name', () => {
  const slot = (options: unknown) => ({ bdf: { bus: 0, device: 3, function: 0 }, driver: 'x', options, text: '' });
  const pci = [slot({ physical: NAME, managed: true }), slot({ path: '/disk' }), slot(undefined)];
  expect(wantedHostFunctions({ pci })).toEqual([{ name: NAME, isManaged: true }]);
});
