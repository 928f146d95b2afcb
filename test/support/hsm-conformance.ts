/**
 * What every hypervisor back end must do alike: call order and errnos of the HSM driver and ACRN's hypervisor
 * (Linux drivers/virt/acrn, ACRN hypercall.c). Run by the tests of each back end:
 *
 *   describeHsm('fake', async () => new FakeHsm());
 */
import { constants } from 'node:os';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { map } from '../../devicemodel/core/host/mapping.ts';
import { HsmError } from '../../devicemodel/core/hsm/errors.ts';
import type { Hsm, VcpuRegs } from '../../devicemodel/core/hsm/hsm.ts';
import type { HvVdev } from '../../devicemodel/core/hsm/vdev.ts';
import { ivshmemOf, rootPortVdev } from './vdevs.ts';

const { EINVAL, EPERM, EEXIST, EBADF, EBUSY, ENOMEM } = constants.errno;

export interface HsmUnderTest {
  readonly hsm: Hsm;
  /** An eventfd, if the back end takes real or pretended ones. */
  readonly eventfd?: number;
  readonly otherEventfd?: number;
  /** A descriptor that is none. */
  readonly notEventfd?: number;
  /** It does not look whether a device is there already: what stands in for ACRN in the rig. */
  readonly takesSlotsTwice?: boolean;
  /** What must be given back besides `hsm.close()`. */
  dispose?(): void;
}

const PAGE_BYTES = 4096;
const spec = { name: 'conformance', flags: 0n, cpuAffinity: 0n };

/** Flat 32-bit start, as a kernel gets it. */
const startRegs: VcpuRegs = {
  rip: 0x10_0000n,
  cr0: 0x31n,
  cs: { selector: 0x10, base: 0n, limit: 0xffff_ffff, attributes: 0xc09b },
  ds: 0x18,
  es: 0x18,
  ss: 0x18,
};

export const ivshmemVdev: HvVdev = ivshmemOf('hv:/conformance');

function errnoOf(call: () => unknown): number {
  try {
    call();
  } catch (error) {
    if (error instanceof HsmError) return error.errno;
    throw error;
  }
  return 0;
}

