import { readdirSync, writeFileSync } from 'node:fs';
import { connect, createServer } from 'node:net';
import * as fc from 'fast-check';
import { afterEach, describe, expect, test, vi } from 'vitest';
import { ManagerMessageId as Id, MANAGER_MAGIC, ManagerMessage, ManagerSocket } from '../../control/manager-socket.ts';
import { type FakeTargetOptions, fakeTarget } from '../support/fake-command-target.ts';
import { memoryLog } from '../support/memory-log.ts';
import { scratchDirectory, until } from '../support/pty.ts';

const cleanUp: Array<() => unknown> = [];
afterEach(async () => {
  vi.restoreAllMocks();
  for (const step of cleanUp.splice(0).reverse()) await step();
});

async function startSocket(options: FakeTargetOptions = {}) {
  const scratch = scratchDirectory();
  cleanUp.push(() => scratch.remove());
  const { target, commands, calls } = fakeTarget(options);
  const { log, lines } = memoryLog();
  const socket = new ManagerSocket({ vmName: 'vm1', directory: scratch.file('mngr'), log, commands });
  cleanUp.push(() => socket.close());
  await socket.start();
  return { socket, target, calls, lines, directory: scratch.file('mngr') };
}

function client(path: string | undefined) {
  const socket = connect(path as string);
  let seen = Buffer.alloc(0);
  let isClosed = false;
  socket.on('data', (d) => {
    seen = Buffer.concat([seen, d]);
  });
  socket.on('error', () => {});
  socket.on('close', () => {
    isClosed = true;
  });
  cleanUp.push(() => socket.destroy());
  return {
    socket,
    isClosed: () => isClosed,
    /** As acrnctl: one message out, one of the same size back. */
    ask: async (id: number, data: Uint8Array = new Uint8Array(0)) => {
      const before = seen.length;
      socket.write(ManagerMessage.encode({ magic: MANAGER_MAGIC, id, timestamp: 0x1234n, data }));
      await until(() => seen.length >= before + ManagerMessage.size, `reply to ${id}`);
      expect(seen.length).toBe(before + ManagerMessage.size);
      const reply = ManagerMessage.decode(seen.subarray(before));
      expect(reply).toMatchObject({ magic: MANAGER_MAGIC, id, timestamp: 0x1234n });
      return new DataView(reply.data.buffer).getInt32(0, true);
    },
    send: (bytes: Uint8Array) => socket.write(bytes),
  };
}

const force = (on: number) => Uint8Array.of(on, 0, 0, 0, 20, 0, 0, 0); // struct req_acrnd_stop { force, timeout }

test('a message has the layout of struct mngr_msg', () => {
  // gcc x86-64: unsigned long long at 0, unsigned int at 8, unsigned long at 16, a union of 256 bytes at 24.
  expect(ManagerMessage.size).toBe(280);
  expect(ManagerMessage.offsets).toEqual({ magic: 0, id: 8, timestamp: 16, data: 24 });
  expect(Buffer.from(ManagerMessage.encode({ magic: MANAGER_MAGIC })).toString('latin1', 0, 7)).toBe('vmm msg');
});

test('the socket is where acrnctl looks, and gone after close', async () => {
  const { socket, directory } = await startSocket();
  expect(readdirSync(directory)).toEqual([`vm1.monitor.${process.pid}.socket`]);
  await socket.close();
  expect(readdirSync(directory)).toEqual([]);
});

test.each<[string, number, string]>([
  ['root', 0, 'warn'],
  ['another user', 4242, 'debug'],
])('for %s, no folder for it is a line for %s: %s', async (_who, uid, level) => {
  vi.spyOn(process, 'getuid').mockReturnValue(uid);
  const scratch = scratchDirectory();
  cleanUp.push(() => scratch.remove());
  writeFileSync(scratch.file('file'), '');
  const directory = scratch.file('file/mngr');
  const { commands } = fakeTarget();
  const { log, lines } = memoryLog();
  const socket = new ManagerSocket({ vmName: 'vm1', commands, log, directory });
  await socket.start();
  await socket.close();
  expect(
    lines.filter((line) => line.includes('acrnctl cannot reach this VM')).map((line) => line.split(':')[0]),
  ).toEqual([level]);
});

