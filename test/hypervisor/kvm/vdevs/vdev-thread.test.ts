/** The hypervisor's functions on a thread of their own, with vCPUs in threads of theirs and a KVM that is the test's. */
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import fc from 'fast-check';
import { afterEach, beforeAll, describe, expect, test } from 'vitest';
import type { PciSlotConfig } from '../../../../devicemodel/core/config.ts';
import { ExitCode } from '../../../../devicemodel/core/errors.ts';
import { Eventfd } from '../../../../devicemodel/core/host/eventfd.ts';
import { tryLock } from '../../../../devicemodel/core/host/file-lock.ts';
import { closeFd, OpenFlag, openFile } from '../../../../devicemodel/core/host/files.ts';
import type { Hsm } from '../../../../devicemodel/core/hsm/hsm.ts';
import { IoreqPage, IoreqType } from '../../../../devicemodel/core/ioreq-page.ts';
import type { ThreadPulse } from '../../../../devicemodel/core/thread-pulses.ts';
import { forgetSharedRegions } from '../../../../hypervisor/embedded/shared-region.ts';
import { openKvmHsm } from '../../../../hypervisor/kvm/open.ts';
import { bundledWorker } from '../../../support/bundle-worker.ts';
import { FAKE_RUN_PATH, GuestKvm, type GuestVcpu, sleepHere } from '../../../support/fake-guest.ts';
import { exits, type FakeExit, FakeKvm, type FakeVcpu } from '../../../support/fake-kvm.ts';
import { describeHsm } from '../../../support/hsm-conformance.ts';
import { memoryLog } from '../../../support/memory-log.ts';
import { ivshmemOf, rootPortVdev, vuartVdev } from '../../../support/vdevs.ts';

const TIMEOUT_MS = 60_000;
/** What a device that blocks keeps the device thread for. */
const STALL_MS = 2000;

const regionName = `hv:/vdev-thread-${process.pid}`;
const ivshmem = ivshmemOf(regionName);
const vuart = vuartVdev;
const rootPort = rootPortVdev;
const slot: PciSlotConfig = { bdf: ivshmem.bdf, driver: 'ivshmem', options: { name: regionName }, text: '' };
const ECAM = 0xe000_0000;
const IVPOSITION = 8;
const LSR = 5;

const worker = bundledWorker('test/support/fake-vdev-thread.ts');
beforeAll(async () => {
  await worker.build();
  return () => worker.remove();
});

const cleanUp: Array<() => void> = [];
afterEach(async () => {
  for (const step of cleanUp.splice(0).reverse()) step();
  forgetSharedRegions();
  await sleep(20);
});

function temporaryFolder(): string {
  const path = mkdtempSync(join(tmpdir(), 'vdev-thread-'));
  cleanUp.push(() => rmSync(path, { recursive: true, force: true }));
  return path;
}

interface Options {
  readonly runDirectory?: string;
  readonly name?: string;
  /** The vCPU on this thread, and the functions as well: what the other way has to agree with. */
  readonly isInline?: boolean;
  readonly ownsThread?: boolean;
}

async function open({ runDirectory = temporaryFolder(), name = 'vm', isInline, ownsThread = true }: Options = {}) {
  const { log, lines } = memoryLog();
  const kvm = isInline === true ? new FakeKvm() : new GuestKvm();
  const config = { name, scenarioPath: undefined, cpuAffinity: isInline === true ? [] : [1000, 1001], pci: [slot] };
  const threads = { koffiPath: FAKE_RUN_PATH };
  const hsm = await openKvmHsm({ config, log, ownsThread, runDirectory, kvm, vdevWorkerUrl: worker.url, threads });
  cleanUp.push(() => hsm.close());
  return { hsm, kvm, lines, runDirectory };
}

class Vm {
  readonly hsm: Hsm;
  readonly page: IoreqPage;
  readonly vcpus: readonly GuestVcpu[];
  readonly lines: readonly string[];
  /** Of the device model. */
  readonly accesses: string[] = [];
  /** What the device model does with an access before it answers. */
  onAccess: (vcpu: number) => void = () => {};

  private constructor(hsm: Hsm, vcpus: readonly GuestVcpu[], lines: readonly string[]) {
    this.hsm = hsm;
    this.page = new IoreqPage(hsm.ioreqPage);
    this.vcpus = vcpus;
    this.lines = lines;
  }

