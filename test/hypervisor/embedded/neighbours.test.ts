/** VMs of one host finding each other, here several in one process, each with everything its own process would have. */
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readlinkSync,
  renameSync,
  rmSync,
  statSync,
  symlinkSync,
  watch,
  writeFileSync,
} from 'node:fs';
import { connect, createServer, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { ExitCode } from '../../../devicemodel/core/errors.ts';
import { tryLock } from '../../../devicemodel/core/host/file-lock.ts';
import { closeFd, OpenFlag, openFile } from '../../../devicemodel/core/host/files.ts';
import { silentLog } from '../../../devicemodel/core/log.ts';
import { Neighbours } from '../../../hypervisor/embedded/neighbours.ts';
import type { VuartAddress } from '../../../hypervisor/embedded/scenario.ts';
import { VUART_FIFO_BYTES } from '../../../hypervisor/embedded/vpci/vuart.ts';
import { limitDescriptors } from '../../support/descriptor-limit.ts';
import { memoryLog } from '../../support/memory-log.ts';
import { stuckListener } from '../../support/stuck-listener.ts';

let directory: string;
const releases: Array<() => void> = [];

beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), 'neighbours-'));
});
afterEach(() => {
  for (const release of releases.splice(0)) release();
  rmSync(directory, { recursive: true, force: true });
});

async function join_(name: string) {
  const neighbours = new Neighbours({ folder: directory }, silentLog);
  const { vmid, release } = await neighbours.join(name);
  releases.push(release);
  return { neighbours, vmid, release };
}

async function until(condition: () => boolean): Promise<void> {
  const end = performance.now() + 10_000;
  while (!condition()) {
    if (performance.now() > end) throw new Error('it did not happen');
    await new Promise((resolve) => setTimeout(resolve, 2));
  }
}

function attach(neighbours: Neighbours, index: number, wants?: VuartAddress) {
  const wire = neighbours.wire(index, wants);
  const received: number[] = [];
  let changes = 0;
  wire.attach({ receive: (byte) => received.push(byte), changed: () => changes++ });
  return {
    wire,
    received,
    get changes() {
      return changes;
    },
  };
}

// Mutation: wait without hearing it: SIGTERM takes effect when whoever has the lock lets go of it.
test('one that waits for the lock of the folder gives up when it is told to, and leaves nothing', async () => {
  const lock = join(directory, 'lock');
  writeFileSync(lock, '', { mode: 0o600 });
  const fd = openFile(lock, OpenFlag.ReadWrite | OpenFlag.CloseOnExec);
  releases.push(() => closeFd(fd));
  tryLock(fd, 'exclusive', lock);
  const before = readdirSync('/proc/self/fd').length;
  const ending = new AbortController();
  const joined = new Neighbours({ folder: directory }, silentLog).join('a', ending.signal);
  await new Promise((resolve) => setTimeout(resolve, 20));
  ending.abort(new Error('power off'));
  await expect(joined).rejects.toThrow('power off');
  expect(readdirSync('/proc/self/fd').length).toBe(before);
  expect(readdirSync(directory)).toEqual(['lock']);
});

// Mutation: call whatever has the shape of a VM's name: a thousand of them are a thousand connections of each VM.
test('what no id is written as is nobody’s', async () => {
  let callers = 0;
  for (const name of ['vm-256.sock', 'vm-999.sock', 'vm-01.sock', 'vm-0.sock', 'vm-99999999999.sock']) {
    const server = createServer(() => callers++).listen(join(directory, name));
    await new Promise((resolve) => server.once('listening', resolve));
    releases.push(() => server.close());
  }
  expect((await join_('a')).vmid).toBe(1);
  expect((await join_('b')).vmid).toBe(2);
  await new Promise((resolve) => setTimeout(resolve, 50));
  expect(callers).toBe(0);
});

