/** Connections that a VM keeps because of the descriptors in them, where it is the VM that calls. As before Linux 6.16. */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, test, vi } from 'vitest';
import { createEventfd } from '../../../devicemodel/core/host/eventfd.ts';
import { closeFd } from '../../../devicemodel/core/host/files.ts';
import { native } from '../../../devicemodel/core/host/libc.ts';
import { acceptCaller, closeDoor, hangUp, isFullOfKept, listenAt } from '../../../devicemodel/core/host/wary-socket.ts';
import { Neighbours } from '../../../hypervisor/embedded/neighbours.ts';
import { memoryLog } from '../../support/memory-log.ts';
import { sendRights } from '../../support/send-rights.ts';

const { connections } = vi.hoisted(() => ({ connections: [] as string[] }));
vi.mock(import('../../../devicemodel/core/host/wary-socket.ts'), async (original) => {
  const real = await original();
  const connectTo: typeof real.connectTo = (path, kind) => {
    connections.push(path);
    const fd = real.connectTo(path, kind);
    // This kernel may refuse descriptors; an older one does not.
    if (fd >= 0) real.allowRights(fd);
    return fd;
  };
  return { ...real, connectTo };
});

/** Longer than a VM takes to call anew one with a higher id. */
const LONGER_THAN_AGAIN_MS = 2500;

let folder: string;
let descriptor: number;
const cleanUp: Array<() => void> = [];
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'kept-'));
  descriptor = createEventfd();
  connections.length = 0;
});
afterEach(() => {
  for (const step of cleanUp.splice(0).reverse()) step();
  closeFd(descriptor);
  rmSync(folder, { recursive: true, force: true });
});

const pause = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));

async function until(condition: () => boolean): Promise<void> {
  const end = performance.now() + 10_000;
  while (!condition()) {
    if (performance.now() > end) throw new Error('it did not happen');
    await pause(2);
  }
}

/** A VM whose callers get a message and a descriptor. */
function member(vmid: number, text: string): void {
  const path = join(folder, `vm-${vmid}.sock`);
  const listener = listenAt(path, 'bytes');
  const callers: number[] = [];
  const timer = setInterval(() => {
    const fd = acceptCaller(listener);
    if (fd === undefined) return;
    callers.push(fd);
    if (text !== '') sendRights(fd, text, []);
    sendRights(fd, 'x', [descriptor]);
  }, 2);
  cleanUp.push(() => {
    clearInterval(timer);
    for (const fd of callers) closeFd(fd);
    closeDoor(listener, 'bytes');
  });
}

async function vm() {
  const { log, lines } = memoryLog();
  const { vmid, release } = await new Neighbours({ folder }, log).join('a');
  cleanUp.push(release);
  return { vmid, lines };
}

// Mutation: call again whatever came: one more connection each second stays open, for each id.
test.each([
  ['descriptors', ''],
  ['descriptors behind what no VM says', 'junk\n'],
])('one that sends %s to who calls is not called again', async (_what, text) => {
  member(2, text);
  const { vmid, lines } = await vm();
  expect(vmid).toBe(1);
  await until(() => lines.some((line) => line.includes('dropped')));
  await pause(LONGER_THAN_AGAIN_MS);
  expect(connections.length).toBe(1);
});

// Mutation: ask only before somebody is let in. Or count each thread's own.
test('with too many of them nobody is called any more, nor by another thread', async () => {
  const pairs = new Int32Array(2);
  while (!isFullOfKept()) {
    native('int socketpair(int, int, int, void *)')(1, 1 | 0o2004000, 0, pairs);
    const [theirs, ours] = [pairs[0] as number, pairs[1] as number];
    cleanUp.push(() => closeFd(ours));
    sendRights(theirs, 'x', [descriptor]);
    expect(hangUp(ours, 'bytes')).toBe(false);
    closeFd(theirs);
  }
  member(1, '');
  const { vmid } = await vm();
  expect(vmid).toBe(2);
  await pause(LONGER_THAN_AGAIN_MS);
  expect(connections).toEqual([]);
  vi.resetModules();
  const anew = await import('../../../devicemodel/core/host/wary-socket.ts');
  expect(anew.isFullOfKept()).toBe(true);
});
