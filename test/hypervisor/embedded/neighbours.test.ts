/** VMs of one host finding each other, here several in one process, each with everything its own process would have. */
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  renameSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { ExitCode } from '../../../devicemodel/core/errors.ts';
import { silentLog } from '../../../devicemodel/core/log.ts';
import { Neighbours } from '../../../hypervisor/embedded/neighbours.ts';
import type { VuartAddress } from '../../../hypervisor/embedded/scenario.ts';
import { VUART_FIFO_BYTES } from '../../../hypervisor/embedded/vpci/vuart.ts';

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
  const neighbours = new Neighbours(directory, silentLog);
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

test('ids count from 1 and are free again after release', async () => {
  const first = await join_('a');
  const second = await join_('b');
  expect([first.vmid, second.vmid]).toEqual([1, 2]);
  first.release();
  await until(() => !existsSync(join(directory, 'vm-1.sock')));
  expect((await join_('c')).vmid).toBe(1);
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
  const { connect } = await import('node:net');
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
  const { connect } = await import('node:net');
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
  const { connect } = await import('node:net');
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