  static async create(options: Options = {}): Promise<Vm> {
    const { hsm, kvm, lines } = await open(options);
    await hsm.createVm({ name: options.name ?? 'vm', flags: 0n, cpuAffinity: 1n });
    for (const vdev of [ivshmem, vuart, rootPort]) hsm.createVdev(vdev);
    hsm.createIoreqClient();
    const vm = new Vm(hsm, kvm.vm.vcpus as GuestVcpu[], lines);
    hsm.startVm();
    return vm;
  }

  readonly serve = (): void => {
    const { page } = this;
    for (let vcpu = 0; vcpu < 2; vcpu++) {
      if (!page.isPending(vcpu)) continue;
      this.accesses.push(described(page, vcpu));
      this.onAccess(vcpu);
      if (!page.isWrite(vcpu)) page.setValueU64(vcpu, 0x5a5a_5a5a_5a5a_5a5an);
      this.hsm.notifyIoreqDone(vcpu);
    }
  };

  /** A turn of the device thread that does not wait. */
  readonly poll = (): void => {
    this.hsm.pollIoreqs?.();
    this.serve();
    this.hsm.pollIoreqs?.();
    sleepHere(1);
  };

  vcpu(index: number): GuestVcpu {
    return this.vcpus[index] as GuestVcpu;
  }

  /** A read of memory by a vCPU while this thread does nothing. */
  mmio(index: number, address: number, size = 4, meanwhile?: () => void): number {
    this.vcpu(index).access(exits.mmio(address, size), meanwhile);
    return Number(this.vcpu(index).mmioValue(size));
  }

  mmioWrite(index: number, address: number, size: number, value: number, meanwhile?: () => void): void {
    this.vcpu(index).access(exits.mmio(address, size, BigInt(value)), meanwhile);
  }

  config(index: number, device: number, register: number): number {
    this.vcpu(index).access(exits.out(0xcf8, 4, (0x8000_0000 | (device << 11) | register) >>> 0));
    this.vcpu(index).access(exits.in(0xcfc, 4));
    return Number(this.vcpu(index).portValue(4));
  }
}

/** With the device thread's help, its access is answered. */
function finish(vm: Vm, index: number): void {
  for (const end = performance.now() + TIMEOUT_MS / 4; !vm.vcpu(index).isDone; vm.poll()) {
    if (performance.now() > end) throw new Error('the access is not answered');
  }
}

function described(page: IoreqPage, vcpu: number): string {
  const isWrite = page.isWrite(vcpu);
  const value = isWrite ? `=${page.type(vcpu) === IoreqType.Mmio ? page.valueU64(vcpu) : page.value(vcpu)}` : '';
  if (page.type(vcpu) === IoreqType.PciConfig) {
    const at = [page.pciBus(vcpu), page.pciDevice(vcpu), page.pciFunction(vcpu), page.pciRegister(vcpu)].join(':');
    return `config ${at}/${page.size(vcpu)}${value}`;
  }
  const space = page.type(vcpu) === IoreqType.Mmio ? 'mmio' : 'port';
  return `${space} ${page.address(vcpu).toString(16)}/${page.size(vcpu)}${value}`;
}

// Before the functions had a thread: each of these waited until the device was done.
test('a device that keeps the device thread does not delay what a function of the hypervisor answers', {
  timeout: TIMEOUT_MS,
}, async () => {
  const vm = await Vm.create();
  let took = -1;
  const got: number[] = [];
  vm.onAccess = () => {
    const end = performance.now() + STALL_MS;
    got.push(vm.mmio(1, ivshmem.registersBar + IVPOSITION));
    got.push(vm.config(1, 5, 0), vm.config(1, 7, 0));
    got.push(vm.mmio(1, ECAM + (6 << 15)));
    vm.mmioWrite(1, vuart.registersBar, 1, 0x41);
    got.push(vm.mmio(1, vuart.registersBar + LSR, 1));
    took = STALL_MS - (end - performance.now());
    sleepHere(Math.max(0, end - performance.now()));
  };
  vm.vcpu(0).access(exits.in(0x60, 1), () => void vm.poll());
  expect(got).toEqual([1, 0x1110_1af4, 0x9d14_8086, 0x9900_9710, 0x60]);
  expect(took).toBeLessThan(STALL_MS);
  expect(vm.accesses).toEqual(['port 60/1']);
});

describeHsm('kvm, functions elsewhere,', async () => {
  const fds = [new Eventfd(), new Eventfd()];
  const { hsm } = await open({ ownsThread: false, name: 'conformance' });
  return {
    hsm,
    eventfd: fds[0]?.fd as number,
    otherEventfd: fds[1]?.fd as number,
    dispose: () => {
      for (const fd of fds) fd.dispose();
    },
  };
});

