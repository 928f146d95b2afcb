/** Descriptors of the host that end or overflow at a bad moment: the races of mevent in C, and input nobody takes. */
import { createServer, type Server, type Socket } from 'node:net';
import { afterEach, describe, expect, test } from 'vitest';
import { Ns16550 } from '../../devicemodel/chips/ns16550.ts';
import type { CharBackend } from '../../devicemodel/core/char-backend.ts';
import { Eventfd } from '../../devicemodel/core/host/eventfd.ts';
import { watchFd } from '../../devicemodel/core/host/fd-watch.ts';
import { MiB } from '../../devicemodel/core/units.ts';
import { openCharBackend } from '../../devicemodel/hw/uart/backends/open.ts';
import { FakeLine } from '../support/fake-line.ts';
import { memoryLog } from '../support/memory-log.ts';
import { readAll, scratchDirectory, until } from '../support/pty.ts';

const undo: Array<() => unknown> = [];
afterEach(async () => {
  for (const step of undo.splice(0).reverse()) await step();
});

const turns = async (count: number) => {
  for (let i = 0; i < count; i++) await new Promise((resolve) => setImmediate(resolve));
};

describe('a descriptor is closed while events are handed out (mevent use after free, ACRN asa 2.6)', () => {
  test('two are readable at once, the first one’s handler closes the second: it is not called', async () => {
    const first = new Eventfd();
    const second = new Eventfd();
    const called: string[] = [];
    let unwatchSecond = () => {};
    const closeOther = (name: string, unwatch: () => void, other: Eventfd) => () => {
      called.push(name);
      unwatch();
      other.dispose();
    };
    let unwatchFirst = () => {};
    unwatchFirst = watchFd(
      first.fd,
      closeOther('first', () => unwatchSecond(), second),
    );
    unwatchSecond = watchFd(
      second.fd,
      closeOther('second', () => unwatchFirst(), first),
    );
    first.signal();
    second.signal();
    await until(() => called.length > 0, 'one of them is called');
    await turns(3);
    const [winner] = called;
    expect(new Set(called)).toEqual(new Set([winner]));
    (winner === 'first' ? unwatchFirst : unwatchSecond)();
    (winner === 'first' ? first : second).dispose();
  });

  test('a number that is used again belongs to its new owner', async () => {
    const old = new Eventfd();
    const calls: string[] = [];
    const unwatch = watchFd(old.fd, () => calls.push('old'));
    old.signal();
    unwatch();
    old.dispose();
    const next = new Eventfd();
    expect(next.fd).toBe(old.fd);
    const unwatchNext = watchFd(next.fd, () => {
      next.take();
      calls.push('new');
    });
    await turns(3);
    expect(calls).toEqual([]);
    next.signal();
    await until(() => calls.length > 0, 'the new owner hears of it');
    expect(calls).toEqual(['new']);
    unwatchNext();
    next.dispose();
  });

  test('a handler that ends its own watch', async () => {
    const eventfd = new Eventfd();
    let calls = 0;
    const unwatch = watchFd(eventfd.fd, () => {
      calls++;
      unwatch();
      eventfd.dispose();
    });
    eventfd.signal();
    await until(() => calls > 0, 'it is called');
    await turns(5);
    expect(calls).toBe(1);
  });
});

const LINE_STATUS = 5;

/** Someone on the other side of a console who never stops. */
async function floodedConsole(start: (backend: CharBackend) => unknown = (backend) => backend.start()) {
  const scratch = scratchDirectory();
  undo.push(() => scratch.remove());
  const path = scratch.file('console');
  const peers: Socket[] = [];
  const server: Server = createServer((socket) => {
    peers.push(socket);
    socket.on('error', () => {});
  });
  await new Promise<void>((resolve) => server.listen(path, resolve));
  undo.push(() => {
    for (const peer of peers) peer.destroy();
    server.close();
  });
  const { log, lines } = memoryLog();
  const backend = openCharBackend({ kind: 'unix', path, role: 'client' }, { user: 'com1', log });
  await start(backend);
  undo.push(() => backend.stop());
  await until(() => peers.length === 1, 'connected');
  return { backend, peer: peers[0] as Socket, lines };
}

describe('input that the guest does not read (Firecracker CVE-2020-27174)', () => {
  const CHUNK = Buffer.alloc(1 * MiB, 0x78);
  const CHUNKS = 8;

  test('stays with whoever sends it, and nothing of it is lost', async () => {
    const { backend, peer } = await floodedConsole();
    for (let i = 0; i < CHUNKS; i++) peer.write(CHUNK);
    await turns(200);
    // A few buffers of the kernel and of Node went, no more.
    expect(peer.writableLength).toBeGreaterThan((CHUNKS - 2) * CHUNK.length);
    let read = 0;
    await until(() => {
      read += readAll(backend).length;
      return read === CHUNKS * CHUNK.length;
    }, 'all of it arrives');
  });

  test('a serial port with its interrupts off takes a FIFO full', async () => {
    let port: Ns16550 | undefined;
    const { peer } = await floodedConsole((backend) => {
      port = new Ns16550({ irq: new FakeLine(4), backend });
      return port.start();
    });
    for (let i = 0; i < CHUNKS; i++) peer.write(CHUNK);
    await turns(200);
    expect(peer.writableLength).toBeGreaterThan((CHUNKS - 2) * CHUNK.length);
    // The line status tells of data, and of no overrun.
    expect((port?.read(LINE_STATUS) ?? 0) & 3).toBe(1);
    expect(port?.read(0)).toBe(0x78);
  });
});

test('output nobody takes is bounded, and the guest is not held up', async () => {
  const { backend, peer, lines } = await floodedConsole();
  peer.pause();
  for (let i = 0; i < 8 * MiB; i++) backend.write(0x79);
  backend.flush();
  expect(lines.length).toBeLessThan(4);
});
