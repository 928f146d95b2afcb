/** The engine on /dev/kvm against a KVM that leaves the guest as the test says. */
import { closeSync, mkdtempSync, openSync, rmSync, statSync, truncateSync, writeFileSync } from 'node:fs';
import { constants, tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, describe, expect, test } from 'vitest';
import { ExitCode, HostError } from '../../../devicemodel/core/errors.ts';
import { Errno } from '../../../devicemodel/core/host/errno.ts';
import { Eventfd } from '../../../devicemodel/core/host/eventfd.ts';
import { KvmExit } from '../../../devicemodel/core/host/kvm-abi.ts';
import { map } from '../../../devicemodel/core/host/mapping.ts';
import { mapShared } from '../../../devicemodel/core/host/shared-memory.ts';
import type { Hsm } from '../../../devicemodel/core/hsm/hsm.ts';
import { IoreqPage, IoreqType } from '../../../devicemodel/core/ioreq-page.ts';
import { silentLog } from '../../../devicemodel/core/log.ts';
import { forgetSharedRegions } from '../../../hypervisor/embedded/shared-region.ts';
import { openKvmHsm } from '../../../hypervisor/kvm/open.ts';
import { answers, exits, FakeKvm, type FakeVcpu } from '../../support/fake-kvm.ts';
import { describeHsm } from '../../support/hsm-conformance.ts';
import { memoryLog } from '../../support/memory-log.ts';

const startRegs = {
  rip: 0x10_0000n,
  cr0: 0x31n,
  cs: { selector: 0x10, base: 0n, limit: 0xffff_ffff, attributes: 0xc09b },
  ds: 0x18,
} as const;

interface Machine {
  readonly kvm: FakeKvm;
  readonly vcpu: FakeVcpu;
  readonly hsm: Hsm;
  readonly page: IoreqPage;
  readonly lines: string[];
  /** One step of the loop, with a device model that notes accesses and answers reads with `answer`. */
  step(): void;
  readonly accesses: unknown[][];
  answer: bigint;
  /** The device model keeps requests open. */
  holds: boolean;
  /** As {@link step}, for a caller who wants the thread back after `most` accesses. @returns how often it was asked. */
  stay(most: number): number;
  /** What the device model does with an access beside noting it. */
  onAccess: () => void;
}

const cleanUp: Array<() => void> = [];
afterEach(() => {
  for (const step of cleanUp.splice(0).reverse()) step();
  forgetSharedRegions();
});

async function machine(): Promise<Machine> {
  const kvm = new FakeKvm();
  const runDirectory = mkdtempSync(join(tmpdir(), 'kvm-'));
  cleanUp.push(() => rmSync(runDirectory, { recursive: true, force: true }));
  const { log, lines } = memoryLog();
  const config = { name: 'vm', scenarioPath: undefined, cpuAffinity: [] };
  const hsm = await openKvmHsm({ config, log, ownsThread: true, runDirectory, kvm });
  cleanUp.push(() => hsm.close());
  await hsm.createVm({ name: 'vm', flags: 0n, cpuAffinity: 1n });
  hsm.setVcpuRegs(0, startRegs);
  hsm.createIoreqClient();
  const page = new IoreqPage(hsm.ioreqPage);
  const accesses: unknown[][] = [];
  const serve = () => {
    if (!page.isPending(0)) return;
    const isWrite = page.isWrite(0);
    const value = page.type(0) === IoreqType.Mmio ? page.valueU64(0) : BigInt(page.value(0));
    accesses.push([page.type(0), isWrite ? 'w' : 'r', page.address(0), page.size(0), isWrite ? value : 0n]);
    if (!isWrite && page.type(0) === IoreqType.Mmio) page.setValueU64(0, made.answer);
    else if (!isWrite) page.setValue(0, Number(made.answer));
    made.onAccess();
    if (!made.holds) hsm.notifyIoreqDone(0);
  };
  const made: Machine = {
    kvm,
    vcpu: kvm.vm.vcpus[0] as FakeVcpu,
    hsm,
    page,
    lines,
    accesses,
    answer: 0n,
    holds: false,
    step: () => void hsm.waitForIoreqs(serve),
    stay: (most) => {
      let asked = 0;
      void hsm.waitForIoreqs(serve, () => ++asked < most);
      return asked;
    },
    onAccess: () => {},
  };
  return made;
}