/** One access of a guest, as what both ways are given. */
interface Access {
  readonly exit: FakeExit;
  readonly text: string;
}

const ports = fc.constantFrom(0xcf8, 0xcf9, 0xcfa, 0xcfc, 0xcfd, 0xcfe, 0xcff, 0x3f8);
const values = fc.oneof(
  fc.constantFrom(0x8000_0000, 0x8100_0000, 0xffff_ffff, 0, 0x0002_0200, 0x0001_0100, 0x8040_0000, 0x0000_0407),
  fc.nat(0xffff_ffff),
);
const selected = fc
  .tuple(
    fc.constantFrom(0, 1, 2),
    fc.constantFrom(0, 5, 6, 7),
    fc.constantFrom(0, 4, 0x10, 0x14, 0x18, 0x1c, 0x40, 0x48),
    fc.constantFrom(0x8000_0000, 0x8000_0000, 0x8000_0000, 0),
  )
  .map(([bus, device, register, enable]) => (enable | (bus << 16) | (device << 11) | register) >>> 0);
const memory = fc
  .tuple(
    fc.constantFrom(
      ivshmem.registersBar,
      ivshmem.msixBar,
      vuart.registersBar,
      vuart.msixBar,
      0x8100_0000,
      ECAM + (5 << 15),
      ECAM + (7 << 15),
      ECAM + (1 << 20),
      0x9000_0000,
    ),
    fc.constantFrom(-1, -3, 0, 1, 2, 4, 5, 8, 0xc, 0x10, 0x18, 0xfd, 0xff, 0x100, 0xffe, 0xfff),
  )
  .map(([base, offset]) => base + offset);

const accesses: fc.Arbitrary<Access> = fc.oneof(
  selected.map((value) => ({ exit: exits.out(0xcf8, 4, value), text: `select ${value.toString(16)}` })),
  fc
    .tuple(ports, fc.constantFrom(1, 2, 4), fc.array(values, { minLength: 1, maxLength: 3 }))
    .map(([port, size, out]) => ({ exit: exits.out(port, size, ...out), text: `out ${port} ${size} ${out}` })),
  fc
    .tuple(ports, fc.constantFrom(1, 2, 4), fc.integer({ min: 1, max: 3 }))
    .map(([port, size, count]) => ({ exit: exits.in(port, size, count), text: `in ${port} ${size} ${count}` })),
  fc
    .tuple(memory, fc.integer({ min: 1, max: 8 }))
    .map(([at, length]) => ({ exit: exits.mmio(at, length), text: `read ${at.toString(16)} ${length}` })),
  fc.tuple(memory, fc.integer({ min: 1, max: 8 }), values, values).map(([at, length, low, high]) => ({
    exit: exits.mmio(at, length, BigInt(low) | (BigInt(high) << 32n)),
    text: `write ${at.toString(16)} ${length} ${low.toString(16)} ${high.toString(16)}`,
  })),
);

// Mutation: without `skip` in VdevServer, or in KvmEngine.
test('the same accesses have the same answers, and the device model sees the same of them, with the vCPU on the device thread', {
  timeout: 4 * TIMEOUT_MS,
}, async () => {
  const threaded = await Vm.create();
  const inline = await Vm.create({ isInline: true, name: 'inline' });
  const vcpu = inline.vcpus[0] as unknown as FakeVcpu;
  const done: string[] = [];
  for (const [n, { exit, text }] of fc.sample(accesses, { numRuns: 150, seed: 13 }).entries()) {
    done.push(text);
    vcpu.run.fill(0);
    vcpu.script.push(exit);
    while (vcpu.script.length > 0) void inline.hsm.waitForIoreqs(inline.serve);
    threaded.vcpu(0).run.fill(0, 2, 0x3000);
    threaded.vcpu(n % 2).run.fill(0, 2, 0x3000);
    threaded.vcpu(n % 2).access(exit, threaded.poll);
    const where = `after ${n}: ${done.slice(-6).join('; ')}`;
    expect(Buffer.from(threaded.vcpu(n % 2).run.subarray(8, 0x3000)), where).toEqual(Buffer.from(vcpu.run.subarray(8)));
    expect(threaded.accesses.splice(0), where).toEqual(inline.accesses.splice(0));
  }
});

