/** For how long the device thread looks for a request before it sleeps. The clock and the scheduler are the test's. */
import { expect, test, vi } from 'vitest';
import type { IoreqPage } from '../../../devicemodel/core/ioreq-page.ts';
import { PolledAttach } from '../../../hypervisor/acrn/polled-attach.ts';

let nowMs = 1000;
/** How long whoever else is on this CPU keeps it, each time it is left to it. */
let sliceMs = 0;
vi.mock('node:os', async (original) => ({ ...(await original<object>()), availableParallelism: () => 2 }));
vi.mock('../../../devicemodel/core/host/scheduling.ts', async (original) => ({
  ...(await original<object>()),
  yieldCpu: () => {
    nowMs += sliceMs;
  },
}));
vi.mock('../../../devicemodel/core/host/ioctl.ts', async (original) => ({
  ...(await original<object>()),
  ioctlAsync: async () => 0,
}));
vi.mock('../../../devicemodel/core/monotonic.ts', () => ({
  monotonicMs: () => nowMs,
  monotonicNs: () => nowMs * 1e6,
}));

// Mutation: look at the clock after eight turns of others only, or never.
test.each([
  ['alone on its CPU', 0.0005, 0.21],
  ['beside one that computes', 4, 4],
])('a thread %s looks no longer than it means to, but for one slice', async (_where, slice, mostMs) => {
  const page = { isPending: () => false } as unknown as IoreqPage;
  const attach = new PolledAttach({ fd: 0, page, vcpuCount: 1, resultOf: () => 'pending' });
  sliceMs = slice;
  // The guest comes back at once, again and again: looking is worth its longest time.
  for (let i = 0; i < 10; i++) await attach.wait();
  const fromMs = nowMs;
  await attach.wait();
  expect(nowMs - fromMs).toBeGreaterThan(0);
  expect(nowMs - fromMs).toBeLessThanOrEqual(mostMs);
});
