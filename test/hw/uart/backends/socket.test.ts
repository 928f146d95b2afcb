import { spawn } from 'node:child_process';
import { existsSync, readFileSync, renameSync, writeFileSync } from 'node:fs';
import { connect, createServer, type Server, type Socket } from 'node:net';
import { afterEach, describe, expect, test } from 'vitest';
import { HostError } from '../../../../devicemodel/core/errors.ts';
import { openCharBackend } from '../../../../devicemodel/hw/uart/backends/open.ts';
import { TcpBackend } from '../../../../devicemodel/hw/uart/backends/socket.ts';
import { memoryLog } from '../../../support/memory-log.ts';
import { readAll, scratchDirectory, until, writeText } from '../../../support/pty.ts';

const cleanUp: Array<() => unknown> = [];
afterEach(async () => {
  for (const step of cleanUp.splice(0).reverse()) await step();
});

async function started(spec: Parameters<typeof openCharBackend>[0]) {
  const { log, lines } = memoryLog();
  const backend = openCharBackend(spec, { user: 'com2', log });
  cleanUp.push(() => backend.stop());
  await backend.start();
  return { backend, lines };
}

interface Client {
  readonly socket: Socket;
  readonly seen: () => string;
  readonly isClosed: () => boolean;
}

function client(to: { port: number } | { path: string }): Client {
  const socket = connect(to as never);
  let seen = '';
  let isClosed = false;
  socket.on('data', (d) => (seen += d.toString('latin1')));
  socket.on('error', () => {});
  socket.on('close', () => (isClosed = true));
  cleanUp.push(() => socket.destroy());
  return { socket, seen: () => seen, isClosed: () => isClosed };
}

function scratch() {
  const directory = scratchDirectory();
  cleanUp.push(() => directory.remove());
  return directory;
}

describe.each(['tcp', 'unix'])('%s', (kind) => {
  async function listening() {
    const path = scratch().file('com2.sock');
    const { backend, lines } = await started(kind === 'tcp' ? 'tcp:0' : `unix:${path}`);
    const to = backend instanceof TcpBackend ? { port: backend.port } : { path };
    return { backend, lines, to };
  }

  test('serves one client at a time, the next one when the first has left', async () => {
    const { backend, lines, to } = await listening();
    for (const word of ['first', 'second']) {
      const c = client(to);
      c.socket.write(word);
      let received = '';
      await until(() => (received += readAll(backend)) === word, 'input');
      writeText(backend, `hello ${word}`);
      await until(() => c.seen() === `hello ${word}`, 'output');
      const rival = client(to);
      await until(() => rival.isClosed(), 'the rival is turned away');
      expect(rival.seen()).toBe('');
      c.socket.end();
      await until(() => c.isClosed() && lines.some((l) => l.includes('left')), 'leave');
    }
  });

  // Mutation: say each of them: whoever may connect fills the disk with the log.
  test.each<[string, (socket: Socket) => void]>([
    ['stay', () => {}],
    ['are gone at once', (socket) => void socket.destroy()],
    ['close their half', (socket) => void socket.end()],
    ['write', (socket) => void socket.write('x'.repeat(100))],
    ['do not read', (socket) => void socket.pause()],
  ])('many clients that %s are no many lines', async (_what, attack) => {
    const { lines, to } = await listening();
    for (let i = 0; i < 200; i++) {
      const { socket } = client(to);
      await new Promise((resolve) => socket.once('connect', resolve).once('error', resolve));
      attack(socket);
    }
    await until(() => lines.length > 1, 'something is said');
    expect(lines.length).toBeLessThan(100);
  });

  // Without keepForFirstBytes in ServerBackend the first client sees only what comes after it.
  test('the first client gets the last 64 KiB from before it, the second nothing from between', async () => {
    const { backend, to } = await listening();
    const before = Array.from({ length: 20_000 }, (_, i) => `${i}`.padStart(5, '0')).join('');
    writeText(backend, before.slice(0, 50_000));
    backend.flush();
    writeText(backend, before.slice(50_000));
    backend.flush();
    const first = client(to);
    await until(() => first.seen().length >= 65_536, 'what was printed before');
    expect(first.seen()).toBe(before.slice(-65_536));
    writeText(backend, 'now');
    await until(() => first.seen().endsWith('now'), 'what is printed now');
    first.socket.end();
    await until(() => first.isClosed(), 'leave');
    writeText(backend, 'nobody hears this');
    backend.flush();
    const second = client(to);
    second.socket.write('x');
    await until(() => readAll(backend) === 'x', 'connection');
    writeText(backend, 'hello');
    await until(() => second.seen().length >= 5, 'output');
    expect(second.seen()).toBe('hello');
  });

  test('what was written before stop reaches the client', async () => {
    const { backend, to } = await listening();
    const c = client(to);
    c.socket.write('x');
    await until(() => readAll(backend) === 'x', 'connection');
    writeText(backend, 'y'.repeat(300_000));
    await backend.stop();
    await until(() => c.isClosed(), 'close');
    expect(c.seen().length).toBe(300_000);
    const late = client(to);
    await until(() => late.isClosed(), 'nobody listens any more');
  });

  test('a client that resets its connection does no harm', async () => {
    const { backend, to } = await listening();
    const c = client(to);
    c.socket.write('x');
    await until(() => readAll(backend) === 'x', 'connection');
    for (let i = 0; i < 50; i++) writeText(backend, 'z'.repeat(20_000));
    if (kind === 'tcp') c.socket.resetAndDestroy();
    else c.socket.destroy();
    await until(() => c.isClosed(), 'close');
    const next = client(to);
    next.socket.write('n');
    await until(() => readAll(backend) === 'n', 'the next client');
  });
});

