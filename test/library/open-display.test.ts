import { afterAll, expect, test } from 'vitest';
import type { VmConfig } from '../../devicemodel/core/config.ts';
import { Log, LogLevel } from '../../devicemodel/core/log.ts';
import { makeDisplay } from '../../library/open-display.ts';
import { scratchDirectory } from '../support/pty.ts';

const scratch = scratchDirectory();
afterAll(() => scratch.remove());

// Mutation: a log that puts `display: ` before every line of its own.
test('where the pictures are is said once, by one prefix', async () => {
  const lines: string[] = [];
  const log = new Log([{ maxLevel: LogLevel.info, write: (_level, line) => void lines.push(line) }]);
  const path = scratch.file('vnc');
  const shown = await makeDisplay({ name: 'vm1', display: { kind: 'vnc', path } } as VmConfig, log);
  const door = await shown?.open();
  await door?.close();
  expect(lines.map((line) => line.match(/display: /g)?.length)).toEqual([1]);
  expect(lines[0]).toContain(`display: vnc at ${path}`);
});