// Mutation: wait for the lock once for each lost connection: whoever has the lock has this VM open it without end.
test('connections that are lost while somebody has the lock are looked at under one', async () => {
  await join_('a');
  const lock = join(directory, 'lock');
  const fd = openFile(lock, OpenFlag.ReadWrite | OpenFlag.CloseOnExec);
  releases.push(() => closeFd(fd));
  tryLock(fd, 'exclusive', lock);
  for (let vmid = 10; vmid < 20; vmid++) {
    writeFileSync(join(directory, `vm-${vmid}.sock`), '');
    for (let i = 0; i < 3; i++) {
      const socket = connect(join(directory, 'vm-1.sock'));
      await new Promise((resolve) => socket.once('data', resolve));
      socket.write(`{"kind":"hello","vmid":${vmid},"name":"x"}\n`);
      socket.end();
      await new Promise((resolve) => socket.once('close', resolve));
    }
  }
  await new Promise((resolve) => setTimeout(resolve, 20));
  const locks = readdirSync('/proc/self/fd').filter((each) => {
    try {
      return readlinkSync(`/proc/self/fd/${each}`) === lock;
    } catch {
      return false; // that of the listing
    }
  });
  expect(locks).toHaveLength(2);
});

test('ids count from 1 and are free again after release', async () => {
  const first = await join_('a');
  const second = await join_('b');
  expect([first.vmid, second.vmid]).toEqual([1, 2]);
  first.release();
  await until(() => !existsSync(join(directory, 'vm-1.sock')));
  expect((await join_('c')).vmid).toBe(1);
});

test.each([0, 0o022, 0o077, 0o177, 0o777])('with umask %o everything there is this user’s alone', async (mask) => {
  const before = process.umask(mask);
  try {
    const neighbours = new Neighbours({ folder: directory }, silentLog, { hasBells: true });
    const { release } = await neighbours.join('a');
    releases.push(release);
  } finally {
    process.umask(before);
  }
  const modes = readdirSync(directory).map((name) => [name, statSync(join(directory, name)).mode & 0o777]);
  expect(Object.fromEntries(modes)).toEqual({ lock: 0o600, 'vm-1.sock': 0o600, 'vm-1.bells': 0o600 });
});

test('two that join at the same moment get different ids', async () => {
  const both = await Promise.all([join_('a'), join_('b')]);
  expect(both.map((b) => b.vmid).sort()).toEqual([1, 2]);
});

test('a socket nobody listens on any more is cleared away', async () => {
  const dead = join(directory, 'vm-1.sock');
  const server = createServer().listen(dead);
  await new Promise((resolve) => server.once('listening', resolve));
  // As after a crash: the file stays, the listener is gone.
  await new Promise((resolve) => server.close(resolve));
  writeFileSync(dead, '');
  expect((await join_('a')).vmid).toBe(1);
});

test('a VM that was there before can be rung at once, before it has answered', async () => {
  const a = await join_('a');
  const vectors: number[] = [];
  a.neighbours.onDoorbell('hv:/x', (vector) => vectors.push(vector));
  const b = await join_('b');
  expect(b.neighbours.ring('hv:/x', a.vmid, 3)).toBe(true);
  await until(() => vectors.length > 0);
  expect(vectors).toEqual([3]);
});

test('doorbells reach the VM with that id, in both directions, and oneself', async () => {
  const a = await join_('a');
  const b = await join_('b');
  const rings: string[] = [];
  a.neighbours.onDoorbell('hv:/x', (vector) => rings.push(`a${vector}`));
  b.neighbours.onDoorbell('hv:/x', (vector) => rings.push(`b${vector}`));
  await until(() => a.neighbours.ring('hv:/x', 2, 1));
  b.neighbours.ring('hv:/x', 1, 2);
  a.neighbours.ring('hv:/x', 1, 3);
  await until(() => rings.length === 3);
  expect(rings.sort()).toEqual(['a2', 'a3', 'b1']);
  expect(a.neighbours.ring('hv:/x', 9, 0)).toBe(false);
});