/** @param open a handle with no VM on it; the ivshmem region `hv:/conformance` of 2 MiB must exist. */
export function describeHsm(name: string, open: () => Promise<HsmUnderTest>): void {
  describe(`${name} behaves as the HSM driver`, () => {
    let under: HsmUnderTest;
    let hsm: Hsm;

    beforeEach(async () => {
      under = await open();
      hsm = under.hsm;
    });

    afterEach(() => {
      hsm.close();
      under.dispose?.();
    });

    test('every call before createVm is EINVAL', () => {
      const calls: Array<() => unknown> = [
        () => hsm.startVm(),
        () => hsm.pauseVm(),
        () => hsm.resetVm(),
        () => hsm.destroyVm(),
        () => hsm.setVcpuRegs(0, startRegs),
        () => hsm.setIrqLine(4, 'high'),
        () => hsm.injectMsi({ address: 0xfee0_0000, data: 0x40 }),
        () => hsm.createIoreqClient(),
        () => hsm.destroyIoreqClient(),
        () => hsm.clearIoreqs(),
        () => hsm.notifyIoreqDone(0),
        () => hsm.createVdev(ivshmemVdev),
        () => hsm.destroyVdev(ivshmemVdev),
        () => hsm.getCpuState({ vcpu: 0, state: 0, type: 'px-count' }),
      ];
      expect(calls.map(errnoOf)).toEqual(calls.map(() => EINVAL));
    });

    test('createVm answers with a VM id and at least one vCPU', async () => {
      const { vmid, vcpuCount } = await hsm.createVm(spec);
      expect(vmid).toBeGreaterThan(0);
      expect(vcpuCount).toBeGreaterThan(0);
      expect(hsm.ioreqPage).toHaveLength(4096);
      hsm.pauseVm();
    });

    test('a handle has one VM', async () => {
      await hsm.createVm(spec);
      const second = await hsm.createVm(spec).then(
        () => 0,
        (error) => (error instanceof HsmError ? error.errno : error),
      );
      expect(second).toBe(EINVAL);
      hsm.pauseVm();
    }, 20_000); // ACRN's asks ten times: one of that name may be going away

    test('a created VM starts once; what runs can be neither reset, destroyed nor given registers', async () => {
      await hsm.createVm(spec);
      expect(errnoOf(() => hsm.resetVm())).toBe(EPERM); // only what is paused
      hsm.setVcpuRegs(0, startRegs);
      hsm.startVm();
      expect(errnoOf(() => hsm.startVm())).toBe(EPERM);
      expect(errnoOf(() => hsm.resetVm())).toBe(EPERM);
      expect(errnoOf(() => hsm.destroyVm())).toBe(EPERM);
      expect(errnoOf(() => hsm.setVcpuRegs(0, startRegs))).toBe(EPERM);
      hsm.pauseVm();
      hsm.destroyVm();
    });

    test('a paused VM starts again only after a reset', async () => {
      await hsm.createVm(spec);
      hsm.setVcpuRegs(0, startRegs);
      hsm.startVm();
      hsm.pauseVm();
      hsm.pauseVm(); // twice is fine
      expect(errnoOf(() => hsm.startVm())).toBe(EPERM);
      hsm.clearIoreqs();
      hsm.resetVm();
      hsm.setVcpuRegs(0, startRegs);
      hsm.startVm();
      hsm.pauseVm();
      hsm.destroyVm();
    });

    test('after destroyVm every call is EINVAL', async () => {
      await hsm.createVm(spec);
      hsm.pauseVm();
      hsm.destroyVm();
      expect([errnoOf(() => hsm.destroyVm()), errnoOf(() => hsm.startVm()), errnoOf(() => hsm.pauseVm())]).toEqual([
        EINVAL,
        EINVAL,
        EINVAL,
      ]);
    });

    test('registers of a vCPU that does not exist are EPERM', async () => {
      const { vcpuCount } = await hsm.createVm(spec);
      expect(errnoOf(() => hsm.setVcpuRegs(vcpuCount, startRegs))).toBe(EPERM);
      hsm.pauseVm();
    });

    test('there is one I/O request client; the wait without one is over', async () => {
      await hsm.createVm(spec);
      expect(await hsm.waitForIoreqs(() => {})).toBe('closed');
      hsm.destroyIoreqClient(); // none yet: no error
      hsm.notifyIoreqDone(0); // likewise
      hsm.notifyIoreqDone(0x1_0000); // its number has 16 bits
      hsm.createIoreqClient();
      expect(errnoOf(() => hsm.createIoreqClient())).toBe(EEXIST);
      hsm.destroyIoreqClient();
      expect(await hsm.waitForIoreqs(() => {})).toBe('closed');
      hsm.pauseVm();
    });

    test('a notification for a vCPU that does not exist is EINVAL', async () => {
      const { vcpuCount } = await hsm.createVm(spec);
      hsm.createIoreqClient();
      expect(errnoOf(() => hsm.notifyIoreqDone(vcpuCount))).toBe(EINVAL);
      hsm.destroyIoreqClient();
      hsm.pauseVm();
    });

    test.each([
      ['an ivshmem', ivshmemVdev],
      ['a root port', rootPortVdev],
    ])('%s is created while CREATED, destroyed while CREATED or PAUSED, and found by its BDF', async (_what, vdev) => {
      const elsewhere = { ...vdev, bdf: { bus: 0, device: 9, function: 0 } };
      await hsm.createVm(spec);
      hsm.createVdev(vdev);
      if (!under.takesSlotsTwice) expect(errnoOf(() => hsm.createVdev(vdev))).toBe(EINVAL);
      hsm.destroyVdev(vdev);
      expect(errnoOf(() => hsm.destroyVdev(vdev))).toBe(EINVAL);
      hsm.createVdev(vdev);
      hsm.setVcpuRegs(0, startRegs);
      hsm.startVm();
      expect(errnoOf(() => hsm.createVdev(elsewhere))).toBe(EINVAL);
      expect(errnoOf(() => hsm.destroyVdev(vdev))).toBe(EINVAL);
      hsm.pauseVm();
      expect(errnoOf(() => hsm.createVdev(elsewhere))).toBe(EINVAL);
      hsm.destroyVdev(vdev);
      hsm.destroyVm();
    });

    test('lines end at 48, and an MSI goes to an interrupt address', async () => {
      await hsm.createVm(spec);
      hsm.setIrqLine(4, 'high');
      hsm.setIrqLine(4, 'low');
      hsm.setIrqLine(10, 'rising-pulse');
      expect(errnoOf(() => hsm.setIrqLine(48, 'high'))).toBe(EPERM);
      hsm.injectMsi({ address: 0xfee0_0000, data: 0x41 });
      expect(errnoOf(() => hsm.injectMsi({ address: 0x1000, data: 0x41 }))).toBe(EPERM);
      hsm.pauseVm();
    });

    test('memory has whole pages, may overlap, and so many segments', async () => {
      const ram = map(PAGE_BYTES, 'RAM');
      try {
        await hsm.createVm(spec);
        const page = {
          gpa: 0x1000_0000,
          sizeBytes: PAGE_BYTES,
          bytes: ram.bytes,
          hostAddress: ram.address,
          writable: true,
        };
        expect(errnoOf(() => hsm.mapRam({ ...page, sizeBytes: 0 }))).toBe(EINVAL);
        expect(errnoOf(() => hsm.mapRam({ ...page, sizeBytes: PAGE_BYTES - 1 }))).toBe(EINVAL);
        const answers = Array.from({ length: 300 }, () => errnoOf(() => hsm.mapRam(page)));
        // The driver has room for 256 [ACRN_MEM_MAPPING_MAX].
        expect(answers).toEqual(answers.map((_, n) => (n < 256 ? 0 : ENOMEM)));
        hsm.pauseVm();
        hsm.destroyVm();
      } finally {
        ram.dispose();
      }
    });

    test('ioeventfds: widths, descriptors, duplicates', async (context) => {
      const { eventfd, otherEventfd, notEventfd } = under;
      if (eventfd === undefined || otherEventfd === undefined) return context.skip();
      await hsm.createVm(spec);
      const at = { fd: eventfd, address: 0xdf00_4000, space: 'mmio', sizeBytes: 2 } as const;
      expect(errnoOf(() => hsm.ioeventfd({ ...at, sizeBytes: 3 as 4 }, true))).toBe(EINVAL);
      expect(errnoOf(() => hsm.ioeventfd({ ...at, sizeBytes: 0 as 4 }, true))).toBe(EINVAL);
      // The driver's addresses end at 2^64, which a number does not reach.
      if (hsm.backend !== 'acrn') {
        expect(errnoOf(() => hsm.ioeventfd({ ...at, address: Number.MAX_SAFE_INTEGER }, true))).toBe(EINVAL);
      }
      expect(errnoOf(() => hsm.ioeventfd({ ...at, fd: -1 }, true))).toBe(EBADF);
      if (notEventfd !== undefined) expect(errnoOf(() => hsm.ioeventfd({ ...at, fd: notEventfd }, true))).toBe(EINVAL);
      hsm.ioeventfd(at, true);
      expect(errnoOf(() => hsm.ioeventfd(at, true))).toBe(EEXIST);
      expect(errnoOf(() => hsm.ioeventfd({ ...at, dataMatch: 1n }, true))).toBe(EEXIST); // any value matches already
      hsm.ioeventfd({ ...at, fd: otherEventfd }, true);
      hsm.ioeventfd({ ...at, fd: otherEventfd }, false);
      hsm.ioeventfd({ ...at, fd: otherEventfd }, false); // never assigned: no error
      hsm.ioeventfd(at, false);
      hsm.pauseVm();
    });

    test('irqfds: one message per descriptor', async (context) => {
      const { eventfd, notEventfd } = under;
      if (eventfd === undefined) return context.skip();
      await hsm.createVm(spec);
      const message = { address: 0xfee0_1000, data: 0x41 };
      expect(errnoOf(() => hsm.irqfd(-1, message, true))).toBe(EBADF);
      if (notEventfd !== undefined) expect(errnoOf(() => hsm.irqfd(notEventfd, message, true))).toBe(EINVAL);
      hsm.irqfd(eventfd, message, true);
      expect(errnoOf(() => hsm.irqfd(eventfd, message, true))).toBe(EBUSY);
      hsm.irqfd(eventfd, message, false);
      hsm.irqfd(eventfd, message, false);
      hsm.pauseVm();
    });

    test('close may come at any time, and twice', async () => {
      await hsm.createVm(spec);
      hsm.createIoreqClient();
      hsm.setVcpuRegs(0, startRegs);
      hsm.startVm();
      hsm.pauseVm();
      hsm.close();
      hsm.close();
    });
  });
}