describeHsm('kvm', async () => {
  const runDirectory = mkdtempSync(join(tmpdir(), 'kvm-'));
  const fds = [new Eventfd(), new Eventfd()];
  const notEventfd = openSync('/dev/null', 'r');
  const config = { name: 'conformance', scenarioPath: undefined, cpuAffinity: [] };
  return {
    hsm: await openKvmHsm({ config, log: silentLog, ownsThread: true, runDirectory, kvm: new FakeKvm() }),
    eventfd: fds[0]?.fd as number,
    otherEventfd: fds[1]?.fd as number,
    notEventfd,
    dispose: () => {
      for (const fd of fds) fd.dispose();
      closeSync(notEventfd);
      forgetSharedRegions();
      rmSync(runDirectory, { recursive: true, force: true });
    },
  };
});

describe('freezing', () => {
  // The vCPU runs on the thread that freezes it: it is not in the guest then, and must not go there.
  test('the vCPU does not enter the guest until it is let go on, and nothing is lost', async () => {
    const vm = await machine();
    vm.vcpu.script.push(exits.out(0x3f8, 1, 0x41), exits.out(0x3f8, 1, 0x42));
    vm.hsm.startVm();
    vm.step();
    vm.hsm.freezing?.freeze();
    const entered = vm.vcpu.entries.length;
    vm.hsm.pollIoreqs?.();
    expect([vm.vcpu.entries.length, vm.accesses.length]).toEqual([entered, 1]);
    vm.hsm.freezing?.thaw();
    vm.step();
    expect(vm.accesses.length).toBe(2);
  });
});

// The guest is entered again without a way through the loop; whoever wants the thread gets it all the same.
describe('one access after the other in one wait', () => {
  const outs = (count: number) => Array.from({ length: count }, (_, i) => exits.out(0x3f8, 1, i));
  async function busy(count = 10): Promise<Machine> {
    const vm = await machine();
    vm.vcpu.script.push(...outs(count));
    vm.hsm.startVm();
    return vm;
  }

  test('until the caller wants the thread back, who is asked after each', async () => {
    const vm = await busy();
    expect(vm.stay(4)).toBe(4);
    expect(vm.accesses.map(([, , , , value]) => value)).toEqual([0n, 1n, 2n, 3n]);
  });

  test('reads have their answers each', async () => {
    const vm = await machine();
    const seen: bigint[] = [];
    const read = exits.in(0x3f8, 1);
    const noted: typeof read = (run) => {
      seen.push(answers.port(vm.vcpu.run, 1));
      return read(run);
    };
    vm.vcpu.script.push(read, noted, noted);
    vm.onAccess = () => vm.answer++;
    vm.hsm.startVm();
    vm.stay(10);
    expect(seen).toEqual([0n, 1n]);
  });

  test('a kick ends it, and what comes behind it is not lost', async () => {
    const vm = await busy(2);
    vm.vcpu.script.push(exits.fails(Errno.EINTR), ...outs(1));
    expect(vm.stay(10)).toBe(2);
    vm.stay(10);
    expect(vm.accesses.length).toBe(3);
  });

  // What a device wants while it serves: a reset, a suspend, the end, a pause.
  test.each([
    ['interruptWait', (vm: Machine) => vm.hsm.interruptWait()],
    ['pauseVm', (vm: Machine) => vm.hsm.pauseVm()],
    ['freeze', (vm: Machine) => vm.hsm.freezing?.freeze()],
    ['destroyIoreqClient', (vm: Machine) => vm.hsm.destroyIoreqClient()],
  ])('%s in the middle of an access: the guest is not entered again', async (_name, call) => {
    const vm = await busy();
    vm.onAccess = () => {
      if (vm.accesses.length === 3) call(vm);
    };
    vm.stay(10);
    expect([vm.accesses.length, vm.vcpu.entries.length]).toEqual([3, 3]);
  });

  test('an access that stays open ends it; answered outside of it, the guest goes on at the next', async () => {
    const vm = await busy();
    vm.onAccess = () => {
      vm.holds = vm.accesses.length === 3;
    };
    vm.stay(10);
    expect([vm.accesses.length, vm.vcpu.entries.length]).toEqual([3, 3]);
    vm.hsm.notifyIoreqDone(0);
    vm.stay(10);
    vm.stay(4);
    expect(vm.accesses.length).toBe(7);
  });

  test('frozen in the middle of an access, which is answered: it is let go on where it was', async () => {
    const vm = await busy();
    vm.onAccess = () => {
      if (vm.accesses.length === 3) vm.hsm.freezing?.freeze();
    };
    vm.stay(10);
    vm.hsm.pollIoreqs?.();
    expect(vm.vcpu.entries.length).toBe(3);
    vm.hsm.freezing?.thaw();
    vm.stay(10);
    vm.stay(10);
    expect(vm.accesses.map(([, , , , value]) => value)).toEqual(Array.from({ length: 10 }, (_, i) => BigInt(i)));
  });
});

