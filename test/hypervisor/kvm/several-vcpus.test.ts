/** Several vCPUs of the KVM engine, whose threads are the test. */
import { closeSync, openSync, rmSync, statSync, truncateSync } from 'node:fs';
import { constants } from 'node:os';
import { expect, test } from 'vitest';
import { KvmExit } from '../../../devicemodel/core/host/kvm-abi.ts';
import { fillShared, mapShared } from '../../../devicemodel/core/host/shared-memory.ts';
import { IoreqPage, IoreqState } from '../../../devicemodel/core/ioreq-page.ts';
import { silentLog } from '../../../devicemodel/core/log.ts';
import type { GuestBus } from '../../../hypervisor/embedded/cpu-engine.ts';
import { KvmEngine } from '../../../hypervisor/kvm/kvm-engine.ts';
import type { OnExit, VcpuRunner } from '../../../hypervisor/kvm/runner.ts';
import { answers, exits, type FakeExit, FakeKvm } from '../../support/fake-kvm.ts';

/** vCPUs leave the guest when the test says so. */
class ScriptedRunner implements VcpuRunner {
  readonly inGuest = new Set<number>();
  readonly left: Array<readonly [vcpu: number, result: number]> = [];
  resume(vcpu: number): void {
    this.inGuest.add(vcpu);
  }
  tell(onExit: OnExit): boolean {
    const left = this.left.splice(0);
    for (const [vcpu, result] of left) {
      this.inGuest.delete(vcpu);
      onExit(vcpu, result);
    }
    return left.length > 0;
  }
  collect(onExit: OnExit): boolean {
    return this.tell(onExit);
  }
  recall(): void {}
  forget(): void {}
  wake(): void {}
  dispose(): void {}
}

async function machine(vcpuCount: number) {
  const kvm = new FakeKvm();
  const runner = new ScriptedRunner();
  const engine = new KvmEngine({ kvm, vcpuCount, makeRunner: () => runner, log: silentLog });
  const page = new IoreqPage(new Uint8Array(4096));
  /** Which vCPUs the device model answers. */
  const answered = new Set<number>();
  const asked: number[] = [];
  const bus: GuestBus = {
    page,
    submit: (vcpu) => {
      asked.push(vcpu);
      page.setState(vcpu, IoreqState.Processing);
      return false;
    },
    serve: () => {
      for (let vcpu = 0; vcpu < vcpuCount; vcpu++) {
        if (!page.isPending(vcpu) || !answered.has(vcpu)) continue;
        page.setValue(vcpu, 0x40 + vcpu);
        page.setState(vcpu, IoreqState.Complete);
      }
    },
    retire: (vcpu) => {
      if (page.state(vcpu) !== IoreqState.Complete) return false;
      page.setState(vcpu, IoreqState.Free);
      return true;
    },
    tripleFault: () => {},
  };
  await engine.create(bus);
  engine.start();
  const leave = (vcpu: number, exit: FakeExit) => {
    const { run } = kvm.vm.vcpus[vcpu] as { run: Uint8Array };
    runner.left.push([vcpu, exit(new DataView(run.buffer))]);
  };
  const got = (vcpu: number) => answers.port((kvm.vm.vcpus[vcpu] as { run: Uint8Array }).run, 1);
  return { kvm, runner, engine, page, answered, asked, leave, got };
}

test('all that left at once are asked for before the device model looks, and go on', async () => {
  const { engine, runner, answered, asked, leave, got } = await machine(3);
  for (const vcpu of [0, 1, 2]) answered.add(vcpu);
  for (const vcpu of [2, 0]) leave(vcpu, exits.in(0x3fd, 1));
  engine.run();
  expect(asked).toEqual([2, 0]);
  expect([got(0), got(2)]).toEqual([0x40n, 0x42n]);
  expect(runner.inGuest).toEqual(new Set([0, 1, 2]));
});

test('one that is not answered does not keep the others', async () => {
  const { engine, runner, answered, leave, got } = await machine(2);
  answered.add(1);
  leave(0, exits.in(0x60, 1));
  engine.run();
  leave(1, exits.in(0x3fd, 1));
  engine.run();
  expect(got(1)).toBe(0x41n);
  expect(runner.inGuest).toEqual(new Set([1]));
  answered.add(0);
  engine.run();
  engine.run();
  expect(runner.inGuest).toEqual(new Set([0, 1]));
});

