/**
 * A disk that the device thread serves, on storage that hangs: the device thread never waits for it. Whatever needs the
 * storage's answer makes one vCPU wait at most, and the others, the host and the wish to end are served.
 *
 * Mutations tried, each makes a test here fail: reads, writes or syncs of the device thread by system calls of its own
 * (BlockRequests without `aside`); a reset, S3 or the end that does not wait for what is under way (`settle` returns
 * undefined); the write-through switch or blkrescan by a system call of this thread; work that completes after a hang
 * (AsideWork.abandon left out); a forced end that waits.
 */
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest';
import { StorageHangError } from '../../../../../devicemodel/core/errors.ts';
import { Errno } from '../../../../../devicemodel/core/host/errno.ts';
import type * as Files from '../../../../../devicemodel/core/host/files.ts';
import { MEMORY_DIR } from '../../../../support/memory-dir.ts';
import { flag, Legacy, later, StallingFile, StallingPc, WHILE_MS } from '../../../../support/stalling-pc.ts';

/** Where FIFOs are looked for, and how many calls wait for one. */
const host = vi.hoisted(() => ({ image: '', waiting: 0 }));
vi.mock('../../../../../devicemodel/core/host/files.ts', async (original) => {
  const real = await original<typeof Files>();
  /** On a thread of Node's, as the call itself: that thread sits in open(2). */
  const stalled = async (path = host.image) => {
    if (!existsSync(`${path}.stall`)) return;
    host.waiting++;
    await readFile(`${path}.stall`);
    host.waiting--;
  };
  const never = () => {
    throw new Error('the device thread made a system call that waits for storage');
  };
  return {
    ...real,
    isInMemory: async () => false,
    readCachedAt: () => -Errno.EAGAIN,
    readAtAside: async (...args: Parameters<typeof real.readAtAside>) => {
      await stalled();
      return real.readAtAside(...args);
    },
    writeAtAside: async (...args: Parameters<typeof real.writeAtAside>) => {
      await stalled();
      return real.writeAtAside(...args);
    },
    syncDataAside: async (fd: number) => {
      await stalled();
      return real.syncDataAside(fd);
    },
    openFileAside: async (...args: Parameters<typeof real.openFileAside>) => {
      await stalled(args[0]);
      return real.openFileAside(...args);
    },
    punchHoleAside: async (...args: Parameters<typeof real.punchHoleAside>) => {
      await stalled();
      return real.punchHoleAside(...args);
    },
    readAt: never,
    writeAt: never,
    readVectorAt: never,
    writeVectorAt: never,
    syncData: never,
    punchHole: never,
  };
});

const Type = { In: 0, Out: 1 } as const;
/** VIRTIO_BLK_F_FLUSH and F_CONFIG_WCE. */
const CACHE_FEATURES = (1 << 9) | (1 << 11);
/** `writeback` of struct virtio_blk_config. */
const CACHE_MODE = Legacy.config + 32;

let dir: string;
let image: string;
const undo: Array<() => void | Promise<void>> = [];
beforeEach(() => {
  dir = mkdtempSync(join(MEMORY_DIR, 'virtio-aside-'));
  image = join(dir, 'disk.img');
  writeFileSync(image, Buffer.alloc(64 * 512, 0x5a));
  host.image = image;
  host.waiting = 0;
});
afterEach(async () => {
  for (const step of undo.splice(0).reverse()) await step();
  rmSync(dir, { recursive: true, force: true });
});

function makeMachine(slot = 'IMAGE', argv: readonly string[] = []): StallingPc {
  const machine = new StallingPc(image, slot, argv);
  undo.push(() => machine.dispose());
  return machine;
}

async function stuckMachine(argv: readonly string[] = [], type: number = Type.In, slot = 'IMAGE'): Promise<StallingPc> {
  const machine = makeMachine(slot, argv);
  await machine.init();
  await machine.getStuck(type);
  return machine;
}

test('requests are served without a wait of the device thread, and read what was written', async () => {
  const machine = makeMachine();
  await machine.init();
  await machine.isServed();
  machine.write(3, 0x77);
  await vi.waitFor(() => expect([machine.used, machine.status]).toEqual([2, 0]), { timeout: 10_000 });
  expect(
    readFileSync(image)
      .subarray(3 * 512, 4 * 512)
      .every((byte) => byte === 0x77),
  ).toBe(true);
});

