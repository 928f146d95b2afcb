/** A door that is still coming up when the VM ends leaves nothing behind. */
import type { EventEmitter } from 'node:events';
import { readdirSync } from 'node:fs';
import { createServer } from 'node:net';
import { afterEach, describe, expect, test } from 'vitest';
import { CmdMonitor } from '../../control/cmd-monitor.ts';
import { type FrontDoor, FrontDoors } from '../../control/front-doors.ts';
import { PmVuart } from '../../control/life-manager.ts';
import { ManagerSocket } from '../../control/manager-socket.ts';
import { connectSignals } from '../../control/signals.ts';
import { HostError } from '../../devicemodel/core/errors.ts';
import { FakeClock } from '../support/fake-clock.ts';
import { fakeTarget } from '../support/fake-command-target.ts';
import { memoryLog } from '../support/memory-log.ts';
import { scratchDirectory, until } from '../support/pty.ts';

const cleanUp: Array<() => unknown> = [];
afterEach(async () => {
  for (const step of cleanUp.splice(0).reverse()) await step();
});

/** A VM's wish to end. */
function vmEnding() {
  const ending = new AbortController();
  return { doors: new FrontDoors(ending.signal), end: () => ending.abort() };
}

/** A door whose coming up is in the test's hands. */
function slowDoor() {
  let finish: (door: FrontDoor | Error) => void = () => {};
  const events: string[] = [];
  const opened = new Promise<FrontDoor>((resolve, reject) => {
    finish = (door) => (door instanceof Error ? reject(door) : resolve(door));
  });
  return {
    events,
    open: (giveUp: AbortSignal) => {
      giveUp.addEventListener('abort', () => events.push('told to give up'));
      return opened;
    },
    comesUp: () => finish({ close: () => void events.push('closed') }),
    fails: (error: Error) => finish(error),
  };
}

describe('any door', () => {
  /** Mutation: `close` does not wait for `#opening`. */
  test('that comes up after the end of the VM is closed', async () => {
    const { doors } = vmEnding();
    const { open, comesUp, events } = slowDoor();
    const added = doors.add(open);
    const closed = doors.close().then(() => events.push('all closed'));
    expect(events).toEqual(['told to give up']);
    comesUp();
    await Promise.all([added, closed]);
    expect(events).toEqual(['told to give up', 'closed', 'all closed']);
  });

  /** Mutation: `ending` is not listened to. */
  test('is told to give up as soon as the VM is to end, and what it throws then does not matter', async () => {
    const { doors, end } = vmEnding();
    const { open, fails, events } = slowDoor();
    const added = doors.add(open);
    end();
    expect(events).toEqual(['told to give up']);
    fails(new Error('given up'));
    await added;
    await doors.close();
  });

  test('that cannot come up is an error while the VM is wanted', async () => {
    const { doors } = vmEnding();
    const { open, fails } = slowDoor();
    const added = doors.add(open);
    fails(new HostError('planned', 98));
    await expect(added).rejects.toThrow('planned');
    await doors.close();
  });

  test('is not opened for a VM that is to end', async () => {
    const { doors, end } = vmEnding();
    end();
    await doors.add(() => {
      throw new Error('must not be called');
    });
  });

  test('the last is closed first, all of them, whatever one throws', async () => {
    const { doors } = vmEnding();
    const closed: string[] = [];
    for (const name of ['one', 'two', 'three']) {
      await doors.add(() => ({
        close: () => {
          closed.push(name);
          if (name === 'two') throw new Error('planned');
        },
      }));
    }
    await expect(doors.close()).rejects.toThrow(AggregateError);
    expect(closed).toEqual(['three', 'two', 'one']);
  });
});

describe('the VM ends while it comes up:', () => {
  const listeners = () => process.getActiveResourcesInfo().filter((name) => /Pipe|TCP/.test(name)).length;

  test('the command monitor', async () => {
    const scratch = scratchDirectory();
    cleanUp.push(() => scratch.remove());
    const before = listeners();
    const { commands, events } = fakeTarget();
    const { doors } = vmEnding();
    const added = doors.add(async () => {
      const { log } = memoryLog();
      const monitor = new CmdMonitor({ path: scratch.file('s'), clock: new FakeClock(), log, commands, events });
      await monitor.start();
      return monitor;
    });
    await doors.close();
    await added;
    expect(readdirSync(scratch.path)).toEqual([]);
    expect(events.listenerCount('event')).toBe(0);
    await until(() => listeners() === before, 'nothing listens');
  });

  test("acrnctl's socket", async () => {
    const scratch = scratchDirectory();
    cleanUp.push(() => scratch.remove());
    const before = listeners();
    const { commands } = fakeTarget();
    const { doors } = vmEnding();
    const added = doors.add(async () => {
      const socket = new ManagerSocket({ vmName: 'vm', directory: scratch.path, log: memoryLog().log, commands });
      await socket.start();
      return socket;
    });
    await doors.close();
    await added;
    expect(readdirSync(scratch.path)).toEqual([]);
    await until(() => listeners() === before, 'nothing listens');
  });

  test("the life manager's line", async () => {
    const server = createServer().listen(0, '127.0.0.1');
    cleanUp.push(() => server.close());
    await until(() => server.listening, 'listening');
    const { port } = server.address() as { port: number };
    const { commands, calls } = fakeTarget();
    const line = { read: () => -1, write: () => {}, flush: () => {}, onReadable: undefined };
    const { doors, end } = vmEnding();
    const before = listeners();
    const added = doors.add(async (giveUp) => {
      const manager = new PmVuart({ line, relay: true, port, log: memoryLog().log, commands });
      await manager.start(giveUp);
      return manager;
    });
    end();
    await added;
    await doors.close();
    expect(line.onReadable).toBeUndefined();
    await until(() => listeners() === before, 'no connection is left');
    expect(calls).toEqual([]);
  });
});

describe('signals', () => {
  const emitter = process as EventEmitter;

  /** Mutation: `isRepeated` is always false. */
  test('are commands; the same one again is a forced end; none does anything after close', () => {
    const { commands, target, calls } = fakeTarget();
    // SIGTERM ends a VM whose life manager does not.
    target.guestAgent = { requestShutdown: () => void calls.push('life manager') };
    const door = connectSignals(commands);
    cleanUp.push(() => door.close());
    for (const signal of ['SIGTERM', 'SIGINT', 'SIGHUP', 'SIGTERM', 'SIGUSR2']) emitter.emit(signal, signal);
    expect(calls).toEqual([
      'shutdown: received SIGTERM',
      'poweroff: received SIGINT',
      'poweroff: received SIGHUP',
      'forced poweroff: received SIGTERM',
    ]);
    door.close();
    emitter.emit('SIGTERM', 'SIGTERM');
    expect(calls).toHaveLength(4);
  });
});
