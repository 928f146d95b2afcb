/**
 * The engine on the KVM of this machine, by guests of a few instructions: with the vCPU on this thread, with threads while
 * this one blocks, and with threads while the event loop goes on. Skipped without /dev/kvm; the rig has one.
 */
import { closeSync, mkdtempSync, openSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeAll, describe, expect, test } from 'vitest';
import { Eventfd } from '../../../devicemodel/core/host/eventfd.ts';
import { type Mapping, map } from '../../../devicemodel/core/host/mapping.ts';
import { installKickSignal, KICK_SIGNAL } from '../../../devicemodel/core/host/signals.ts';
import { ThreadTimer } from '../../../devicemodel/core/host/timers.ts';
import type { Hsm } from '../../../devicemodel/core/hsm/hsm.ts';
import { IoreqPage, IoreqType } from '../../../devicemodel/core/ioreq-page.ts';
import { silentLog } from '../../../devicemodel/core/log.ts';
import { forgetSharedRegions } from '../../../hypervisor/embedded/shared-region.ts';
import { kvmObstacle } from '../../../hypervisor/kvm/index.ts';
import { openKvmHsm } from '../../../hypervisor/kvm/open.ts';
import { describeHsm } from '../../support/hsm-conformance.ts';
import { asm, CODE_BASE, IDT_BASE } from '../../support/soft-vm.ts';

const RAM_BYTES = 0x20_0000;
const GDT_BASE = 0x9000;
const RESULT = 0x6000;
const HANDLER = 0x3000;
const LAPIC = 0xfee0_0000;
/** In emulation, a thread alone takes seconds to come up. */
const TIMEOUT_MS = 60_000;
const KICK_EVERY_NS = 250_000_000;

const hasKvm = kvmObstacle() === undefined;

const cleanUp: Array<() => void> = [];
afterEach(() => {
  for (const step of cleanUp.splice(0).reverse()) step();
  forgetSharedRegions();
});

function runDirectory(): string {
  const path = mkdtempSync(join(tmpdir(), 'kvm-'));
  cleanUp.push(() => rmSync(path, { recursive: true, force: true }));
  return path;
}

const open = (vcpus: number, ownsThread: boolean, name = 'vm') =>
  openKvmHsm({
    config: { name, scenarioPath: undefined, cpuAffinity: Array.from({ length: vcpus }, (_, id) => 1000 + id) },
    log: silentLog,
    ownsThread,
    runDirectory: runDirectory(),
  });

class Machine {
  readonly hsm: Hsm;
  readonly page: IoreqPage;
  readonly ram: Mapping;
  readonly accesses: unknown[][] = [];
  answer = 0;
  holds = false;

  constructor(hsm: Hsm) {
    this.hsm = hsm;
    this.page = new IoreqPage(hsm.ioreqPage);
    this.ram = map(RAM_BYTES, 'RAM');
  }

  static async create(vcpus: number, ownsThread: boolean): Promise<Machine> {
    const hsm = await open(vcpus, ownsThread);
    const machine = new Machine(hsm);
    cleanUp.push(
      () => machine.ram.dispose(),
      () => hsm.close(),
    );
    await hsm.createVm({ name: 'vm', flags: 0n, cpuAffinity: 1n });
    const { bytes, address } = machine.ram;
    hsm.mapRam({ gpa: 0, sizeBytes: RAM_BYTES, bytes, hostAddress: address, writable: true });
    hsm.createIoreqClient();
    return machine;
  }

  start(code: readonly number[]): void {
    const { bytes } = this.ram;
    bytes.set(code, CODE_BASE);
    const gdt = new DataView(bytes.buffer, bytes.byteOffset + GDT_BASE, 32);
    gdt.setBigUint64(0x10, 0x00cf_9b00_0000_ffffn, true);
    gdt.setBigUint64(0x18, 0x00cf_9300_0000_ffffn, true);
    this.hsm.setVcpuRegs(0, {
      rip: BigInt(CODE_BASE),
      rsp: 0x7000n,
      cr0: 0x31n,
      cs: { selector: 0x10, base: 0n, limit: 0xffff_ffff, attributes: 0xc09b },
      ...{ ss: 0x18, ds: 0x18, es: 0x18 },
      gdt: { base: BigInt(GDT_BASE), limit: 0x1f },
      idt: { base: BigInt(IDT_BASE), limit: 0x7ff },
    });
    this.hsm.startVm();
  }