describe.each([
  ['a read', Type.In],
  ['a write', Type.Out],
])('while %s hangs in the host', (_name, type) => {
  test('others are served, and it is done when the host answers', async () => {
    const machine = await stuckMachine([], type);
    await machine.othersAreServed();
    machine.release();
    await vi.waitFor(() => expect([machine.used, machine.status]).toEqual([1, 0]), { timeout: 10_000 });
    await machine.isServed();
  });

  test('the vCPU that resets the device waits for it, others do not', async () => {
    const machine = await stuckMachine([], type);
    const reset = flag(machine.out(Legacy.status, 1, 0));
    await machine.othersAreServed();
    expect(reset.isSet).toBe(false);
    machine.release();
    await vi.waitFor(() => expect(reset.isSet).toBe(true), { timeout: 10_000 });
    expect(machine.used).toBe(1);
    await machine.init();
    await machine.isServed();
  });

  test('a BAR moves at once', async () => {
    const machine = await stuckMachine([], type);
    await machine.guest.pciWrite({ bus: 0, device: 3, function: 0 }, 0x10, 4, 0x5000);
    machine.bar = 0x5000;
    expect(await machine.in(Legacy.status, 1)).toBe(7);
    machine.release();
    await vi.waitFor(() => expect(machine.used).toBe(1), { timeout: 10_000 });
    await machine.isServed();
  });

  test('S3 begins when it is done', async () => {
    const machine = await stuckMachine([], type);
    // PM1a control: SLP_TYP 3, SLP_EN.
    void machine.guest.pioWrite(0x404, 2, 0x2c01);
    await later(WHILE_MS);
    expect(machine.pc.vm.state).toBe('paused');
    machine.release();
    await vi.waitFor(() => expect(machine.pc.vm.state).toBe('suspended'), { timeout: 10_000 });
    expect(machine.used).toBe(1);
    machine.pc.vm.wake();
    await vi.waitFor(() => expect(machine.pc.vm.state).toBe('running'), { timeout: 10_000 });
    await machine.isServed();
  });

  test.each([
    ['a system reset', 6, 1],
    ['a full reset', 0x0e, 2],
  ])('%s waits for it', async (_reset, value, lives) => {
    const machine = await stuckMachine([], type);
    void machine.guest.pioWrite(0xcf9, 1, value);
    await later(WHILE_MS);
    expect(machine.pc.lives.length).toBe(1);
    expect(machine.hsm.callNames.filter((name) => name === 'resetVm' || name === 'destroyVm')).toEqual([]);
    machine.release();
    await vi.waitFor(() => expect(machine.pc.lives.length).toBe(lives), { timeout: 10_000 });
    await vi.waitFor(() => expect(machine.hsm.vmState).toBe('running'), { timeout: 10_000 });
    await machine.init();
    await machine.isServed();
  });

  test('power-off waits for it, and leaves nothing behind', async () => {
    const machine = await stuckMachine([], type);
    machine.pc.vm.power.request({ kind: 'poweroff', reason: 'the test' });
    const ended = flag(machine.ended);
    await later(WHILE_MS);
    expect(ended.isSet).toBe(false);
    machine.release();
    await machine.ended;
    expect(machine.pc.ramOut).toBe(0);
  });

  test('after --io-timeout it is a hang with file and request, and nothing comes of it later', async () => {
    const machine = await stuckMachine(['--io-timeout', '1'], type);
    void machine.out(Legacy.status, 1, 0);
    const error = await machine.ended.catch((failure: unknown) => failure);
    expect(error).toBeInstanceOf(StorageHangError);
    expect((error as Error).message).toBe(
      `${image}: ${type === Type.In ? 'read' : 'write'} of 512 bytes at sector 8 is not answered by the host after 1 s`,
    );
    expect(machine.hsm.callNames.slice(-3)).toEqual(['pauseVm', 'destroyVm', 'close']);
    machine.release();
    await later(WHILE_MS);
    expect([machine.used, machine.status]).toEqual([0, 0xff]);
  });

  test('a forced end does not wait', async () => {
    const machine = await stuckMachine([], type);
    machine.pc.vm.power.request({ kind: 'poweroff', reason: 'the first SIGTERM' });
    await later(50);
    const from = performance.now();
    machine.pc.vm.power.request({ kind: 'poweroff', reason: 'the second SIGTERM', isForced: true });
    expect(await machine.ended).toMatchObject({ kind: 'poweroff', isForced: true });
    expect(performance.now() - from).toBeLessThan(10_000);
  });
});

