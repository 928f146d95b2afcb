import { expect, test, vi } from 'vitest';

/** What the host counts from its start: a year of it is more nanoseconds than are exact. */
let hostTime: [seconds: number, nanoseconds: number] = [31_536_000, 999_999_998];
vi.mock('node:process', async (original) => ({ ...(await original<object>()), hrtime: () => hostTime }));

// Mutation: count from the host's start.
test('each nanosecond counts, however long the host has been up', async () => {
  const { monotonicMs, monotonicNs } = await import('../../devicemodel/core/monotonic.ts');
  const firstNs = monotonicNs();
  hostTime = [31_536_000, 999_999_999];
  expect(monotonicNs() - firstNs).toBe(1);
  hostTime = [31_536_001, 0];
  expect(monotonicNs() - firstNs).toBe(2);
  expect(monotonicMs()).toBe(1000);
});