test('tcp listens on the loopback address alone unless asked otherwise', async () => {
  const { backend } = await started('tcp:0');
  const port = (backend as TcpBackend).port;
  const hexPort = port.toString(16).toUpperCase().padStart(4, '0');
  // /proc/net/tcp: local address in hexadecimal, host byte order; state 0A is LISTEN.
  const listeners = readFileSync('/proc/net/tcp', 'latin1')
    .split('\n')
    .filter((l) => l.includes(`:${hexPort} 00000000:0000 0A`));
  expect(listeners).toHaveLength(1);
  expect(listeners[0]).toContain(`0100007F:${hexPort}`);
});

test('a port that is taken is a HostError with the address', async () => {
  const taken: Server = createServer().listen(0, '127.0.0.1');
  cleanUp.push(() => taken.close());
  await until(() => taken.listening, 'listening');
  const { port } = taken.address() as { port: number };
  const attempt = started(`tcp:${port}`);
  await expect(attempt).rejects.toThrow(HostError);
  await expect(attempt).rejects.toThrow(new RegExp(`127.0.0.1:${port}`));
});

describe('unix path', () => {
  test('the socket file of a crashed run is replaced, and removed at stop', async () => {
    const path = scratch().file('s');
    const crashed = spawn(process.execPath, [
      '-e',
      `require('net').createServer().listen(${JSON.stringify(path)},()=>process.kill(process.pid,'SIGKILL'))`,
    ]);
    await new Promise((resolve) => crashed.once('exit', resolve));
    expect(existsSync(path)).toBe(true);
    const { backend } = await started(`unix:${path}`);
    await backend.stop();
    expect(existsSync(path)).toBe(false);
  });

  test('a socket in use and an ordinary file are left alone', async () => {
    const directory = scratch();
    const { backend, lines } = await started(`unix:${directory.file('s')}`);
    await expect(started(`unix:${directory.file('s')}`)).rejects.toThrow(/in use/);
    // Trying the path was a visit.
    await until(() => lines.some((l) => l.includes('left')), 'the visitor leaves');
    const c = client({ path: directory.file('s') });
    c.socket.write('x');
    await until(() => readAll(backend) === 'x', 'the first one still serves');
    writeFileSync(directory.file('f'), 'precious');
    await expect(started(`unix:${directory.file('f')}`)).rejects.toThrow(/no socket/);
    expect(readFileSync(directory.file('f'), 'utf8')).toBe('precious');
  });

  test('as a client of a socket whose server is gone: a warning, and a line nobody listens to', async () => {
    const directory = scratch();
    const server = createServer().listen(directory.file('server'));
    await until(() => server.listening, 'listening');
    renameSync(directory.file('server'), directory.file('stale'));
    server.close();
    const { backend, lines } = await started({ kind: 'unix', path: directory.file('stale'), role: 'client' });
    writeText(backend, 'lost');
    expect(lines.filter((l) => l.includes('ECONNREFUSED'))).toHaveLength(1);
  });

  test('as a client: connects, and fails with one line when nobody is there', async () => {
    const path = scratch().file('server');
    await expect(started({ kind: 'unix', path, role: 'client' })).rejects.toThrow(HostError);
    let seen = '';
    const server = createServer((s) => {
      s.on('data', (d) => (seen += d));
      s.write('hi');
    }).listen(path);
    cleanUp.push(() => server.close());
    await until(() => server.listening, 'listening');
    const { backend } = await started({ kind: 'unix', path, role: 'client' });
    writeText(backend, 'out');
    let received = '';
    await until(() => (received += readAll(backend)) === 'hi' && seen === 'out', 'both ways');
  });
});
