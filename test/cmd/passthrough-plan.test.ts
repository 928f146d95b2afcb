/** `--dry-run`, `--list-passthru` and `--host-root` on a made-up host. */
import { afterAll, expect, test } from 'vitest';
import { parseCommandLine } from '../../cmd/cli.ts';
import { describeVm, formatDryRun } from '../../cmd/dry-run.ts';
import { pciDrivers } from '../../devicemodel/hw/registry.ts';
import { FakeHostPci } from '../support/fake-host-pci.ts';

const host = new FakeHostPci()
  .add('00:1c.0', { classCode: 0x060400, headerType: 1, secondaryBus: 2, express: { type: 4 }, ptm: [6, 3] })
  .add('02:00.0', {
    bars: [{ kind: 'mem32', address: 0xa120_0000, sizeBytes: 0x10_0000 }],
    hasMsi: true,
    express: { type: 0 },
    ptm: [1, 0],
    driver: 'igc',
    iommuGroup: '7',
  })
  .add('0a:00.0', { bars: [{ kind: 'io', address: 0x4000, sizeBytes: 256 }], interrupt: [20, 1] });
afterAll(() => host.dispose());

async function plan(...slots: string[]) {
  const argv = ['--dry-run', '-k', 'x', '-s', '0:0,hostbridge', ...slots.flatMap((slot) => ['-s', slot]), 'vm1'];
  const order = parseCommandLine(argv, pciDrivers);
  if (order.action !== 'dry-run') throw new Error(order.action);
  return describeVm(order.config, host.root);
}

test('the plan shows both ends of everything that is routed', async () => {
  const lines = formatDryRun(await plan('6,passthru,02/00/0,enable_ptm', '7,passthru,0a/00/0')).join('\n');
  for (const text of [
    '0x80000000-0x800fffff  mem32, 1 MiB',
    'is 0000:02:00.0 of the host: driver igc, IOMMU group 7',
    'bar0 is at 0xa1200000 on the host, 1 MiB',
    'behind a virtual root port in this slot, at 01:00.0',
    'INTA#  IOAPIC pin 16',
    'INTx from line 20 of the host',
  ]) {
    expect(lines).toContain(text);
  }
});

test('as JSON it survives', async () => {
  const json = JSON.parse(JSON.stringify(await plan('6,passthru,02/00/0,enable_ptm'))) as Awaited<
    ReturnType<typeof plan>
  >;
  expect(json.pci[1]).toMatchObject({
    driver: 'passthru',
    vdev: { bytes: expect.stringMatching(/^8680149d/) },
    passthrough: { physical: '0000:02:00.0', iommuGroup: '7', rootPort: { endpoint: '01:00.0' } },
  });
});

test('a function that is not there is planned without what is not known', async () => {
  const { pci } = await plan('6,passthru,77/0/0,gpu');
  expect(pci[1]).toMatchObject({
    bars: [],
    passthrough: {
      isAbsent: true,
      notes: [expect.stringMatching(/no PCI function 77:00.0/), expect.stringMatching(/gpu/)],
    },
  });
});

test('--host-root goes with looking only', () => {
  expect(() => parseCommandLine(['--host-root', '/x', '-k', 'x', 'vm1'], pciDrivers)).toThrow(/--host-root/);
  expect(parseCommandLine(['--list-passthru=json', '--host-root', '/x'], pciDrivers)).toEqual({
    action: 'list-passthru',
    format: 'json',
    hostRoot: '/x',
  });
  expect(() => parseCommandLine(['--list-passthru=yaml'], pciDrivers)).toThrow(/not a format/);
});
