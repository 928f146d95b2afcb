/** Eventfds of a function's interrupts where the process may open no more. */
import { constants } from 'node:os';
import { describe, expect, test, vi } from 'vitest';
import { HostError } from '../../../../devicemodel/core/errors.ts';
import { silentLog } from '../../../../devicemodel/core/log.ts';
import type { HostFunctionHost } from '../../../../hypervisor/embedded/host-functions.ts';
import type { FunctionEventfds } from '../../../../hypervisor/embedded/virtual-function.ts';
import { FunctionInterrupts } from '../../../../hypervisor/kvm/vfio/interrupts.ts';
import { FakeVfioDevice } from '../../../support/fake-vfio.ts';

const eventfds = vi.hoisted(() => ({ open: 0, room: 0 }));
vi.mock(import('../../../../devicemodel/core/host/eventfd.ts'), async (original) => {
  const real = await original();
  class Eventfd extends real.Eventfd {
    constructor() {
      if (eventfds.open === eventfds.room) throw new HostError('eventfd', constants.errno.EMFILE);
      super();
      eventfds.open++;
    }
    override dispose(): void {
      super.dispose();
      eventfds.open--;
    }
  }
  return { ...real, Eventfd };
});

/** The host has room for `room` vectors; a guest with MSI-X of 32. */
function ofShortHost(kind: 'msi' | 'msix', room: number) {
  eventfds.room = 1000;
  const device = new FakeVfioDevice();
  device.room = room;
  const calls: string[] = [];
  const { setInterrupts, disableInterrupts } = device;
  device.setInterrupts = (of, fds) => {
    calls.push(`${of} ${fds.length}`);
    return setInterrupts.call(device, of, fds);
  };
  device.disableInterrupts = (of) => {
    calls.push(`${of} off`);
    disableInterrupts.call(device, of);
  };
  const msi = { isEnabled: kind === 'msi', count: 4, address: 0xfee0_0000, data: 0 };
  const interrupts = new FunctionInterrupts({
    device,
    host: {} as HostFunctionHost,
    eventfds: {
      interrupts: (wanted: readonly unknown[]) => wanted.map(() => ({ dispose: () => {} })),
    } as unknown as FunctionEventfds,
    tableVectors: 32,
    registers: () => ({ msi, msix: { isEnabled: kind === 'msix', isMasked: false } }),
    log: silentLog,
  });
  return { interrupts, calls, msi };
}

// A signal of the device between "off" and the next "on" is lost.
describe('a host that gives fewer interrupts than the guest asked for', () => {
  test('MSI: they stay on, whatever the guest writes to its registers, until it asks for another number', () => {
    const { interrupts, calls, msi } = ofShortHost('msi', 1);
    for (let i = 0; i < 10; i++) interrupts.update();
    expect(calls.splice(0)).toEqual(['msi 4', 'msi 1']);
    msi.count = 1;
    interrupts.update();
    expect(calls.splice(0)).toEqual(['msi off', 'msi 1']);
    msi.isEnabled = false;
    interrupts.update();
    msi.isEnabled = true;
    msi.count = 4;
    interrupts.update();
    expect(calls.splice(0)).toEqual(['msi off', 'msi 4', 'msi 1']);
    interrupts.dispose();
  });

  test('MSI-X: those beyond are asked for once, not with each one that is unmasked', () => {
    const { interrupts, calls } = ofShortHost('msix', 3);
    const unmask = (vector: number) => {
      interrupts.table.write(16 * vector + 12, 4, 0);
      interrupts.vectorChanged(vector);
    };
    interrupts.update();
    for (let i = 0; i < 10; i++) for (const vector of [0, 2, 5, 7]) unmask(vector);
    expect(calls.splice(0)).toEqual(['msix 8', 'msix 3']);
    for (let i = 0; i < 10; i++) unmask(9);
    expect(calls).toEqual(['msix off', 'msix 16', 'msix 3']);
    interrupts.dispose();
  });
});

test.each([0, 1])('a line that finds room for %s of its two eventfds leaves none open', (room) => {
  eventfds.room = room;
  const line = vi.fn();
  const interrupts = new FunctionInterrupts({
    device: new FakeVfioDevice(),
    host: { line } as unknown as HostFunctionHost,
    eventfds: {} as FunctionEventfds,
    tableVectors: 0,
    registers: () => ({
      msi: { isEnabled: false, count: 1, address: 0, data: 0 },
      msix: { isEnabled: false, isMasked: false },
    }),
    log: silentLog,
  });
  expect(() => interrupts.connectLine(16)).toThrow(HostError);
  expect(line).not.toHaveBeenCalled();
  expect(eventfds.open).toBe(0);
});