  setGate(vector: number): void {
    const gate = new DataView(this.ram.bytes.buffer, this.ram.bytes.byteOffset + IDT_BASE + 8 * vector, 8);
    gate.setUint32(0, (0x10 << 16) | HANDLER, true);
    gate.setUint32(4, 0x8e00, true);
  }

  word(at: number): number {
    return new DataView(this.ram.bytes.buffer, this.ram.bytes.byteOffset).getUint32(at, true);
  }

  readonly serve = (): void => {
    const { page } = this;
    if (!page.isPending(0) || this.holds) return;
    const isWrite = page.isWrite(0);
    this.accesses.push([page.type(0), isWrite ? 'w' : 'r', page.address(0), page.size(0), isWrite ? page.value(0) : 0]);
    if (!isWrite) page.setValue(0, this.answer);
    this.hsm.notifyIoreqDone(0);
  };

  async until(done: () => boolean): Promise<void> {
    const kick = new ThreadTimer(KICK_SIGNAL);
    kick.arm(KICK_EVERY_NS, KICK_EVERY_NS);
    try {
      const end = performance.now() + TIMEOUT_MS;
      while (!done()) {
        let wait: unknown = this.hsm.waitForIoreqs(this.serve);
        if (wait instanceof Promise)
          wait = await Promise.race([wait, new Promise((resolve) => setTimeout(resolve, 20))]);
        // What was there before nobody else serves.
        if (wait === 'pending') this.serve();
        if (performance.now() > end) throw new Error('the guest did not get there');
      }
    } finally {
      kick.dispose();
    }
  }
}

