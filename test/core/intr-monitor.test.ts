import * as fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { HostError } from '../../devicemodel/core/errors.ts';
import { AcrnIntrMonitor } from '../../devicemodel/core/hsm/abi.ts';
import { IntrMonitor } from '../../devicemodel/core/intr-monitor.ts';
import { FakeClock } from '../support/fake-clock.ts';
import { memoryLog } from '../support/memory-log.ts';

const SECOND = 1e9;
const config = { thresholdPerSecond: 100, probePeriodS: 1, delayMs: 5, delayDurationMs: 20 };

/** A hypervisor that reports the given [irq, count] pairs, one list a look, the last one again and again. */
function setup(looks: ReadonlyArray<ReadonlyArray<readonly [number, number]>>, options: Partial<typeof config> = {}) {
  const clock = new FakeClock();
  const startNs = clock.nowNs();
  const bytes = new Uint8Array(4096);
  const calls: Array<{ atMs: number; cmd: number; bufCnt: number; first: bigint }> = [];
  const { log, lines } = memoryLog();
  const control: { failing: boolean } = { failing: false };
  let look = 0;
  const monitor = new IntrMonitor({
    config: { ...config, ...options },
    clock,
    log,
    page: { address: 0x1000n, bytes, dispose: () => {} },
    ability: {
      intrMonitor: (address) => {
        expect(address).toBe(0x1000n);
        const request = AcrnIntrMonitor.decode(bytes);
        const first = request.buffer[0] ?? 0n;
        calls.push({ atMs: (clock.nowNs() - startNs) / 1e6, cmd: request.cmd, bufCnt: request.bufCnt, first });
        if (control.failing) throw new HostError('VM_INTR_MONITOR: EINVAL', 22);
        if (request.cmd !== 0) return;
        expect(request.buffer.slice(0, request.bufCnt).every((word) => word === 0n)).toBe(true);
        const pairs = looks[Math.min(look++, looks.length - 1)] ?? [];
        const buffer = pairs.flatMap(([irq, count]) => [BigInt(irq), BigInt(count)]);
        bytes.set(AcrnIntrMonitor.encode({ cmd: 0, bufCnt: buffer.length, buffer }));
      },
    },
  });
  return { monitor, clock, calls, lines, control };
}

describe('storm', () => {
  test('delays every injection for a while, then looks afresh, as recorded from the C device model', () => {
    const { monitor, clock, calls, lines } = setup([
      [
        [33, 10],
        [40, 5],
      ],
      [
        [33, 5000],
        [40, 6],
      ],
      [
        [33, 5010],
        [40, 7],
      ],
    ]);
    monitor.start();
    clock.advance(5 * SECOND);
    expect(calls.slice(0, 6)).toEqual([
      { atMs: 1000, cmd: 0, bufCnt: 48, first: 0n },
      { atMs: 2000, cmd: 0, bufCnt: 4, first: 0n },
      { atMs: 2000, cmd: 1, bufCnt: 4, first: 5n },
      { atMs: 2020, cmd: 1, bufCnt: 4, first: 0n },
      { atMs: 4020, cmd: 0, bufCnt: 48, first: 0n },
      // 5020 is beyond the five seconds
    ]);
    expect(lines).toEqual(['notice: interrupt storm: irq 33 came 4990 times']);
  });

  test('exactly the threshold is none; it counts per period', () => {
    const { monitor, clock, calls } = setup([[[1, 0]], [[1, 300]], [[1, 600]]], { probePeriodS: 3 });
    monitor.start();
    clock.advance(9 * SECOND);
    expect(calls.map((c) => [c.atMs, c.cmd])).toEqual([
      [3000, 0],
      [6000, 0],
      [9000, 0],
    ]);
  });

  test.each([
    ['another line in that place', [[[1, 0]], [[2, 100_000]]]],
    ['a count that went back', [[[1, 100_000]], [[1, 5]]]],
    ['a line that appeared', [[], [[7, 100_000]]]],
  ] as const)('%s is none', (_name, looks) => {
    const { monitor, clock, calls } = setup(looks as never);
    monitor.start();
    clock.advance(2 * SECOND);
    expect(calls.every((c) => c.cmd === 0)).toBe(true);
  });

  test('stop ends a delay that is under way, and everything else', () => {
    const { monitor, clock, calls } = setup([[[1, 0]], [[1, 5000]]]);
    monitor.start();
    clock.advance(2 * SECOND);
    expect(calls.at(-1)).toMatchObject({ cmd: 1, first: 5n });
    monitor.stop();
    expect(calls.at(-1)).toMatchObject({ cmd: 1, first: 0n });
    const count = calls.length;
    monitor.stop();
    clock.advance(60 * SECOND);
    expect(calls).toHaveLength(count);
    expect(clock.armed).toBe(0);
  });
});

test('a hypervisor that cannot tell ends the watch with one warning', () => {
  const { monitor, clock, calls, lines, control } = setup([[[1, 0]]]);
  monitor.start();
  clock.advance(SECOND);
  control.failing = true;
  clock.advance(60 * SECOND);
  expect(calls).toHaveLength(2);
  expect(lines).toHaveLength(1);
  expect(clock.armed).toBe(0);
});

test('a delay is always ended, whatever the counts are', () => {
  const look = fc.array(fc.tuple(fc.nat({ max: 3 }), fc.nat({ max: 2000 })), { maxLength: 24 });
  fc.assert(
    fc.property(fc.array(look, { minLength: 1, maxLength: 12 }), fc.nat({ max: 40 }), (looks, seconds) => {
      const { monitor, clock, calls } = setup(looks);
      monitor.start();
      clock.advance(seconds * SECOND);
      monitor.stop();
      let delayed = false;
      for (const call of calls) {
        if (call.cmd === 1) {
          expect(call.first !== 0n).toBe(!delayed);
          delayed = call.first !== 0n;
        } else expect(delayed).toBe(false);
      }
      expect(delayed).toBe(false);
    }),
  );
});
