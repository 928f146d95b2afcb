/** What is found wrong with a host before anything is touched, and what its list says. */
import { truncateSync } from 'node:fs';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { checkOptions } from '../../../../devicemodel/core/options.ts';
import { checkPassthrough } from '../../../../devicemodel/hw/pci/passthru/checks.ts';
import { formatList, listPassthrough } from '../../../../devicemodel/hw/pci/passthru/list.ts';
import { PassthruOptions, parsePassthruText } from '../../../../devicemodel/hw/pci/passthru/options.ts';
import { type FakeHostFunction, FakeHostPci } from '../../../support/fake-host-pci.ts';

let host: FakeHostPci;
beforeEach(() => {
  host = new FakeHostPci();
});
afterEach(() => host.dispose());

const plain: FakeHostFunction = {
  bars: [{ kind: 'mem32', address: 0xa400_0000, sizeBytes: 4096 }],
  hasMsi: true,
};

function check(texts: readonly string[], isRtvm = false, hypervisor?: string) {
  const slots = texts.map((text, i) => ({
    bdf: { bus: 0, device: 6 + i, function: 0 },
    driver: 'passthru',
    options: checkOptions(PassthruOptions, parsePassthruText(text)),
    text,
  }));
  const { problems, warnings } = checkPassthrough(slots, {
    isRtvm,
    hostTree: { root: host.root, isPlan: false },
    ...(hypervisor === undefined ? {} : { hypervisor }),
  });
  return { problems: problems.map((problem) => problem.message), warnings };
}

describe('refused', () => {
  test.each([
    ['02/00/0', /^-s 6,passthru,02\/00\/0: there is no PCI function 02:00.0 on this host$/],
    ['0c/00/0', /is a bridge/],
    ['0a/01/0', /BAR 0 of 0a:01.0 is at 0xa4001800, which is not the start of a page/],
    ['10000:e1:00.0', /PCI domain 10000, and the hypervisor knows domain 0 only/],
  ])('%s', (text, message) => {
    host
      .add('0c:00.0', { headerType: 1 })
      .add('0a:01.0', { bars: [{ kind: 'mem32', address: 0xa400_1800, sizeBytes: 256 }] })
      .add('10000:e1:00.0', plain);
    expect(check([text]).problems).toEqual([expect.stringMatching(message)]);
  });

  test('one function in two slots', () => {
    host.add('02:00.0', plain);
    expect(check(['02/00/0', '2:0.0']).problems).toEqual([expect.stringMatching(/passed through already, by -s 6/)]);
  });

  test('graphics for a real-time VM, and on a host without an LPC bridge', () => {
    host.add('00:02.0', { ...plain, classCode: 0x030000 });
    expect(check(['0/2/0'], true).problems).toEqual([expect.stringMatching(/real-time VM/)]);
    expect(check(['0/2/0']).problems).toEqual([expect.stringMatching(/LPC bridge/)]);
    host.add('00:1f.0', { classCode: 0x060100 });
    expect(check(['0/2/0'])).toEqual({ problems: [], warnings: [] });
  });

  test('graphics whose memory firmware did not set up', () => {
    const registers = [[0x50, 0x02c1]] as const;
    host
      .add('00:1f.0', { classCode: 0x060100 })
      .add('00:02.0', { ...plain, classCode: 0x030000, deviceId: 0x9a49, registers });
    expect(check(['0/2/0']).problems).toEqual([expect.stringMatching(/stolen memory .* cannot be at 0x0/)]);
  });
});

describe('one warning each', () => {
  test('in use by a driver: with the commands that free it; not for a stub, nor when managed', () => {
    host.add('02:00.0', { ...plain, driver: 'igb' }).add('03:00.0', { ...plain, driver: 'pci-stub' });
    const { warnings } = check(['02/00/0', '03/00/0']);
    expect(warnings).toHaveLength(1);
    expect(warnings[0]).toMatch(/02:00.0 is in use by igb: add managed, .*echo 0000:02:00.0 > .*\/driver\/unbind/);
    expect(check(['02/00/0,managed']).warnings).toEqual([]);
    // Which driver is right is the hypervisor's matter, and KVM's own error has the command.
    expect(warnings[0]).toMatch(/on KVM vfio-pci in place of pci-stub/);
    expect(check(['02/00/0'], false, 'acrn').warnings).toEqual([expect.stringMatching(/drivers_probe$/)]);
    expect(check(['02/00/0'], false, 'kvm').warnings).toEqual([]);
  });

  test('capabilities that this user may not read', () => {
    host.add('02:00.0', plain);
    truncateSync(join(host.path('02:00.0'), 'config'), 64);
    expect(check(['02/00/0']).warnings).toContainEqual(
      expect.stringMatching(/no capabilities of 02:00.0.*CAP_SYS_ADMIN/),
    );
  });

  test('IOMMU group with others that are not passed', () => {
    host.add('02:00.0', { ...plain, iommuGroup: '12' }).add('02:00.1', { ...plain, iommuGroup: '12' });
    expect(check(['02/00/0']).warnings).toEqual([expect.stringMatching(/shares IOMMU group 12 with 0000:02:00.1/)]);
    expect(check(['02/00/0', '02/00/1']).warnings).toEqual([]);
  });

  test('interrupt line that others have, only where the guest gets an INTx pin', () => {
    host
      .add('02:00.0', { bars: plain.bars ?? [], interrupt: [18, 1] })
      .add('03:00.0', { ...plain, interrupt: [18, 1] });
    expect(check(['02/00/0']).warnings).toEqual([expect.stringMatching(/shares interrupt line 18 with 03:00.0/)]);
    expect(check(['03/00/0']).warnings).toEqual([]);
    expect(check(['02/00/0', '03/00/0']).warnings).toEqual([]);
  });

  test('interrupt line 255, unless it is named', () => {
    host.add('02:00.0', { bars: plain.bars ?? [], interrupt: [255, 1] });
    expect(check(['02/00/0']).warnings).toEqual([expect.stringMatching(/name it with irq=N/)]);
    expect(check(['02/00/0,irq=23']).warnings).toEqual([]);
  });

  test('no reset', () => {
    host.add('02:00.0', { ...plain, hasReset: false });
    expect(check(['02/00/0']).warnings).toEqual([expect.stringMatching(/02:00.0 has no reset/)]);
  });
});

describe('the list', () => {
  test('says what can be passed through and why the rest cannot', () => {
    host
      .add('00:1c.0', { headerType: 1, classCode: 0x060400 })
      .add('02:00.0', { ...plain, driver: 'igb', iommuGroup: '4' });
    const list = listPassthrough(host.root);
    expect(list).toMatchObject([
      { address: '0000:00:1c.0', obstacle: expect.stringMatching(/bridge/) },
      { address: '0000:02:00.0', driver: 'igb', iommuGroup: '4', interrupts: ['MSI'], obstacle: null },
    ]);
    const lines = formatList(list);
    expect(lines[1]).toMatch(/^0000:00:1c.0 .* no: 00:1c.0 is a bridge/);
    expect(lines[2]).toMatch(/^0000:02:00.0 .* igb .* yes, see below$/);
  });

  test('of a tree without functions is an error', () => {
    expect(() => listPassthrough(`${host.root}/nowhere`)).toThrow(/no PCI functions are in .*nowhere\/sys/);
  });
});
