/**
 * Any call to the hypervisor may fail, at any time of a VM's life: everything done before is undone, in order, and no VM
 * and no vdev is left without an owner (anchors §4.3 group 12).
 */
import { rmSync } from 'node:fs';
import { constants } from 'node:os';
import { afterAll, describe, expect, test } from 'vitest';
import { DmError } from '../../devicemodel/core/errors.ts';
import type { HvVdev } from '../../devicemodel/core/hsm/vdev.ts';
import { LogLevel } from '../../devicemodel/core/log.ts';
import type { FakeHsm, HsmMethod } from '../support/fake-hsm.ts';
import { makePc } from '../support/fake-pc.ts';

const { EPERM, EINVAL, EFAULT, ENOMEM, ENOTTY, ENODEV } = constants.errno;
const ERRNOS = [EPERM, EINVAL, EFAULT, ENOMEM, ENOTTY];
const argv = [
  ...['-s', '3,wdt-i6300esb', '-s', '4,virtio-console,@file:port=/dev/null'],
  ...['-s', '5,ivshmem,hv:/failing,2', '-s', `6,ivshmem,dm:/failing-${process.pid},2`, '-s', '7,uart,vuart_idx:1'],
  ...['-s', '8,root-port,ptm', '-s', '1:0:0,uart,vuart_idx:2'],
];

// Shared memory of dm: outlives the VM.
afterAll(() => rmSync(`/dev/shm/failing-${process.pid}`, { force: true }));

/** Everything a guest can make the board do: interrupts, a system reset, S3, a full reset, power-off. */
function liveThroughEverything(hsm: FakeHsm, life: number): void {
  const { guest } = hsm;
  void guest.outb(0x3f9, 0x02); // COM1: the transmitter is empty, an edge on line 4
  void guest.outb(0x70, 0x0b);
  void guest.pioWrite(0x402, 2, 0x0100);
  void guest.outb(0xb2, 0xa0);
  if (life > 1) {
    void guest.pioWrite(0x404, 2, 0x3400);
    return;
  }
  void guest.outb(0xcf9, 0x06);
  void guest.pioWrite(0x404, 2, 0x2c00);
  void guest.outb(0xcf9, 0x0e);
}

async function run(prepare: (hsm: FakeHsm, life: number) => void) {
  const pc = makePc(
    argv,
    (hsm, life) => {
      liveThroughEverything(hsm, life);
      prepare(hsm, life);
    },
    { logLevel: LogLevel.warn },
  );
  pc.vm.on('state', (state) => {
    if (state === 'suspended') setImmediate(() => pc.vm.wake());
  });
  let error: unknown;
  try {
    await pc.vm.run();
  } catch (thrown) {
    error = thrown;
  }
  await pc.dispose();
  return { pc, error };
}

/** How the calls of one life pair up: what was created and not taken away when the descriptor was closed. */
function leftOvers(hsm: FakeHsm, failed: HsmMethod | undefined): string[] {
  const problems: string[] = [];
  const names = hsm.callNames;
  if (names.at(-1) !== 'close') problems.push(`the last call is ${names.at(-1)}`);
  const at = (name: HsmMethod) => names.lastIndexOf(name);
  const held = new Set<string>();
  for (const { method, args } of hsm.calls) {
    if (method === 'ioeventfd') {
      const [spec, assign] = args as [{ address: number; fd: number }, boolean];
      const key = `ioeventfd ${spec.address}/${spec.fd}`;
      if (assign) held.add(key);
      else held.delete(key);
    } else if (method === 'createVdev') {
      held.add(`vdev ${JSON.stringify((args[0] as HvVdev).bdf)}`);
    } else if (method === 'destroyVdev') {
      held.delete(`vdev ${JSON.stringify((args[0] as HvVdev).bdf)}`);
    }
  }
  // What could not be created is in the list, too; what could not be destroyed goes with the VM.
  const mayRemain = failed === 'createVdev' || failed === 'destroyVdev' || failed === 'ioeventfd' ? 1 : 0;
  if (held.size > mayRemain) problems.push(...held);
  // The order the driver and the hypervisor want. A vdev that was taken away for a reset may be gone already.
  const order: HsmMethod[] = ['destroyIoreqClient', 'destroyVm', 'close'];
  const places = order.map(at).filter((place) => place >= 0);
  if (places.some((place, i) => i > 0 && place < (places[i - 1] as number))) problems.push(`out of order: ${names}`);
  if (at('destroyVm') >= 0 && at('destroyVm') < at('destroyVdev')) problems.push('a vdev outlives its VM');
  if (names.includes('startVm') && at('pauseVm') < at('startVm')) problems.push('not paused after it ran');
  if (hsm.callNames.filter((name) => name === 'destroyVm').length > 1) problems.push('destroyed twice');
  return problems;
}

