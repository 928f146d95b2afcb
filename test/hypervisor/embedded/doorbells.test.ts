/** Doorbells by eventfd between VMs, here several in one process with a folder of their own. */
import { existsSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { signalEventfd, takeEventfd } from '../../../devicemodel/core/host/eventfd.ts';
import { receiveFds, sendFds } from '../../../devicemodel/core/host/fd-socket.ts';
import { closeFd } from '../../../devicemodel/core/host/files.ts';
import { silentLog } from '../../../devicemodel/core/log.ts';
import { Neighbours } from '../../../hypervisor/embedded/neighbours.ts';
import { limitDescriptors } from '../../support/descriptor-limit.ts';
import { memoryLog } from '../../support/memory-log.ts';
import { connectForFds, offerFds } from '../../support/packet-socket.ts';
import { sendRights } from '../../support/send-rights.ts';

const REGION = 'hv:/shm0';

let directory: string;
const cleanUp: Array<() => void> = [];
beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), 'doorbells-'));
});
afterEach(() => {
  for (const step of cleanUp.splice(0).reverse()) step();
  rmSync(directory, { recursive: true, force: true });
});

async function until(condition: () => boolean): Promise<void> {
  const end = performance.now() + 10_000;
  while (!condition()) {
    if (performance.now() > end) throw new Error('it did not happen');
    await new Promise((resolve) => setTimeout(resolve, 2));
  }
}

/** A VM with a region, and what it knows of others. */
async function vm(name: string, { region = REGION, hasBells = true, log = silentLog } = {}) {
  const neighbours = new Neighbours({ folder: directory }, log, { hasBells });
  const { vmid, release } = await neighbours.join(name);
  cleanUp.push(release);
  const bells = neighbours.bells(region, 8);
  const peers = new Map<number, readonly number[]>();
  bells?.onPeers((peer, fds) => void (fds === undefined ? peers.delete(peer) : peers.set(peer, fds)));
  return { vmid, release, bells, peers };
}

const openFds = () => readdirSync('/proc/self/fd').length;

test('each has the eventfds of the other: ringing one is heard there, on that vector alone', async () => {
  const first = await vm('a');
  const second = await vm('b');
  await until(() => first.peers.has(2) && second.peers.has(1));
  signalEventfd(first.peers.get(2)?.[3] as number);
  expect(second.bells?.own.map((fd) => takeEventfd(fd))).toEqual([0, 0, 0, 1, 0, 0, 0, 0]);
  signalEventfd(second.peers.get(1)?.[0] as number);
  expect(takeEventfd(first.bells?.own[0] as number)).toBe(1);
});

test('only VMs that have the region, also one that comes to have it later or lets it go', async () => {
  const first = await vm('a');
  const other = await vm('b', { region: 'hv:/other' });
  const third = await vm('c');
  await until(() => first.peers.has(3) && third.peers.has(1));
  expect([[...first.peers.keys()], [...other.peers.keys()]]).toEqual([[3], []]);
  third.bells?.dispose();
  await until(() => first.peers.size === 0);
});

// Mutation: without the loop over bells in #drop, descriptors of VMs that are gone stay open for ever.
test('VMs that come and go leave no descriptor and no file', async () => {
  const first = await vm('a');
  const before = openFds();
  for (let i = 0; i < 20; i++) {
    const guest = await vm(`g${i}`);
    await until(() => first.peers.has(guest.vmid) && guest.peers.has(first.vmid));
    guest.release();
    await until(() => first.peers.size === 0 && !existsSync(join(directory, 'vm-2.sock')));
  }
  await until(() => openFds() <= before);
  expect(readdirSync(directory).sort()).toEqual(['lock', 'vm-1.bells', 'vm-1.sock']);
});

test('a VM without them is met as before', async () => {
  const first = await vm('a');
  const soft = await vm('b', { hasBells: false });
  expect(soft.bells).toBeUndefined();
  const third = await vm('c');
  await until(() => first.peers.has(3));
  expect([...first.peers.keys()]).toEqual([3]);
  expect(third.vmid).toBe(3);
});

