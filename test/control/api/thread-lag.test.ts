import { afterEach, beforeEach, expect, test, vi } from 'vitest';
import { LAG_BOUNDS_S, ThreadLag } from '../../../control/api/thread-lag.ts';

beforeEach(() => {
  vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout', 'performance'] });
});
afterEach(() => {
  vi.useRealTimers();
});

/** The thread is busy meanwhile: no timer comes. */
function busy(ms: number): void {
  const now = performance.now();
  vi.spyOn(performance, 'now').mockReturnValue(now + ms);
}

test('nothing is looked at before somebody asks, and four times a second from then on', () => {
  const lag = new ThreadLag();
  expect(vi.getTimerCount()).toBe(0);
  expect(lag.ask()).toEqual({ atMost: LAG_BOUNDS_S.map(() => 0), count: 0, sumS: 0 });
  vi.advanceTimersByTime(1000);
  expect(lag.ask()).toEqual({ atMost: LAG_BOUNDS_S.map(() => 4), count: 4, sumS: 0 });
  lag.close();
  expect(vi.getTimerCount()).toBe(0);
});

test.each([
  [30, 0.05],
  [250, 0.25],
  [900, 1],
])('a thread that comes %d ms late is counted up to %d s', (lateMs, bound) => {
  const lag = new ThreadLag();
  lag.ask();
  busy(250 + lateMs);
  vi.advanceTimersByTime(250);
  const { atMost, count, sumS } = lag.ask();
  expect([count, sumS]).toEqual([1, lateMs / 1000]);
  expect(atMost).toEqual(LAG_BOUNDS_S.map((end) => (end >= bound ? 1 : 0)));
  lag.close();
});

test('later than all of them is in the count alone', () => {
  const lag = new ThreadLag();
  lag.ask();
  busy(5250);
  vi.advanceTimersByTime(250);
  expect(lag.ask()).toMatchObject({ count: 1, sumS: 5, atMost: LAG_BOUNDS_S.map(() => 0) });
  lag.close();
});

test('when nobody asks any more, nobody looks; the next who asks goes on with the same figures', () => {
  const lag = new ThreadLag();
  lag.ask();
  vi.advanceTimersByTime(6 * 60_000);
  expect(vi.getTimerCount()).toBe(0);
  const { count } = lag.ask();
  expect(count).toBeGreaterThan(1000);
  expect(vi.getTimerCount()).toBe(1);
  vi.advanceTimersByTime(250);
  expect(lag.ask().count).toBe(count + 1);
  lag.close();
});
