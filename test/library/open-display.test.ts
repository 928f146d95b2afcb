import { afterAll, expect, test } from 'vitest';
import type { VmConfig } from '../../devicemodel/core/config.ts';
import { ExitCode } from '../../devicemodel/core/errors.ts';
import { Log, LogLevel } from '../../devicemodel/core/log.ts';
import { WindowClaim } from '../../devicemodel/hw/display/sdl/window-claim.ts';
import { makeDisplay } from '../../library/open-display.ts';
import { scratchDirectory } from '../support/pty.ts';

const scratch = scratchDirectory();
afterAll(() => scratch.remove());

// Mutation: a log that puts `display: ` before every line of its own.
test('where the pictures are is said once, by one prefix', async () => {
  const lines: string[] = [];
  const log = new Log([{ maxLevel: LogLevel.info, write: (_level, line) => void lines.push(line) }]);
  const path = scratch.file('vnc');
  const shown = await makeDisplay({ name: 'vm1', display: { kind: 'vnc', path } } as VmConfig, log, new WindowClaim());
  const door = await shown?.open();
  await door?.close();
  expect(lines.map((line) => line.match(/display: /g)?.length)).toEqual([1]);
  expect(lines[0]).toContain(`display: vnc at ${path}`);
});

test('a VM that asks for a window while another has it is refused with a status of its own', async () => {
  const claim = new WindowClaim();
  const hold = claim.take('vm1');
  const shown = await makeDisplay({ name: 'vm2', display: { kind: 'sdl' } } as VmConfig, new Log([]), claim);
  await expect(shown?.open()).rejects.toMatchObject({
    message: '--display sdl: no window: this process shows the screens of vm1 in one already',
    exitCode: ExitCode.Unavailable,
  });
  // The refused one has taken nothing from the other.
  expect(() => claim.take('vm2')).toThrow('of vm1');
  hold?.giveBack();
  expect(claim.take('vm2')).toBeDefined();
});
