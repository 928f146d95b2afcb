/** What the back end of ACRN makes of the driver's answers. The driver is played; for the real one see real-hsm.test.ts. */
import { openSync } from 'node:fs';
import { constants } from 'node:os';
import { afterEach, expect, test, vi } from 'vitest';
import { AcrnVmCreation } from '../../../hypervisor/acrn/abi.ts';
import { AcrnHsm } from '../../../hypervisor/acrn/acrn-hsm.ts';

const { EINVAL, EPERM } = constants.errno;

const driver = vi.hoisted(() => ({ ioctl: (_argument: Uint8Array): number => 0 }));
vi.mock('../../../devicemodel/core/host/ioctl.ts', async (original) => ({
  ...(await original<object>()),
  ioctlBytes: (_fd: number, _request: number, argument: Uint8Array) => driver.ioctl(argument),
}));

const made: AcrnHsm[] = [];
afterEach(() => {
  for (const hsm of made.splice(0)) hsm.close();
});

function make(): AcrnHsm {
  const hsm = new AcrnHsm(openSync('/dev/null', 'r'), true);
  made.push(hsm);
  return hsm;
}

const query = { vcpu: 0, state: 0, type: 'px-count' } as const;

test('what the hypervisor does not know of its CPUs is no error', async () => {
  const hsm = make();
  driver.ioctl = (argument) => {
    new DataView(argument.buffer, argument.byteOffset).setUint16(AcrnVmCreation.offsets.vmid, 1, true);
    return 0;
  };
  await hsm.createVm({ name: 'vm', flags: 0n, cpuAffinity: 0n });
  driver.ioctl = () => -EPERM;
  expect(hsm.getCpuState(query)).toBeUndefined();
});

test('to ask it without a VM is one, as every other call', () => {
  driver.ioctl = () => -EINVAL;
  expect(() => make().getCpuState(query)).toThrow(expect.objectContaining({ errno: EINVAL }));
});
