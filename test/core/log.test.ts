/** What a guest can make the log say. */
import { afterEach, beforeEach, expect, test, vi } from 'vitest';
import { Log, LogLevel } from '../../devicemodel/core/log.ts';

beforeEach(() => vi.useFakeTimers());
afterEach(() => vi.useRealTimers());

function makeLog() {
  const lines: string[] = [];
  const log = new Log([{ maxLevel: LogLevel.debug, write: (level, line) => void lines.push(`${level} ${line}`) }]);
  return { log, lines };
}

test('five lines a second of what a guest provokes, then a count of what was left out', () => {
  const { log, lines } = makeLog();
  for (let i = 0; i < 100; i++) log.guest(() => `bad access ${i}`);
  expect(lines).toEqual([0, 1, 2, 3, 4].map((i) => `info guest: bad access ${i}`));
  vi.advanceTimersByTime(1000);
  log.guest(() => 'and again');
  expect(lines.at(-1)).toBe('info guest: and again (95 similar lines left out)');
});

test('a guest that goes on and on gets fewer lines: five a minute', () => {
  const { log, lines } = makeLog();
  for (let second = 0; second < 3600; second++) {
    for (let i = 0; i < 20; i++) log.guest(() => 'bad access');
    vi.advanceTimersByTime(1000);
  }
  expect(lines.length).toBeLessThanOrEqual(5 * (7 + 60));
  // A minute of peace, and it is heard at once again.
  vi.advanceTimersByTime(60_000);
  log.guest(() => 'first');
  vi.advanceTimersByTime(60_000);
  for (let i = 0; i < 6; i++) log.guest(() => `later ${i}`);
  vi.advanceTimersByTime(1000);
  log.guest(() => 'a second later');
  expect(lines.at(-1)).toContain('a second later');
});

test('a line that is left out is not made', () => {
  const { log } = makeLog();
  let made = 0;
  for (let i = 0; i < 100; i++) log.guest(() => `line ${made++}`);
  expect(made).toBe(5);
});

test('trouble of the host that a guest repeats has its own level and the same ration', () => {
  const { log, lines } = makeLog();
  for (let i = 0; i < 50; i++) {
    log.rationed('warn', () => 'no ioeventfd');
    log.guest(() => 'bad access');
  }
  expect(lines.length).toBe(5);
  expect(lines[0]).toBe('warn no ioeventfd');
});

test('every scope has its ration, and a guest that resets gets no new one', () => {
  const { log, lines } = makeLog();
  for (let life = 0; life < 20; life++) {
    for (const scope of ['pci.00:03.0', 'pci.00:04.0'])
      log
        .child('vm')
        .child(scope)
        .guest(() => 'bad access');
  }
  expect(lines.length).toBe(10);
});

test('a line for nobody is not made', () => {
  const lines: string[] = [];
  const log = new Log([{ maxLevel: LogLevel.info, write: (_, line) => void lines.push(line) }], 'io');
  const text = vi.fn(() => 'nobody there');
  log.debug(text);
  expect([text.mock.calls.length, lines]).toEqual([0, []]);
  log.addSink({ maxLevel: LogLevel.debug, write: (_, line) => void lines.push(line) });
  log.debug(text);
  expect(lines).toEqual(['io: nobody there']);
});
