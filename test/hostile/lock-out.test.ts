/** Whatever many clients of a control socket do, the next manager is served. */
import { connect, type Socket } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterEach, describe, test } from 'vitest';
import { openApiDoor } from '../../control/api-door.ts';
import { CmdMonitor } from '../../control/cmd-monitor.ts';
import { MANAGER_MAGIC, ManagerMessage, ManagerMessageId, ManagerSocket } from '../../control/manager-socket.ts';
import { FakeClock } from '../support/fake-clock.ts';
import { fakeTarget } from '../support/fake-command-target.ts';
import { FakeVmm } from '../support/fake-vmm.ts';
import { memoryLog } from '../support/memory-log.ts';
import { scratchDirectory, until } from '../support/pty.ts';

const undo: Array<() => unknown> = [];
afterEach(async () => {
  for (const step of undo.splice(0).reverse()) await step();
});

function client(path: string): { readonly socket: Socket; readonly seen: () => string } {
  const socket = connect(path);
  let seen = '';
  socket.on('data', (data) => (seen += data.toString('latin1')));
  socket.on('error', () => {});
  undo.push(() => socket.destroy());
  return { socket, seen: () => seen };
}

interface Door {
  readonly path: string;
  /** A whole request, and how its answer begins. */
  readonly request: string | Uint8Array;
  readonly answer: string;
}

async function open(kind: string): Promise<Door> {
  const scratch = scratchDirectory();
  undo.push(() => scratch.remove());
  const { log } = memoryLog();
  const { commands, events } = fakeTarget();
  if (kind === '--cmd_monitor') {
    const path = scratch.file('cmd.sock');
    const monitor = new CmdMonitor({ path, clock: new FakeClock(), log, commands, events });
    undo.push(() => monitor.close());
    await monitor.start();
    return { path, request: '{"command":"destroy"}', answer: '{\n\t"ack"' };
  }
  if (kind === 'manager socket') {
    const socket = new ManagerSocket({ vmName: 'vm1', directory: scratch.file('mngr'), log, commands });
    undo.push(() => socket.close());
    await socket.start();
    const request = ManagerMessage.encode({ magic: MANAGER_MAGIC, id: ManagerMessageId.DmQuery });
    return { path: socket.path as string, request, answer: 'vmm msg' };
  }
  const path = scratch.file('api.sock');
  const door = await openApiDoor({ at: { kind: 'path', path }, vmm: new FakeVmm(), log });
  undo.push(() => door.close());
  return { path, request: 'GET /v1/openapi.json HTTP/1.1\r\nHost: vm\r\n\r\n', answer: 'HTTP/1.1 200' };
}

/** As a manager does: who is turned away comes again. */
async function expectServed({ path, request, answer }: Door): Promise<void> {
  let good = client(path);
  good.socket.write(request);
  await until(() => {
    if (good.socket.destroyed) {
      good = client(path);
      good.socket.write(request);
    }
    return good.seen().startsWith(answer);
  }, 'the good client is served');
  good.socket.destroy();
}

/** More than any door has places for, waiting ones included. */
const CLIENTS = 70;
/** Of answers more than a socket's buffers hold: who sends so much and does not read keeps its place. */
const FLOOD = 4000;

const attacks: Record<string, (socket: Socket, door: Door) => void> = {
  'say nothing': () => {},
  'send half a request': (socket, { request }) => void socket.write(request.slice(0, request.length / 2)),
  'send a byte now and then': (socket, { request }) => {
    const bytes = Buffer.from(request);
    let at = 0;
    const timer = setInterval(() => socket.write(bytes.subarray(at, ++at)), 20);
    undo.push(() => clearInterval(timer));
  },
  'ask without end and never read': (socket, { request }) => {
    socket.pause();
    socket.write(Buffer.concat(Array.from({ length: FLOOD }, () => Buffer.from(request))));
  },
  'ask and close their half': (socket, { request }) => void socket.end(request),
  'close their half at once': (socket) => void socket.end(),
  'send what is no request': (socket) => void socket.write(Buffer.alloc(3000, 0xff)),
  'are gone before they are served': (socket, { request }) => {
    socket.write(request);
    socket.destroy();
  },
};

// Mutation: let the API's connections not look at `isOwed`: those that never read lock it. (Of `Clients`: clients.test.ts.)
describe.each(['--cmd_monitor', 'manager socket', 'API'])('%s', { timeout: 60_000 }, (kind) => {
  test.each(Object.keys(attacks))('serves the next one while many %s', async (what) => {
    const door = await open(kind);
    const attack = attacks[what] as (typeof attacks)[string];
    // What serves the API is loaded for the first one.
    await expectServed(door);
    for (let i = 0; i < CLIENTS; i++) {
      const { socket } = client(door.path);
      await new Promise((resolve) => socket.once('connect', resolve));
      attack(socket, door);
      // One after the other: in one go they would give way to each other before they have done anything.
      await sleep(i < 8 ? 100 : 5);
    }
    await sleep(200);
    await expectServed(door);
  });
});