describe('messages', () => {
  test('query, stop, resume and blkrescan are commands of the VM', async () => {
    const { socket, calls } = await startSocket({ state: 'suspended' });
    const c = client(socket.path);
    expect(await c.ask(Id.DmQuery)).toBe(4); // VM_SUSPEND_SUSPEND: acrnctl shows "suspended"
    expect(await c.ask(Id.DmStop, force(0))).toBe(0);
    expect(await c.ask(Id.DmResume, Uint8Array.of(3))).toBe(0);
    expect(await c.ask(Id.DmBlkrescan, Buffer.from('4,/disk.img\0rest'))).toBe(0);
    expect(await c.ask(Id.DmStop, force(1))).toBe(0);
    expect(await c.ask(Id.DmSuspend)).toBe(0);
    expect(calls).toEqual([
      'patient shutdown: acrnctl stop',
      'wake',
      'blkrescan 4,/disk.img',
      'forced poweroff: acrnctl stop --force',
      'power button',
    ]);
  });

  test('a guest with a life manager is asked by it', async () => {
    const { socket, target, calls } = await startSocket();
    target.guestAgent = { requestShutdown: () => void calls.push('life manager') };
    expect(await client(socket.path).ask(Id.DmStop, force(0))).toBe(0);
    expect(calls).toEqual(['patient shutdown: acrnctl stop', 'life manager']);
  });

  test('what this VM cannot do is -1, also when it throws', async () => {
    const { socket, lines } = await startSocket({
      blkrescan: () => {
        throw new Error('planned');
      },
    });
    const c = client(socket.path);
    expect(await c.ask(Id.DmBlkrescan)).toBe(-1); // no argument
    expect(await c.ask(Id.DmBlkrescan, Buffer.from('4,/disk.img'))).toBe(-1);
    expect(await c.ask(Id.DmQuery)).toBe(0);
    expect(lines.join()).toContain('planned');
  });

  test('several and divided messages, also behind a kind that nobody knows', async () => {
    const { socket, calls } = await startSocket();
    const c = client(socket.path);
    const message = (id: number, data = new Uint8Array(0)) => ManagerMessage.encode({ magic: MANAGER_MAGIC, id, data });
    c.send(message(Id.AcrndTimer));
    c.send(Buffer.concat([message(Id.DmStop, force(1)), message(Id.DmResume).subarray(0, 100)]));
    await until(() => calls.length === 1, 'the first');
    c.send(message(Id.DmResume).subarray(100));
    await until(() => calls.length === 2, 'the second');
    expect(calls).toEqual(['forced poweroff: acrnctl stop --force', 'wake']);
  });

  test('arbitrary bytes do no harm to other clients', async () => {
    const { socket } = await startSocket();
    await fc.assert(
      fc.asyncProperty(fc.uint8Array({ minLength: 280, maxLength: 900 }), async (bytes) => {
        const c = client(socket.path);
        c.send(bytes);
        await until(() => c.isClosed(), 'cut off: no magic number');
      }),
      { numRuns: 20 },
    );
    expect(await client(socket.path).ask(Id.DmQuery)).toBe(0);
  });
});

test('sockets that dead processes left are removed, those that somebody has or serves are not', async () => {
  const scratch = scratchDirectory();
  cleanUp.push(() => scratch.remove());
  // No process has this number: pid_max is at most 2^22.
  for (const name of [
    'vm1.monitor.4194305.socket',
    'vm11.monitor.4194305.socket',
    `vm1.monitor.${process.ppid}.socket`,
    `vm2.monitor.${process.ppid}.socket`,
    'notes.txt',
    'vm.monitor.x.socket',
  ]) {
    writeFileSync(scratch.file(name), '');
  }
  // As of another pid namespace: the process is not seen, but its socket is served.
  const served = createServer();
  await new Promise<void>((resolve) => served.listen(scratch.file('vm3.monitor.4194306.socket'), resolve));
  cleanUp.push(() => void served.close());
  const { log } = memoryLog();
  const { commands } = fakeTarget();
  const socket = new ManagerSocket({ vmName: 'vm1', directory: scratch.path, log, commands });
  await socket.start();
  expect(readdirSync(scratch.path).sort()).toEqual(
    [
      `vm1.monitor.${process.ppid}.socket`,
      `vm1.monitor.${process.pid}.socket`,
      `vm2.monitor.${process.ppid}.socket`,
      'notes.txt',
      'vm.monitor.x.socket',
      'vm3.monitor.4194306.socket',
    ].sort(),
  );
  await socket.close();
});

test('the fifth client waits until one of the four is served', async () => {
  let finish: ((isDone: boolean) => void) | undefined;
  const pending: Array<(isDone: boolean) => void> = [];
  const { socket } = await startSocket({
    blkrescan: () =>
      new Promise((resolve) => {
        pending.push(resolve);
        finish = () => resolve(true);
      }),
  });
  const atWork = Array.from({ length: 4 }, () => client(socket.path));
  const replies = atWork.map((c) => c.ask(Id.DmBlkrescan, Buffer.from('4,/disk.img')));
  await until(() => pending.length === 4, 'all four at work');
  const fifth = client(socket.path);
  let answer: number | undefined;
  void fifth.ask(Id.DmQuery).then((state) => {
    answer = state;
  });
  await new Promise((resolve) => setTimeout(resolve, 50));
  expect([answer, fifth.isClosed()]).toEqual([undefined, false]);
  finish?.(true);
  await until(() => answer === 0, 'the fifth is served');
  for (const resolve of pending) resolve(true);
  expect(await Promise.all(replies)).toEqual([0, 0, 0, 0]);
});

test.each([
  ['vm1', ['vm10'], ['"vm1" and "vm10"']],
  ['vm10', ['vm1', 'other'], ['"vm10" and "vm1"']],
  ['my.vm', ['my'], ['a dot in its name']],
  ['a', [], ['messages for acrnd may come to this VM instead: "a"']],
  ['ac', [], ['messages for acrnd may come to this VM instead: "ac"']],
  ['acrn', ['ac'], ['"acrn" and "ac"', 'messages for acrnd may come to this VM instead: "acrn"']],
  ['acrnd', [], ['messages for acrnd may come to this VM instead: "acrnd"']],
  ['acrnd1', [], []],
  ['vm1', ['vm1', 'vm2'], []],
])('names that acrnctl takes for each other are told: %s beside %s', async (vmName, others, told) => {
  const scratch = scratchDirectory();
  cleanUp.push(() => scratch.remove());
  for (const other of others) writeFileSync(scratch.file(`${other}.monitor.${process.ppid}.socket`), '');
  const { log, lines } = memoryLog();
  const socket = new ManagerSocket({ vmName, directory: scratch.path, log, commands: fakeTarget().commands });
  await socket.start();
  cleanUp.push(() => socket.close());
  const warnings = lines.filter((line) => line.startsWith('warn'));
  expect(warnings).toHaveLength(told.length);
  for (const [i, text] of told.entries()) expect(warnings[i]).toContain(text);
});
