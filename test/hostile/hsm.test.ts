/** The ACRN back end on a descriptor whose driver knows none of its orders: every call fails by one clear error. */
import { openSync } from 'node:fs';
import { constants } from 'node:os';
import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest';
import { HsmError } from '../../devicemodel/core/hsm/errors.ts';
import type { HvVdev } from '../../devicemodel/core/hsm/vdev.ts';
import { AcrnHsm } from '../../hypervisor/acrn/acrn-hsm.ts';

const { ENOTTY } = constants.errno;
const vuart: HvVdev = {
  type: 'vuart',
  bdf: { bus: 0, device: 5, function: 0 },
  registersBar: 0x8000_0000,
  msixBar: 0x8000_1000,
  vuartIndex: 1,
};
const ram = { gpa: 0, sizeBytes: 4096, bytes: new Uint8Array(4096), hostAddress: 0x1000n, writable: true };
const regs = { rip: 0n, cr0: 0x30n, cs: { selector: 0, base: 0n, limit: 0xffff, attributes: 0x9f } };
const kick = { fd: 0, address: 0x2010, sizeBytes: 2, space: 'pio', dataMatch: 0n } as const;

let hsm: AcrnHsm;
beforeEach(() => {
  hsm = new AcrnHsm(openSync('/dev/null', 'r+'), true);
});
afterEach(() => hsm.close());

describe('an ioctl the driver does not know', () => {
  const calls: ReadonlyArray<readonly [string, (h: AcrnHsm) => unknown]> = [
    ['START_VM', (h) => h.startVm()],
    ['PAUSE_VM', (h) => h.pauseVm()],
    ['RESET_VM', (h) => h.resetVm()],
    ['DESTROY_VM', (h) => h.destroyVm()],
    ['SET_VCPU_REGS', (h) => h.setVcpuRegs(0, regs)],
    ['SET_MEMSEG', (h) => h.mapRam(ram)],
    ['SET_IRQLINE', (h) => h.setIrqLine(4, 'high')],
    ['INJECT_MSI', (h) => h.injectMsi({ address: 0xfee0_0000, data: 0x40 })],
    ['CREATE_IOREQ_CLIENT', (h) => h.createIoreqClient()],
    ['DESTROY_IOREQ_CLIENT', (h) => h.destroyIoreqClient()],
    ['CLEAR_VM_IOREQ', (h) => h.clearIoreqs()],
    ['NOTIFY_REQUEST_FINISH', (h) => h.notifyIoreqDone(0)],
    ['CREATE_VDEV', (h) => h.createVdev(vuart)],
    ['DESTROY_VDEV', (h) => h.destroyVdev(vuart)],
    ['IOEVENTFD', (h) => h.ioeventfd(kick, true)],
    ['IRQFD', (h) => h.irqfd(0, { address: 0xfee0_0000, data: 0x40 }, true)],
  ];

  test.each(calls)('%s', (name, call) => {
    let error: unknown;
    try {
      call(hsm);
    } catch (thrown) {
      error = thrown;
    }
    expect(error).toBeInstanceOf(HsmError);
    expect(error).toMatchObject({ errno: ENOTTY, message: expect.stringContaining(name) });
    expect((error as Error).message).not.toContain('\n');
  });

  // Mutation: without the signal in AcrnHsm.createVm, it tries for the five seconds that C does.
  test('CREATE_VM is not tried any longer once the VM is not wanted', async () => {
    const ending = new AbortController();
    const startMs = performance.now();
    setTimeout(() => ending.abort(new Error('not wanted')), 20);
    await expect(hsm.createVm({ name: 'vm', flags: 0n, cpuAffinity: 0n }, ending.signal)).rejects.toThrow('not wanted');
    expect(performance.now() - startMs).toBeLessThan(3000);
  });

  test('waiting for requests fails instead of turning in circles', async () => {
    await expect(Promise.resolve().then(() => hsm.waitForIoreqs())).rejects.toMatchObject({ errno: ENOTTY });
  });

  test('what only some kernels have is reported as missing', () => {
    expect(hsm.vmEvents?.setup(0n, 0)).toBe(false);
    expect(hsm.asyncio?.setup(0n)).toBe(false);
    expect(hsm.getCpuState({ kind: 'px-count', vcpu: 0 } as never)).toBeUndefined();
  });
});

test('CREATE_VM is tried ten times, half a second apart, and then given up with one error', async () => {
  vi.useFakeTimers();
  try {
    const result = hsm.createVm({ name: 'vm1', flags: 0n, cpuAffinity: 1n });
    const failed = expect(result).rejects.toMatchObject({
      errno: ENOTTY,
      message: expect.stringContaining('CREATE_VM'),
    });
    await vi.advanceTimersByTimeAsync(4499);
    expect(vi.getTimerCount()).toBe(1);
    await vi.advanceTimersByTimeAsync(1);
    await failed;
    expect(vi.getTimerCount()).toBe(0);
  } finally {
    vi.useRealTimers();
  }
});
