/**
 * Two VMs of one process on ACRN: neither may block the thread in ATTACH, so that other threads wait and this one looks at
 * the request pages (polled-attach.ts). The driver is played; what waits and what serves is the program's.
 */
import { afterEach, expect, test, vi } from 'vitest';
import { IoreqPage } from '../../../devicemodel/core/ioreq-page.ts';
import { PolledAttach } from '../../../hypervisor/acrn/polled-attach.ts';
import { TurnLoop } from '../../../hypervisor/turn-loop/loop.ts';
import type { FakeHsm } from '../../support/fake-hsm.ts';
import { type FakePc, makePc } from '../../support/fake-pc.ts';

/** The request page behind each descriptor; none: the descriptor is closed. */
const pages = vi.hoisted(() => new Map<number, { isPending(vcpu: number): boolean }>());
vi.mock('../../../devicemodel/core/host/ioctl.ts', async (original) => ({
  ...(await original<object>()),
  /** ATTACH, on a thread of its own: back when the guest wants something, or the client is gone. */
  ioctlAsync: async (fd: number) => {
    while (pages.get(fd)?.isPending(0) === false) await new Promise((resolve) => setTimeout(resolve, 0));
    return 0;
  },
}));

let descriptors = 0;
const machines: Polled[] = [];
afterEach(async () => {
  for (const machine of machines.splice(0)) await machine.dispose();
});

class Polled {
  readonly pc: FakePc;
  readonly #loop = new TurnLoop({ hasSlices: false });
  readonly ended: Promise<unknown>;

  constructor() {
    this.pc = makePc([], (hsm) => poll(hsm), { loop: this.#loop });
    this.ended = this.pc.vm.run();
    this.ended.catch(() => {});
    machines.push(this);
  }

  get guest() {
    return (this.pc.lives.at(-1) as FakeHsm).guest;
  }
  /** @returns what the guest read from the RTC's index register, which it wrote before, many times. */
  async work(value: number): Promise<Set<number>> {
    const seen = new Set<number>();
    for (let i = 0; i < 200; i++) {
      await this.guest.pioWrite(0x3ff, 1, value);
      seen.add(await this.guest.pioRead(0x3ff, 1));
    }
    return seen;
  }
  async isRunning(lives: number): Promise<void> {
    await vi.waitFor(() => expect([this.pc.vm.state, this.pc.lives.length]).toEqual(['running', lives]), {
      timeout: 10_000,
    });
  }
  async dispose(): Promise<void> {
    this.pc.vm.power.request({ kind: 'poweroff', reason: 'the end of the test' });
    await this.ended.catch(() => {});
    await this.#loop.stop();
    await this.pc.dispose();
  }
}

/** Have the waits of this hypervisor be those of a driver that no signal interrupts. */
function poll(hsm: FakeHsm): void {
  const fd = descriptors++;
  const page = new IoreqPage(hsm.ioreqPage);
  const attach = new PolledAttach({ fd, page, vcpuCount: 1, resultOf: () => 'pending' });
  pages.set(fd, page);
  const close = hsm.close.bind(hsm);
  Object.assign(hsm, {
    waitForIoreqs: () => attach.wait(),
    interruptWait: () => attach.interrupt(),
    close: () => {
      pages.delete(fd);
      close();
    },
  });
}

// Mutation: keep `#attached` or `#linger` of PolledAttach in the module: one takes the other's requests.
test('both are served, each its own requests; one resets and ends, and the other does not notice', async () => {
  const [first, second] = [new Polled(), new Polled()];
  await Promise.all([first.isRunning(1), second.isRunning(1)]);
  const both = Promise.all([first.work(0x11), second.work(0x22)]);
  expect(await both).toEqual([new Set([0x11]), new Set([0x22])]);

  const busy = second.work(0x33);
  void first.guest.pioWrite(0xcf9, 1, 0x0e);
  await first.isRunning(2);
  expect(await first.work(0x44)).toEqual(new Set([0x44]));
  expect(await busy).toEqual(new Set([0x33]));

  first.pc.vm.power.request({ kind: 'poweroff', reason: 'enough' });
  expect(await first.ended).toMatchObject({ reason: 'enough' });
  expect(second.pc.vm.state).toBe('running');
  expect(await second.work(0x55)).toEqual(new Set([0x55]));
});
