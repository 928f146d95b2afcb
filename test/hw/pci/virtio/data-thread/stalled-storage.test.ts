/**
 * A whole PC whose disk hangs in the host, with a real data thread that sits in a system call: whatever the guest or the
 * operator does to the device meanwhile, the vCPU that asked for it waits, everybody else is served, and nothing that the
 * thread was lent is touched before it has answered.
 *
 * Mutations tried, each makes a test here fail: an order counts as answered after a time (DataThreads.#answer resolves
 * in the patience callback); the device thread waits for the answer (isAnsweredSoon without its limit); the gate is not
 * closed (VirtioPci.#whenBack); descriptors are given up before the answer (QueueLending.end releases first); a forced
 * stop waits as others do (IoPatience.force left out); `settle` left out of reset, suspend or end (core/vm.ts).
 */
import { execFileSync } from 'node:child_process';
import { closeSync, constants, mkdtempSync, openSync, readFileSync, rmSync, unlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest';
import { StorageHangError } from '../../../../../devicemodel/core/errors.ts';
import { VirtioBlock, virtioBlk } from '../../../../../devicemodel/hw/pci/virtio/block/block.ts';
import { VirtioPci } from '../../../../../devicemodel/hw/pci/virtio/transport/transport.ts';
import { ImageIo } from '../../../../../devicemodel/hw/storage/image-io.ts';
import { useDataThreadWorker } from '../../../../support/data-thread-worker.ts';
import type { FakeHsm } from '../../../../support/fake-hsm.ts';
import { type FakePc, makePc } from '../../../../support/fake-pc.ts';

const workerUrl = useDataThreadWorker('test/support/stalling-data-thread.ts');
const DISK = { bus: 0, device: 3, function: 0 };
/** What is to be served at once is, on the busiest machine, by then; what waits still waits. */
const WHILE_MS = 250;
/** Where the guest has its queue and its request. */
const RING = 0x10_0000;
const HEADER = 0x20_0000;
const DATA = 0x20_1000;
const STATUS = 0x20_2000;
const QUEUE_SIZE = 64;
const USED = RING + Math.ceil((QUEUE_SIZE * 16 + 6 + 2 * QUEUE_SIZE) / 4096) * 4096;
const Legacy = { features: 4, pfn: 8, select: 0x0e, notify: 0x10, status: 0x12 } as const;

let dir: string;
let image: string;
const undo: Array<() => void | Promise<void>> = [];
beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), 'virtio-stall-'));
  image = join(dir, 'disk.img');
  writeFileSync(image, Buffer.alloc(64 * 512, 0x5a));
  vi.spyOn(virtioBlk, 'create').mockImplementation(
    (options, env) =>
      new VirtioPci(new VirtioBlock(options, options.queues, env.log, workerUrl), env, {
        mode: options.transport,
        identity: { legacyDeviceId: 0x1001, type: 2, classCode: 0x010000 },
      }),
  );
});
afterEach(async () => {
  release();
  for (const step of undo.splice(0).reverse()) await step();
  vi.restoreAllMocks();
  rmSync(dir, { recursive: true, force: true });
});

/** From now on the host does not answer. */
function stall(): void {
  execFileSync('mkfifo', [`${image}.stall`]);
}

/** The host answers again, whoever waits for it included. */
function release(): void {
  try {
    // Fails while nobody has the other end open: then nobody waits.
    const fd = openSync(`${image}.stall`, constants.O_WRONLY | constants.O_NONBLOCK);
    unlinkSync(`${image}.stall`);
    closeSync(fd);
  } catch {
    rmSync(`${image}.stall`, { force: true });
  }
}

const later = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));

class Machine {
  readonly pc: FakePc;
  readonly ended: Promise<unknown>;
  bar = 0;
  #availIdx = 0;

  constructor(argv: readonly string[] = []) {
    const pc = makePc(['-s', `3,virtio-blk,iothread,${image}`, ...argv], undefined, { hasOwnRam: true, vcpuCount: 2 });
    this.pc = pc;
    this.ended = pc.vm.run();
    this.ended.catch(() => {});
    undo.push(async () => {
      release();
      pc.vm.power.request({ kind: 'poweroff', reason: 'the end of the test', isForced: true });
      await this.ended.catch(() => {});
      await pc.dispose();
    });
  }