// The kernel finds a page of the guest missing, and says so to whoever runs the vCPU.
describe('shared memory that another process cut', () => {
  const EFAULT = constants.errno.EFAULT;
  const path = `/dev/shm/acrn-kvm-cut-${process.pid}`;
  const shared = () => {
    writeFileSync(path, new Uint8Array(2 * 4096), { mode: 0o600 });
    const fd = openSync(path, 'r+');
    const memory = mapShared(fd, 2 * 4096, 'shared memory');
    const told: string[] = [];
    const stop = memory.onCut((line) => told.push(line));
    cleanUp.push(() => {
      stop();
      memory.dispose();
      closeSync(fd);
      rmSync(path, { force: true });
    });
    return told;
  };
  const cutAndFault = (sizeBytes: number) => () => {
    truncateSync(path, sizeBytes);
    return -EFAULT;
  };

  test.each([0, 1, 100, 4095, 4096])('to %i bytes: the vCPU goes on, with the file as long as before', async (left) => {
    const told = shared();
    const vm = await machine();
    vm.vcpu.script.push(cutAndFault(left), exits.out(0x3f8, 1, 0x41));
    vm.hsm.startVm();
    for (let i = 0; i < 2; i++) vm.step();
    expect(vm.accesses).toHaveLength(1);
    expect([statSync(path).size, told]).toEqual([8192, [expect.stringContaining('it has its size again')]]);
  });

  // Mutation: throw as soon as mendAll finds nothing; or do not forget the fault at another exit.
  test('somebody else had mended it by then: the vCPU goes on, each time', async () => {
    shared();
    const vm = await machine();
    for (let i = 0; i < 3; i++) vm.vcpu.script.push(exits.fails(EFAULT), exits.out(0x3f8, 1, 0x41));
    vm.hsm.startVm();
    for (let i = 0; i < 6; i++) vm.step();
    expect(vm.accesses).toHaveLength(3);
  });

  test('nothing was cut, and the access fails again: KVM cannot go on', async () => {
    shared();
    const vm = await machine();
    for (let i = 0; i < 1000; i++) vm.vcpu.script.push(exits.fails(EFAULT));
    vm.hsm.startVm();
    expect(() => {
      for (let i = 0; i < 1000; i++) vm.step();
    }).toThrow(/KVM cannot go on with vCPU 0: KVM_RUN failed/);
  });

  test('no memory is shared, and the access fails again: KVM cannot go on', async () => {
    const vm = await machine();
    vm.vcpu.script.push(exits.fails(EFAULT), exits.fails(EFAULT));
    vm.hsm.startVm();
    vm.step();
    expect(() => vm.step()).toThrow(/KVM cannot go on with vCPU 0: KVM_RUN failed/);
  });

  // Mutation: give up at the second fault, as without shared memory.
  test('another process cuts it and gives it back all the time, always between the fault and the look: the vCPU goes on', async () => {
    shared();
    const vm = await machine();
    for (let i = 0; i < 100; i++) vm.vcpu.script.push(exits.fails(EFAULT));
    vm.vcpu.script.push(exits.out(0x3f8, 1, 0x41));
    vm.hsm.startVm();
    for (let i = 0; i < 101; i++) vm.step();
    expect(vm.accesses).toHaveLength(1);
  });
});

