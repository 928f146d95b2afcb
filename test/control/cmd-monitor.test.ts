import { connect, type Socket } from 'node:net';
import * as fc from 'fast-check';
import { afterEach, describe, expect, test } from 'vitest';
import { CmdMonitor, RequestParser } from '../../control/cmd-monitor.ts';
import type { VmEvent } from '../../devicemodel/core/vm-events.ts';
import { FakeClock } from '../support/fake-clock.ts';
import { type FakeTargetOptions, fakeTarget } from '../support/fake-command-target.ts';
import { memoryLog } from '../support/memory-log.ts';
import { scratchDirectory, until } from '../support/pty.ts';

/** As recorded from the C device model: cJSON_Print's layout, no final newline. */
const DONE = '{\n\t"ack":\t0\n}';
const REFUSED = '{\n\t"ack":\t-1\n}';

const cleanUp: Array<() => unknown> = [];
afterEach(async () => {
  for (const step of cleanUp.splice(0).reverse()) await step();
});

async function startMonitor(options: FakeTargetOptions = {}) {
  const directory = scratchDirectory();
  cleanUp.push(() => directory.remove());
  const { commands, calls, events } = fakeTarget(options);
  const { log, lines } = memoryLog();
  const clock = new FakeClock();
  const monitor = new CmdMonitor({ path: directory.file('cmd.sock'), clock, log, commands, events });
  cleanUp.push(() => monitor.close());
  await monitor.start();
  const tell = (event: VmEvent) => events.emit('event', event);
  return { monitor, calls, tell, events, lines, clock, path: directory.file('cmd.sock') };
}

/** What `destroy` does to the VM. */
const DESTROYED = 'poweroff: asked by the command monitor';

function client(path: string) {
  const socket: Socket = connect(path);
  let seen = '';
  let isClosed = false;
  socket.on('data', (d) => (seen += d.toString()));
  socket.on('error', () => {});
  socket.on('close', () => (isClosed = true));
  cleanUp.push(() => socket.destroy());
  return {
    socket,
    send: (text: string) => socket.write(text),
    seen: () => seen,
    isClosed: () => isClosed,
    replies: async (text: string) =>
      until(() => seen === text, `reply ${JSON.stringify(text)}, got ${JSON.stringify(seen)}`),
  };
}