/** How often each method is called when nothing fails. */
async function callCounts(): Promise<Array<{ life: number; method: HsmMethod; count: number }>> {
  const { pc, error } = await run(() => {});
  expect(error).toBeUndefined();
  expect(pc.lives.length).toBe(2);
  return pc.lives.flatMap((hsm, i) => {
    const counts = new Map<HsmMethod, number>();
    for (const name of hsm.callNames) counts.set(name, (counts.get(name) ?? 0) + 1);
    return [...counts].map(([method, count]) => ({ life: i + 1, method, count }));
  });
}

const counts = await callCounts();
/** Undoing goes on whatever fails, and the exit status is about what the guest did. */
const UNDO: ReadonlySet<HsmMethod> = new Set(['pauseVm', 'destroyVm', 'destroyVdev', 'destroyIoreqClient']);

describe.each(counts)('life $life, $method, which is called $count times', ({ life, method, count }) => {
  test.each(ERRNOS)('each of its calls may fail with errno %i', async (errno) => {
    for (let nth = 1; nth <= count; nth++) {
      const { pc, error } = await run((hsm, present) => {
        if (present === life) hsm.fail(method, nth, errno);
      });
      const where = `${method} ${nth}`;
      if (error !== undefined) expect(error, where).toBeInstanceOf(DmError);
      for (const hsm of pc.lives) {
        if (method === 'close') continue;
        expect([where, ...leftOvers(hsm, method)]).toEqual([where]);
      }
      expect([where, pc.ramOut]).toEqual([where, 0]);
      if (UNDO.has(method)) continue;
      // A line or a message that cannot be delivered is the guest's loss, and so is a missing P-state.
      if (['setIrqLine', 'injectMsi', 'getCpuState', 'ioeventfd', 'close'].includes(method)) continue;
      expect([where, error !== undefined]).toEqual([where, true]);
    }
  });
});

test('root ports have the same bus in every life, and each one made is taken away', async () => {
  const { pc } = await run(() => {});
  const ports = pc.lives.map((hsm) =>
    hsm.calls.flatMap(({ method, args }) => {
      const vdev = args[0] as HvVdev | undefined;
      return vdev?.type === 'root-port' ? [`${method} bus ${vdev.secondaryBus}`] : [];
    }),
  );
  // The first life goes through a system reset: the port is made again before the VM starts again.
  const once = ['createVdev bus 1', 'destroyVdev bus 1'];
  expect(ports).toEqual([[...once, ...once], once]);
});

/** How often each life waits when nothing fails, or more. */
const MAX_WAITS = 12;

/** The nth wait of life `life` gives `result` instead of waiting. */
function instead(hsm: FakeHsm, nth: number, result: 'closed' | 'pending'): void {
  const wait = hsm.waitForIoreqs.bind(hsm);
  let count = 0;
  hsm.waitForIoreqs = (serve) => (++count === nth ? result : wait(serve));
}

describe.each([1, 2])('while the guest runs, life %i', (life) => {
  test.each([...ERRNOS, ENODEV])('ATTACH_IOREQ_CLIENT or NOTIFY_REQUEST_FINISH fails with errno %i', async (errno) => {
    for (const method of ['waitForIoreqs', 'notifyIoreqDone'] as const) {
      let failures = 0;
      for (let nth = 1; nth <= MAX_WAITS; nth++) {
        const { pc, error } = await run((hsm, present) => {
          if (present === life) hsm.fail(method, nth, errno);
        });
        if (error !== undefined) {
          failures++;
          expect(error).toBeInstanceOf(DmError);
        }
        const where = `${method} ${nth}`;
        expect([where, ...pc.lives.flatMap((hsm) => leftOvers(hsm, method))]).toEqual([where]);
        expect([where, pc.ramOut]).toEqual([where, 0]);
      }
      expect(failures).toBeGreaterThan(0);
    }
  });

  test('the driver closes the request client (ENODEV from ATTACH) at any wait', async () => {
    for (let nth = 1; nth <= MAX_WAITS; nth++) {
      const { pc, error } = await run((hsm, present) => {
        if (present === life) instead(hsm, nth, 'closed');
      });
      if (error !== undefined) expect((error as Error).message).toMatch(/closed the request client/);
      expect([nth, ...pc.lives.flatMap((hsm) => leftOvers(hsm, 'waitForIoreqs'))]).toEqual([nth]);
      expect([nth, pc.ramOut]).toEqual([nth, 0]);
    }
  });

  test('ATTACH says that there are requests, and there are none', async () => {
    for (let nth = 1; nth <= MAX_WAITS; nth++) {
      const { pc, error } = await run((hsm, present) => {
        if (present === life) instead(hsm, nth, 'pending');
      });
      expect([nth, error, pc.lives.length]).toEqual([nth, undefined, 2]);
    }
  });
});