// Mutation: without setBridges in #configAccess, the device thread goes by the number that the bus had at first.
test('what is below a root port goes by the number that the guest gives its bus, on either thread', {
  timeout: TIMEOUT_MS,
}, async () => {
  const vm = await Vm.create();
  const select = (bus: number, device: number, register: number) =>
    vm.vcpu(0).access(exits.out(0xcf8, 4, (0x8000_0000 | (bus << 16) | (device << 11) | register) >>> 0));
  const read = () => {
    vm.vcpu(0).access(exits.in(0xcfc, 4), vm.poll);
    return Number(vm.vcpu(0).portValue(4));
  };
  select(0, 7, 0x18);
  vm.vcpu(0).access(exits.out(0xcfc, 4, 0x0003_0300));
  select(3, 0, 0);
  expect(read()).toBe(0x5a5a_5a5a);
  select(1, 0, 0);
  expect(read()).toBe(0xffff_ffff);
  expect(vm.accesses).toEqual(['config 1:0:0:0/4']);
});

// Mutation: without the word in #serveAll it never answers; with the answer anywhere but in its loop, one that is stuck does.
test('whether it comes round is asked by its bell: one that is kept has not answered', {
  timeout: TIMEOUT_MS,
}, async () => {
  const vm = await Vm.create();
  const thread = vm.hsm.thread as ThreadPulse;
  const answers = () => {
    for (let looks = 0; !thread.hasAnswered && looks < 10_000; looks++) sleepHere(1);
    return thread.hasAnswered;
  };
  thread.ask();
  expect(answers()).toBe(true);
  vm.vcpu(1).access(exits.out(0xcf8, 4, 0x8000_2810));
  vm.vcpu(1).post(exits.out(0xcfc, 4, 0x8555_0000));
  sleepHere(30);
  thread.ask();
  sleepHere(30);
  expect([thread.hasAnswered, thread.what]).toEqual([false, "the hypervisor's devices"]);
  expect(answers()).toBe(true);
  vm.hsm.close();
  thread.ask();
  expect(thread.hasAnswered).toBe(true);
});