test.each([
  ['no JSON', 'hello'],
  ['no object', 'null'],
  ['unknown', '{"kind":"boo"}'],
  ['before a hello', '{"kind":"bells","region":"hv:/shm0"}'],
  ['no id of a VM', '{"kind":"hello","vmid":0}'],
  ['this very VM', '{"kind":"hello","vmid":1}'],
  ['hello with descriptors', '{"kind":"hello","vmid":7}'],
])('a stranger that says %s is hung up on, and its descriptors are closed', async (_what, text) => {
  const { log, lines } = memoryLog();
  const { bells } = await vm('a', { log });
  const before = openFds();
  const fd = connectForFds(join(directory, 'vm-1.bells')) as number;
  await offerFds(fd, text, bells?.own ?? []);
  await until(() => lines.some((line) => line.includes('a message that no VM sends')));
  // What was said before it hung up, then the end.
  await until(() => {
    const received = receiveFds(fd);
    for (const own of typeof received === 'object' ? received.fds : []) closeFd(own);
    return received === 'ended';
  });
  closeFd(fd);
  await until(() => openFds() <= before);
});

const hello = (vmid: number) => JSON.stringify({ kind: 'hello', vmid });
/** @returns a connection to the first VM, of one that says it has this id. */
function callAs(vmid: number): number {
  const fd = connectForFds(join(directory, 'vm-1.bells')) as number;
  cleanUp.push(() => closeFd(fd));
  sendFds(fd, hello(vmid), []);
  return fd;
}
const bellsOf = (region: string) => JSON.stringify({ kind: 'bells', region });

// Mutation: any number that a message has room for: 253 for each region of each VM.
test('a VM with more vectors than there are is hung up on', async () => {
  const { log, lines } = memoryLog();
  const { bells, peers } = await vm('a', { log });
  const before = openFds();
  const fd = callAs(7);
  const own = bells?.own ?? [];
  await until(() => sendRights(fd, bellsOf(REGION), [...own, ...own, ...own.slice(0, 1)]));
  await until(() => lines.some((line) => line.includes('a message that no VM sends')));
  expect([...peers.keys()]).toEqual([]);
  expect(openFds()).toBeLessThanOrEqual(before + 1);
});

// Mutation: count what there is, not what changes: each is connected to the register of the guest, and the thread does nothing else.
test('a VM that gives and takes back without end is hung up on', async () => {
  const { log, lines } = memoryLog();
  const { bells, peers } = await vm('a', { log });
  const before = openFds();
  const fd = callAs(7);
  await offerFds(fd, bellsOf(REGION), bells?.own ?? []);
  await until(() => {
    while (sendFds(fd, bellsOf(REGION), bells?.own ?? []));
    return lines.some((line) => line.includes('VM 7 changes its own too often'));
  });
  expect([...peers.keys()]).toEqual([]);
  await until(() => openFds() <= before + 1);
});

// Mutation: a count of each connection: whoever is hung up on connects anew and has as many again.
test('a VM that comes and goes without end is hung up on as soon as it comes', async () => {
  const { log, lines } = memoryLog();
  await vm('a', { log });
  const before = openFds();
  const fds: number[] = [];
  cleanUp.push(() => {
    for (const fd of fds.splice(0)) closeFd(fd);
  });
  await until(() => {
    for (let i = 0; i < 16; i++) {
      const fd = connectForFds(join(directory, 'vm-1.bells'));
      if (fd === undefined) break;
      sendFds(fd, hello(7), []);
      fds.push(fd);
    }
    return lines.some((line) => line.includes('changes its own too often'));
  });
  for (const fd of fds.splice(0)) closeFd(fd);
  await until(() => openFds() <= before);
});

// Mutation: without #isRight, the first VM's descriptors are closed and it is still rung; the others stay open.
test.each([
  ['is another VM by and by', [hello(7), bellsOf(REGION), hello(8)], 7],
  ['lets go with descriptors', [hello(7), bellsOf(REGION), '{"kind":"gone","region":"hv:/shm0"}'], 7],
  ['has more regions than there are', [hello(7), ...Array.from({ length: 65 }, (_, i) => bellsOf(`hv:/${i}`))], 0],
])('a VM that %s is hung up on, and nothing of it is left', async (_what, texts, seen) => {
  const { log, lines } = memoryLog();
  const { bells, peers } = await vm('a', { log });
  const before = openFds();
  const fd = connectForFds(join(directory, 'vm-1.bells')) as number;
  for (const text of texts) {
    await offerFds(fd, text, text === texts[0] ? [] : (bells?.own.slice(0, 2) ?? []));
    // As a VM would: the socket holds only so many.
    await new Promise((resolve) => setImmediate(resolve));
    if (text === texts[1] && seen !== 0) await until(() => peers.has(seen));
  }
  await until(() => lines.some((line) => line.includes('a message that no VM sends')));
  expect(peers.size).toBe(0);
  closeFd(fd);
  await until(() => openFds() <= before);
});

test('what was left by a VM that was killed is in nobody’s way', async () => {
  const first = await vm('a');
  first.release();
  writeFileSync(join(directory, 'vm-1.bells'), '');
  const again = await vm('a');
  const second = await vm('b');
  await until(() => again.peers.has(2) && second.peers.has(1));
});

