/** What the control sockets are sent by broken and hostile programs (§4.3 group 11). */
import { connect, type Socket } from 'node:net';
import { afterEach, describe, expect, test } from 'vitest';
import { CmdMonitor, RequestParser } from '../../control/cmd-monitor.ts';
import {
  MANAGER_MAGIC,
  ManagerMessage,
  ManagerSocket,
  ManagerMessageId as MessageId,
} from '../../control/manager-socket.ts';
import { FakeClock } from '../support/fake-clock.ts';
import { fakeTarget } from '../support/fake-command-target.ts';
import { memoryLog } from '../support/memory-log.ts';
import { scratchDirectory, until } from '../support/pty.ts';

const DONE = '{\n\t"ack":\t0\n}';
const DESTROY = '{"command":"destroy"}';
const LEVELS = 10_000;

const undo: Array<() => unknown> = [];
afterEach(async () => {
  for (const step of undo.splice(0).reverse()) await step();
});

function client(path: string) {
  const socket: Socket = connect(path);
  let seen = '';
  let isClosed = false;
  socket.on('data', (data) => (seen += data.toString('latin1')));
  socket.on('error', () => {});
  socket.on('close', () => (isClosed = true));
  undo.push(() => socket.destroy());
  return { socket, seen: () => seen, isClosed: () => isClosed };
}

async function startCmdMonitor(blkrescan: (argument: string) => boolean | Promise<boolean> = () => true) {
  const directory = scratchDirectory();
  undo.push(() => directory.remove());
  const path = directory.file('cmd.sock');
  const { log, lines } = memoryLog();
  const { commands, events } = fakeTarget({ blkrescan });
  const monitor = new CmdMonitor({ path, clock: new FakeClock(), log, commands, events });
  undo.push(() => monitor.close());
  await monitor.start();
  return { path, lines };
}

/** What is sent reaches the parser in these pieces; `destroy` afterwards must be found. */
function expectFoundAfter(...chunks: string[]): void {
  const parser = new RequestParser();
  const requests = [...chunks, DESTROY].flatMap((chunk) => parser.push(Buffer.from(chunk)));
  expect(requests.at(-1)).toEqual({ command: 'destroy', argument: '' });
  expect(requests.filter((request) => 'command' in request).length).toBeLessThan(3);
}

describe('--cmd_monitor', () => {
  test.each([
    ['partial JSON', '{"command":"blkrescan","arg'],
    ['a string that is not closed', '{"command":"blkrescan'],
    ['more than 4096 bytes', `{"command":"blkrescan","arguments":"${'x'.repeat(5000)}"}`],
    ['a megabyte in one string', `{"command":"${'x'.repeat(1 << 20)}"}`],
    [`${LEVELS} levels of objects`, '{"a":'.repeat(LEVELS)],
    [`${LEVELS} levels of objects, closed`, `${'{"a":'.repeat(LEVELS)}1${'}'.repeat(LEVELS)}`],
    [`${LEVELS} levels of arrays`, `{"command":${'['.repeat(LEVELS)}${']'.repeat(LEVELS)}}`],
    ['as many levels as fit', `{"command":${'['.repeat(2000)}${']'.repeat(2000)}}`],
    ['closing braces only', '}'.repeat(LEVELS)],
    ['a command that is a number', '{"command":7}'],
    ['a command that is an object', '{"command":{"command":"destroy"},"arguments":{}}'],
    ['a list', '[{"command":7}]'],
    ['escapes at the end', '{"command":"\\'],
    ['a prototype', '{"__proto__":{"command":"blkrescan"}}'],
    ['bytes that are no UTF-8', '{"command":"\xff\xfe"}'],
    ['zero bytes', '\0'.repeat(5000)],
  ])('%s: no request, and the next one is found', (_name, text) => {
    expectFoundAfter(text);
    // The same in pieces, as a slow client sends it.
    const pieces = text.match(/[\s\S]{1,777}/g) ?? [];
    expectFoundAfter(...pieces);
  });

  test('clients that send a byte now and then hold nobody up', async () => {
    const { path } = await startCmdMonitor();
    const slow = Array.from({ length: 7 }, () => client(path));
    for (const byte of '{"comm') for (const { socket } of slow) socket.write(byte);
    const good = client(path);
    good.socket.write(DESTROY);
    await until(() => good.seen() === DONE, 'the good client is served');
    for (const { seen } of slow) expect(seen()).toBe('');
  });

  test('many requests in one go are all answered, the thread has its turns between, and the log is not filled', async () => {
    const { path, lines } = await startCmdMonitor();
    const flooding = client(path);
    const count = 2000;
    flooding.socket.write('{"command":"no"}'.repeat(count));
    let turns = 0;
    const answers = () => flooding.seen().split('"ack"').length - 1;
    while (answers() < count) {
      await new Promise((resolve) => setImmediate(resolve));
      turns++;
    }
    expect(turns).toBeGreaterThan(100);
    expect(lines.length).toBeLessThan(100);
  });

  test('connections that come and go do not fill the log', async () => {
    const { path, lines } = await startCmdMonitor();
    for (let i = 0; i < 100; i++) client(path);
    const good = client(path);
    good.socket.write(DESTROY);
    await until(() => good.seen() === DONE, 'the good client is served');
    expect(lines.length).toBeLessThan(100);
  });

  test('a client that floods while its request is under way is not read: nothing piles up', async () => {
    let release: (isDone: boolean) => void = () => {};
    const pending = new Promise<boolean>((resolve) => (release = resolve));
    const { path } = await startCmdMonitor(() => pending);
    const flooding = client(path);
    const request = Buffer.from('{"command":"blkrescan","arguments":"4,/disk"}');
    const flood = Buffer.concat(Array.from({ length: 1000 }, () => request));
    for (let i = 0; i < 200; i++) flooding.socket.write(flood);
    for (let i = 0; i < 500; i++) await new Promise((resolve) => setImmediate(resolve));
    // Beyond the buffers of the kernel the client has to wait.
    expect(flooding.socket.writableLength).toBeGreaterThan(100 * flood.length);
    flooding.socket.destroy();
    release(true);
    const good = client(path);
    good.socket.write(DESTROY);
    await until(() => good.seen() === DONE, 'the good client is served');
  });
});

