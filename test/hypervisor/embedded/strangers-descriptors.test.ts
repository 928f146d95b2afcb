/**
 * Descriptors that nobody asked for, each one that its last holder waits for when it closes it. They stay as they are as long as the
 * VM is there, or do not come at all.
 */
import { mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { ByteStream } from '../../../devicemodel/core/host/byte-stream.ts';
import { createEventfd } from '../../../devicemodel/core/host/eventfd.ts';
import { receiveFds } from '../../../devicemodel/core/host/fd-socket.ts';
import { closeFd } from '../../../devicemodel/core/host/files.ts';
import { native } from '../../../devicemodel/core/host/libc.ts';
import { connectTo, hangUp, look, type SocketKind } from '../../../devicemodel/core/host/wary-socket.ts';
import { Neighbours } from '../../../hypervisor/embedded/neighbours.ts';
import { limitDescriptors } from '../../support/descriptor-limit.ts';
import { type LingeringSocket, lingeringSocket } from '../../support/lingering-socket.ts';
import { memoryLog } from '../../support/memory-log.ts';
import { sendRights } from '../../support/send-rights.ts';

const REGION = 'hv:/shm0';
const HELLO = '{"kind":"hello","vmid":7}';
const BELLS = JSON.stringify({ kind: 'bells', region: REGION });
const SOL_SOCKET = 1;
const SO_PASSRIGHTS = 83;
const setsockopt = native('int setsockopt(int, int, int, const void *, unsigned int)');
const getsockname = native('int getsockname(int, void *, void *)');

let folder: string;
const cleanUp: Array<() => void> = [];
const sent: LingeringSocket[] = [];
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'strangers-'));
});
afterEach(() => {
  // Before anybody closes them.
  for (const socket of sent.splice(0)) socket.dispose();
  for (const step of cleanUp.splice(0).reverse()) step();
  rmSync(folder, { recursive: true, force: true });
});

async function until(condition: () => boolean): Promise<void> {
  const end = performance.now() + 10_000;
  while (!condition()) {
    if (performance.now() > end) throw new Error('it did not happen');
    await new Promise((resolve) => setTimeout(resolve, 2));
  }
}

/** As soon as who was called takes descriptors. */
const offer = (fd: number, text: string, fds: readonly number[]) => until(() => sendRights(fd, text, fds));

/** Send it by `give`, and have it no more. @returns whether it was taken. */
async function give(send: (fd: number) => unknown): Promise<LingeringSocket | undefined> {
  const socket = lingeringSocket();
  sent.push(socket);
  const isSent = (await send(socket.fd)) !== false;
  if (!isSent) socket.dispose();
  closeFd(socket.fd);
  return isSent ? socket : undefined;
}

async function vm() {
  const { log, lines } = memoryLog();
  const neighbours = new Neighbours({ folder }, log, { hasBells: true });
  const { release } = await neighbours.join('a');
  cleanUp.push(release);
  const peers = new Set<number>();
  neighbours.bells(REGION, 8)?.onPeers((peer, fds) => void (fds === undefined ? peers.delete(peer) : peers.add(peer)));
  return { release, lines, peers };
}

function call(kind: 'sock' | 'bells'): number {
  const fd = connectTo(join(folder, `vm-1.${kind}`), kind === 'sock' ? 'bytes' : 'packets');
  expect(fd).toBeGreaterThan(0);
  cleanUp.push(() => closeFd(fd));
  return fd;
}

/** As before Linux 6.16, which cannot refuse descriptors: those of this process that listen there, or come of it. */
function takeRightsAt(path: string): void {
  for (const fd of readdirSync('/proc/self/fd').map(Number)) {
    const name = Buffer.alloc(110);
    const isIt = getsockname(fd, name, Int32Array.of(name.length)) === 0 && name.includes(path);
    if (isIt) setsockopt(fd, SOL_SOCKET, SO_PASSRIGHTS, Int32Array.of(1), 4);
  }
}

const rightsToSock = (fd: number) => (descriptor: number) => sendRights(fd, 'junk', [descriptor]);

// Mutation: a socket of Node's, which reads: the event loop stands still until whoever sent it lets go.
describe.each(['refuses descriptors', 'is older'])('on a kernel that %s', (kernel) => {
  const isOlder = kernel === 'is older';

  test('those sent to the socket for messages hold nobody up', async () => {
    const { lines } = await vm();
    const path = join(folder, 'vm-1.sock');
    if (isOlder) takeRightsAt(path);
    const fd = call('sock');
    const socket = await give(rightsToSock(fd));
    if (isOlder) expect(socket).toBeDefined();
    if (socket === undefined) return;
    await until(() => lines.some((line) => line.includes('it sends descriptors')));
    expect(socket.isOpen()).toBe(true);
  });

  test('those sent to it while the VM leaves neither', async () => {
    const { release } = await vm();
    const path = join(folder, 'vm-1.sock');
    if (isOlder) takeRightsAt(path);
    const fd = call('sock');
    // Not let in yet.
    const socket = await give(rightsToSock(fd));
    if (isOlder) expect(socket).toBeDefined();
    release();
    expect(socket?.isOpen()).not.toBe(false);
  });

  test('nor those that are sent to the socket for doorbells at once', async () => {
    const { lines, release } = await vm();
    if (isOlder) takeRightsAt(join(folder, 'vm-1.bells'));
    const fd = call('bells');
    const socket = await give((descriptor) => sendRights(fd, HELLO, [descriptor]));
    if (isOlder) expect(socket).toBeDefined();
    if (socket === undefined) {
      release();
      return;
    }
    await until(() => lines.some((line) => line.includes('a message that no VM sends')));
    release();
    expect(socket.isOpen()).toBe(true);
  });
});

