/**
 * VMs of several users meet in the folder of a group. Two of them are processes of users 4242 and 4243, which takes root; what one
 * member of the group can do to another is done by this process, or by a third user.
 */
import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import {
  chmodSync,
  chownSync,
  linkSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  renameSync,
  rmSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { connect, createServer, type Socket } from 'node:net';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { receiveFds, sendFds } from '../../../devicemodel/core/host/fd-socket.ts';
import { tryLock } from '../../../devicemodel/core/host/file-lock.ts';
import { closeFd, OpenFlag, openFile } from '../../../devicemodel/core/host/files.ts';
import { openGroupFile } from '../../../devicemodel/core/host/group-place.ts';
import { silentLog } from '../../../devicemodel/core/log.ts';
import { Neighbours } from '../../../hypervisor/embedded/neighbours.ts';
import { forgetSharedRegions, openSharedRegion, sweepDeadRegions } from '../../../hypervisor/embedded/shared-region.ts';
import { bundledWorker } from '../../support/bundle-worker.ts';
import { memoryLog } from '../../support/memory-log.ts';
import { acceptFds, connectForFds, listenForFds, offerFds } from '../../support/packet-socket.ts';

/** Nobody has these numbers on a machine for tests; names are not needed. */
const GROUP = 4777;
const [ANNE, BERT, CARL] = [4242, 4243, 4244];
const REGION = 'hv:/joint';
const isRoot = process.getuid?.() === 0 && spawnSync('setpriv', ['--version']).status === 0;
if (!isRoot) process.stdout.write('skipped: VMs of several users take root and setpriv\n');
const program = bundledWorker('test/support/group-member.ts');
beforeAll(() => program.build());
afterAll(() => program.remove());

let top: string;
let folder: string;
const cleanUp: Array<() => unknown> = [];
beforeEach(() => {
  // Others may look into it, which they may not into this run's own.
  top = mkdtempSync('/tmp/group-');
  chmodSync(top, 0o755);
  folder = join(top, `group-${GROUP}`);
});
afterEach(async () => {
  for (const step of cleanUp.splice(0).reverse()) await step();
  forgetSharedRegions();
  rmSync(top, { recursive: true, force: true });
});

async function until(condition: () => boolean): Promise<void> {
  const end = performance.now() + 30_000;
  while (!condition()) {
    if (performance.now() > end) throw new Error('it did not happen');
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
}

/** As an administrator does. */
function install(): void {
  mkdirSync(folder);
  chownSync(folder, 0, GROUP);
  chmodSync(folder, 0o3770);
}

type Line = Readonly<Record<string, unknown>>;

class Member {
  readonly lines: Line[] = [];
  readonly #child: ChildProcess;
  readonly #ended: Promise<unknown>;

  constructor(userId: number, name: string, { groups = String(GROUP) } = {}) {
    const who = ['--reuid', String(userId), '--regid', String(userId), '--groups', groups];
    const node = [process.execPath, fileURLToPath(program.url), folder, String(GROUP), name];
    this.#child = spawn('setpriv', [...who, ...node], { stdio: ['pipe', 'pipe', 'inherit'] });
    this.#ended = new Promise((resolve) => this.#child.once('close', resolve));
    createInterface({ input: this.#child.stdout as NodeJS.ReadableStream }).on('line', (line) => {
      this.lines.push(JSON.parse(line) as Line);
    });
    cleanUp.push(() => this.kill());
  }

  /** @returns what the first such line has. */
  async hears(key: string): Promise<unknown> {
    await until(() => this.lines.some((line) => key in line));
    return this.lines.find((line) => key in line)?.[key];
  }

  /** @returns what it answers. */
  async does(...words: readonly unknown[]): Promise<unknown> {
    const isAnswer = (line: Line) => 'did' in line || 'failed' in line;
    const before = this.lines.filter(isAnswer).length;
    this.#child.stdin?.write(`${JSON.stringify(words)}\n`);
    await until(() => this.lines.filter(isAnswer).length > before);
    const answer = this.lines.filter(isAnswer)[before];
    return answer?.['did'] ?? answer?.['failed'];
  }

  async kill(): Promise<void> {
    this.#child.kill('SIGKILL');
    await this.#ended;
  }

  async leave(): Promise<void> {
    this.#child.stdin?.write('["leave"]\n');
    await this.#ended;
  }
}

async function vm(userId: number, name: string, options = {}): Promise<Member> {
  const member = new Member(userId, name, options);
  await until(() => member.lines.some((line) => 'vmid' in line || 'failed' in line));
  return member;
}

const modes = () =>
  Object.fromEntries(
    readdirSync(folder).map((name) => {
      const { mode, uid, gid } = lstatSync(join(folder, name));
      return [name, [(mode & 0o7777).toString(8), uid, gid]];
    }),
  );

describe.skipIf(!isRoot)('two users', () => {
  test('meet, share memory, ring each other either way, and are wired', async () => {
    install();
    const anne = await vm(ANNE, 'a');
    const bert = await vm(BERT, 'b');
    expect([await anne.hears('vmid'), await bert.hears('vmid')]).toEqual([1, 2]);

    expect([await anne.does('region', REGION, 8192), await bert.does('region', REGION, 8192)]).toEqual([
      'there',
      'there',
    ]);
    await anne.does('write', REGION, 5000, 42);
    expect(await bert.does('read', REGION, 5000)).toBe(42);
    await bert.does('write', REGION, 0, 7);
    expect(await anne.does('read', REGION, 0)).toBe(7);
    // Of another size it is refused, and stays.
    const carl = await vm(CARL, 'c');
    expect(await carl.does('region', REGION, 4096)).toBe('another size');
    expect(await anne.does('read', REGION, 0)).toBe(7);

    await until(() => anne.lines.some(({ log }) => String(log).includes('VM 2 "b" is there')));
    expect(await anne.does('ring', REGION, 2, 3)).toBe(true);
    expect(await bert.hears('rung')).toBe(3);
    expect(await bert.does('ring', REGION, 1, 4)).toBe(true);
    expect(await anne.hears('rung')).toBe(4);
    await anne.hears('bells');
    await bert.hears('bells');
    await anne.does('signal', 2, 5);
    expect(await bert.hears('signalled')).toBe(5);

    await anne.does('vuart', 1);
    await bert.does('vuart', 1);
    await anne.hears('isConnected');
    await bert.hears('isConnected');
    await bert.does('send', 65);
    expect(await anne.hears('byte')).toBe(65);

    expect(modes()).toEqual({
      lock: ['660', ANNE, GROUP],
      'region.joint': ['660', ANNE, GROUP],
      'vm-1.sock': ['660', ANNE, GROUP],
      'vm-1.bells': ['660', ANNE, GROUP],
      'vm-2.sock': ['660', BERT, GROUP],
      'vm-2.bells': ['660', BERT, GROUP],
      'vm-3.sock': ['660', CARL, GROUP],
      'vm-3.bells': ['660', CARL, GROUP],
    });
    for (const member of [carl, bert, anne]) await member.leave();
    expect(Object.keys(modes())).toEqual(['lock']);
  });

  // Mutation: take an id whose socket stays for a free one: the next VM cannot listen there, and does not start.
  test('one that is killed takes nobody down; its memory is given back, its names go with its user’s next VM', async () => {
    install();
    const anne = await vm(ANNE, 'a');
    const bert = await vm(BERT, 'b');
    await anne.does('region', REGION, 8192);
    await bert.does('region', REGION, 8192);
    await anne.does('write', REGION, 9, 9);
    await anne.kill();
    // Another region of one that nobody has any more.
    writeFileSync(join(folder, 'region.gone'), Buffer.alloc(4096), { mode: 0o660 });
    chownSync(join(folder, 'region.gone'), ANNE, GROUP);
    chmodSync(join(folder, 'region.gone'), 0o660);
    expect(await bert.does('read', REGION, 9)).toBe(9);

    const carl = await vm(CARL, 'c');
    expect(await carl.hears('vmid')).toBe(3);
    expect(lstatSync(join(folder, 'region.gone')).size).toBe(0);
    expect(await carl.does('region', REGION, 8192)).toBe('there');
    expect(await carl.does('read', REGION, 9)).toBe(9);
    await bert.leave();
    await carl.leave();
    expect(Object.keys(modes()).sort()).toEqual(['lock', 'region.gone', 'region.joint', 'vm-1.bells', 'vm-1.sock']);
    expect(lstatSync(join(folder, 'region.joint')).size).toBe(0);

    const again = await vm(ANNE, 'a');
    expect(await again.hears('vmid')).toBe(1);
    expect(await again.does('region', REGION, 4096)).toBe('there');
    expect(await again.does('read', REGION, 9)).toBe(0);
    await again.leave();
    expect(Object.keys(modes())).toEqual(['lock']);
  });

  test('who is not of the group is told so, and comes to nothing of it', async () => {
    install();
    await vm(ANNE, 'a');
    const stranger = await vm(CARL, 'c', { groups: String(CARL) });
    expect(await stranger.hears('failed')).toMatch(
      /where the VMs of group 4777 meet, is not for this user .*usermod -aG/,
    );
    const looks = ['ls', folder];
    const who = ['--reuid', String(CARL), '--regid', String(CARL), '--clear-groups'];
    expect(spawnSync('setpriv', [...who, ...looks], { encoding: 'utf8' }).stderr).toContain('Permission denied');
    expect(spawnSync('setpriv', [...who, 'test', '-r', join(folder, 'vm-1.sock')]).status).toBe(1);
  });

  // Mutation: let root's VM make it: it is there until the machine starts again, and nobody knows why the VMs do not meet then.
  test('one without the folder says what root does once, and no VM makes it, root’s neither', async () => {
    const said = `folder ${folder}, where the VMs of group ${GROUP} meet, is not there`;
    const hint =
      `as root, "install -d -o root -m 3770 -g ${GROUP} ${folder}" makes it, and after each start ` +
      `"d ${folder} 3770 root ${GROUP}" in /etc/tmpfiles.d/acrn.conf`;
    chownSync(top, ANNE, GROUP);
    expect(await (await vm(ANNE, 'a')).hears('failed')).toBe(`${said} (${hint})`);
    chownSync(top, 0, 0);
    await expect(own('r')).rejects.toMatchObject({ message: said, hint });
    expect(readdirSync(top)).toEqual([]);
  });

  // Mutation: use it, as long as no stranger could have made it: sticky or not, what is in it is its owner's to swap.
  test('one that a user has made is for that user’s own VMs; others do not use it, root’s neither', async () => {
    install();
    chownSync(folder, ANNE, GROUP);
    chmodSync(folder, 0o3770);
    const refused = new RegExp(`belongs to user ${ANNE}.* \\(as root, "install -d -o root -m 3770`);
    expect(await (await vm(BERT, 'b')).hears('failed')).toMatch(refused);
    await expect(own('r')).rejects.toThrow(`belongs to user ${ANNE}`);
    expect(await (await vm(ANNE, 'a')).hears('vmid')).toBe(1);
  });
});

/** A VM of this process. */
async function own(name: string, log = silentLog) {
  const neighbours = new Neighbours({ folder, groupId: GROUP }, log, { hasBells: true });
  const { vmid, release } = await neighbours.join(name);
  cleanUp.push(release);
  return { neighbours, vmid };
}

describe.skipIf(!isRoot)('a member of the group who means no good', () => {
  /** Nobody may come to it but through the folder. */
  async function victimsSocket(): Promise<{ readonly path: string; readonly callers: number }> {
    const path = join(top, 'private.sock');
    let callers = 0;
    const server = createServer((socket) => {
      callers++;
      socket.destroy();
    });
    await new Promise<void>((resolve) => server.listen(path, resolve));
    cleanUp.push(() => server.close());
    return {
      path,
      get callers() {
        return callers;
      },
    };
  }

  // Mutation: connect by the name, as in a folder of one's own: the victim's other sockets are talked to in its name.
  test.each([
    ['a link to a socket of the victim', (path: string, at: string) => symlinkSync(path, at)],
    ['a second name of it', (path: string, at: string) => linkSync(path, at)],
  ])('%s is not connected to, and its id is nobody’s', async (_what, put) => {
    install();
    const victim = await victimsSocket();
    put(victim.path, join(folder, 'vm-1.sock'));
    put(victim.path, join(folder, 'vm-2.bells'));
    for (const name of ['vm-1.sock', 'vm-2.bells']) lchown(join(folder, name));
    const bert = await vm(BERT, 'b');
    expect(await bert.hears('vmid')).toBe(3);
    expect(victim.callers).toBe(0);
  });

  const lchown = (path: string) => {
    if (spawnSync('chown', ['-h', `${CARL}:${GROUP}`, path]).status !== 0) throw new Error(path);
  };

  // Mutation: without NoFollow or the count of names, a file of the victim's is locked, cut, and a guest's memory.
  test.each([
    ['a link', (path: string, at: string) => symlinkSync(path, at)],
    ['a second name', (path: string, at: string) => linkSync(path, at)],
  ])('%s in place of the lock or a region leaves the victim’s file as it is', async (what, put) => {
    install();
    const precious = join(top, 'precious');
    writeFileSync(precious, 'precious', { mode: 0o660 });
    chownSync(precious, BERT, GROUP);
    put(precious, join(folder, 'region.joint'));
    const bert = await vm(BERT, 'b');
    expect(await bert.does('region', REGION, 4096)).toMatch(/ELOOP|is not a file of group 4777 alone/);
    await bert.leave();
    rmSync(join(folder, 'lock'));
    put(precious, join(folder, 'lock'));
    const again = await vm(BERT, 'b');
    if (what === 'a link') expect(await again.hears('failed')).toMatch(/ELOOP/);
    else expect(await again.hears('vmid')).toBe(1);
    expect(readFileSync(precious, 'utf8')).toBe('precious');
  });

  // Mutation: refuse it for good: one command locks the whole group out until somebody finds out what to remove.
  test('a lock that got a second name is made anew by its owner’s or root’s next VM, and said to others', async () => {
    install();
    const [path, second] = [join(folder, 'lock'), join(folder, 'x')];
    const anne = await vm(ANNE, 'a');
    linkSync(path, second);
    expect(await (await vm(BERT, 'b')).hears('failed')).toMatch(
      /lock: it is there.*its owner, user 4242, or root can remove it/,
    );
    expect(await (await vm(ANNE, 'c')).hears('vmid')).toBe(2);
    expect([lstatSync(path).nlink, lstatSync(path).uid, lstatSync(second).nlink]).toEqual([1, ANNE, 1]);
    rmSync(second);
    linkSync(path, second);
    await own('r');
    expect([lstatSync(path).nlink, lstatSync(path).uid]).toEqual([1, 0]);
    // They go on with it.
    expect(await (await vm(BERT, 'b')).hears('vmid')).toBe(4);
    await anne.leave();
  });

  // Mutation: go on with the lock of a file that is no longer the lock's: two VMs look for an id at once.
  test('a lock that was made anew while a VM waited for it is waited for', async () => {
    install();
    const path = join(folder, 'lock');
    const taken = () => {
      const fd = openGroupFile(path, GROUP, { isMade: true });
      tryLock(fd, 'exclusive', path);
      return fd;
    };
    const [log, neighbours] = [[] as string[], new Neighbours({ folder, groupId: GROUP }, silentLog)];
    const first = taken();
    const joined = neighbours.join('r').then(({ release }) => {
      log.push('joined');
      cleanUp.push(release);
    });
    await new Promise((resolve) => setTimeout(resolve, 20));
    rmSync(path);
    const second = taken();
    closeFd(first);
    await new Promise((resolve) => setTimeout(resolve, 50));
    expect(log).toEqual([]);
    closeFd(second);
    await joined;
  });

  test.each([
    ['others may read', (path: string) => chmodSync(path, 0o664)],
    ['is of another group', (path: string) => chownSync(path, CARL, CARL)],
  ])('a region that %s is no guest’s memory', (_what, change) => {
    install();
    const path = join(folder, 'region.joint');
    writeFileSync(path, 'theirs', { mode: 0o660 });
    chownSync(path, CARL, GROUP);
    chmodSync(path, 0o660);
    change(path);
    expect(() => openSharedRegion(REGION, 4096, { folder, groupId: GROUP })).toThrow(
      'is not a file of group 4777 alone',
    );
    sweepDeadRegions({ folder, groupId: GROUP });
    expect(readFileSync(path, 'utf8')).toBe('theirs');
  });

  // Mutation: wait for the lock as in a folder of one's own: the VM hangs at its start, for ever.
  test('a lock that is kept is said', async () => {
    install();
    const path = join(folder, 'region.joint');
    writeFileSync(path, '', { mode: 0o660 });
    chownSync(path, CARL, GROUP);
    chmodSync(path, 0o660);
    const fd = openFile(path, OpenFlag.ReadWrite | OpenFlag.CloseOnExec);
    cleanUp.push(() => closeFd(fd));
    tryLock(fd, 'exclusive', path);
    expect(() => openSharedRegion(REGION, 4096, { folder, groupId: GROUP }, 50)).toThrow(
      `${path}: somebody has kept it locked`,
    );
  });

  test('memory that is cut comes back', async () => {
    install();
    const bert = await vm(BERT, 'b');
    await bert.does('region', REGION, 8192);
    await bert.does('write', REGION, 5000, 1);
    truncateSync(join(folder, 'region.joint'), 0);
    expect(await bert.does('read', REGION, 5000)).toBe(0);
    expect(lstatSync(join(folder, 'region.joint')).size).toBe(8192);
  });

  // Mutation: without isOf, whoever says that it is VM 2 is rung in its place.
  test('who says that it is another user’s VM is hung up on, by either way', async () => {
    install();
    const { log, lines } = memoryLog();
    const { neighbours } = await own('r', log);
    const bert = await vm(BERT, 'b');
    await until(() => lines.some((line) => line.includes('VM 2 "b" is there')));
    const bells = neighbours.bells(REGION, 8);
    const found = new Set<number>();
    bells?.onPeers((vmid) => found.add(vmid));

    const liar = connect(join(folder, 'vm-1.sock'));
    liar.on('error', () => {}).resume();
    liar.write('{"kind":"hello","vmid":2,"name":"b"}\n');
    await new Promise((resolve) => liar.once('close', resolve));
    expect(lines).toContainEqual(expect.stringContaining('VM 2 is another user'));
    const fd = connectForFds(join(folder, 'vm-1.bells')) as number;
    sendFds(fd, '{"kind":"hello","vmid":2}', []);
    sendFds(fd, JSON.stringify({ kind: 'bells', region: REGION }), bells?.own ?? []);
    await until(() => lines.some((line) => line.includes('a message that no VM sends')));
    closeFd(fd);
    expect([...found]).toEqual([]);

    // The right one is met as before.
    await bert.does('region', REGION, 4096);
    await until(() => found.has(2));
  });

  /** Whose somebody is by what others can see: a socket of that name and owner, here of this process. */
  function bellsOf(userId: number, vmid: number): number {
    const path = join(folder, `vm-${vmid}.bells`);
    const listener = listenForFds(path);
    cleanUp.push(() => closeFd(listener));
    chownSync(path, userId, GROUP);
    chmodSync(path, 0o660);
    return listener;
  }

  // Mutation: take the name of the socket for whose it is: who has that of the doorbells alone is rung in the VM's place.
  test.each([
    ['another’s', CARL, undefined],
    ['its user’s', BERT, expect.any(Number)],
  ])('a socket for doorbells that is %s beside that of a VM', async (_what, userId, caller) => {
    install();
    await vm(BERT, 'b');
    rmSync(join(folder, 'vm-1.bells'));
    const listener = bellsOf(userId, 1);
    await own('r');
    const fd = acceptFds(listener);
    if (fd !== undefined) closeFd(fd);
    expect(fd).toEqual(caller);
  });

  // Mutation: take the id that it was called by for whose it is: who waits until the id is another's is that one from then on.
  test('who was found under an id and says so when it is another’s is hung up on', async () => {
    install();
    const { log, lines } = memoryLog();
    const accepted: Socket[] = [];
    const server = createServer((socket) => accepted.push(socket.on('error', () => {})));
    const path = join(folder, 'vm-1.sock');
    await new Promise<void>((resolve) => server.listen(path, resolve));
    cleanUp.push(() => server.close());
    cleanUp.push(() => accepted[0]?.destroy());
    chownSync(path, 0, GROUP);
    chmodSync(path, 0o660);
    const listener = bellsOf(0, 1);
    expect((await own('r', log)).vmid).toBe(2);
    await until(() => accepted.length === 1);
    const fd = acceptFds(listener) as number;
    cleanUp.push(() => closeFd(fd));
    for (const kind of ['sock', 'bells']) chownSync(join(folder, `vm-1.${kind}`), BERT, GROUP);
    sendFds(fd, '{"kind":"hello","vmid":1}', []);
    accepted[0]?.write('{"kind":"hello","vmid":1,"name":"b"}\n');
    await until(() => lines.some((line) => line.includes('VM 1 is another user')));
    await until(() => lines.some((line) => line.includes('a message that no VM sends')));
  });

  // Mutation: any number of connections with one id: the first is rung for ever, and takes the other's eventfds with it when it ends.
  test('who keeps a connection of an id that it had gives way to whose it is, by either way', async () => {
    install();
    const { log, lines } = memoryLog();
    const { neighbours } = await own('r', log);
    const [path, bellsPath] = [join(folder, 'vm-7.sock'), join(folder, 'vm-1.bells')];
    const bells = neighbours.bells(REGION, 8);
    const found: Array<[number, boolean]> = [];
    bells?.onPeers((vmid, fds) => found.push([vmid, fds !== undefined]));
    writeFileSync(path, '');
    const connected = async (name: string) => {
      const socket = connect(join(folder, 'vm-1.sock')).on('error', () => {});
      cleanUp.push(() => socket.destroy());
      let heard = '';
      socket.on('data', (text) => {
        heard += text;
      });
      socket.write(`{"kind":"hello","vmid":7,"name":"${name}"}\n`);
      const fd = connectForFds(bellsPath) as number;
      sendFds(fd, '{"kind":"hello","vmid":7}', []);
      await offerFds(fd, JSON.stringify({ kind: 'bells', region: REGION }), bells?.own ?? []);
      return { socket, fd, heard: () => heard };
    };
    const first = await connected('first');
    await until(() => lines.some((line) => line.includes('VM 7 "first" is there')) && found.length === 1);
    const isClosed = new Promise((resolve) => first.socket.once('close', resolve));
    const second = await connected('second');
    cleanUp.push(() => closeFd(second.fd));
    await until(() => lines.some((line) => line.includes('VM 7 "second" is there')) && found.length === 3);
    neighbours.ring(REGION, 7, 3);
    await until(() => second.heard().includes('"doorbell"'));
    await isClosed;
    expect(first.heard()).not.toContain('"doorbell"');
    await until(() => {
      const received = receiveFds(first.fd);
      for (const own of typeof received === 'object' ? received.fds : []) closeFd(own);
      return received === 'ended';
    });
    closeFd(first.fd);
    expect(found).toEqual([
      [7, true],
      [7, false],
      [7, true],
    ]);
  });

  // Mutation: as above: its connections have all the places, and no VM is met any more.
  test('who connects again and again under its own id keeps nobody out, by either way', async () => {
    install();
    const { neighbours } = await own('r');
    const bells = neighbours.bells(REGION, 8);
    const found = new Set<number>();
    bells?.onPeers((vmid) => found.add(vmid));
    writeFileSync(join(folder, 'vm-7.sock'), '');
    for (let i = 0; i < 300; i++) {
      const fd = connectForFds(join(folder, 'vm-1.bells')) as number;
      cleanUp.push(() => closeFd(fd));
      sendFds(fd, '{"kind":"hello","vmid":7}', []);
      const socket = connect(join(folder, 'vm-1.sock')).on('error', () => {});
      cleanUp.push(() => socket.destroy());
      await new Promise<void>((resolve) => {
        socket.once('data', () => resolve()).once('close', () => resolve());
        socket.write('{"kind":"hello","vmid":7,"name":"c"}\n');
      });
    }
    rmSync(join(folder, 'vm-7.sock'));
    const bert = await vm(BERT, 'b');
    await bert.does('region', REGION, 4096);
    await until(() => found.has(2));
    await until(() => neighbours.ring(REGION, 2, 3));
    expect(await bert.hears('rung')).toBe(3);
  });

  // Mutation: close them, or know an eventfd by a part of its name: one of a file system of the sender's own keeps the thread for
  // as long as that sender likes.
  test.each(['null', '[eventfd]'])(
    'who gives descriptors that are no eventfds (%s) is not heard again',
    async (name) => {
      install();
      const device = join(top, name);
      writeFileSync(device, '');
      const { log, lines } = memoryLog();
      const { neighbours } = await own('r', log);
      const bells = neighbours.bells(REGION, 8);
      const path = join(folder, 'vm-1.bells');
      const file = openFile(device, OpenFlag.ReadWrite | OpenFlag.CloseOnExec);
      cleanUp.push(() => closeFd(file));
      const before = openTimes(device);
      const says = async (fd: number, send: typeof offerFds) => {
        // The owner of vm-1 is who may speak for others of that user; here it is this very process.
        sendFds(fd, JSON.stringify({ kind: 'hello', vmid: 7 }), []);
        await send(fd, JSON.stringify({ kind: 'bells', region: REGION }), [file, ...(bells?.own.slice(1) ?? [])]);
      };
      writeFileSync(join(folder, 'vm-7.sock'), '');
      const first = connectForFds(path) as number;
      await says(first, offerFds);
      await until(() => lines.some((line) => line.includes('a message that no VM sends')));
      closeFd(first);
      const second = connectForFds(path) as number;
      await says(second, async (...args) => void sendFds(...args));
      await until(() => receiveFds(second) === 'ended');
      closeFd(second);
      expect(openTimes(device)).toBe(before + 1);
    },
  );
});

/** Open here: how often. */
const openTimes = (path: string) =>
  readdirSync('/proc/self/fd').filter((fd) => {
    try {
      return readlinkSync(`/proc/self/fd/${fd}`) === path;
    } catch {
      return false; // that of the listing
    }
  }).length;

describe.skipIf(!isRoot)('a folder that is not to be trusted is not used', () => {
  test.each<[string, () => void, RegExp]>([
    ['is of another group', () => chownSync(folder, 0, 0), /is that of group root/],
    ['others may look into', () => chmodSync(folder, 0o3775), /has mode 3775/],
    ['is not sticky: members remove what is not theirs', () => chmodSync(folder, 0o2770), /has mode 2770/],
    ['gives what is made in it to whoever makes it', () => chmodSync(folder, 0o1770), /has mode 1770/],
    [
      'anybody could have put there',
      () => {
        chmodSync(top, 0o1777);
        chownSync(folder, CARL, GROUP);
        chmodSync(folder, 0o3770);
      },
      /belongs to user 4244, who can put anything/,
    ],
    [
      'is a member’s, who could not have put it there',
      () => chownSync(folder, CARL, GROUP),
      /belongs to user 4244, who/,
    ],
    // Mutation: look at the folder alone: whoever may write above it puts another one there, after it was looked at.
    ['lies in one that its group may write to', () => chmodSync(top, 0o775), /can be swapped by others, since \/tmp/],
    ['lies in one of another user', () => chownSync(top, CARL, CARL), /since \/tmp\S+ belongs to user 4244/],
    [
      'is reached by a link of another user',
      () => {
        const [real, theirs] = [join(top, 'real'), join(top, 'theirs')];
        mkdirSync(real);
        renameSync(folder, join(real, `group-${GROUP}`));
        mkdirSync(theirs);
        symlinkSync(real, join(theirs, 'link'));
        chownSync(theirs, CARL, CARL);
        folder = join(theirs, 'link', `group-${GROUP}`);
      },
      /theirs belongs to user 4244/,
    ],
    [
      'lies below one that others may write to',
      () => {
        mkdirSync(join(top, 'a'));
        renameSync(folder, join(top, 'a', `group-${GROUP}`));
        folder = join(top, 'a', `group-${GROUP}`);
        chmodSync(top, 0o777);
      },
      /since \/tmp\/group-\w+ may be written by others/,
    ],
    [
      'is a link',
      () => {
        rmSync(folder, { recursive: true });
        mkdirSync(join(top, 'elsewhere'));
        symlinkSync(join(top, 'elsewhere'), folder);
      },
      /is no folder/,
    ],
  ])('one that %s', async (_what, spoil, said) => {
    install();
    spoil();
    await expect(own('r')).rejects.toThrow(said);
  });
});