describe('commands', () => {
  test('destroy is acknowledged', async () => {
    const { calls, path } = await startMonitor();
    const c = client(path);
    c.send('{"command":"destroy"}');
    await c.replies(DONE);
    expect(calls).toEqual([DESTROYED]);
  });

  test('the acknowledgement of destroy reaches the client although the monitor is stopped at once', async () => {
    let stopped: Promise<void> | undefined;
    const { monitor, path } = await startMonitor({
      onPowerOff: () => {
        stopped = monitor.close();
      },
    });
    const c = client(path);
    c.send('{"command":"destroy"}');
    await until(() => c.isClosed(), 'the connection ends');
    expect(c.seen()).toBe(DONE);
    await stopped;
    const late = client(path);
    await until(() => late.isClosed(), 'nobody listens any more');
  });

  test('the end waits for the client that asked for it, and for no other', async () => {
    const { monitor, path } = await startMonitor();
    const idle = connect({ path, allowHalfOpen: true });
    const asker = connect({ path, allowHalfOpen: true });
    cleanUp.push(() => idle.destroy());
    cleanUp.push(() => asker.destroy());
    let seen = '';
    asker.on('data', (d) => (seen += d.toString())).resume();
    idle.resume();
    asker.write('{"command":"destroy"}');
    await until(() => seen === DONE, 'the reply');
    const order: string[] = [];
    const stopped = monitor.close().then(() => order.push('stopped'));
    // Both get their end of file; what the asker does with it is waited for.
    await new Promise((resolve) => asker.once('end', resolve));
    order.push('asker closes');
    asker.end();
    await stopped;
    expect(order).toEqual(['asker closes', 'stopped']);
  });

  test('a refused destroy (RTVM) and a failed rescan are -1', async () => {
    const { path } = await startMonitor({ rtvm: true });
    const c = client(path);
    c.send('{"command":"destroy"}');
    await c.replies(REFUSED);
    c.send('{"command":"blkrescan","arguments":"9,disk"}');
    await c.replies(REFUSED + REFUSED);
    c.send('{"command":"blkrescan","arguments":"4,disk,ro"}');
    await c.replies(REFUSED + REFUSED + DONE);
  });

  test('a handler that throws or takes its time is answered in order', async () => {
    let release: (value: boolean) => void = () => {};
    const { path } = await startMonitor({
      blkrescan: () => new Promise<boolean>((resolve) => (release = resolve)),
      onPowerOff: () => {
        throw new Error('planned');
      },
    });
    const c = client(path);
    c.send('{"command":"blkrescan","arguments":"4,x"}{"command":"destroy"}');
    await until(() => release.length > 0, 'the rescan runs');
    expect(c.seen()).toBe('');
    release(true);
    await c.replies(DONE + REFUSED);
  });

  test('eject and insert name a drive, and a medium', async () => {
    const { path, calls } = await startMonitor();
    const c = client(path);
    c.send('{"command":"eject","arguments":"7"}');
    c.send('{"command":"insert","arguments":"0:7:1@2,/disc,with a comma,ro"}');
    await c.replies(DONE + DONE);
    for (const wrong of [
      'eject","arguments":"7,/disc',
      'insert","arguments":"7',
      'eject","arguments":"7@40',
      'eject',
    ]) {
      c.send(`{"command":"${wrong}"}`);
    }
    await c.replies(DONE + DONE + REFUSED.repeat(4));
    expect(calls).toEqual(['medium of 7 port 0: out', 'medium of 0:7:1 port 2: /disc,with a comma,ro']);
  });

  test('missing arguments, other types and longer ones than 319 bytes are refused', async () => {
    const { path, calls } = await startMonitor();
    const c = client(path);
    c.send('{"command":"blkrescan"}');
    c.send('{"command":"blkrescan","arguments":7}');
    c.send(`{"command":"blkrescan","arguments":"4,${'x'.repeat(317)}"}`);
    c.send(`{"command":"blkrescan","arguments":"4,${'x'.repeat(318)}"}`);
    await c.replies(REFUSED + REFUSED + DONE + REFUSED);
    expect(calls.map((call) => call.length - 'blkrescan '.length)).toEqual([319]);
  });

  const error = (text: string) => `{\n\t"ack":\t-1,\n\t"error":\t${JSON.stringify(text)}\n}`;
  test.each([
    ['garbage', 'not a JSON object'],
    ['{"command":"nosuch"}', 'unknown command "nosuch"'],
    ['{"command":"DESTROY"}', 'unknown command "DESTROY"'],
    ['{"command":""}', 'unknown command ""'],
    [`{"command":"${'x'.repeat(100)}"}`, `unknown command "${'x'.repeat(64)}"`],
    ['{"command":7}', 'no "command"'],
    ['{}', 'no "command"'],
    ['[1,2]', 'not a JSON object'],
    ['{"command":null,"arguments":"x"}', 'no "command"'],
    ['{bad}', 'not JSON'],
    ['}}}}', 'not a JSON object'],
    ['destroy\n', 'not a JSON object'],
    [`{"command":"${'x'.repeat(5000)}"}`, 'longer than 4096 bytes'],
  ])('%.40s is answered by what is wrong, and does not disturb what follows', async (text, problem) => {
    const { path, calls } = await startMonitor();
    const c = client(path);
    c.send(text);
    await c.replies(error(problem));
    c.send('{"command":"destroy"}');
    await c.replies(error(problem) + DONE);
    expect(calls).toEqual([DESTROYED]);
  });

  test.each(['\0\0\0', '\n', ' \t\r\n'])('%j between objects is nothing', async (text) => {
    const { path } = await startMonitor();
    const c = client(path);
    c.send(`${text}{"command":"destroy"}${text}{"command":"destroy"}${text}`);
    await c.replies(DONE + DONE);
  });

  test('pretty-printed, with a newline at the end, and byte by byte', async () => {
    const { path } = await startMonitor();
    const c = client(path);
    c.send('{\n  "command": "destroy",\n  "arguments": "a } \\" { b"\n}\n');
    await c.replies(DONE);
    for (const byte of '{"command":"destroy"}') {
      await new Promise<void>((resolve) => c.socket.write(byte, () => resolve()));
    }
    await c.replies(DONE + DONE);
  });

  test('a request that never ends is forgotten, the connection stays', async () => {
    const { path } = await startMonitor();
    const c = client(path);
    await new Promise<void>((resolve) => c.socket.write(`{"command":"${'x'.repeat(500_000)}`, () => resolve()));
    c.send('{"command":"destroy"}');
    await until(() => c.seen().endsWith(DONE), 'what follows is served');
    expect(c.seen()).toMatch(/^\{\n\t"ack":\t-1,\n\t"error":\t"longer than 4096 bytes"\n\}/);
  });

  test('clients are served side by side', async () => {
    const { path } = await startMonitor();
    const clients = Array.from({ length: 8 }, () => client(path));
    for (const c of clients) c.send('{"command":"blkrescan","arguments":"4,x"}');
    for (const c of clients) await c.replies(DONE);
  });

  test.each([
    ['idle', ''],
    ['a brace', '{'],
    ['half a command', '{"command":"des'],
    ['garbage', 'not json at all'],
    ['a string without end', '{"command":"'],
    ['only zeros', '\0\0\0\0'],
  ])('eight that sit there (%s) do not keep the ninth out: the one idle longest gives way', async (_name, text) => {
    const { path } = await startMonitor();
    const idle: ReturnType<typeof client>[] = [];
    for (let i = 0; i < 8; i++) {
      const c = client(path);
      idle.push(c);
      await new Promise<void>((resolve) => c.socket.once('connect', () => resolve()));
      if (text !== '') c.send(text);
    }
    const ninth = client(path);
    ninth.send('{"command":"blkrescan","arguments":"4,x"}');
    await ninth.replies(DONE);
    await until(() => idle[0]?.isClosed() === true, 'the first gives way');
    expect(idle.slice(1).filter((c) => c.isClosed())).toEqual([]);
  });

  test('one that waits for events does not give way', async () => {
    const { path } = await startMonitor();
    const listener = client(path);
    listener.send('{"command":"register_vm_event_client"}');
    await listener.replies(DONE);
    for (let i = 0; i < 12; i++) {
      const c = client(path);
      c.send('{"command":"blkrescan","arguments":"4,x"}');
      await c.replies(DONE);
    }
    expect(listener.isClosed()).toBe(false);
  });

  test('a client that only sends and closes its half is still served', async () => {
    const { path, calls } = await startMonitor();
    const c = client(path);
    c.socket.end('{"command":"destroy"}');
    await until(() => c.isClosed(), 'the monitor closes too');
    expect(c.seen()).toBe(DONE);
    expect(calls).toEqual([DESTROYED]);
  });
});

