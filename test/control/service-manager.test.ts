/** What systemd hears, by a datagram socket of our own in its place. */
import { execFileSync } from 'node:child_process';
import { closeSync } from 'node:fs';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { EventStream } from '../../control/event-stream.ts';
import { ServiceManager } from '../../control/service-manager.ts';
import { hostCall, native } from '../../devicemodel/core/host/libc.ts';
import { NotifySocket } from '../../devicemodel/core/host/sd-notify.ts';
import { ThreadPulses } from '../../devicemodel/core/thread-pulses.ts';
import { repository } from '../support/program.ts';
import { scratchDirectory, until } from '../support/pty.ts';

const recv = hostCall<[number, Uint8Array, number, number]>('int64_t recv(int, void *, size_t, int)');
let scratch: ReturnType<typeof scratchDirectory>;
let fd: number;
let path: string;
beforeEach(() => {
  scratch = scratchDirectory();
  path = scratch.file('notify');
  fd = native('int socket(int, int, int)')(1, 0x80002, 0);
  const address = Buffer.concat([Buffer.from([1, 0]), Buffer.from(path), Buffer.alloc(1)]);
  expect(native('int bind(int, const void *, unsigned int)')(fd, address, address.length)).toBe(0);
});
afterEach(() => {
  closeSync(fd);
  scratch.remove();
});

/** What came since the last time. */
function heard(): string[] {
  const messages: string[] = [];
  const buffer = Buffer.alloc(1024);
  const DONTWAIT = 0x40;
  for (let n = recv(fd, buffer, 1024, DONTWAIT); n >= 0; n = recv(fd, buffer, 1024, DONTWAIT)) {
    messages.push(buffer.toString('utf8', 0, n));
  }
  return messages;
}

test('systemd hears when the guest runs, that it is asked to shut down, and how long that may take', () => {
  const events = new EventStream();
  events.emit('vmm', 'starting');
  const service = new ServiceManager({ events, vmName: 'vm1', env: { NOTIFY_SOCKET: path } });
  expect(heard()).toEqual([]);
  events.emit('vm', 'booted');
  expect(heard()).toEqual(['READY=1\nSTATUS=vm1: running']);
  events.emit('vm', 'suspended');
  expect(heard()).toEqual(['STATUS=vm1: suspended']);
  service.stopping(20_000);
  expect(heard()).toEqual(['STOPPING=1\nEXTEND_TIMEOUT_USEC=30000000\nSTATUS=vm1: shutting down']);
  service.close();
  service.close();
  events.emit('vm', 'resumed');
  expect(heard()).toEqual([]);
});

test.each([
  [false, 'STOPPING=1\nEXTEND_TIMEOUT_USEC=10000000\nSTATUS=vm1: ended'],
  [true, 'STATUS=vm1: ended, waiting for orders'],
])('a guest that ended is not the end of a process that stays (%s)', (stays, message) => {
  const service = new ServiceManager({ events: new EventStream(), vmName: 'vm1', env: { NOTIFY_SOCKET: path } });
  service.ready();
  service.ended(stays);
  service.close();
  expect(heard()).toEqual(['READY=1\nSTATUS=waiting for a VM', message]);
});

test('the watchdog is fed while the thread has its turns, if it is ours', async () => {
  const service = new ServiceManager({
    events: new EventStream(),
    vmName: 'vm1',
    env: { NOTIFY_SOCKET: path, WATCHDOG_USEC: '40000', WATCHDOG_PID: String(process.pid) },
  });
  let count = 0;
  await until(() => {
    count += heard().filter((message) => message === 'WATCHDOG=1').length;
    return count >= 2;
  }, 'two meals');
  service.close();
  const other = new ServiceManager({
    events: new EventStream(),
    vmName: 'vm1',
    env: { NOTIFY_SOCKET: path, WATCHDOG_USEC: '2000', WATCHDOG_PID: '1' },
  });
  heard();
  await new Promise((resolve) => setTimeout(resolve, 50));
  expect(heard()).toEqual([]);
  other.close();
});

test('the watchdog starves while a data thread does not come round, and the status says whose', async () => {
  const threads = new ThreadPulses();
  let asked = 0;
  let isAlive = true;
  let answered = 0;
  const gone = threads.add({
    what: 'disk.img',
    get hasAnswered() {
      return answered === asked;
    },
    ask: () => {
      asked++;
      if (isAlive) answered = asked;
    },
  });
  const service = new ServiceManager({
    events: new EventStream(),
    vmName: 'vm1',
    threads: () => threads,
    env: { NOTIFY_SOCKET: path, WATCHDOG_USEC: '40000' },
  });
  let meals = 0;
  const eat = () => {
    const messages = heard();
    meals += messages.filter((message) => message === 'WATCHDOG=1').length;
    return messages;
  };
  await until(() => {
    eat();
    return meals >= 3;
  }, 'three meals');
  isAlive = false;
  const told: string[] = [];
  await until(() => told.push(...eat()) > 0 && told.some((text) => text.startsWith('STATUS=')), 'a status');
  expect(told.filter((text) => text.startsWith('STATUS='))).toEqual([
    'STATUS=vm1: the thread of disk.img does not come round',
  ]);
  meals = 0;
  await new Promise((resolve) => setTimeout(resolve, 100));
  expect([eat(), meals]).toEqual([[], 0]);
  answered = asked;
  isAlive = true;
  await until(() => {
    eat();
    return meals > 0;
  }, 'food again');
  gone();
  service.close();
});

test('a socket that nobody has costs nothing but the message', () => {
  const socket = new NotifySocket(scratch.file('nobody'));
  expect(socket.send('READY=1')).toBe(false);
  socket.close();
  expect(socket.send('READY=1')).toBe(false);
});

test('the unit is one that systemd takes', (context) => {
  const unit = join(repository, 'examples/systemd/acrn-vm@.service');
  try {
    execFileSync('systemd-analyze', ['--version'], { stdio: 'ignore' });
  } catch {
    context.skip();
  }
  expect(execFileSync('systemd-analyze', ['verify', unit], { encoding: 'utf8', stdio: 'pipe' })).toBe('');
});