test('vUARTs of the same index find each other, whoever is first', async () => {
  const a = await join_('a');
  const left = attach(a.neighbours, 1);
  const b = await join_('b');
  const right = attach(b.neighbours, 1);
  await until(() => left.wire.isConnected && right.wire.isConnected);
  for (const byte of [1, 2, 3]) left.wire.send(byte);
  right.wire.send(9);
  await until(() => right.received.length === 3 && left.received.length === 1);
  expect([right.received, left.received]).toEqual([[1, 2, 3], [9]]);
});

test('a third vUART waits until one of the two goes', async () => {
  const vms = [await join_('a'), await join_('b'), await join_('c')];
  const wires = vms.map((vm) => attach(vm.neighbours, 1));
  await until(() => wires.filter((w) => w.wire.isConnected).length === 2);
  const gone = wires.findIndex((w) => w.wire.isConnected);
  wires[gone]?.wire.dispose();
  await until(() => wires.filter((w, i) => i !== gone && w.wire.isConnected).length === 2);
});

test('a fixed peer is found by name and index, and nobody else is taken', async () => {
  const a = await join_('a');
  const b = await join_('b');
  const c = await join_('c');
  const left = attach(a.neighbours, 1, { vm: 'c', index: 4 });
  const other = attach(b.neighbours, 1);
  const right = attach(c.neighbours, 4, { vm: 'a', index: 1 });
  await until(() => left.wire.isConnected && right.wire.isConnected);
  expect(other.wire.isConnected).toBe(false);
});

test('a sender has no room while the other guest does not read, and again when it does', async () => {
  const a = await join_('a');
  const b = await join_('b');
  const left = attach(a.neighbours, 1);
  const right = attach(b.neighbours, 1);
  await until(() => left.wire.isConnected && right.wire.isConnected);
  let sent = 0;
  while (left.wire.hasRoom) {
    left.wire.send(0);
    sent++;
  }
  expect(sent).toBeLessThan(VUART_FIFO_BYTES);
  await until(() => right.received.length === sent);
  for (let i = 0; i < sent; i++) right.wire.consumed();
  await until(() => left.wire.hasRoom);
});

test('when a VM goes, its vUART peer is alone again', async () => {
  const a = await join_('a');
  const b = await join_('b');
  const left = attach(a.neighbours, 1);
  const right = attach(b.neighbours, 1);
  await until(() => left.wire.isConnected && right.wire.isConnected);
  b.release();
  await until(() => !left.wire.isConnected);
});

test('who speaks anything else is dropped, and the others stay', async () => {
  const a = await join_('a');
  const b = await join_('b');
  for (const text of ['nonsense\n', '{"kind":"data","to":-1}\n', 'null\n', `${'x'.repeat(100_000)}`]) {
    const intruder = connect(join(directory, 'vm-1.sock'));
    intruder.on('error', () => {});
    intruder.resume();
    intruder.write(text);
    await new Promise((resolve) => intruder.once('close', resolve));
  }
  let rung = 0;
  a.neighbours.onDoorbell('hv:/x', () => rung++);
  await until(() => b.neighbours.ring('hv:/x', 1, 0));
  await until(() => rung > 0);
});

test('leaving removes the socket', async () => {
  const a = await join_('a');
  a.release();
  await until(() => readdirSync(directory).every((file) => file === 'lock'));
});

// Mutation: `vm-1.sock` first: another process has the id at once, and its socket for doorbells is removed.
test('leaving removes the socket by which it has its id last', async () => {
  const neighbours = new Neighbours({ folder: directory }, silentLog, { hasBells: true });
  const { release } = await neighbours.join('a');
  const changed: string[] = [];
  const watcher = watch(directory, (_event, name) => changed.push(String(name)));
  releases.push(() => watcher.close());
  release();
  await until(() => changed.includes('vm-1.sock'));
  expect(changed.filter((name) => name.startsWith('vm-1.'))).toEqual(['vm-1.bells', 'vm-1.sock']);
});

