/** Places for managers: who gives way, and who is cut off. */
import { mkdtempSync, rmSync } from 'node:fs';
import { connect, createServer, type Server, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { Clients } from '../../control/clients.ts';

let root: string;
let server: Server;
let accepted: Socket[];
let cut: string[];
beforeEach(() => {
  root = mkdtempSync(join(tmpdir(), 'clients-'));
  accepted = [];
  cut = [];
});
afterEach(() => {
  for (const socket of accepted) socket.destroy();
  server.close();
  rmSync(root, { recursive: true, force: true });
});

async function serve(clients: Clients, count: number): Promise<boolean[]> {
  const admitted: boolean[] = [];
  server = createServer((socket) => {
    accepted.push(socket);
    admitted.push(clients.admit(socket));
  });
  await new Promise<void>((resolve) => server.listen(join(root, 's'), resolve));
  for (let i = 0; i < count; i++) await add();
  return admitted;
}
async function add(): Promise<void> {
  const before = accepted.length;
  connect(join(root, 's')).on('error', () => {});
  while (accepted.length === before) await sleep(1);
}
const alive = () => accepted.flatMap((socket, i) => (socket.destroyed ? [] : [i]));
const make = (options: Partial<ConstructorParameters<typeof Clients>[0]> = {}) =>
  new Clients({ maxClients: 3, onCut: (why) => cut.push(why), ...options });

describe('when all places are taken', () => {
  test('the one idle longest gives way, work counts as being there', async () => {
    const clients = make();
    await serve(clients, 3);
    clients.queue(accepted[0] as Socket, () => {});
    await sleep(5);
    await add();
    expect(alive()).toEqual([0, 2, 3]);
    await add();
    expect(alive()).toEqual([0, 3, 4]);
  });

  test('one at work never does; when all are, the new one is turned away', async () => {
    const clients = make();
    const admitted = await serve(clients, 3);
    const done: Array<() => void> = [];
    for (const socket of accepted) clients.queue(socket, () => new Promise<void>((resolve) => done.push(resolve)));
    await add();
    expect([alive(), admitted]).toEqual([
      [0, 1, 2],
      [true, true, true, false],
    ]);
    await sleep(1);
    done[1]?.();
    await sleep(5);
    await add();
    expect(alive()).toEqual([0, 2, 4]);
    for (const each of done) each();
  });

  // Mutation: leave `isOwed` false.
  test.each([0, 1, 4])('one that does not take its reply does, also for one of %i that wait', async (maxWaiting) => {
    const clients = make({ maxWaiting });
    await serve(clients, 3);
    for (const socket of accepted) {
      clients.queue(socket, () => clients.give(socket, new Uint8Array(4 << 20)));
      clients.queue(socket, () => {});
    }
    await sleep(20);
    await add();
    expect(alive()).toEqual([1, 2, 3]);
    expect(cut).toEqual(['a client that did not take its reply gave way to another']);
    // Those that waited while all were at work come in as soon as one of these is not taken.
    clients.queue(accepted[3] as Socket, () => clients.give(accepted[3] as Socket, new Uint8Array(4 << 20)));
    await sleep(20);
    for (let i = 0; i < 3; i++) await add();
    expect(alive()).toHaveLength(3);
    expect(accepted.at(-1)?.destroyed).toBe(false);
  });

  test('one that is kept does not', async () => {
    const clients = make({ isKept: (socket) => socket === accepted[0] });
    await serve(clients, 3);
    await add();
    await add();
    expect(alive()).toEqual([0, 3, 4]);
  });
});

describe('a request that is begun', () => {
  test('is cut off when its rest does not come', async () => {
    const clients = make({ requestTimeoutMs: 30 });
    await serve(clients, 2);
    clients.setUnfinished(accepted[0] as Socket, true);
    for (let i = 0; i < 400 && alive().length === 2; i++) await sleep(5);
    expect(alive()).toEqual([1]);
    expect(cut).toEqual(['a client did not finish its request and was cut off']);
  });

  test('is not when it comes, and bytes now and then do not make it longer', async () => {
    const clients = make({ requestTimeoutMs: 300 });
    await serve(clients, 2);
    const [quick, slow] = accepted as [Socket, Socket];
    clients.setUnfinished(quick, true);
    clients.setUnfinished(slow, true);
    clients.setUnfinished(quick, false);
    for (let i = 0; i < 400 && !slow.destroyed; i++) {
      clients.setUnfinished(slow, true);
      await sleep(20);
    }
    expect(alive()).toEqual([0]);
  });
});

test('what is queued is done in order, one at a time, and close waits for it', async () => {
  const clients = make();
  await serve(clients, 1);
  const order: number[] = [];
  for (const ms of [20, 1, 5]) {
    clients.queue(accepted[0] as Socket, async () => {
      await sleep(ms);
      order.push(ms);
    });
  }
  await clients.close();
  expect(order).toEqual([20, 1, 5]);
  expect(alive()).toEqual([]);
});
