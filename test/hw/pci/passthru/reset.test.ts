/** Resets of a host function; a device that hangs is a named pipe that nobody reads. */
import { execFileSync } from 'node:child_process';
import { closeSync, constants, openSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest';
import { HostError, StoppedError } from '../../../../devicemodel/core/errors.ts';
import { parseHostAddress } from '../../../../devicemodel/hw/pci/passthru/address.ts';
import { type HostFunction, hostFunction } from '../../../../devicemodel/hw/pci/passthru/host-function.ts';
import { resetByPowerState, resetFunction } from '../../../../devicemodel/hw/pci/passthru/reset.ts';
import { FakeHostPci } from '../../../support/fake-host-pci.ts';
import { memoryLog } from '../../../support/memory-log.ts';

/** What the next writes get: to a root, no file says EACCES. */
const writes = vi.hoisted(() => ({ answers: [] as NodeJS.ErrnoException[] }));
vi.mock(import('../../../../devicemodel/hw/pci/passthru/host-write.ts'), async (original) => {
  const real = await original();
  return { ...real, writeToHost: async (...args) => writes.answers.shift() ?? (await real.writeToHost(...args)) };
});

let host: FakeHostPci;
beforeEach(() => {
  host = new FakeHostPci();
});
afterEach(() => host.dispose());

function functionAt(at: string): HostFunction {
  const fn = hostFunction(host.root, parseHostAddress(at));
  if (fn === undefined) throw new Error(`no ${at}`);
  return fn;
}

describe('by the kernel', () => {
  test('writes 1, or does nothing where it knows no way', async () => {
    host.add('02:00.0', {}).add('03:00.0', { hasReset: false });
    const { log, lines } = memoryLog();
    expect(await resetFunction(functionAt('02:00.0'), log)).toBe(true);
    expect(await resetFunction(functionAt('03:00.0'), log)).toBe(false);
    expect(host.read('02:00.0', 'reset')).toBe('1');
    expect(lines).toEqual([]);
  });

  test('a user who may not is told of it, unless whoever takes the function has it reset, too', async () => {
    host.add('02:00.0', {});
    const fn = functionAt('02:00.0');
    const { log, lines } = memoryLog();
    const refused = Object.assign(new Error('EACCES: permission denied'), { code: 'EACCES' });
    writes.answers.push(refused, refused);
    expect(await resetFunction(fn, log, {}, true)).toBe(false);
    expect(lines).toEqual([]);
    expect(await resetFunction(fn, log)).toBe(false);
    expect(lines).toEqual([expect.stringContaining('02:00.0 is not reset: EACCES')]);
  });

  describe('of a device that hangs', () => {
    const path = () => join(host.path('02:00.0'), 'reset');
    beforeEach(() => {
      host.add('02:00.0', { hasReset: false });
      execFileSync('mkfifo', [path()]);
    });
    // Lets the thread go.
    afterEach(() => {
      closeSync(openSync(path(), constants.O_RDONLY | constants.O_NONBLOCK));
      rmSync(path());
    });

    test('is said, then given up', async () => {
      const { log, lines } = memoryLog();
      const waiting = resetFunction(functionAt('02:00.0'), log, { slowMs: 20, giveUpMs: 200 });
      await expect(waiting).rejects.toThrow(HostError);
      await expect(waiting).rejects.toThrow('02:00.0 does not come out of its reset');
      expect(lines.filter((line) => line.includes('is being reset for'))).toHaveLength(1);
    });

    test('ends at once when the VM is to end', async () => {
      const { log } = memoryLog();
      const stop = new AbortController();
      const waiting = resetFunction(functionAt('02:00.0'), log, { stop: stop.signal });
      stop.abort();
      await expect(waiting).rejects.toThrow(StoppedError);
    });

    test('and comes back late is no error', async () => {
      const { log } = memoryLog();
      const waiting = resetFunction(functionAt('02:00.0'), log, { slowMs: 10_000, giveUpMs: 20_000 });
      const reader = openSync(path(), constants.O_RDONLY | constants.O_NONBLOCK);
      try {
        expect(await waiting).toBe(true);
      } finally {
        closeSync(reader);
      }
    });
  });
});

describe('by power state', () => {
  test('goes through D3hot and leaves the header as it was', async () => {
    host.add('02:00.0', { bars: [{ kind: 'mem32', address: 0xa120_0000, sizeBytes: 4096 }], interrupt: [20, 1] });
    const before = host.config('02:00.0');
    const fn = functionAt('02:00.0');
    const states: number[] = [];
    const write = fn.writeConfig.bind(fn);
    fn.writeConfig = (offset, size, value) => {
      if (offset === 0x44) {
        states.push(value & 3);
        // As real functions do in D3hot.
        if ((value & 3) === 3) write(0x10, 4, 0);
      }
      return write(offset, size, value);
    };
    expect(await resetByPowerState(fn)).toBe(true);
    expect(states).toEqual([3, 0]);
    expect(host.config('02:00.0')).toEqual(before);
  });

  test('needs the capability', async () => {
    host.add('02:00.0', { hasPowerManagement: false });
    expect(await resetByPowerState(functionAt('02:00.0'))).toBe(false);
  });
});