// Mutation: without #rest the event loop turns without end as long as somebody waits to be let in.
test('who comes when there is no descriptor left is let in later, and costs nothing meanwhile', async () => {
  const { log, lines } = memoryLog();
  const first = await vm('a', { log });
  const fd = connectForFds(join(directory, 'vm-1.bells')) as number;
  cleanUp.push(() => closeFd(fd));
  const said = () => lines.filter((line) => line.includes('EMFILE'));
  const raise = limitDescriptors(3);
  try {
    await until(() => said().length > 0);
    const before = performance.eventLoopUtilization();
    await new Promise((resolve) => setTimeout(resolve, 500));
    expect(performance.eventLoopUtilization(before).utilization).toBeLessThan(0.5);
    expect(said().length).toBe(1);
  } finally {
    raise();
  }
  sendFds(fd, JSON.stringify({ kind: 'hello', vmid: 9 }), []);
  await offerFds(fd, JSON.stringify({ kind: 'bells', region: REGION }), first.bells?.own ?? []);
  await until(() => first.peers.has(9));
});

// Mutation: what is sent to it and does not go out is forgotten: a `gone` that is lost leaves it with eventfds that nobody hears.
test('who does not read what it is told is told nothing any more, and knows it', async () => {
  const neighbours = new Neighbours({ folder: directory }, silentLog, { hasBells: true });
  const { release } = await neighbours.join('a');
  cleanUp.push(release);
  const own = neighbours.bells(REGION, 8);
  const peers = new Set<number>();
  own?.onPeers((peer, fds) => void (fds === undefined ? peers.delete(peer) : peers.add(peer)));
  const fd = connectForFds(join(directory, 'vm-1.bells')) as number;
  cleanUp.push(() => closeFd(fd));
  sendFds(fd, JSON.stringify({ kind: 'hello', vmid: 9 }), []);
  await offerFds(fd, JSON.stringify({ kind: 'bells', region: REGION }), own?.own ?? []);
  await until(() => peers.has(9));
  for (let i = 0; i < 1000; i++) neighbours.bells('hv:/again', 1)?.dispose();
  expect([...peers]).toEqual([]);
  await until(() => {
    const received = receiveFds(fd);
    if (received === 'ended') return true;
    for (const each of typeof received === 'object' ? received.fds : []) closeFd(each);
    return false;
  });
});

// Mutation: leave #makeRoom out: those that say nothing have all the places, and the next VM is not let in.
test.each<[string, (fd: number) => void]>([
  ['say nothing', () => {}],
  ['say what no VM says first', (fd) => void sendFds(fd, '{"kind":"gone","region":"hv:/x"}', [])],
  ['say garbage', (fd) => void sendFds(fd, '\0\xff', [])],
  ['say that they are this VM', (fd) => void sendFds(fd, '{"kind":"hello","vmid":1}', [])],
  ['are gone again', (fd) => closeFd(fd)],
])('four hundred that %s: the next VM is let in', async (_what, attack) => {
  const first = await vm('a');
  const path = join(directory, 'vm-1.bells');
  const before = openFds();
  let made = 0;
  const open: number[] = [];
  await until(() => {
    for (let i = 0; i < 32 && made < 400; i++) {
      const fd = connectForFds(path);
      if (fd === undefined) break;
      made++;
      attack(fd);
      if (!_what.startsWith('are gone')) open.push(fd);
    }
    return made === 400;
  });
  const second = await vm('b');
  await until(() => first.peers.has(2) && second.peers.has(1));
  for (const fd of open) closeFd(fd);
  second.release();
  await until(() => openFds() <= before);
});

// Mutation: without a limit each of them costs this VM a descriptor, and one for each of its vectors that it is given.
test('no more are let in than there can be VMs', async () => {
  await vm('a');
  const path = join(directory, 'vm-1.bells');
  const fds: number[] = [];
  cleanUp.push(() => {
    for (const fd of fds) closeFd(fd);
  });
  await until(() => {
    for (let i = 0; i < 32 && fds.length < 280; i++) {
      const fd = connectForFds(path);
      if (fd === undefined) break;
      sendFds(fd, `{"kind":"hello","vmid":${2 + fds.length}}`, []);
      fds.push(fd);
    }
    return fds.length === 280;
  });
  await until(() => fds.slice(271).every((fd) => receiveFds(fd) === 'ended'));
  const first = receiveFds(fds[254] as number);
  expect(first).toMatchObject({ text: '{"kind":"hello","vmid":1}' });
});
