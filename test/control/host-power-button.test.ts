import { mkdirSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, expect, test } from 'vitest';
import { HostPowerButton } from '../../control/host-power-button.ts';
import { HostError } from '../../devicemodel/core/errors.ts';
import type { InputEvent, InputSource } from '../../devicemodel/core/host/evdev.ts';
import { fakeTarget } from '../support/fake-command-target.ts';
import { memoryLog } from '../support/memory-log.ts';

const cleanUp: Array<() => void> = [];
afterEach(() => {
  for (const step of cleanUp.splice(0).reverse()) step();
});

const [EV_KEY, KEY_POWER, KEY_A] = [1, 116, 30];

function button(folders: readonly string[], failure?: Error) {
  const drivers = mkdtempSync(join(tmpdir(), 'button-'));
  cleanUp.push(() => rmSync(drivers, { recursive: true }));
  for (const folder of folders) mkdirSync(join(drivers, folder), { recursive: true });
  const waiting: InputEvent[] = [];
  const state = { opened: [] as string[], isWatched: false, closed: 0, broken: false };
  let onReadable = () => {};
  const source = {
    read: (into: InputEvent) => {
      if (state.broken) throw new HostError('input device is gone', 19);
      const next = waiting.shift();
      if (next !== undefined) Object.assign(into, next);
      return next !== undefined;
    },
    watch: (callback: () => void) => {
      if (failure !== undefined) throw failure;
      onReadable = callback;
      state.isWatched = true;
      return () => void (state.isWatched = false);
    },
    close: () => void state.closed++,
  } as Partial<InputSource> as InputSource;
  const { commands, calls } = fakeTarget();
  const { log, lines } = memoryLog();
  const open = (event: string) => {
    state.opened.push(event);
    return source;
  };
  const door = new HostPowerButton({ commands, log, drivers, open });
  const press = (...events: InputEvent[]) => {
    waiting.push(...events);
    onReadable();
  };
  return { door, calls, state, press, lines };
}

test.each([
  ['the fixed button', ['LNXPWRBN:00/input/input3/event2'], ['event2']],
  ['the one of the control method', ['PNP0C0C:00/input/input0/event7'], ['event7']],
  ['the fixed one of the two', ['LNXPWRBN:00/input/input1/event0', 'PNP0C0C:00/input/input0/event7'], ['event0']],
  ['not one of two devices', ['LNXPWRBN:00/input/input1/event0', 'LNXPWRBN:00/input/input2/event1'], []],
  ['a driver without a device', ['LNXPWRBN:00/input'], []],
  ['no button', [], []],
])('%s is watched', (_what, folders, opened) => {
  const { state, lines } = button(folders);
  expect([state.opened, state.isWatched]).toEqual([opened, opened.length > 0]);
  expect(lines.filter((line) => line.includes('has none to watch'))).toHaveLength(opened.length > 0 ? 0 : 1);
});

test.each<[string, InputEvent[], number]>([
  ['a press', [{ type: EV_KEY, code: KEY_POWER, value: 1 }], 1],
  ['press, hold and release', [1, 2, 0].map((value) => ({ type: EV_KEY, code: KEY_POWER, value })), 1],
  ['two presses', [1, 0, 1, 0].map((value) => ({ type: EV_KEY, code: KEY_POWER, value })), 2],
  ['another key', [{ type: EV_KEY, code: KEY_A, value: 1 }], 0],
  ['a report of another type with that code', [{ type: 4, code: KEY_POWER, value: 1 }], 0],
])('%s presses the guest’s', (_what, events, presses) => {
  const { calls, press } = button(['LNXPWRBN:00/input/input3/event2']);
  press(...events);
  expect(calls).toEqual(Array(presses).fill('power button'));
});

test('a device that goes away is one line, and closed', () => {
  const { state, press, lines, calls } = button(['LNXPWRBN:00/input/input3/event2']);
  state.broken = true;
  press();
  expect([state.isWatched, state.closed, calls]).toEqual([false, 1, []]);
  expect(lines.filter((line) => line.includes('input device is gone'))).toHaveLength(1);
});

test('a button that cannot be watched is one line, and closed', () => {
  const { state, lines } = button(['LNXPWRBN:00/input/input3/event2'], new HostError('no more descriptors', 24));
  expect(state.closed).toBe(1);
  expect(lines.filter((line) => line.includes('no more descriptors'))).toHaveLength(1);
});