// Mutation: without `runner.tell` in KvmEngine.poll the others stand still while a device makes one vCPU wait.
test('while nobody waits for the guest, what others ask comes onto the page, and they go on when answered', async () => {
  const { engine, runner, page, leave } = await machine(2);
  leave(0, exits.in(0x60, 1));
  engine.run();
  leave(1, exits.in(0x3fd, 1));
  engine.poll();
  expect(page.isPending(1)).toBe(true);
  page.setValue(1, 0x60);
  page.setState(1, IoreqState.Complete);
  engine.poll();
  expect(runner.inGuest).toEqual(new Set([1]));
  engine.stop();
  leave(1, exits.in(0x3fd, 1));
  engine.poll();
  expect(page.state(1)).toBe(IoreqState.Free);
});

test('each vCPU has its own APIC id, and only the first may run before it is told to', async () => {
  const { kvm } = await machine(3);
  const ids = kvm.vm.vcpus.map(({ cpuid }) => (cpuid.find(({ leaf }) => leaf === 1)?.ebx ?? 0) >>> 24);
  expect(ids).toEqual([0, 1, 2]);
  expect(kvm.vm.vcpus.map((vcpu) => vcpu.mpStateNow)).toEqual([0, 1, 1]);
});

// Mutation: without the hold, an exit of a frozen vCPU is answered and the guest runs on.
test('what a vCPU left the guest for while all were to stand still is seen to when they go on', async () => {
  const { engine, runner, answered, asked, leave, got } = await machine(2);
  answered.add(0).add(1);
  leave(0, exits.in(0x60, 1));
  engine.freezing.freeze();
  engine.freezing.freeze();
  leave(1, exits.in(0x61, 1));
  engine.run();
  engine.poll();
  expect([asked, runner.inGuest.size]).toEqual([[], 0]);
  engine.freezing.thaw();
  engine.run();
  expect(asked).toEqual([0, 1]);
  expect([got(0), got(1), runner.inGuest.size]).toEqual([0x40n, 0x41n, 2]);
});

// Mutation: without the catch in #thaw, who resumes the VM is told, the other vCPUs stay where they are, and it never ends.
test('a vCPU that cannot go on, found while all stood still, ends the VM and not the command that lets them go on', async () => {
  const { engine, runner, answered, asked, leave } = await machine(3);
  answered.add(2);
  engine.freezing.freeze();
  leave(0, exits.in(0x60, 1));
  leave(1, exits.fails(constants.errno.EIO));
  leave(2, exits.in(0x62, 1));
  engine.run();
  engine.freezing.thaw();
  expect([asked, runner.inGuest.has(1)]).toEqual([[0, 2], false]);
  expect(() => engine.run()).toThrow(/KVM cannot go on with vCPU 1/);
});

test('an answer that comes while they stand still is given when they go on', async () => {
  const { engine, runner, page, leave, got } = await machine(1);
  leave(0, exits.in(0x60, 1));
  engine.run();
  engine.freezing.freeze();
  page.setValue(0, 0x77);
  page.setState(0, IoreqState.Complete);
  engine.run();
  engine.poll();
  expect(runner.inGuest.size).toBe(0);
  engine.freezing.thaw();
  engine.run();
  expect([got(0), runner.inGuest.size]).toEqual([0x77n, 1]);
});

// Mutation: throw as soon as mendAll finds nothing: the exit that comes second ends the VM.
test('shared memory that was cut under two vCPUs at once is mended by the first exit, and both go on', async () => {
  const { engine, runner, asked, leave } = await machine(2);
  const path = `/dev/shm/acrn-kvm-cut-two-${process.pid}`;
  const fd = openSync(path, 'w+', 0o600);
  fillShared(fd, 2 * 4096, 'shared memory');
  const memory = mapShared(fd, 2 * 4096, 'shared memory');
  try {
    for (let round = 0; round < 3; round++) {
      truncateSync(path, 0);
      for (const vcpu of [0, 1]) leave(vcpu, exits.fails(constants.errno.EFAULT));
      engine.run();
      expect([statSync(path).size, runner.inGuest.size]).toEqual([2 * 4096, 2]);
      // Both make their access now, and leave for something else.
      for (const vcpu of [0, 1]) leave(vcpu, exits.reason(KvmExit.Intr));
      engine.run();
    }
    expect(asked).toEqual([]);
  } finally {
    memory.dispose();
    closeSync(fd);
    rmSync(path, { force: true });
  }
});

test('a reset lets go of what was held', async () => {
  const { engine, asked, leave } = await machine(1);
  engine.freezing.freeze();
  leave(0, exits.in(0x60, 1));
  leave(0, exits.fails(constants.errno.EIO));
  engine.run();
  engine.stop();
  engine.reset();
  engine.freezing.thaw();
  expect(asked).toEqual([]);
});