  get hsm(): FakeHsm {
    return this.pc.lives.at(-1) as FakeHsm;
  }
  get guest() {
    return this.hsm.guest;
  }
  get memory() {
    return this.pc.parts.memory;
  }
  out(register: number, size: 1 | 2 | 4, value: number, vcpu = 0): Promise<number> {
    return this.guest.pioWrite(this.bar + register, size, value, vcpu);
  }
  in(register: number, size: 1 | 2 | 4, vcpu = 0): Promise<number> {
    return this.guest.pioRead(this.bar + register, size, vcpu);
  }

  /** A driver that is ready. */
  async init(): Promise<void> {
    await vi.waitFor(() => expect(this.pc.vm.state).toBe('running'), { timeout: 10_000 });
    this.bar = (await this.guest.pciRead(DISK, 0x10, 4)) & ~3;
    for (const status of [0, 1, 3]) await this.out(Legacy.status, 1, status);
    await this.out(Legacy.features, 4, 0);
    await this.out(Legacy.select, 2, 0);
    for (const piece of this.memory.pieces(RING, 0x4000)) piece.fill(0);
    this.#availIdx = 0;
    await this.out(Legacy.pfn, 4, RING / 4096);
    await this.out(Legacy.status, 1, 7);
  }

  /** Ask for a sector; not waited for. */
  read(sector: number): void {
    const { memory } = this;
    memory.writeU32(HEADER, 0);
    memory.writeU32(HEADER + 8, sector);
    memory.writeU8(STATUS, 0xff);
    const descriptor = (index: number, at: number, length: number, flags: number) => {
      const bytes = new DataView(new ArrayBuffer(16));
      bytes.setUint32(0, at, true);
      bytes.setUint32(8, length, true);
      bytes.setUint16(12, flags, true);
      bytes.setUint16(14, index + 1, true);
      memory.write(RING + 16 * index, new Uint8Array(bytes.buffer));
    };
    descriptor(0, HEADER, 16, 1);
    descriptor(1, DATA, 512, 3);
    descriptor(2, STATUS, 1, 2);
    const avail = RING + 16 * QUEUE_SIZE;
    memory.writeU16(avail + 4 + 2 * (this.#availIdx % QUEUE_SIZE), 0);
    memory.writeU16(avail + 2, ++this.#availIdx);
    this.kick();
  }
  kick(): void {
    // The fake hypervisor has no ioeventfd that a guest could hit: the request page passes it on.
    void this.out(Legacy.notify, 2, 0, 1);
  }
  get used(): number {
    return this.memory.readU16(USED + 2);
  }
  async isServed(): Promise<void> {
    const before = this.used;
    this.read(1);
    await vi.waitFor(() => expect(this.used).toBe(before + 1), { timeout: 10_000 });
    expect(this.memory.readU8(STATUS)).toBe(0);
    expect(this.memory.readU8(DATA)).toBe(0x5a);
  }
  /** A request that the host keeps. */
  async getStuck(): Promise<void> {
    stall();
    this.read(8);
    await this.in(Legacy.status, 1, 1);
    await later(50);
    expect(this.used).toBe(0);
  }
  /** Other vCPUs and the host are served, and what the thread has been lent is left alone. */
  async othersAreServed(): Promise<void> {
    const assigned = this.hsm.calls.filter(({ method }) => method === 'ioeventfd').length;
    const from = performance.now();
    let turns = 0;
    while (performance.now() - from < WHILE_MS) {
      await this.guest.pioRead(0x71, 1, 1);
      await new Promise((resolve) => setTimeout(resolve, 1));
      turns++;
    }
    // On a machine that does nothing else there are a hundred.
    expect(turns).toBeGreaterThan(5);
    expect(this.used).toBe(0);
    expect(this.hsm.calls.filter(({ method }) => method === 'ioeventfd').length).toBe(assigned);
  }
}

async function stuckMachine(argv: readonly string[] = []): Promise<Machine> {
  const machine = new Machine(argv);
  await machine.init();
  await machine.getStuck();
  return machine;
}

function flag(promise: Promise<unknown>): { isSet: boolean } {
  const result = { isSet: false };
  promise.then(
    () => {
      result.isSet = true;
    },
    () => {},
  );
  return result;
}

describe('while the storage of a disk hangs', () => {
  test('the vCPU that resets the device waits until the thread has answered', async () => {
    const machine = await stuckMachine();
    const reset = flag(machine.out(Legacy.status, 1, 0));
    await machine.othersAreServed();
    expect(reset.isSet).toBe(false);
    release();
    await vi.waitFor(() => expect(reset.isSet).toBe(true), { timeout: 10_000 });
    // What was in flight was done before the reset was over, and the descriptors went after it.
    expect(machine.used).toBe(1);
    expect(machine.hsm.calls.filter(({ method }) => method === 'ioeventfd').length).toBe(2);
    expect(await machine.in(Legacy.status, 1)).toBe(0);
    await machine.init();
    await machine.isServed();
  });

  test('another vCPU that comes to the device waits behind it, and sees it reset', async () => {
    const machine = await stuckMachine();
    const reset = flag(machine.out(Legacy.status, 1, 0));
    const status = machine.in(Legacy.status, 1, 1);
    const read = flag(status);
    await later(WHILE_MS);
    expect([reset.isSet, read.isSet]).toEqual([false, false]);
    release();
    expect(await status).toBe(0);
  });

  test('its configuration space waits as well', async () => {
    const machine = await stuckMachine();
    void machine.out(Legacy.status, 1, 0);
    const read = flag(machine.guest.pciRead(DISK, 0, 4, 1));
    await later(WHILE_MS);
    expect(read.isSet).toBe(false);
    release();
    await vi.waitFor(() => expect(read.isSet).toBe(true), { timeout: 10_000 });
  });

  test('a BAR moves at once: only the address of the kicks changes', async () => {
    const machine = await stuckMachine();
    const { bar } = machine;
    await machine.guest.pciWrite(DISK, 0x10, 4, 0x5000);
    machine.bar = 0x5000;
    const kicks = machine.hsm.calls.flatMap(({ method, args }) => (method === 'ioeventfd' ? [args] : []));
    expect(kicks.map(([spec, assign]) => [(spec as { address: number }).address, assign])).toEqual([
      [bar + Legacy.notify, true],
      [bar + Legacy.notify, false],
      [0x5000 + Legacy.notify, true],
    ]);
    expect(await machine.in(Legacy.status, 1)).toBe(7);
    release();
    await vi.waitFor(() => expect(machine.used).toBe(1), { timeout: 10_000 });
    await machine.isServed();
  });

  test('S3 begins when it has answered', async () => {
    const machine = await stuckMachine();
    await machine.out(Legacy.select, 2, 0);
    // PM1a control: SLP_TYP 3, SLP_EN.
    void machine.guest.pioWrite(0x404, 2, 0x2c01);
    await later(WHILE_MS);
    expect(machine.pc.vm.state).toBe('paused');
    expect(machine.used).toBe(0);
    release();
    await vi.waitFor(() => expect(machine.pc.vm.state).toBe('suspended'), { timeout: 10_000 });
    expect(machine.used).toBe(1);
    machine.pc.vm.wake();
    await vi.waitFor(() => expect(machine.pc.vm.state).toBe('running'), { timeout: 10_000 });
    await machine.isServed();
  });

  test('blkrescan gives another device its disk, also while a vCPU is held', async () => {
    const other = join(dir, 'other.img');
    writeFileSync(other, Buffer.alloc(512));
    const machine = await stuckMachine(['-s', '4,virtio-blk,nodisk']);
    const reset = flag(machine.out(Legacy.status, 1, 0));
    expect(await machine.pc.vm.board?.rescanBlockDevice(`4,${other}`)).toBe(true);
    // The disk that hangs keeps its image.
    expect(await machine.pc.vm.board?.rescanBlockDevice(`3,${other}`)).toBe(false);
    expect(reset.isSet).toBe(false);
  });

  test.each([
    ['a system reset', 6, 1],
    ['a full reset', 0x0e, 2],
  ])('%s waits for the answer', async (_name, value, lives) => {
    const machine = await stuckMachine();
    void machine.guest.pioWrite(0xcf9, 1, value);
    await later(WHILE_MS);
    expect(machine.pc.lives.length).toBe(1);
    expect(machine.hsm.callNames.filter((name) => name === 'resetVm' || name === 'destroyVm')).toEqual([]);
    expect(machine.pc.ramOut).toBe(1);
    release();
    await vi.waitFor(() => expect(machine.pc.lives.length).toBe(lives), { timeout: 10_000 });
    await vi.waitFor(() => expect(machine.hsm.vmState).toBe('running'), { timeout: 10_000 });
    await machine.init();
    await machine.isServed();
  });

  test('power-off waits for the answer, and then leaves nothing behind', async () => {
    const machine = await stuckMachine();
    machine.pc.vm.power.request({ kind: 'poweroff', reason: 'the test' });
    const ended = flag(machine.ended);
    await later(WHILE_MS);
    expect(ended.isSet).toBe(false);
    expect(machine.pc.ramOut).toBe(1);
    release();
    await machine.ended;
    expect(machine.pc.ramOut).toBe(0);
    expect(machine.hsm.vmState).toBe('none');
  });
});

describe('storage that does not come back', () => {
  test('is a hang after --io-timeout: the VM is paused and destroyed, and the error names file and request', async () => {
    const machine = await stuckMachine(['--io-timeout', '1']);
    void machine.out(Legacy.status, 1, 0);
    const error = await machine.ended.then(
      () => undefined,
      (failure: unknown) => failure,
    );
    expect(error).toBeInstanceOf(StorageHangError);
    expect(error).toMatchObject({ exitCode: 1 });
    expect((error as Error).message).toBe(
      `${image}: read of 512 bytes at sector 8 is not answered by the host after 1 s`,
    );
    expect(machine.hsm.callNames.slice(-3)).toEqual(['pauseVm', 'destroyVm', 'close']);
    // It may still write there.
    expect(machine.pc.ramOut).toBe(1);
  });

  test('is not waited for when the end is forced', async () => {
    const machine = await stuckMachine();
    void machine.out(Legacy.status, 1, 0);
    machine.pc.vm.power.request({ kind: 'poweroff', reason: 'the first SIGTERM' });
    await later(50);
    const from = performance.now();
    machine.pc.vm.power.request({ kind: 'poweroff', reason: 'the second SIGTERM', isForced: true });
    expect(await machine.ended).toMatchObject({ kind: 'poweroff', isForced: true });
    expect(performance.now() - from).toBeLessThan(10_000);
    expect(machine.hsm.callNames.slice(-3)).toEqual(['pauseVm', 'destroyVm', 'close']);
  });
});

describe('a last flush that the host does not answer', () => {
  const hung = () => vi.spyOn(ImageIo.prototype, 'flush').mockImplementation(() => new Promise<number>(() => {}));

  // Mutation tried: `flush` waits by a system call of this thread.
  test('is a hang as well, when the VM ends', async () => {
    const machine = new Machine(['--io-timeout', '1']);
    await machine.init();
    await machine.isServed();
    hung();
    machine.pc.vm.power.request({ kind: 'poweroff', reason: 'the test' });
    const error = await machine.ended.catch((failure: Error) => failure);
    expect(error).toMatchObject({ message: `${image}: flush is not answered by the host after 1 s`, exitCode: 1 });
  });

  test('is not waited for by force', async () => {
    const machine = new Machine();
    await machine.init();
    await machine.isServed();
    hung();
    machine.pc.vm.power.request({ kind: 'poweroff', reason: 'acrnctl stop -f', isForced: true });
    expect(await machine.ended).toMatchObject({ kind: 'poweroff' });
    expect(machine.hsm.vmState).toBe('none');
  });
});

describe('a data thread that ends by an error', () => {
  test('in the middle of a request: one line, the request is served without it, the VM lives on', async () => {
    const machine = new Machine();
    await machine.init();
    await machine.isServed();
    writeFileSync(`${image}.crash`, '');
    await machine.isServed();
    rmSync(`${image}.crash`);
    await machine.isServed();
    expect(machine.pc.log.filter((line) => line.includes('a bug in the thread')).length).toBe(1);
    expect(readFileSync(image)[0]).toBe(0x5a);
  });
});