test.each([1, 17, 253])('a message to the socket for doorbells with %i of them', async (count) => {
  const { lines, release } = await vm();
  writeFileSync(join(folder, 'vm-7.sock'), '');
  const fd = call('bells');
  sendRights(fd, HELLO, []);
  const eventfd = createEventfd();
  cleanUp.push(() => closeFd(eventfd));
  // The last of them, which there is no room for in what a VM sends.
  const socket = await give((descriptor) =>
    offer(fd, BELLS, [...Array.from({ length: count - 1 }, () => eventfd), descriptor]),
  );
  await until(() => lines.some((line) => line.includes('a message that no VM sends')));
  release();
  expect(socket?.isOpen()).toBe(true);
});

// Mutation: close what was not read yet.
test.each<[string, (fd: number) => Promise<unknown>]>([
  ['behind a message that no VM sends', async (fd) => sendRights(fd, 'junk', [])],
  ['behind a message of nothing', async (fd) => sendRights(fd, '', [])],
  ['behind one and a message of nothing', async (fd) => sendRights(fd, 'junk', []) && sendRights(fd, '', [])],
])('those %s are not closed with the connection', async (_what, before) => {
  const { release, lines } = await vm();
  const fd = call('bells');
  sendRights(fd, HELLO, []);
  const eventfd = createEventfd();
  cleanUp.push(() => closeFd(eventfd));
  await offer(fd, BELLS, [eventfd]);
  // Nothing is heard until this function waits for something.
  await before(fd);
  const socket = await give((descriptor) => sendRights(fd, BELLS, [descriptor]));
  expect(socket?.isOpen()).toBe(true);
  await new Promise((resolve) => setTimeout(resolve, 50));
  release();
  expect(socket?.isOpen(), lines.join()).toBe(true);
});

/** Both ends of a connection, and what was sent by the first is with the second. */
function pair(kind: SocketKind): readonly [number, number] {
  const fds = new Int32Array(2);
  native('int socketpair(int, int, int, void *)')(1, (kind === 'bytes' ? 1 : 5) | 0o2004000, 0, fds);
  return [fds[0] as number, fds[1] as number];
}

describe('a connection', () => {
  test.each<SocketKind>(['bytes', 'packets'])('of %s whose other end has gone without reading', async (kind) => {
    const [theirs, ours] = pair(kind);
    sendRights(ours, 'unread', []);
    const socket = await give((descriptor) => sendRights(theirs, 'x', [descriptor]));
    closeFd(theirs);
    expect(hangUp(ours, kind)).toBe(false);
    expect(socket?.isOpen()).toBe(true);
  });

  test.each<SocketKind>(['bytes', 'packets'])('of %s without descriptors is closed', (kind) => {
    const before = readdirSync('/proc/self/fd').length;
    const [theirs, ours] = pair(kind);
    for (let i = 0; i < 5; i++) sendRights(theirs, i % 2 === 0 ? 'x' : '', []);
    expect(hangUp(ours, kind)).toBe(true);
    closeFd(theirs);
    expect(readdirSync('/proc/self/fd').length).toBe(before);
  });

  // Mutation: without SO_OOBINLINE a byte out of band is passed over by who looks, and dropped by who reads.
  test('of bytes is not taken from out of band', async () => {
    await vm();
    const path = join(folder, 'vm-1.sock');
    takeRightsAt(path);
    const fd = call('sock');
    const MSG_OOB = 1;
    const socket = await give((descriptor) => sendRights(fd, '!', [descriptor], MSG_OOB));
    native('int64_t send(int, const void *, size_t, int)')(fd, Buffer.from('{"kind":'), 8, 0);
    await new Promise((resolve) => setTimeout(resolve, 50));
    expect(socket?.isOpen()).toBe(true);
  });

  test('of bytes ends with its reason where they come, and what came before is heard', async () => {
    const [theirs, ours] = pair('bytes');
    const heard: string[] = [];
    const stream = new ByteStream(ours, {
      text: (text) => heard.push(text),
      drained: () => {},
      ended: (why) => heard.push(`ended: ${why}`),
    });
    sendRights(theirs, 'before', []);
    await until(() => heard.length === 1);
    const socket = await give((descriptor) => sendRights(theirs, 'with', [descriptor]));
    await until(() => heard.length === 2);
    expect(heard).toEqual(['before', 'ended: it sends descriptors']);
    expect([socket?.isOpen(), stream.isOpen]).toEqual([true, false]);
    expect(sendRights(theirs, 'more', [])).toBe(false);
    closeFd(theirs);
  });

  // Mutation: where the limit cannot be read, there is none: the kernel closes what it has no descriptor for.
  test('of packets keeps them unread when this process has no descriptor left', async () => {
    const [theirs, ours] = pair('packets');
    sendRights(theirs, 'first', []);
    expect(receiveFds(ours)).toMatchObject({ text: 'first' });
    const socket = await give((descriptor) => sendRights(theirs, 'x', [descriptor]));
    const raise = limitDescriptors(3);
    try {
      expect(receiveFds(ours)).toBe('no room');
    } finally {
      raise();
    }
    expect(socket?.isOpen()).toBe(true);
    closeFd(theirs);
  });

  test('is looked at without taking anything', () => {
    const [theirs, ours] = pair('bytes');
    expect(look(ours)).toBeUndefined();
    sendRights(theirs, 'abc', []);
    expect([look(ours), look(ours)]).toMatchObject([{ sizeBytes: 3, hasRights: false }, { sizeBytes: 3 }]);
    closeFd(theirs);
    hangUp(ours, 'bytes');
  });
});
