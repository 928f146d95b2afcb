/**
 * A device that makes one vCPU wait: the others are served, and nobody sees it half done.
 * Mutation tried for each test: named in its comment.
 */
import { describe, expect, onTestFinished, test, vi } from 'vitest';
import type { IoRegion } from '../../devicemodel/core/device.ts';
import { MmioBus, PioBus } from '../../devicemodel/core/io-bus.ts';
import { IoPatience } from '../../devicemodel/core/io-patience.ts';
import { IoreqServer } from '../../devicemodel/core/ioreq-server.ts';
import { silentLog } from '../../devicemodel/core/log.ts';
import { RequestHolds } from '../../devicemodel/core/request-holds.ts';
import { FakeHsm } from '../support/fake-hsm.ts';

const SLOW = 0x100;
const OTHER = 0x200;

/** Two vCPUs; a device at SLOW that closes its gate when it is written, and a register at OTHER. */
async function makeMachine() {
  const hsm = new FakeHsm({ vcpuCount: 3, serving: 'from-page' });
  await hsm.createVm({ name: 'vm', flags: 0n, cpuAffinity: 0n });
  hsm.createIoreqClient();
  hsm.startVm();
  const holds = new RequestHolds();
  const gate = holds.gate();
  const pio = new PioBus();
  const trace: string[] = [];
  let register = 0;
  const slow: IoRegion = {
    read: () => {
      if (gate.isClosed) return gate.postpone();
      trace.push('read');
      return register;
    },
    write: (_offset, _size, value) => {
      if (gate.isClosed) {
        gate.postpone();
        return;
      }
      trace.push(`write ${value}`);
      register = value;
      if (value === 0) gate.close();
    },
  };
  pio.register({ base: SLOW, size: 4, name: 'slow' }, slow);
  pio.register({ base: OTHER, size: 4, name: 'other' }, { read: () => 0x77, write: () => {} });
  const pci = { readConfig: () => 0, writeConfig: () => {} };
  const server = new IoreqServer({ hsm, pio, mmio: new MmioBus(), pci, vcpuCount: 3, holds, log: silentLog });
  const settled = new Map<string, number>();
  const guest = (name: string, access: Promise<number>) => void access.then((value) => settled.set(name, value));
  /** Until the guest has nothing more to ask for that could be served. */
  const run = async () => {
    for (let i = 0; i < 3; i++) {
      void hsm.waitForIoreqs(server.serve);
      server.serve();
      await new Promise((resolve) => setImmediate(resolve));
    }
  };
  return { hsm, holds, gate, server, trace, settled, guest, run };
}

describe('a closed gate', () => {
  // Mutation: notify although the request is held.
  test('keeps the request of the vCPU open, and only that', async () => {
    const { hsm, guest, run, settled, holds, gate, server } = await makeMachine();
    guest('reset', hsm.guest.pioWrite(SLOW, 1, 0, 0));
    guest('other', hsm.guest.pioRead(OTHER, 1, 1));
    await run();
    expect([...settled]).toEqual([['other', 0x77]]);
    expect(holds.isHolding).toBe(true);
    // Looked at again and again, it is not carried out again.
    expect(server.hasPending).toBe(false);
    gate.open();
    await run();
    expect(settled.has('reset')).toBe(true);
    expect(holds.isHolding).toBe(false);
  });

  // Mutation: `postpone` does nothing: the second vCPU reads at once.
  test('puts the accesses of others to the device behind it, and they are carried out once', async () => {
    const { hsm, guest, run, settled, trace, gate } = await makeMachine();
    guest('reset', hsm.guest.pioWrite(SLOW, 1, 0, 0));
    await run();
    guest('read', hsm.guest.pioRead(SLOW, 1, 1));
    guest('write', hsm.guest.pioWrite(SLOW, 1, 5, 2));
    await run();
    expect(trace).toEqual(['write 0']);
    expect([...settled.keys()]).toEqual([]);
    gate.open();
    await run();
    expect(trace).toEqual(['write 0', 'read', 'write 5']);
    expect([...settled.keys()].sort()).toEqual(['read', 'reset', 'write']);
    expect(settled.get('read')).toBe(0);
  });

  // Mutation: `release` takes every held request with it.
  test('is of one device: another one that opens lets nobody go', async () => {
    const { hsm, guest, run, settled, holds, gate } = await makeMachine();
    const another = holds.gate();
    guest('reset', hsm.guest.pioWrite(SLOW, 1, 0, 0));
    await run();
    another.close();
    another.open();
    await run();
    expect(settled.has('reset')).toBe(false);
    gate.open();
    await run();
    expect(settled.has('reset')).toBe(true);
  });

  // Mutation: `forget` is left out when the completions are let go again: the old request is completed in the new life.
  test('that opens after the VM was reset completes nothing of before', async () => {
    const { hsm, guest, run, gate, server, holds } = await makeMachine();
    guest('reset', hsm.guest.pioWrite(SLOW, 1, 0, 0));
    await run();
    server.holdCompletions = true;
    hsm.pauseVm();
    hsm.clearIoreqs();
    hsm.resetVm();
    server.holdCompletions = false;
    expect(holds.isHolding).toBe(false);
    hsm.startVm();
    const notified = hsm.notifies;
    gate.open();
    expect(hsm.notifies).toBe(notified);
  });

  test('closed from the host makes nobody wait who does not come', async () => {
    const { hsm, guest, run, settled, holds, gate } = await makeMachine();
    gate.close();
    expect(holds.isHolding).toBe(false);
    guest('other', hsm.guest.pioRead(OTHER, 1, 0));
    guest('read', hsm.guest.pioRead(SLOW, 1, 1));
    await run();
    expect([...settled.keys()]).toEqual(['other']);
    gate.open();
    await run();
    expect([...settled.keys()]).toEqual(['other', 'read']);
  });
});

describe('patience', () => {
  test('with storage ends after its time, and when it has come nothing happens', async () => {
    const over: string[] = [];
    const patience = new IoPatience(20);
    patience.start(() => over.push('hung'));
    patience.start(() => over.push('answered'))();
    await expect.poll(() => over).toEqual(['hung']);
  });

  // Mutation: `force` leaves waits under way alone.
  test('is cut short by force, also where it began before', async () => {
    const over: string[] = [];
    const patience = new IoPatience(3_600_000);
    patience.start(() => over.push('before'));
    patience.force();
    patience.start(() => over.push('after'));
    await expect.poll(() => over.sort(), { timeout: 5000 }).toEqual(['after', 'before']);
  });

  // Mutation: `force` gives a wait with a limit of its own the time that is left to all.
  test('of who has a limit of its own is no longer than that, by force neither', async () => {
    vi.useFakeTimers();
    onTestFinished(() => void vi.useRealTimers());
    const over: string[] = [];
    const patience = new IoPatience(3_600_000);
    const wait = (name: string, atMostMs: number, work: Promise<unknown> = new Promise(() => {})) =>
      void patience.within(work, atMostMs).then((isThere) => over.push(`${name} ${isThere}`));
    wait('short', 20);
    wait('there', 20, Promise.resolve());
    await vi.advanceTimersByTimeAsync(20);
    expect(over).toEqual(['there true', 'short false']);
    wait('forced', 30);
    patience.force();
    await vi.advanceTimersByTimeAsync(30);
    expect(over.at(-1)).toBe('forced false');
  });
});
