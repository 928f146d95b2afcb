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
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest';
import { StorageHangError } from '../../../../../devicemodel/core/errors.ts';
import { VirtioBlock, virtioBlk } from '../../../../../devicemodel/hw/pci/virtio/block/block.ts';
import { VirtioPci } from '../../../../../devicemodel/hw/pci/virtio/transport/transport.ts';
import { ImageIo } from '../../../../../devicemodel/hw/storage/image-io.ts';
import { useDataThreadWorker } from '../../../../support/data-thread-worker.ts';
import { DISK, flag, Legacy, later, StallingPc, WHILE_MS } from '../../../../support/stalling-pc.ts';

const workerUrl = useDataThreadWorker('test/support/stalling-data-thread.ts');
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
  for (const step of undo.splice(0).reverse()) await step();
  vi.restoreAllMocks();
  rmSync(dir, { recursive: true, force: true });
});

function makeMachine(argv: readonly string[] = []): StallingPc {
  const machine = new StallingPc(image, 'iothread,IMAGE', argv);
  undo.push(() => machine.dispose());
  return machine;
}

async function stuckMachine(argv: readonly string[] = []): Promise<StallingPc> {
  const machine = makeMachine(argv);
  await machine.init();
  await machine.getStuck();
  return machine;
}

describe('while the storage of a disk hangs', () => {
  test('the vCPU that resets the device waits until the thread has answered', async () => {
    const machine = await stuckMachine();
    const reset = flag(machine.out(Legacy.status, 1, 0));
    await machine.othersAreServed();
    expect(reset.isSet).toBe(false);
    machine.release();
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
    machine.release();
    expect(await status).toBe(0);
  });

  test('its configuration space waits as well', async () => {
    const machine = await stuckMachine();
    void machine.out(Legacy.status, 1, 0);
    const read = flag(machine.guest.pciRead(DISK, 0, 4, 1));
    await later(WHILE_MS);
    expect(read.isSet).toBe(false);
    machine.release();
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
    machine.release();
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
    machine.release();
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
    machine.release();
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
    machine.release();
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
    const machine = makeMachine(['--io-timeout', '1']);
    await machine.init();
    await machine.isServed();
    hung();
    machine.pc.vm.power.request({ kind: 'poweroff', reason: 'the test' });
    const error = await machine.ended.catch((failure: Error) => failure);
    expect(error).toMatchObject({ message: `${image}: flush is not answered by the host after 1 s`, exitCode: 1 });
  });

  test('is not waited for by force', async () => {
    const machine = makeMachine();
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
    const machine = makeMachine();
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