async function startManagerSocket() {
  const directory = scratchDirectory();
  undo.push(() => directory.remove());
  const { log, lines } = memoryLog();
  const { commands, calls } = fakeTarget();
  const socket = new ManagerSocket({ vmName: 'vm1', directory: directory.file('mngr'), log, commands });
  undo.push(() => socket.close());
  await socket.start();
  return { path: socket.path as string, lines, calls };
}

const query = ManagerMessage.encode({ magic: MANAGER_MAGIC, id: MessageId.DmQuery });

describe('manager socket', () => {
  async function expectServed(path: string): Promise<void> {
    const good = client(path);
    good.socket.write(query);
    await until(() => good.seen().length === ManagerMessage.size, 'the good client is served');
  }

  test.each([0n, MANAGER_MAGIC + 1n, (1n << 64n) - 1n])(
    'magic %i: the client is cut off, others are served',
    async (magic) => {
      const { path, calls } = await startManagerSocket();
      const bad = client(path);
      bad.socket.write(ManagerMessage.encode({ magic, id: MessageId.DmBlkrescan, data: Buffer.from('4,/disk') }));
      await until(() => bad.isClosed(), 'cut off');
      const answer = ManagerMessage.decode(Buffer.from(bad.seen(), 'latin1'));
      expect([answer.magic, answer.id, ...answer.data.subarray(0, 4)]).toEqual([MANAGER_MAGIC, 0, 255, 255, 255, 255]);
      expect(calls).toEqual([]);
      await expectServed(path);
    },
  );

  test('a union without a terminating zero is at most its 256 bytes', async () => {
    const { path, calls } = await startManagerSocket();
    const data = Buffer.from('4,'.padEnd(256, 'A'));
    const c = client(path);
    c.socket.write(ManagerMessage.encode({ magic: MANAGER_MAGIC, id: MessageId.DmBlkrescan, data }));
    await until(() => calls.length === 1, 'the rescan');
    expect(calls[0]?.length).toBe('blkrescan '.length + 256);
  });

  test.each([0, 1, 2, 8, 15, 18, 0x7fff_ffff, 0xffff_ffff])('kind %i is answered by -1', async (id) => {
    const { path } = await startManagerSocket();
    const c = client(path);
    c.socket.write(ManagerMessage.encode({ magic: MANAGER_MAGIC, id, data: new Uint8Array(256).fill(0xff) }));
    c.socket.write(query);
    await until(() => c.seen().length >= 2 * ManagerMessage.size, 'the query is answered');
    const [refused, answered] = [c.seen().slice(0, ManagerMessage.size), c.seen().slice(ManagerMessage.size)];
    const decoded = ManagerMessage.decode(Buffer.from(refused, 'latin1'));
    expect([decoded.id, new DataView(decoded.data.buffer, decoded.data.byteOffset).getInt32(0, true)]).toEqual([
      id,
      -1,
    ]);
    expect(answered.length).toBe(ManagerMessage.size);
  });

  test('a client that asks and asks and does not read is not read either: nothing piles up', async () => {
    const { path } = await startManagerSocket();
    const flooding = connect(path);
    flooding.on('error', () => {});
    flooding.pause();
    undo.push(() => flooding.destroy());
    const flood = Buffer.concat(Array.from({ length: 1000 }, () => query));
    for (let i = 0; i < 100; i++) flooding.write(flood);
    for (let i = 0; i < 500 && !flooding.destroyed; i++) await new Promise((resolve) => setImmediate(resolve));
    expect(flooding.destroyed || flooding.writableLength > 50 * flood.length).toBe(true);
    await expectServed(path);
  });
});