// Mutation: without a catch in UnixDoor.close the release throws, and the rest stays.
test('leaving goes on where its socket cannot be removed', async () => {
  const before = readdirSync('/proc/self/fd').length;
  const { release } = await join_('a');
  const path = join(directory, 'vm-1.sock');
  rmSync(path);
  mkdirSync(path);
  release();
  await until(() => readdirSync('/proc/self/fd').length <= before);
});

/** A socket file that nobody serves, as a VM leaves it that was killed. */
async function deadSocket(path: string): Promise<void> {
  const server = createServer();
  await new Promise<void>((resolve) => server.listen(`${path}.live`, resolve));
  renameSync(`${path}.live`, path);
  await new Promise((resolve) => server.close(resolve));
}

// Mutation: without #clearAfter the files stay until a VM comes that takes this id.
test('the sockets of a VM that was killed are cleared away by the others, those of a successor are not', async () => {
  await join_('a');
  const files = [join(directory, 'vm-2.sock'), join(directory, 'vm-2.bells')];
  const killed = async () => {
    const socket = connect(join(directory, 'vm-1.sock'));
    socket.write('{"kind":"hello","vmid":2,"name":"killed"}\n');
    await new Promise((resolve) => socket.once('data', resolve));
    return socket;
  };
  const first = await killed();
  await deadSocket(files[0] as string);
  writeFileSync(files[1] as string, '');
  first.destroy();
  await until(() => files.every((file) => !existsSync(file)));

  const second = await killed();
  const successor = await join_('b');
  expect(successor.vmid).toBe(2);
  second.destroy();
  await until(() => second.closed);
  // By then it is looked at: the third has its lock after that.
  await join_('c');
  expect(existsSync(files[0] as string)).toBe(true);
});

// Mutation: with `send` in place of `ring` all 100,000 lines wait in memory.
test('a VM that does not read is rung once for each of its vectors when it does again', async () => {
  const a = await join_('a');
  const stuck = connect(join(directory, 'vm-1.sock'));
  stuck.write('{"kind":"hello","vmid":9,"name":"stuck"}\n');
  await until(() => a.neighbours.ring('hv:/x', 9, 0));
  for (let i = 0; i < 100_000; i++) a.neighbours.ring('hv:/x', 9, i % 8);
  await new Promise((resolve) => setTimeout(resolve, 50));
  for (let vector = 8; vector < 12; vector++) a.neighbours.ring('hv:/x', 9, vector);
  let text = '';
  stuck.setEncoding('utf8').on('data', (chunk: string) => {
    text += chunk;
  });
  await until(() => [8, 9, 10, 11].every((vector) => text.includes(`"vector":${vector}}`)));
  for (let vector = 0; vector < 8; vector++) expect(text).toContain(`"vector":${vector}}`);
  expect(text.split('\n').length).toBeLessThan(20_000);
  stuck.destroy();
});

test('three starts at once beside VMs that were killed, a hundred times: each has an id of its own', async () => {
  for (let round = 0; round < 100; round++) {
    const path = (vmid: number) => join(directory, `vm-${vmid}.sock`);
    const dead = [1, 2, 3, 5, 7, 9].map(path);
    for (const socket of dead) await deadSocket(socket);
    // Somebody else cleans up at the same time, at any point of what the starts do. (They take 1, 2 and 3.)
    const toClean = [5, 7, 9].map(path);
    const clean = () => {
      const socket = toClean.shift();
      if (socket === undefined) return;
      rmSync(socket, { force: true });
      setTimeout(clean, round % 3);
    };
    setTimeout(clean, round % 5);
    const started = await Promise.all(['a', 'b', 'c'].map(join_));
    expect(new Set(started.map(({ vmid }) => vmid)).size).toBe(3);
    for (const release of releases.splice(0)) release();
    await until(() => readdirSync(directory).every((name) => name === 'lock' || dead.includes(join(directory, name))));
    for (const socket of dead) rmSync(socket, { force: true });
  }
}, 60_000);

