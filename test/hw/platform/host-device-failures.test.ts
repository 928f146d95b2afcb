/**
 * A start with devices of the host on the board in which every single call to the hypervisor fails once: what was taken
 * is given back, last first, and the error names the call.
 */
import { mkdtempSync, rmSync } from 'node:fs';
import { constants, tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, test } from 'vitest';
import { DmError, ExitCode } from '../../../devicemodel/core/errors.ts';
import type { FakeHsm, HsmMethod } from '../../support/fake-hsm.ts';
import { makePc } from '../../support/fake-pc.ts';
import { hostWithTpm } from '../../support/host-acpi.ts';

const { EPERM, EINVAL, ENOTTY } = constants.errno;
const root = hostWithTpm({}, mkdtempSync(join(tmpdir(), 'acrn-dm-test-')));
afterAll(() => rmSync(root, { recursive: true, force: true }));
const argv = [
  ...['--acpidev_pt', 'MSFT0101', '--acpidev_pt', 'INTC1055,type=memory,min=fd6e0000,len=10000'],
  ...['--acpidev_pt', 'INTC1055,type=io_port,min=800,len=8', '--acpidev_pt', 'INTC1055,type=irq,irq=14'],
  ...['--mmiodev_pt', 'fe000000,4000', '-s', '5,ivshmem,hv:/shm,2'],
];

async function start(prepare: (hsm: FakeHsm) => void, requests: (hsm: FakeHsm) => void = () => {}) {
  const pc = makePc(
    argv,
    (hsm) => {
      requests(hsm);
      void hsm.guest.pioWrite(0x404, 2, 0x3400);
      prepare(hsm);
    },
    { hostTree: { root, isPlan: false } },
  );
  let error: unknown;
  try {
    await pc.vm.run();
  } catch (thrown) {
    error = thrown;
  }
  await pc.dispose();
  return { pc, error, hsm: pc.lives[0] as FakeHsm };
}

const undoOf: Readonly<Partial<Record<HsmMethod, HsmMethod>>> = {
  assignMmiodev: 'deassignMmiodev',
  assignPioRegion: 'deassignPioRegion',
  setPtdevIntx: 'resetPtdevIntx',
  createVdev: 'destroyVdev',
};
const undoMethods = new Set(Object.values(undoOf));

/** Takings without the one that failed, and givings, in order; by what they are about. */
function traffic(hsm: FakeHsm, failedAt: number) {
  const taken: string[] = [];
  const given: string[] = [];
  for (const [i, { method, args }] of hsm.calls.entries()) {
    const undo = undoOf[method];
    if (undo === undefined && !undoMethods.has(method)) continue;
    const [argument] = args as [{ bdf?: unknown }];
    const what = JSON.stringify(argument.bdf ?? argument);
    if (undo === undefined) given.push(`${method} ${what}`);
    else if (i !== failedAt) taken.push(`${undo} ${what}`);
  }
  return { taken, given };
}

const whole = await start(() => {});
const startCalls = whole.hsm.calls.slice(0, whole.hsm.callNames.indexOf('startVm') + 1);

test('when nothing fails all are given to the guest in the order of their options, and back in the same', () => {
  expect(whole.error).toBeUndefined();
  const { taken, given } = traffic(whole.hsm, -1);
  const methods = taken.map((line) => line.split(' ')[0]);
  expect(methods).toEqual([
    ...['deassignMmiodev', 'deassignMmiodev', 'deassignPioRegion', 'resetPtdevIntx'],
    ...['deassignMmiodev', 'destroyVdev'],
  ]);
  // PCI first, then TPM, the controller's resources last first, device memory.
  expect(given).toEqual([taken[5], taken[0], taken[3], taken[2], taken[1], taken[4]]);
});

describe('each call of the start fails', () => {
  test.each(startCalls.map(({ method }, at) => ({ at, method })))('call $at, $method', async ({ at, method }) => {
    const nth = startCalls.slice(0, at + 1).filter((call) => call.method === method).length;
    for (const errno of [EPERM, EINVAL, ENOTTY]) {
      const { hsm, error, pc } = await start((fake) => fake.fail(method, nth, errno));
      expect(pc.ramOut).toBe(0);
      const { taken, given } = traffic(hsm, at);
      if (error === undefined) {
        expect([...given].sort()).toEqual([...taken].sort());
        expect(['getCpuState', 'setIrqLine']).toContain(method);
        continue;
      }
      expect(given).toEqual(taken.toReversed());
      expect(hsm.callNames.at(-1)).toBe('close');
      expect(error).toBeInstanceOf(DmError);
      expect((error as DmError).exitCode).toBe(ExitCode.VmFailed);
      expect((error as DmError).message).not.toContain('\n');
    }
  });
});

test('a driver without ioctl 0x5B is named with what to leave out', async () => {
  const { error } = await start((hsm) => hsm.fail('assignPioRegion', 1, ENOTTY));
  expect(error).toMatchObject({
    message: expect.stringContaining('ASSIGN_PIO_REGION'),
    hint: 'only the HSM driver of ACRN release 3.3 passes I/O ports through: leave type=io_port out',
  });
});

test('a system reset leaves them alone, a full reset gives them back and takes them again', async () => {
  const reset = await start(
    () => {},
    (hsm) => void hsm.guest.outb(0xcf9, 0x06),
  );
  expect(reset.error).toBeUndefined();
  expect(reset.hsm.callNames.filter((m) => m === 'assignMmiodev')).toHaveLength(3);
  expect(reset.hsm.callNames.filter((m) => m === 'deassignMmiodev')).toHaveLength(3);

  let life = 0;
  const full = await start(
    () => {},
    (hsm) => {
      if (life++ === 0) void hsm.guest.outb(0xcf9, 0x0e);
    },
  );
  expect(full.error).toBeUndefined();
  expect(full.pc.lives).toHaveLength(2);
  // Addresses do not move, as they do in C.
  const [first, second] = full.pc.lives.map((hsm) =>
    hsm.calls.filter(({ method }) => method === 'assignMmiodev').map(({ args }) => args[0]),
  );
  expect(second).toEqual(first);
});
