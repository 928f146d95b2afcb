/** The fake is what other tests stand on: it must be a hypervisor like the others, and its script must work. */
import { constants } from 'node:os';
import { expect, test } from 'vitest';
import { IoreqPage, IoreqType } from '../../devicemodel/core/ioreq-page.ts';
import { FakeHsm, type FakeHsmOptions } from '../support/fake-hsm.ts';
import { describeHsm } from '../support/hsm-conformance.ts';

function fakeUnderTest(options: FakeHsmOptions = {}) {
  const hsm = new FakeHsm(options);
  hsm.eventfds.notEventfds.add(7);
  return { hsm, eventfd: 5, otherEventfd: 6, notEventfd: 7 };
}

describeHsm('fake', async () => fakeUnderTest());
describeHsm('fake with two vCPUs', async () => fakeUnderTest({ vcpuCount: 2, serving: 'from-page' }));

async function running(options: FakeHsmOptions = {}) {
  const hsm = new FakeHsm(options);
  await hsm.createVm({ name: 'vm', flags: 0n, cpuAffinity: 0n });
  hsm.createIoreqClient();
  hsm.startVm();
  return { hsm, page: new IoreqPage(hsm.ioreqPage) };
}

/** A device model that answers reads with the low byte of the address and notes writes. */
function device(hsm: FakeHsm, page: IoreqPage, vcpus = 1) {
  const writes: string[] = [];
  const serve = () => {
    for (let vcpu = 0; vcpu < vcpus; vcpu++) {
      if (!page.isPending(vcpu)) continue;
      if (page.isWrite(vcpu)) writes.push(`${page.address(vcpu).toString(16)}=${page.valueU64(vcpu).toString(16)}`);
      else page.setValue(vcpu, page.address(vcpu) & 0xff);
      hsm.notifyIoreqDone(vcpu);
    }
  };
  return { serve, writes };
}

test('an access served from inside the wait reaches the guest', async () => {
  const { hsm, page } = await running();
  const { serve, writes } = device(hsm, page);
  const read = hsm.guest.inb(0x3f8);
  const write = hsm.guest.mmioWriteU64(0xfed0_00f0, 0x1122_3344_5566_7788n);
  expect(hsm.waitForIoreqs(serve)).toBe('idle');
  expect(hsm.waitForIoreqs(serve)).toBe('idle');
  expect(await read).toBe(0xf8);
  await write;
  expect(writes).toEqual(['fed000f0=1122334455667788']);
});

test('served from the page, both vCPUs wait at once until they are notified', async () => {
  const { hsm, page } = await running({ vcpuCount: 2, serving: 'from-page' });
  const { serve } = device(hsm, page, 2);
  const reads = [hsm.guest.pioRead(0x61, 1, 0), hsm.guest.pioRead(0x70, 1, 1)];
  expect(hsm.waitForIoreqs(serve)).toBe('pending');
  expect(hsm.waitForIoreqs(serve)).toBe('pending'); // as the driver: at once, until notified
  serve();
  expect(await Promise.all(reads)).toEqual([0x61, 0x70]);
});

test('with nothing to do the wait is a promise that the next access ends', async () => {
  const { hsm, page } = await running();
  const { serve } = device(hsm, page);
  const wait = hsm.waitForIoreqs(serve);
  expect(wait).toBeInstanceOf(Promise);
  const read = hsm.guest.inb(0x64);
  expect(await wait).toBe('idle');
  hsm.waitForIoreqs(serve);
  expect(await read).toBe(0x64);
});

test('destroying the client ends the wait', async () => {
  const { hsm, page } = await running();
  const wait = hsm.waitForIoreqs(device(hsm, page).serve);
  hsm.destroyIoreqClient();
  expect(await wait).toBe('closed');
});

test('CF8/CFC become one config request, or all ones without the enable bit', async () => {
  const { hsm, page } = await running();
  const seen: number[][] = [];
  const serve = () => {
    seen.push([
      page.type(0),
      page.pciBus(0),
      page.pciDevice(0),
      page.pciFunction(0),
      page.pciRegister(0),
      page.size(0),
    ]);
    page.setValue(0, 0xbeef);
    hsm.notifyIoreqDone(0);
  };
  const answers = [
    hsm.guest.pioWrite(0xcf8, 4, 0x8101_1a04), // enable, register 0x104, bus 1, device 3, function 2
    hsm.guest.pioRead(0xcfe, 2),
    hsm.guest.pioRead(0xcf8, 4),
    hsm.guest.pioWrite(0xcf8, 4, 0x0001_1a04),
    hsm.guest.pioRead(0xcfc, 4),
  ];
  for (const _ of answers) hsm.waitForIoreqs(serve);
  expect(await Promise.all(answers.slice(1, 3))).toEqual([0xbeef, 0x8101_1a04]);
  expect(await answers[4]).toBe(0xffff_ffff);
  expect(seen).toEqual([[IoreqType.PciConfig, 1, 3, 2, 0x106, 2]]);
});

test('a matching write rings the ioeventfd and does not reach the device model', async () => {
  const { hsm, page } = await running();
  const { serve, writes } = device(hsm, page);
  hsm.ioeventfd({ fd: 7, address: 0xc010, space: 'pio', sizeBytes: 2, dataMatch: 1n }, true);
  const done = [hsm.guest.pioWrite(0xc010, 2, 1), hsm.guest.pioWrite(0xc010, 2, 2), hsm.guest.pioRead(0xc010, 2)];
  for (const _ of done) hsm.waitForIoreqs(serve);
  await Promise.all(done);
  expect(hsm.eventfds.signals).toEqual([7]);
  expect(writes).toEqual(['c010=2']);
  expect(await done[2]).toBe(0); // reads of the range end in the hypervisor
});

test('an irqfd becomes its message until it is taken off', async () => {
  const { hsm } = await running();
  const message = { address: 0xfee0_1000, data: 0x41 };
  hsm.irqfd(9, message, true);
  hsm.eventfds.ring(9);
  hsm.irqfd(9, message, false);
  hsm.eventfds.ring(9);
  expect(hsm.msis).toEqual([message]);
});

test('an asked-for failure hits that call only, and changes nothing', async () => {
  const hsm = new FakeHsm();
  hsm.fail('setIrqLine', 2, constants.errno.EIO);
  await hsm.createVm({ name: 'vm', flags: 0n, cpuAffinity: 0n });
  hsm.setIrqLine(3, 'high');
  expect(() => hsm.setIrqLine(4, 'high')).toThrow('SET_IRQLINE');
  hsm.setIrqLine(5, 'high');
  expect(hsm.edges).toEqual([3, 5]);
  expect(hsm.callNames).toEqual(['createVm', 'setIrqLine', 'setIrqLine', 'setIrqLine']);
});

test('a failing createVm rejects', async () => {
  const hsm = new FakeHsm();
  hsm.fail('createVm', 1, constants.errno.EINVAL);
  await expect(hsm.createVm({ name: 'vm', flags: 0n, cpuAffinity: 0n })).rejects.toThrow('CREATE_VM');
});

test('a reset forgets the access the guest was in', async () => {
  const { hsm } = await running({ serving: 'from-page' });
  void hsm.guest.outb(0xcf9, 6);
  expect(hsm.waitForIoreqs(() => {})).toBe('pending');
  hsm.pauseVm();
  hsm.clearIoreqs();
  hsm.resetVm();
  expect(hsm.outstanding).toBe(0);
});
