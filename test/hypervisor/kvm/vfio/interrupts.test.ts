/** Eventfds of a function's interrupts where the process may open no more. */
import { constants } from 'node:os';
import { expect, test, vi } from 'vitest';
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