describe.skipIf(!hasKvm).each([
  ['on this thread', 1, true],
  ['in threads, this one blocks', 2, true],
  ['in threads, the event loop goes on', 2, false],
] as const)('vCPUs %s', (_what, vcpus, ownsThread) => {
  beforeAll(() => installKickSignal());
  const make = () => Machine.create(vcpus, ownsThread);

  test('ports and memory that is not RAM reach the device model, and reads come back', async () => {
    const vm = await make();
    vm.answer = 0x1234_5678;
    vm.start([
      ...asm.movEax(0xa1b2_c3d4),
      ...asm.outAl(0x3f8),
      ...asm.outEax(0xc000),
      ...asm.inEax(0xc004),
      ...asm.storeEax(RESULT),
      ...asm.loadEax(0xfed0_00f0),
      ...asm.storeEax(RESULT + 4),
      ...asm.storeEax(0xdf00_0010),
      ...asm.hlt,
    ]);
    await vm.until(() => vm.accesses.length === 5);
    expect(vm.accesses).toEqual([
      [IoreqType.PortIo, 'w', 0x3f8, 1, 0xd4],
      [IoreqType.PortIo, 'w', 0xc000, 4, 0xa1b2_c3d4],
      [IoreqType.PortIo, 'r', 0xc004, 4, 0],
      [IoreqType.Mmio, 'r', 0xfed0_00f0, 4, 0],
      [IoreqType.Mmio, 'w', 0xdf00_0010, 4, 0x1234_5678],
    ]);
    expect([vm.word(RESULT), vm.word(RESULT + 4)]).toEqual([0x1234_5678, 0x1234_5678]);
    vm.hsm.pauseVm();
  });

  test('a guest that never leaves is paused, reset, and starts anew', async () => {
    const vm = await make();
    vm.start([...asm.incMemory(RESULT), ...asm.jump(-8)]);
    await vm.until(() => vm.word(RESULT) > 1000);
    vm.hsm.pauseVm();
    const stood = vm.word(RESULT);
    vm.hsm.resetVm();
    expect(vm.word(RESULT)).toBe(stood);
    vm.start([...asm.movEax(7), ...asm.outEax(0x80), ...asm.hlt]);
    await vm.until(() => vm.accesses.length === 1);
    vm.hsm.pauseVm();
  });

  // Mutation: make the access that a pause finds open once more when the vCPU goes on, or drop it.
  test('hundreds of pauses lose no access of the guest, and make none twice', async () => {
    const vm = await make();
    const count = [...asm.incMemory(RESULT), ...asm.loadEax(RESULT), ...asm.outEax(0xc000)];
    vm.start([...count, ...asm.jump(-(count.length + 2))]);
    for (let pauses = 0; pauses < 300; pauses++) {
      const before = vm.accesses.length;
      await vm.until(() => vm.accesses.length > before + (pauses % 7));
      vm.hsm.freezing?.freeze();
      if (pauses % 50 === 0) {
        await new Promise((resolve) => setTimeout(resolve, 5));
        const stood = vm.word(RESULT);
        await new Promise((resolve) => setTimeout(resolve, 5));
        expect(vm.word(RESULT)).toBe(stood);
      }
      vm.hsm.freezing?.thaw();
    }
    expect(vm.hsm.freezing === undefined).toBe(false);
    vm.hsm.pauseVm();
    const values = vm.accesses.map((access) => access[4]);
    expect(values).toEqual(values.map((_, i) => i + 1));
    expect([0, 1].includes(vm.word(RESULT) - values.length)).toBe(true);
  });

  // Mutation: without finishAccess in vcpu-state.ts, KVM writes what was read, and moves on, after the reset.
  test('a read that is open when the VM is reset does not reach the next start', async () => {
    const vm = await make();
    vm.holds = true;
    vm.start([...asm.loadEax(0xdf00_0000), ...asm.hlt]);
    await vm.until(() => vm.page.isPending(0));
    vm.hsm.pauseVm();
    vm.hsm.clearIoreqs();
    vm.hsm.resetVm();
    vm.holds = false;
    vm.start([...asm.storeEax(RESULT), ...asm.outAl(0x80), ...asm.hlt]);
    await vm.until(() => vm.accesses.length === 1);
    expect(vm.word(RESULT)).toBe(0);
    vm.hsm.pauseVm();
  });

  test('a message wakes a vCPU that sleeps; an irqfd does without this process', async () => {
    const vm = await make();
    vm.setGate(0x41);
    vm.ram.bytes.set([...asm.incMemory(RESULT), ...asm.storeImmediate(LAPIC + 0xb0, 0), ...asm.iret], HANDLER);
    vm.start([...asm.storeImmediate(LAPIC + 0xf0, 0x1ff), ...asm.outAl(0x80), ...asm.sti, ...asm.hlt, ...asm.jump(-3)]);
    await vm.until(() => vm.accesses.length === 1);
    const message = { address: 0xfee0_0000, data: 0x41 };
    vm.hsm.injectMsi(message);
    await vm.until(() => vm.word(RESULT) === 1);
    const eventfd = new Eventfd();
    cleanUp.push(() => eventfd.dispose());
    vm.hsm.irqfd(eventfd.fd, message, true);
    eventfd.signal();
    await vm.until(() => vm.word(RESULT) === 2);
    vm.hsm.irqfd(eventfd.fd, message, false);
    vm.hsm.pauseVm();
  });

  test('an ioeventfd rings by its value alone, and the guest does not leave', async () => {
    const vm = await make();
    const eventfd = new Eventfd();
    cleanUp.push(() => eventfd.dispose());
    vm.hsm.ioeventfd({ fd: eventfd.fd, address: 0xc010, space: 'pio', sizeBytes: 4, dataMatch: 5n }, true);
    vm.start([...[...asm.movEax(5), ...asm.outEax(0xc010)], ...[...asm.movEax(6), ...asm.outEax(0xc010)], ...asm.hlt]);
    await vm.until(() => vm.accesses.length === 1);
    expect(vm.accesses).toEqual([[IoreqType.PortIo, 'w', 0xc010, 4, 6]]);
    expect(eventfd.take()).toBe(1);
    vm.hsm.pauseVm();
  });

  test('a triple fault is the guest powering off', async () => {
    const vm = await make();
    vm.start([0x0f, 0x01, 0x1d, ...[0x80, 0x10, 0, 0], 0xcc]); // lidt [an empty one]; int3
    await vm.until(() => vm.accesses.length === 1);
    expect(vm.accesses).toEqual([[IoreqType.PortIo, 'w', 0x404, 2, 0x3400]]);
    vm.hsm.pauseVm();
  });
});

if (hasKvm) {
  describeHsm('kvm of this machine', async () => {
    const fds = [new Eventfd(), new Eventfd()];
    const notEventfd = openSync('/dev/null', 'r');
    return {
      hsm: await open(2, true, 'conformance'),
      eventfd: fds[0]?.fd as number,
      otherEventfd: fds[1]?.fd as number,
      notEventfd,
      dispose: () => {
        for (const fd of fds) fd.dispose();
        closeSync(notEventfd);
        forgetSharedRegions();
      },
    };
  });
}