describe('accesses', () => {
  test('ports of every width, one step of the loop each', async () => {
    const vm = await machine();
    vm.answer = 0x1234_5678n;
    vm.vcpu.script.push(exits.out(0x3f8, 1, 0x41), exits.out(0x510, 2, 0x19), exits.in(0xc00c, 4), exits.in(0x64, 1));
    vm.hsm.startVm();
    for (let i = 0; i < 3; i++) vm.step();
    expect(answers.port(vm.vcpu.run, 4)).toBe(0x1234_5678n);
    vm.step();
    expect(answers.port(vm.vcpu.run, 1)).toBe(0x78n);
    expect(vm.accesses).toEqual([
      [IoreqType.PortIo, 'w', 0x3f8, 1, 0x41n],
      [IoreqType.PortIo, 'w', 0x510, 2, 0x19n],
      [IoreqType.PortIo, 'r', 0xc00c, 4, 0n],
      [IoreqType.PortIo, 'r', 0x64, 1, 0n],
    ]);
  });

  // Mutation: `#left = 1` in beginIo: only the first element reaches the device.
  test('a string of ports is one request for each element', async () => {
    const vm = await machine();
    vm.answer = 0xab_cdn;
    vm.vcpu.script.push(exits.out(0x1f0, 2, 0x1111, 0x2222, 0x3333), exits.in(0x1f0, 2, 2));
    vm.hsm.startVm();
    vm.step();
    vm.step();
    expect(vm.accesses.map((a) => a[4])).toEqual([0x1111n, 0x2222n, 0x3333n, 0n, 0n]);
    expect([answers.port(vm.vcpu.run, 2, 0), answers.port(vm.vcpu.run, 2, 1)]).toEqual([0xabcdn, 0xabcdn]);
  });

  test('memory of 8 bytes at once, and of a width no request has', async () => {
    const vm = await machine();
    vm.answer = 0x1122_3344_5566_7788n;
    vm.vcpu.script.push(
      exits.mmio(0xfed0_00f0, 8),
      exits.mmio(0x40_0000_0000, 8, 0x8877_6655_4433_2211n),
      exits.mmio(0xdf00_0001, 3, 0x33_2211n),
    );
    vm.hsm.startVm();
    vm.step();
    expect(answers.mmio(vm.vcpu.run, 8)).toBe(0x1122_3344_5566_7788n);
    vm.step();
    vm.step();
    expect(vm.accesses.slice(1)).toEqual([
      [IoreqType.Mmio, 'w', 0x40_0000_0000, 8, 0x8877_6655_4433_2211n],
      [IoreqType.Mmio, 'w', 0xdf00_0001, 1, 0x11n],
      [IoreqType.Mmio, 'w', 0xdf00_0002, 1, 0x22n],
      [IoreqType.Mmio, 'w', 0xdf00_0003, 1, 0x33n],
    ]);
  });

  test('what the hypervisor answers itself does not come to the device model', async () => {
    const vm = await machine();
    vm.vcpu.script.push(exits.out(0xcf8, 4, 0x8000_1810), exits.in(0xcf8, 4));
    vm.hsm.startVm();
    vm.step();
    vm.step();
    expect(vm.accesses).toEqual([]);
    expect(answers.port(vm.vcpu.run, 4)).toBe(0x8000_1810n);
  });

  // Mutation: without `#answerWaiting` at the start of run, the vCPU never goes on.
  test('an answer that comes late lets the vCPU go on then, and not before', async () => {
    const vm = await machine();
    vm.holds = true;
    vm.answer = 0x5an;
    vm.vcpu.script.push(exits.in(0x71, 1));
    vm.hsm.startVm();
    vm.step();
    expect(vm.vcpu.entries).toHaveLength(1);
    vm.hsm.notifyIoreqDone(0);
    vm.step();
    vm.step();
    expect(answers.port(vm.vcpu.run, 1)).toBe(0x5an);
    expect(vm.vcpu.entries).toHaveLength(2);
  });

  test.each(['EINTR', 'EAGAIN'] as const)('%s is no exit: the vCPU is entered again', async (name) => {
    const vm = await machine();
    vm.vcpu.script.push(exits.fails(constants.errno[name]), exits.out(0x80, 1, 7));
    vm.hsm.startVm();
    vm.step();
    expect(vm.accesses).toEqual([]);
    vm.step();
    expect(vm.accesses).toHaveLength(1);
  });
});