describe('with a vCPU at the hypervisor’s', () => {
  // Mutation: without Turn.hypervisor in #waitFor, the vCPU enters the guest after the pause.
  test('a pause waits until its access is answered, and it does not go on', { timeout: TIMEOUT_MS }, async () => {
    const vm = await Vm.create();
    vm.vcpu(1).access(exits.out(0xcf8, 4, 0x8000_2810));
    vm.vcpu(1).post(exits.out(0xcfc, 4, 0x8555_0000));
    // It is on its way to the thread, which takes its time.
    sleepHere(30);
    vm.hsm.pauseVm();
    const { entered } = vm.vcpu(1);
    sleepHere(500);
    expect(vm.vcpu(1).entered).toBe(entered);
  });

  test('a pause stops it, and a reset lets it begin anew', { timeout: TIMEOUT_MS }, async () => {
    const vm = await Vm.create();
    const { hsm } = vm;
    for (let round = 0; round < 30; round++) {
      vm.vcpu(1).post(exits.mmio(ivshmem.registersBar + IVPOSITION, 4));
      sleepHere(round % 4);
      hsm.pauseVm();
      const { entered } = vm.vcpu(1);
      sleepHere(3);
      expect(vm.vcpu(1).entered).toBe(entered);
      hsm.resetVm();
      hsm.startVm();
      finish(vm, 1);
      expect([0n, 1n]).toContain(vm.vcpu(1).mmioValue(4));
    }
    expect(vm.accesses).toEqual([]);
  });

  test('it stands still when it is frozen, and goes on with the answer', { timeout: TIMEOUT_MS }, async () => {
    const vm = await Vm.create();
    const { freezing } = vm.hsm;
    for (let round = 0; round < 30; round++) {
      vm.vcpu(1).post(exits.mmio(ivshmem.registersBar + IVPOSITION, 4));
      sleepHere(round % 4);
      freezing?.freeze();
      const { entered } = vm.vcpu(1);
      sleepHere(3);
      expect(vm.vcpu(1).entered).toBe(entered);
      freezing?.thaw();
      finish(vm, 1);
      expect(vm.vcpu(1).mmioValue(4)).toBe(1n);
    }
    expect(vm.accesses).toEqual([]);
  });

  test('another one moves the BAR: the read is the register’s or nobody’s, and then where the guest put it', {
    timeout: TIMEOUT_MS,
  }, async () => {
    const vm = await Vm.create();
    const nobody = 0x5a5a_5a5a;
    let at = ivshmem.registersBar;
    for (let round = 0; round < 40; round++) {
      const to = 0x8100_0000 + 0x1_0000 * (round % 3);
      vm.vcpu(0).access(exits.out(0xcf8, 4, 0x8000_2810));
      vm.vcpu(1).post(exits.mmio((round % 2 === 0 ? at : to) + IVPOSITION, 4));
      vm.vcpu(0).access(exits.out(0xcfc, 4, to), vm.poll);
      finish(vm, 1);
      expect([1, nobody]).toContain(Number(vm.vcpu(1).mmioValue(4)));
      expect(vm.mmio(1, to + IVPOSITION)).toBe(1);
      if (at !== to) expect(vm.mmio(1, at + IVPOSITION, 4, vm.poll)).toBe(nobody);
      at = to;
    }
  });

  test.each(['with an error', 'silently'])(
    'the thread ends %s: who recalls it returns, and the VM ends',
    {
      timeout: TIMEOUT_MS,
    },
    async (how) => {
      process.env['VDEV_THREAD_ENDS'] = how;
      cleanUp.push(() => {
        delete process.env['VDEV_THREAD_ENDS'];
      });
      // What a process keeps of its first VM is no loss.
      (await Vm.create({ ownsThread: false })).hsm.close();
      forgetSharedRegions();
      await sleep(500);
      const descriptors = readdirSync('/proc/self/fd').length;
      const vm = await Vm.create({ ownsThread: false });
      vm.vcpu(0).access(exits.out(0xcf8, 4, 0x8000_2810));
      vm.vcpu(0).post(exits.out(0xcfc, 4, 0xdead_0000));
      const wait = (async () => {
        for (;;) await vm.hsm.waitForIoreqs(vm.serve);
      })();
      await expect(wait).rejects.toMatchObject({
        message: expect.stringContaining("the thread of the hypervisor's devices ended by itself"),
        exitCode: ExitCode.VmFailed,
      });
      vm.hsm.pauseVm();
      vm.hsm.close();
      vm.hsm.close();
      forgetSharedRegions();
      for (let n = 0; n < 100 && readdirSync('/proc/self/fd').length > descriptors; n++) await sleep(50);
      expect(readdirSync('/proc/self/fd').length).toBeLessThanOrEqual(descriptors);
    },
  );

  test('the thread ends while this one is about to recall it', { timeout: TIMEOUT_MS }, async () => {
    const vm = await Vm.create();
    vm.vcpu(0).access(exits.out(0xcf8, 4, 0x8000_2810));
    vm.vcpu(0).post(exits.out(0xcfc, 4, 0xdead_0000));
    sleepHere(50);
    vm.hsm.pauseVm();
    expect(() => vm.hsm.destroyVdev(ivshmem)).not.toThrow();
    vm.hsm.destroyVm();
  });
});