describe('events', () => {
  const register = '{"command":"register_vm_event_client"}';

  test('go to the one client that registered, as long as it is there', async () => {
    const { tell, path } = await startMonitor();
    tell({ type: 'poweroff' }); // nobody listens
    const first = client(path);
    first.send(register);
    await first.replies(DONE);
    const second = client(path);
    second.send(register);
    await second.replies(REFUSED);
    tell({ type: 'triple-fault' });
    await first.replies(`${DONE}{\n\t"vm_event":\t2\n}`);
    expect(second.seen()).toBe(REFUSED);
    first.socket.destroy();
    await until(() => {
      second.send(register);
      return second.seen().includes(DONE);
    }, 'the place is free again');
  });

  test('are one a second and type, counted from the start', async () => {
    const { tell, path, clock } = await startMonitor();
    const c = client(path);
    c.send(register);
    await c.replies(DONE);
    clock.advance(600e6);
    tell({ type: 'triple-fault' });
    tell({ type: 'triple-fault' });
    tell({ type: 'poweroff' });
    clock.advance(500e6); // 1.1 s: the next second
    tell({ type: 'triple-fault' });
    const event = (code: number) => `{\n\t"vm_event":\t${code}\n}`;
    await c.replies(DONE + event(2) + event(1) + event(2));
  });

  test('a client that does not read is cut off instead of piling up', async () => {
    const { tell, path, clock, lines } = await startMonitor();
    const c = client(path);
    c.send(register);
    await c.replies(DONE);
    c.socket.pause();
    await until(() => {
      for (let i = 0; i < 1000; i++) {
        clock.advance(1e9);
        tell({ type: 'poweroff' });
      }
      return lines.some((l) => l.includes('cut off'));
    }, 'cut off');
    c.socket.resume();
    await until(() => c.isClosed(), 'closed');
  });
});

describe('parser', () => {
  const request = fc.record({
    command: fc.string({ maxLength: 40 }),
    arguments: fc.string({ maxLength: 60 }),
  });

  test('finds every request however the stream is cut', () => {
    fc.assert(
      fc.property(fc.array(request, { maxLength: 6 }), fc.array(fc.nat({ max: 40 })), (requests, cuts) => {
        const bytes = Buffer.from(requests.map((r) => JSON.stringify(r)).join('\n'));
        const parser = new RequestParser();
        const found = [];
        let at = 0;
        for (const size of [...cuts, bytes.length]) {
          found.push(...parser.push(bytes.subarray(at, at + size)));
          at += size;
        }
        expect(found).toEqual(requests.map((r) => ({ command: r.command, argument: r.arguments })));
      }),
    );
  });

  test('takes arbitrary bytes without throwing, and still finds a request sent afterwards', () => {
    const hostile = fc.oneof(
      fc.uint8Array({ maxLength: 300 }),
      fc
        .array(fc.constantFrom(0x7b, 0x7d, 0x22, 0x5c, 0x5b, 0x2c, 0x0a), { maxLength: 300 })
        .map((a) => Uint8Array.from(a)),
      fc.nat({ max: 9000 }).map((n) => new Uint8Array(n).fill(0x7b)),
    );
    fc.assert(
      fc.property(fc.array(hostile, { maxLength: 10 }), (chunks) => {
        const parser = new RequestParser();
        for (const chunk of chunks) parser.push(chunk);
        const found = parser.push(Buffer.from('{"command":"destroy"}'));
        expect(found.at(-1)).toEqual({ command: 'destroy', argument: '' });
      }),
    );
  });
});
