import { expect, test } from 'vitest';
import { Progress } from '../../devicemodel/core/progress.ts';
import { GiB } from '../../devicemodel/core/units.ts';

function makeTerminal() {
  const written: string[] = [];
  let now = 0;
  return {
    written,
    pass: (ms: number) => {
      now += ms;
    },
    terminal: { nowMs: () => now, write: (text: string) => void written.push(text) },
  };
}

test('what is over soon says nothing', () => {
  const { written, pass, terminal } = makeTerminal();
  const progress = new Progress('huge pages', 4 * GiB, terminal);
  pass(499);
  progress.at(2 * GiB);
  progress.end();
  expect(written).toEqual([]);
});

test('what takes long says how far it is, not too often, and leaves an empty line', () => {
  const { written, pass, terminal } = makeTerminal();
  const progress = new Progress('huge pages', 4 * GiB, terminal);
  pass(500);
  progress.at(GiB);
  pass(50);
  progress.at(1.5 * GiB);
  pass(50);
  progress.at(3 * GiB);
  progress.end();
  progress.end();
  const clear = '\r\x1b[K';
  expect(written).toEqual([
    `${clear}acrn-dm: huge pages: 25 % of 4 GiB`,
    `${clear}acrn-dm: huge pages: 75 % of 4 GiB`,
    clear,
  ]);
});