describe('a vCPU that cannot go on', () => {
  test('an internal error ends the VM with what it was, its registers and its code', async () => {
    const vm = await machine();
    const ram = map(0x20_0000, 'RAM');
    cleanUp.push(() => ram.dispose());
    ram.bytes.set([0x0f, 0x0b, 0x90], 0x10_0000);
    vm.hsm.mapRam({ gpa: 0, sizeBytes: ram.bytes.length, bytes: ram.bytes, hostAddress: ram.address, writable: true });
    vm.vcpu.script.push(exits.reason(KvmExit.InternalError, 1, 0));
    vm.hsm.startVm();
    expect(() => vm.step()).toThrow(
      expect.objectContaining({
        message: 'KVM cannot go on with vCPU 0: internal error 1 (it cannot emulate the instruction)',
        exitCode: ExitCode.VmFailed,
      }),
    );
    expect(vm.lines.filter((line) => line.includes('vCPU 0'))).toEqual([
      expect.stringContaining('cs:rip 10:100000'),
      expect.stringContaining('code at rip: 0f 0b 90 00'),
    ]);
  });

  test('an entry that the CPU refuses', async () => {
    const vm = await machine();
    vm.vcpu.script.push(exits.reason(KvmExit.FailEntry, 0x8000_0021));
    vm.hsm.startVm();
    expect(() => vm.step()).toThrow('the CPU refused its state, hardware reason 0x80000021');
  });

  test('a triple fault is the guest powering off', async () => {
    const vm = await machine();
    vm.vcpu.script.push(exits.reason(KvmExit.Shutdown));
    vm.hsm.startVm();
    vm.step();
    expect(vm.accesses).toEqual([[IoreqType.PortIo, 'w', 0x404, 2, 0x3400n]]);
    expect(vm.lines.join('\n')).toContain('triple fault on vCPU 0: cs:rip 10:100000');
    expect(vm.lines.join('\n')).not.toContain('of a reset');
  });

  test("a triple fault on AMD says that its registers are not the guest's", async () => {
    const vm = await machine();
    vm.vcpu.script.push(exits.reason(KvmExit.Shutdown));
    vm.hsm.startVm();
    const { registersNow, specialNow } = vm.vcpu;
    vm.vcpu.registersNow = { ...registersNow, rip: 0xfff0n };
    vm.vcpu.specialNow = { ...specialNow, cs: { ...specialNow.cs, selector: 0xf000, base: 0xffff_0000n } };
    vm.step();
    expect(vm.lines.join('\n')).toMatch(/triple fault on vCPU 0: cs:rip f000:fff0 .*of a reset: an AMD CPU/);
  });
});

describe('a reset', () => {
  // Mutation: without finishAccess, KVM finishes the read over the registers of the next start.
  test('lets KVM finish the access that was open, then brings everything back', async () => {
    const vm = await machine();
    vm.holds = true;
    vm.vcpu.script.push(exits.in(0x71, 1));
    vm.hsm.startVm();
    vm.step();
    vm.hsm.pauseVm();
    vm.vcpu.msrsNow.set(0x1a0, 0x99n).set(0x10, 0x77n);
    vm.kvm.vm.log.length = 0;
    vm.hsm.clearIoreqs();
    vm.hsm.resetVm();
    expect(vm.vcpu.entries.at(-1)).toBe(1);
    expect(vm.vcpu.run[1]).toBe(0);
    expect(vm.vcpu.specialNow.cr0).toBe(0x6000_0010n);
    expect([...vm.vcpu.msrsNow]).toEqual([
      [0x10, 0x77n], // time goes on
      [0x1a0, 1n],
    ]);
    expect(vm.kvm.vm.log).toEqual([
      ...['special', 'registers', 'xsave', 'xcrs', 'debugRegisters', 'msr 1a0', 'events', 'lapic', 'mp 0'],
      ...['irqchip', 'irqchip', 'irqchip'],
    ]);
    // What the vCPU was at is forgotten: it starts anew.
    vm.holds = false;
    vm.hsm.setVcpuRegs(0, startRegs);
    vm.vcpu.script.push(exits.out(0x80, 1, 1));
    vm.hsm.startVm();
    vm.step();
    expect(vm.accesses.at(-1)).toEqual([IoreqType.PortIo, 'w', 0x80, 1, 1n]);
  });

  test('of a KVM without XSAVE restores what there is', async () => {
    const kvm = new FakeKvm();
    for (const name of ['XSAVE', 'XCRS', 'DEBUGREGS'] as const) kvm.missing.add(name);
    const runDirectory = mkdtempSync(join(tmpdir(), 'kvm-'));
    cleanUp.push(() => rmSync(runDirectory, { recursive: true, force: true }));
    const config = { name: 'vm', scenarioPath: undefined, cpuAffinity: [] };
    const hsm = await openKvmHsm({ config, log: silentLog, ownsThread: true, runDirectory, kvm });
    cleanUp.push(() => hsm.close());
    await hsm.createVm({ name: 'vm', flags: 0n, cpuAffinity: 1n });
    hsm.pauseVm();
    hsm.resetVm();
    expect(kvm.vm.log).not.toContain('xsave');
    expect(kvm.vm.log).toContain('lapic');
  });
});

