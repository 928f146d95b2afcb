import { createServer, type Socket } from 'node:net';
import * as fc from 'fast-check';
import { afterEach, describe, expect, test } from 'vitest';
import { MessageSplitter, PmVuart } from '../../control/life-manager.ts';
import { HostError } from '../../devicemodel/core/errors.ts';
import { fakeTarget } from '../support/fake-command-target.ts';
import { memoryLog } from '../support/memory-log.ts';
import { until } from '../support/pty.ts';

const cleanUp: Array<() => unknown> = [];
afterEach(async () => {
  for (const step of cleanUp.splice(0).reverse()) await step();
});

class FakeLineBackend {
  onReadable: (() => void) | undefined;
  readonly #input: number[] = [];
  #pending = '';
  sent = '';
  read(): number {
    return this.#input.shift() ?? -1;
  }
  write(byte: number): void {
    this.#pending += String.fromCharCode(byte);
  }
  flush(): void {
    this.sent += this.#pending;
    this.#pending = '';
  }
  guestSays(text: string): void {
    this.#input.push(...Buffer.from(text, 'latin1'));
    this.onReadable?.();
  }
}

async function lifeManager() {
  let peer: Socket | undefined;
  let heard = '';
  const server = createServer((socket) => {
    peer = socket;
    socket.on('data', (d) => {
      heard += d.toString('latin1');
    });
  }).listen(0, '127.0.0.1');
  cleanUp.push(
    () => server.close(),
    () => peer?.destroy(),
  );
  await until(() => server.listening, 'listening');
  return { port: (server.address() as { port: number }).port, heard: () => heard, peer: () => peer as Socket };
}

function pmVuart(relay: boolean, port?: number) {
  const line = new FakeLineBackend();
  const { commands, calls: powerOffs } = fakeTarget();
  const { log, lines } = memoryLog();
  const pm = new PmVuart({
    line,
    relay,
    log,
    commands,
    ...(port === undefined ? {} : { port }),
  });
  cleanUp.push(() => pm.close());
  return { pm, line, powerOffs, lines };
}

test('a stop request is the word shutdown with its terminating zero', async () => {
  const { pm, line } = pmVuart(false);
  await pm.start();
  pm.requestShutdown();
  expect(line.sent).toBe('shutdown\0');
});

test('a guest that has said sync: is told in the words of release 3', async () => {
  const { pm, line } = pmVuart(false);
  line.guestSays('sync:vm1\0');
  await pm.start();
  pm.requestShutdown();
  expect(line.sent).toBe('ack_sync\0user_vm_shutdown\0');
});

test('a guest that says sync: hears that somebody is there, or its life manager would give up', async () => {
  const { pm, line } = pmVuart(false);
  await pm.start();
  // Longer than a piece of the line.
  line.guestSays('sync:a_name_of_15_ch\0');
  expect(line.sent).toBe('ack_sync\0');
  line.guestSays('ack_user_vm_shutdown\0req_sys_shutdown\0');
  expect(line.sent).toBe('ack_sync\0');
});

describe('relay', () => {
  test('leaves the answer to sync: to the life manager', async () => {
    const manager = await lifeManager();
    const { pm, line } = pmVuart(true, manager.port);
    await pm.start();
    line.guestSays('sync:vm1\0');
    await until(() => manager.heard() === 'sync:vm1\0', 'the guest is heard');
    expect(line.sent).toBe('');
  });

  test('carries whole messages both ways', async () => {
    const manager = await lifeManager();
    const { pm, line } = pmVuart(true, manager.port);
    line.guestSays('ack_'); // said before the connection was there
    await pm.start();
    line.guestSays('poweroff\0rest');
    await until(() => manager.heard() === 'ack_poweroff\0', 'the guest is heard');
    manager.peer().write('shut');
    manager.peer().write('down\nx');
    await until(() => line.sent === 'shutdown\n', 'the manager is heard');
    line.guestSays(' of more than 16');
    await until(() => manager.heard() === 'ack_poweroff\0rest of more tha', 'a message without end is cut at 16 bytes');
  });

  test('the life manager going away powers the VM off; our own stop does not', async () => {
    const manager = await lifeManager();
    const { pm, powerOffs } = pmVuart(true, manager.port);
    await pm.start();
    await until(() => manager.peer() !== undefined, 'connection');
    manager.peer().destroy();
    await until(() => powerOffs.length === 1, 'power-off');

    const second = pmVuart(true, manager.port);
    await second.pm.start();
    second.pm.close();
    await new Promise((resolve) => setImmediate(resolve));
    expect(second.powerOffs).toEqual([]);
  });

  // Mutation: write whatever the guest says.
  test('keeps so much of what is not read, and no more, and goes on afterwards', async () => {
    const manager = await lifeManager();
    const { pm, line, lines } = pmVuart(true, manager.port);
    await pm.start();
    await until(() => manager.peer() !== undefined, 'connected');
    manager.peer().pause();
    const lost = () => lines.some((text) => text.includes('is lost'));
    // What the kernel takes comes first: some megabytes.
    let saidBytes = 0;
    for (; saidBytes < 64 << 20 && !lost(); saidBytes += 16 * 1024) line.guestSays('0123456789abcdef'.repeat(1024));
    expect(lost()).toBe(true);
    manager.peer().resume();
    await until(() => {
      line.guestSays('the end\n');
      return manager.heard().endsWith('the end\n');
    }, 'what came later');
    expect(manager.heard().length).toBeLessThan(saidBytes);
  });

  test('no life manager is a HostError', async () => {
    const { port } = await lifeManager();
    await cleanUp.shift()?.(); // close it: the port is free and nobody answers
    await expect(pmVuart(true, port).pm.start()).rejects.toThrow(HostError);
  });
});

test('messages are cut at their end marks, and every byte is in one', () => {
  fc.assert(
    fc.property(fc.array(fc.oneof(fc.constantFrom(0, 10), fc.nat({ max: 255 }))), (bytes) => {
      const messages: number[][] = [];
      const splitter = new MessageSplitter((message) => messages.push([...message]));
      for (const byte of bytes) splitter.push(byte);
      const joined = messages.flat();
      expect(joined).toEqual(bytes.slice(0, joined.length));
      expect(bytes.length - joined.length).toBeLessThan(16);
      for (const message of messages) {
        expect(message.length).toBeLessThanOrEqual(16);
        const marks = message.filter((byte) => byte === 0 || byte === 10);
        expect(marks.length).toBeLessThanOrEqual(1);
        if (message.length < 16) expect([0, 10]).toContain(message.at(-1));
      }
    }),
  );
});