describe('between VMs', () => {
  /** Vector 0 interrupts by this message. */
  function connectVector(vm: Vm): void {
    vm.mmioWrite(0, ivshmem.msixBar, 4, 0xfee0_0000);
    vm.mmioWrite(0, ivshmem.msixBar + 8, 4, 0x41);
    vm.mmioWrite(0, ivshmem.msixBar + 12, 4, 0);
    vm.vcpu(0).access(exits.out(0xcf8, 4, 0x8000_2840));
    vm.vcpu(0).access(exits.out(0xcfc, 4, 0x8000_0011));
  }

  test('bytes and doorbells go from guest to guest while both device threads stand still', {
    timeout: TIMEOUT_MS,
  }, async () => {
    const log = join(temporaryFolder(), 'log');
    writeFileSync(log, '');
    process.env['VDEV_THREAD_LOG'] = log;
    cleanUp.push(() => {
      delete process.env['VDEV_THREAD_LOG'];
    });
    const runDirectory = temporaryFolder();
    const left = await Vm.create({ runDirectory, name: 'left' });
    const right = await Vm.create({ runDirectory, name: 'right' });
    connectVector(right);
    expect(right.mmio(0, ivshmem.registersBar + IVPOSITION)).toBe(2);
    // From here on nothing turns the event loop of this thread, which is the device thread of both.
    const end = performance.now() + TIMEOUT_MS / 2;
    let byte = 0;
    while (byte === 0 && performance.now() < end) {
      // Until they have found each other, what is sent goes nowhere.
      left.mmioWrite(1, vuart.registersBar, 1, 0x42);
      if ((right.mmio(1, vuart.registersBar + LSR, 1) & 1) === 1) byte = right.mmio(1, vuart.registersBar, 1);
    }
    expect(byte).toBe(0x42);
    const rings = () => readFileSync(log, 'utf8').match(/^msi fee00000 65$/gm)?.length ?? 0;
    while (rings() === 0 && performance.now() < end) left.mmioWrite(1, ivshmem.registersBar + 0xc, 4, 2 << 16);
    expect(rings()).toBeGreaterThan(0);
    expect([...left.accesses, ...right.accesses]).toEqual([]);
  });

  test('a function goes and comes while another VM rings it', { timeout: TIMEOUT_MS }, async () => {
    const runDirectory = temporaryFolder();
    const left = await Vm.create({ runDirectory, name: 'left' });
    const right = await Vm.create({ runDirectory, name: 'right' });
    for (let round = 0; round < 20; round++) {
      connectVector(right);
      left.vcpu(0).post(exits.mmio(ivshmem.registersBar + 0xc, 4, 0x2_0000n));
      right.hsm.pauseVm();
      right.hsm.destroyVdev(ivshmem);
      right.hsm.resetVm();
      right.hsm.createVdev(ivshmem);
      right.hsm.startVm();
      finish(left, 0);
    }
    expect(right.mmio(1, ivshmem.registersBar + IVPOSITION)).toBe(2);
  });

  test('nothing is left of a VM in the folder where they meet', { timeout: TIMEOUT_MS }, async () => {
    const runDirectory = temporaryFolder();
    const vm = await Vm.create({ runDirectory });
    expect(readdirSync(runDirectory).sort()).toEqual(['lock', 'vm-1.bells', 'vm-1.sock']);
    vm.hsm.pauseVm();
    vm.hsm.destroyVm();
    expect(readdirSync(runDirectory)).toEqual(['lock']);
    expect(existsSync(`/dev/shm/${regionName}`)).toBe(false);
  });
});

test('what a function has to say of its guest is in the log, and no more of it than is good', {
  timeout: TIMEOUT_MS,
}, async () => {
  const vm = await Vm.create();
  for (let n = 0; n < 30; n++) vm.mmioWrite(1, ivshmem.registersBar + 0xc, 4, (9 << 16) | 1);
  await sleep(100);
  const said = vm.lines.filter((line) => line.includes('doorbell for VM 9, which is not there'));
  expect(said.length).toBeGreaterThan(0);
  expect(said.length).toBeLessThanOrEqual(10);
  expect(said[0]).toBe(`info: kvm: guest: ${regionName}: doorbell for VM 9, which is not there`);
});

test('a folder where VMs cannot meet ends the start with its reason', { timeout: TIMEOUT_MS }, async () => {
  const runDirectory = join(temporaryFolder(), 'file');
  writeFileSync(runDirectory, '');
  const { hsm } = await open({ runDirectory });
  await expect(hsm.createVm({ name: 'vm', flags: 0n, cpuAffinity: 1n })).rejects.toThrow(runDirectory);
});

// Mutation: leave it to the thread: the VM is told to end, and starts a minute later.
test.each(['power off', 'close'])('while the folder is locked, %s is heard', { timeout: TIMEOUT_MS }, async (what) => {
  const { hsm, runDirectory } = await open();
  const lock = join(runDirectory, 'lock');
  writeFileSync(lock, '', { mode: 0o600 });
  const fd = openFile(lock, OpenFlag.ReadWrite | OpenFlag.CloseOnExec);
  cleanUp.push(() => closeFd(fd));
  tryLock(fd, 'exclusive', lock);
  const ending = new AbortController();
  const made = hsm.createVm({ name: 'vm', flags: 0n, cpuAffinity: 1n }, ending.signal);
  await sleep(100);
  if (what === 'close') hsm.close();
  else ending.abort(new Error('power off'));
  await expect(made).rejects.toThrow(what === 'close' ? 'EBADF' : 'power off');
  expect(readdirSync(runDirectory)).toEqual(['lock']);
});

test('one function a region, and one a slot', { timeout: TIMEOUT_MS }, async () => {
  const { hsm } = await open();
  await hsm.createVm({ name: 'vm', flags: 0n, cpuAffinity: 1n });
  hsm.createVdev(ivshmem);
  expect(() => hsm.createVdev({ ...ivshmem, bdf: { bus: 0, device: 9, function: 0 } })).toThrow('EINVAL');
});