describe('the switch to write-through', () => {
  test('is over when everything is on the medium: its vCPU waits, others do not', async () => {
    const machine = makeMachine('IMAGE,writeback');
    machine.features = CACHE_FEATURES;
    await machine.init();
    expect(await machine.in(CACHE_MODE, 1)).toBe(1);
    machine.stall();
    const switched = flag(machine.out(CACHE_MODE, 1, 0));
    await machine.othersAreServed();
    expect(switched.isSet).toBe(false);
    machine.release();
    await vi.waitFor(() => expect(switched.isSet).toBe(true), { timeout: 10_000 });
    expect(await machine.in(CACHE_MODE, 1)).toBe(0);
  });
});

describe('an image that does not open', () => {
  test('blkrescan waits for it, nobody else does; the end of the VM neither', async () => {
    const other = join(dir, 'other.img');
    writeFileSync(other, Buffer.alloc(512));
    const machine = makeMachine('IMAGE', ['-s', '4,virtio-blk,nodisk']);
    await machine.init();
    const fifo = new StallingFile(other);
    fifo.stall();
    const rescan = machine.pc.vm.board?.rescanBlockDevice(`4,${other}`) as Promise<boolean>;
    const done = flag(rescan);
    await machine.othersAreServed();
    expect(done.isSet).toBe(false);
    expect(await machine.pc.vm.board?.rescanBlockDevice(`4,${other}`)).toBe(false);
    machine.pc.vm.power.request({ kind: 'poweroff', reason: 'the test' });
    await machine.ended;
    fifo.release();
    expect(await rescan).toBe(false);
  });

  test('power-off is heard while a VM that comes up waits for it', async () => {
    const fifo = new StallingFile(image);
    fifo.stall();
    const machine = makeMachine();
    await vi.waitFor(() => expect(host.waiting).toBe(1), { timeout: 10_000 });
    machine.pc.vm.power.request({ kind: 'poweroff', reason: 'the test' });
    expect(await machine.ended).toMatchObject({ reason: 'the test' });
    expect(machine.pc.ramOut).toBe(0);
    fifo.release();
  });
});

/** ACRN_SLOW_TESTS=1: a minute of storage that really hangs. Shorter stalls, above, take the same paths. */
describe.skipIf(process.env['ACRN_SLOW_TESTS'] === undefined)('storage that hangs for 15 s', () => {
  const STALL_MS = 15_000;
  const LIMIT_MS = 120_000;

  test.each([
    ['on the device thread', 'IMAGE'],
    ['with a write under way', 'IMAGE,writeback'],
  ])('%s only delays a reset, S3 and the end', { timeout: LIMIT_MS }, async (_where, slot) => {
    const machine = await stuckMachine([], slot === 'IMAGE' ? Type.In : Type.Out, slot);
    const from = performance.now();
    const reset = flag(machine.out(Legacy.status, 1, 0));
    while (performance.now() - from < STALL_MS) await machine.othersAreServed();
    expect(reset.isSet).toBe(false);
    machine.release();
    await vi.waitFor(() => expect(reset.isSet).toBe(true), { timeout: 10_000 });
    await machine.init();
    await machine.isServed();

    await machine.getStuckAgain();
    void machine.guest.pioWrite(0x404, 2, 0x2c01);
    await later(STALL_MS);
    expect(machine.pc.vm.state).toBe('paused');
    machine.release();
    await vi.waitFor(() => expect(machine.pc.vm.state).toBe('suspended'), { timeout: 10_000 });
    machine.pc.vm.wake();
    await vi.waitFor(() => expect(machine.pc.vm.state).toBe('running'), { timeout: 10_000 });

    await machine.getStuckAgain();
    machine.pc.vm.power.request({ kind: 'poweroff', reason: 'the test' });
    const ended = flag(machine.ended);
    await later(STALL_MS);
    expect(ended.isSet).toBe(false);
    machine.release();
    await machine.ended;
    expect(machine.pc.ramOut).toBe(0);
  });
});