test.each([
  [
    'a folder is in its place',
    () => mkdirSync(join(directory, 'lock')),
    ExitCode.NoInput,
    /\/lock, .*: cannot be opened: EISDIR/,
  ],
  [
    'it is a link that leads round',
    () => symlinkSync('lock', join(directory, 'lock')),
    ExitCode.NoInput,
    /\/lock, .*: cannot be opened: ELOOP/,
  ],
])('a lock that cannot be opened is said, with a status of its own: %s', async (_what, prepare, exitCode, said) => {
  prepare();
  await expect(join_('a')).rejects.toThrow(said);
  await expect(join_('a')).rejects.toMatchObject({ exitCode });
});

describe('a process beside the VMs, or a VM of another version', () => {
  interface Said {
    readonly kind: string;
    readonly vmid?: number;
    readonly bytes?: readonly number[];
    readonly count?: number;
  }

  /** Speaks by hand. */
  function speaker(socket: Socket) {
    const said: Said[] = [];
    let rest = '';
    socket.on('error', () => {});
    socket.setEncoding('utf8').on('data', (chunk: string) => {
      const lines = (rest + chunk).split('\n');
      rest = lines.pop() as string;
      for (const line of lines) said.push(JSON.parse(line) as Said);
    });
    return {
      socket,
      said,
      say: (...messages: readonly object[]) =>
        socket.write(messages.map((message) => `${JSON.stringify(message)}\n`).join('')),
    };
  }

  const stranger = () => {
    const made = speaker(connect(join(directory, 'vm-1.sock')));
    releases.push(() => made.socket.destroy());
    return made;
  };

  const hello = { kind: 'hello', vmid: 9, name: 'other' };

  /** Its vUART 1 and that of the VM are the two ends of a wire. */
  async function wired() {
    const a = await join_('a');
    const left = attach(a.neighbours, 1);
    const other = stranger();
    other.say(hello, { kind: 'vuart', index: 1, wants: null });
    await until(() => other.said.some(({ kind }) => kind === 'pair'));
    other.say({ kind: 'paired', from: 1, to: 1 });
    await until(() => left.wire.isConnected);
    return { a, left, other };
  }

  // Mutation: without a limit in LocalVuart.send all of it is kept until the other process reads.
  test('it does not read, and the guest does not look whether there is room: a few FIFOs are kept, no more', async () => {
    const { left, other } = await wired();
    other.socket.pause();
    for (let turn = 0; turn < 100; turn++) {
      for (let i = 0; i < 1000; i++) left.wire.send(turn);
      await new Promise((resolve) => setImmediate(resolve));
    }
    other.socket.resume();
    const bytes = () => other.said.flatMap((message) => message.bytes ?? []);
    await until(() => bytes().length >= VUART_FIFO_BYTES);
    await new Promise((resolve) => setTimeout(resolve, 50));
    expect(bytes().length).toBeLessThanOrEqual(16 * VUART_FIFO_BYTES);
    // Once they are taken, it goes on.
    other.say({ kind: 'taken', to: 1, count: bytes().length });
    await until(() => left.wire.hasRoom);
    const before = bytes().length;
    left.wire.send(7);
    await until(() => bytes().length === before + 1);
  });

  // Mutation: without the limit in Peer.send the answers are kept without end.
  test('it asks without end and does not read the answers: its connection is closed', async () => {
    await join_('a');
    const other = stranger();
    other.say(hello);
    other.socket.pause();
    const asks = `${JSON.stringify({ kind: 'pair', from: 1, to: 7 })}\n`.repeat(1000);
    let written = 0;
    const ask = (error?: Error | null) => {
      if (error != null || written >= 64 * 1024 * 1024) return;
      written += asks.length;
      other.socket.write(asks, ask);
    };
    ask();
    await until(() => other.socket.destroyed || written >= 64 * 1024 * 1024);
    expect(written).toBeLessThan(64 * 1024 * 1024);
  });

  // Mutation: one message for all that was taken: 70,000 is no count, and the other side closes the connection.
  test('more than 65,535 bytes of it are taken at once: said in parts that it understands', async () => {
    const { left, other } = await wired();
    const { wire } = left;
    wire.attach({ receive: () => wire.consumed(), changed: () => {} });
    const data = { kind: 'data', to: 1, bytes: new Array(1000).fill(0) };
    other.say(...new Array(70).fill(data));
    const counts = () => other.said.flatMap(({ count }) => count ?? []);
    await until(() => counts().reduce((sum, count) => sum + count, 0) === 70_000);
    expect(Math.max(...counts())).toBeLessThanOrEqual(0xffff);
  });

  test.each([
    ['first something else', [{ kind: 'vuart', index: 1, wants: null }]],
    ['that it is another VM now', [hello, { ...hello, vmid: 8 }]],
    ['twice who it is', [hello, hello]],
    ['that it is this VM', [{ ...hello, vmid: 1 }]],
    ['that it is the Service VM', [{ ...hello, vmid: 0 }]],
    ['that it is a VM that cannot be', [{ ...hello, vmid: 256 }]],
    ['a name without end', [{ ...hello, name: 'x'.repeat(256) }]],
    ['one of whom it wants', [hello, { kind: 'vuart', index: 1, wants: { vm: 'x'.repeat(256), index: 1 } }]],
  ])('it says %s: its connection is closed', async (_what, messages) => {
    const a = await join_('a');
    const other = stranger();
    other.say(...messages);
    await new Promise((resolve) => other.socket.once('close', resolve));
    for (const vmid of [8, 9, 256]) await until(() => !a.neighbours.ring('hv:/x', vmid, 0));
  });

  // Mutation: without a limit, each vUART that is said to be there is gone over for each that follows.
  test('it says that it has very many vUARTs: the first of them count, and nothing is slow', async () => {
    const a = await join_('a');
    const other = stranger();
    other.say(hello, ...Array.from({ length: 30_000 }, (_, i) => ({ kind: 'vuart', index: 1000 + i, wants: null })));
    other.say({ kind: 'doorbell', region: 'hv:/x', vector: 0 });
    const wires = Array.from({ length: 16 }, (_, i) => attach(a.neighbours, 1 + i));
    let rung = 0;
    a.neighbours.onDoorbell('hv:/x', () => rung++);
    await until(() => rung > 0);
    const first = attach(a.neighbours, 1000);
    const last = attach(a.neighbours, 30_999);
    await until(() => other.said.some(({ kind }) => kind === 'pair'));
    other.say({ kind: 'paired', from: 1000, to: 1000 });
    await until(() => first.wire.isConnected);
    expect([last.wire.isConnected, wires.some(({ wire }) => wire.isConnected)]).toEqual([false, false]);
    expect(other.said.filter(({ kind }) => kind === 'pair')).toHaveLength(1);
  });

  // Mutation: without #lookAgain the two do not hear of each other any more.
  test('the connection to a VM that goes on is made anew', async () => {
    const a = await join_('a');
    const server = createServer();
    releases.push(() => server.close());
    const met: ReturnType<typeof speaker>[] = [];
    server.on('connection', (socket) => met.push(speaker(socket)));
    await new Promise<void>((resolve) => server.listen(join(directory, 'vm-2.sock'), resolve));
    const other = stranger();
    other.say({ ...hello, vmid: 2 });
    await until(() => a.neighbours.ring('hv:/x', 2, 0));
    other.socket.destroy();
    await until(() => met.some(({ said }) => said.some(({ kind, vmid }) => kind === 'hello' && vmid === 1)));
    expect(a.neighbours.ring('hv:/x', 2, 0)).toBe(true);
    const again = met.find(({ said }) => said.length > 0);
    await until(() => again?.said.some(({ kind }) => kind === 'doorbell') === true);
    for (const { socket } of met) socket.destroy();
  });

  // Mutation: any error of connect(2) means that nobody is there: its socket is removed, and its id given again.
  test('a VM that stands still keeps its id and its socket, and is met when it goes on', async () => {
    const path = join(directory, 'vm-1.sock');
    const end = await stuckListener(path);
    const second = await join_('b');
    expect([second.vmid, existsSync(path)]).toEqual([2, true]);
    expect(second.neighbours.ring('hv:/x', 1, 0)).toBe(false);
    end();
    rmSync(path);
    const met: ReturnType<typeof speaker>[] = [];
    const server = createServer((socket) => met.push(speaker(socket)));
    releases.push(() => server.close());
    await new Promise<void>((resolve) => server.listen(path, resolve));
    await until(() => met.some(({ said }) => said.some(({ kind, vmid }) => kind === 'hello' && vmid === 2)));
    for (const { socket } of met) socket.destroy();
  });

  // Mutation: leave #makeRoom out: those that say nothing have all the places, and two VMs never meet.
  test.each<[string, (other: ReturnType<typeof speaker>) => void]>([
    ['say nothing', () => {}],
    ['say half of who they are', (other) => void other.socket.write('{"kind":"hello","vm')],
    [
      'say it byte by byte',
      (other) => {
        const timer = setInterval(() => other.socket.write('{'), 20);
        other.socket.once('close', () => clearInterval(timer));
      },
    ],
    ['close their half', (other) => void other.socket.end()],
    ['are gone again', (other) => void other.socket.destroy()],
    ['do not read', (other) => void other.socket.pause()],
  ])('three hundred that %s: the next VM is met', async (_what, attack) => {
    const a = await join_('a');
    for (let i = 0; i < 300; i++) {
      const other = stranger();
      await new Promise((resolve) => other.socket.once('connect', resolve));
      attack(other);
    }
    const b = await join_('b');
    let rung = 0;
    b.neighbours.onDoorbell('hv:/x', () => rung++);
    await until(() => a.neighbours.ring('hv:/x', b.vmid, 0));
    await until(() => rung > 0);
  });

  // Mutation: look at who waits again at once: the event loop turns without end; or never: no VM is met any more.
  test('who comes when there is no descriptor left is let in later', async () => {
    const { log, lines } = memoryLog();
    const neighbours = new Neighbours({ folder: directory }, log);
    const { release } = await neighbours.join('a');
    releases.push(release);
    const other = stranger();
    const raise = limitDescriptors(3);
    try {
      await until(() => lines.some((line) => line.includes('EMFILE')));
      await new Promise((resolve) => setTimeout(resolve, 200));
      expect(lines.length).toBe(1);
    } finally {
      raise();
    }
    await until(() => other.said.some(({ kind }) => kind === 'hello'));
  });
});

/** Bytes of sun_path with its end [unix(7)], and of the longest name of a socket. */
const SUN_PATH_BYTES = 108;
const NAME_BYTES = '/vm-255.bells'.length;

// Mutation: without the check libuv cuts the path, and the socket is another file, or the folder itself is "in use".
test.each([0, 1, 4, 13, 40])(
  'a folder whose path is %i bytes too long for sockets is refused, and nothing is made',
  async (more) => {
    const top = directory;
    directory = join(top, 'x'.repeat(SUN_PATH_BYTES - NAME_BYTES - top.length - 1 + more));
    try {
      await expect(join_('a')).rejects.toMatchObject({
        message: expect.stringMatching(/^folder .*: socket path has \d+ bytes, at most 107 /),
        exitCode: ExitCode.CannotCreate,
      });
      expect(readdirSync(top)).toEqual([]);
      directory = directory.slice(0, -1 - more);
      expect((await join_('a')).vmid).toBe(1);
    } finally {
      for (const release of releases.splice(0)) release();
      directory = top;
    }
  },
);