// Mutation: without createVm in kvm-engine.ts, nobody learns that it is another hypervisor.
test('where another hypervisor has the CPU, the user hears of it', async () => {
  const kvm = new FakeKvm();
  kvm.createVm = () => {
    throw new HostError('/dev/kvm: KVM_CREATE_VM: EBUSY', Errno.EBUSY);
  };
  const runDirectory = mkdtempSync(join(tmpdir(), 'kvm-'));
  cleanUp.push(() => rmSync(runDirectory, { recursive: true, force: true }));
  const config = { name: 'vm', scenarioPath: undefined, cpuAffinity: [] };
  const hsm = await openKvmHsm({ config, log: silentLog, ownsThread: true, runDirectory, kvm });
  await expect(hsm.createVm({ name: 'vm', flags: 0n, cpuAffinity: 1n })).rejects.toMatchObject({
    exitCode: ExitCode.Unavailable,
    hint: expect.stringContaining('another hypervisor'),
  });
  hsm.close();
  expect(kvm.isClosed).toBe(true);
});

describe('start registers', () => {
  test('protected mode: flat segments; real mode: by paragraph', async () => {
    const { vcpu, hsm } = await machine();
    expect(vcpu.specialNow.ds).toMatchObject({
      selector: 0x18,
      base: 0n,
      limit: 0xffff_ffff,
      type: 3,
      db: 1,
      g: 1,
      s: 1,
    });
    expect(vcpu.specialNow.cs).toMatchObject({ selector: 0x10, type: 11, db: 1, l: 0, present: 1, dpl: 0 });
    expect(vcpu.specialNow.tr).toMatchObject({ type: 11, s: 0, present: 1 });
    expect(vcpu.registersNow.rflags).toBe(2n);
    hsm.setVcpuRegs(0, {
      rip: 0n,
      cr0: 0x30n,
      cs: { selector: 0x9a00, base: 0x9_a000n, limit: 0xffff, attributes: 0x9f },
      ds: 0x40,
    });
    expect(vcpu.specialNow.ds).toMatchObject({ selector: 0x40, base: 0x400n, limit: 0xffff, db: 0, g: 0 });
    expect(vcpu.specialNow.cs).toMatchObject({ base: 0x9_a000n, limit: 0xffff });
  });
});

