import * as fc from 'fast-check';
import { expect, test } from 'vitest';
import { didYouMean } from '../../config/suggest.ts';

const words = ['console', 'kmsg', 'disk', 'cpu_affinity', 'cmd_monitor'];

test.each([
  ['konsole', 'console'],
  ['consoel', 'console'],
  ['CONSOLE', 'console'],
  ['kmgs', 'kmsg'],
  ['cpu_afinity', 'cpu_affinity'],
  ['cmd', 'cmd_monitor'],
])('%s: %s', (text, guess) => {
  expect(didYouMean(text, words)).toBe(guess);
});

test.each(['', 'syslog', 'c', 'xy', 'monitor_of_commands'])('"%s" is close to nothing', (text) => {
  expect(didYouMean(text, words)).toBeUndefined();
});

test('any text has a guess among the words or none', () => {
  fc.assert(
    fc.property(fc.string({ maxLength: 100 }), (text) => {
      const guess = didYouMean(text, words);
      if (guess !== undefined) expect(words).toContain(guess);
    }),
  );
});
