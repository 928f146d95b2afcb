import * as fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { cjsonNumber, VmEventPublisher, vmEventText } from '../../control/vm-event-publisher.ts';
import { FakeClock } from '../support/fake-clock.ts';
import { memoryLog } from '../support/memory-log.ts';

describe('publisher', () => {
  function publisher() {
    const clock = new FakeClock();
    const sent: string[] = [];
    const { log } = memoryLog();
    return { clock, sent, publisher: new VmEventPublisher({ clock, log, send: (text) => sent.push(text) }) };
  }

  test('RTC changes are summed up until there was none for a second', () => {
    const { clock, sent, publisher: p } = publisher();
    p.publish({ type: 'rtc-change', lastTimeS: 1_700_000_000, deltaS: 3600 });
    clock.advance(900e6);
    p.publish({ type: 'rtc-change', lastTimeS: 1_700_003_600, deltaS: 60 });
    clock.advance(999e6);
    expect(sent).toEqual([]);
    clock.advance(1e6);
    expect(sent).toEqual(['{\n\t"vm_event":\t0,\n\t"delta_time":\t3660,\n\t"last_time":\t1700000000\n}']);
    expect(clock.armed).toBe(0);
  });

  test('after stop nothing is sent any more', () => {
    const { clock, sent, publisher: p } = publisher();
    p.publish({ type: 'rtc-change', lastTimeS: 0, deltaS: 1 });
    p.stop();
    clock.advance(5e9);
    expect(sent).toEqual([]);
  });

  test('at most one event of a type in any second from the start', () => {
    fc.assert(
      fc.property(fc.array(fc.nat({ max: 2_000_000_000 }), { maxLength: 40 }), (pauses) => {
        const { clock, sent, publisher: p } = publisher();
        const startNs = clock.nowNs();
        const sentAt: number[] = [];
        for (const pause of pauses) {
          clock.advance(pause);
          const before = sent.length;
          p.publish({ type: 'poweroff' });
          if (sent.length > before) sentAt.push(Math.floor((clock.nowNs() - startNs) / 1e9));
        }
        expect(new Set(sentAt).size).toBe(sentAt.length);
        if (pauses.length > 0) expect(sentAt.length).toBeGreaterThan(0);
      }),
    );
  });
});

describe('text', () => {
  // Checked against printf: %d within 32 bits, %1.15g, %1.17g where 15 digits do not bring the number back.
  test.each([
    [0, '0'],
    [-3600, '-3600'],
    [2 ** 31, '2147483648'],
    [4_102_444_800, '4102444800'],
    [999_999_999_999_999, '999999999999999'],
    [1e15, '1e+15'],
    [-1.5e18, '-1.5e+18'],
    [2 ** 53, '9007199254740992'],
    [2 ** 63, '9.2233720368547758e+18'],
  ])('%d', (value, text) => {
    expect(cjsonNumber(value)).toBe(text);
  });

  test('is JSON with the numbers of the event', () => {
    fc.assert(
      fc.property(fc.maxSafeInteger(), fc.maxSafeInteger(), (lastTimeS, deltaS) => {
        const event = JSON.parse(vmEventText({ type: 'rtc-change', lastTimeS, deltaS }));
        expect(event).toEqual({ vm_event: 0, delta_time: deltaS, last_time: lastTimeS });
      }),
    );
  });
});