describe('interrupts', () => {
  // Mutation: the level passed on as it is. KVM looks at no polarity: an idle INTx line then interrupts for ever.
  test('a line of PCI, which is active low, is asserted when it is low', async () => {
    const { kvm, hsm } = await machine();
    hsm.setIrqLine(16, 'high');
    hsm.setIrqLine(16, 'low');
    hsm.setIrqLine(9, 'high');
    hsm.setIrqLine(9, 'low');
    expect(kvm.vm.lines).toEqual([
      [16, false],
      [16, true],
      [9, true],
      [9, false],
    ]);
  });

  test('lines and messages go to the kernel; a line beyond its pins is said and dropped', async () => {
    const { kvm, hsm, lines } = await machine();
    hsm.setIrqLine(4, 'rising-pulse');
    hsm.injectMsi({ address: 0xfee0_1000, data: 0x41 });
    hsm.setIrqLine(30, 'high');
    expect(kvm.vm.lines).toEqual([
      [4, true],
      [4, false],
    ]);
    expect(kvm.vm.messages).toEqual([[0xfee0_1000, 0x41]]);
    expect(lines.join('\n')).toContain('line 30 is beyond the 24 pins');
  });

  test('the timer line is pin 2 of the IOAPIC and pin 0 of the PIC', async () => {
    const { kvm } = await machine();
    expect(kvm.vm.routes.filter((route) => route.gsi === 2)).toEqual([
      { gsi: 2, chip: 'ioapic', pin: 2 },
      { gsi: 2, chip: 'pic', pin: 0 },
    ]);
    expect(kvm.vm.routes.filter((route) => route.gsi === 12)).toEqual([
      { gsi: 12, chip: 'ioapic', pin: 12 },
      { gsi: 12, chip: 'pic-slave', pin: 4 },
    ]);
    expect(kvm.vm.routes.filter((route) => route.gsi === 20)).toHaveLength(1);
  });

  test('each irqfd has a number of its own with its message, and gives it back', async () => {
    const { kvm, hsm } = await machine();
    const [first, second] = [new Eventfd(), new Eventfd()];
    cleanUp.push(
      () => first.dispose(),
      () => second.dispose(),
    );
    hsm.irqfd(first.fd, { address: 0xfee0_0000, data: 0x31 }, true);
    hsm.irqfd(second.fd, { address: 0xfee0_1000, data: 0x32 }, true);
    expect(kvm.vm.routes.filter((route) => route.gsi >= 24)).toEqual([
      { gsi: 24, address: 0xfee0_0000, data: 0x31 },
      { gsi: 25, address: 0xfee0_1000, data: 0x32 },
    ]);
    hsm.irqfd(first.fd, { address: 0xfee0_0000, data: 0x31 }, false);
    expect([...kvm.vm.irqfds]).toEqual([[second.fd, 25]]);
    hsm.pauseVm();
    hsm.destroyVm();
    expect(kvm.vm.irqfds.size).toBe(0);
  });

  test('an ioeventfd is the kernel’s; what it lets through still rings', async () => {
    const { kvm, vcpu, hsm, step, accesses } = await machine();
    const bell = new Eventfd();
    cleanUp.push(() => bell.dispose());
    const spec = { fd: bell.fd, address: 0xc010, space: 'pio', sizeBytes: 2, dataMatch: 1n } as const;
    hsm.ioeventfd(spec, true);
    expect(kvm.vm.ioeventfds).toEqual([{ fd: bell.fd, address: 0xc010, isPort: true, sizeBytes: 2, dataMatch: 1n }]);
    // Four bytes wide: KVM matches the exact width, the HSM driver any that covers it.
    vcpu.script.push(exits.out(0xc010, 4, 1), exits.out(0xc010, 4, 2));
    hsm.startVm();
    step();
    expect(bell.take()).toBe(1);
    step();
    expect(bell.take()).toBe(0);
    expect(accesses).toHaveLength(1);
    hsm.ioeventfd(spec, false);
    expect(kvm.vm.ioeventfds).toEqual([]);
  });
});

test('the end gives everything back, also twice', async () => {
  const { kvm, hsm } = await machine();
  hsm.pauseVm();
  hsm.destroyVm();
  hsm.close();
  hsm.close();
  expect([kvm.isClosed, kvm.vm.isClosed, kvm.vm.vcpus[0]?.isClosed]).toEqual([true, true, true]);
});

describe('a KVM that cannot do it', () => {
  const config = { name: 'vm', scenarioPath: undefined, cpuAffinity: [] };
  test('what it lacks is named, and it is closed', async () => {
    const kvm = new FakeKvm();
    kvm.missing.add('IRQFD').add('IMMEDIATE_EXIT');
    await expect(openKvmHsm({ config, log: silentLog, ownsThread: true, kvm })).rejects.toMatchObject({
      message: '/dev/kvm lacks KVM_CAP_IRQFD, KVM_CAP_IMMEDIATE_EXIT',
      exitCode: ExitCode.Unavailable,
    });
    expect(kvm.isClosed).toBe(true);
  });

  test('more vCPUs than it runs', async () => {
    const many = { ...config, cpuAffinity: [0, 1, 2, 3, 4] };
    await expect(openKvmHsm({ config: many, log: silentLog, ownsThread: true, kvm: new FakeKvm() })).rejects.toThrow(
      '/dev/kvm runs at most 4 vCPUs, --cpu_affinity asks for 5',
    );
  });
});
