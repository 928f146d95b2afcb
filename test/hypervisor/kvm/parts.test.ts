/** Parts of the KVM engine by themselves: memory slots, CPUID, placement, what is in the way of using KVM. */
import { chmodSync, mkdtempSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, test } from 'vitest';
import { groupName } from '../../../devicemodel/core/host/groups.ts';
import { guestCpuid } from '../../../hypervisor/kvm/cpuid.ts';
import { kvmObstacle } from '../../../hypervisor/kvm/index.ts';
import { MemorySlots } from '../../../hypervisor/kvm/memory-slots.ts';
import { joinKvmGroup } from '../../../hypervisor/kvm/permission.ts';
import { vcpuCpus, vcpuProblems } from '../../../hypervisor/kvm/placement.ts';
import { FakeKvm, FakeKvmVm } from '../../support/fake-kvm.ts';
import { memoryLog } from '../../support/memory-log.ts';

const MIB = 0x10_0000;

describe('memory slots', () => {
  function slots() {
    const vm = new FakeKvmVm();
    const { log, lines } = memoryLog();
    const made = new MemorySlots(vm, log);
    const add = (gpa: number, sizeBytes: number) => made.add(gpa, new Uint8Array(sizeBytes), 0x7000_0000n, true);
    const places = () => [...vm.memory.values()].map(({ gpa, sizeBytes }) => [gpa, sizeBytes]);
    return { made, add, places, lines, vm };
  }

  // Mutation: without the loop over hidden ones in #remove, it stays away for good.
  test('what lies on something else is hidden, and comes back when that goes', () => {
    const { add, places, lines } = slots();
    add(0, MIB);
    const first = add(0x8000_0000, MIB);
    add(0x8008_0000, MIB);
    expect(places()).toEqual([
      [0, MIB],
      [0x8000_0000, MIB],
    ]);
    expect(lines.join('\n')).toContain('memory at 0x80080000+0x100000 is hidden');
    first.dispose();
    expect(places()).toEqual([
      [0, MIB],
      [0x8008_0000, MIB],
    ]);
  });

  test('numbers are used again, and taking away twice does nothing', () => {
    const { add, vm } = slots();
    for (let i = 0; i < 100; i++) {
      const slot = add(0x8000_0000, MIB);
      slot.dispose();
      slot.dispose();
    }
    add(0, MIB);
    expect([...vm.memory.keys()]).toEqual([0]);
  });

  test('whole pages, and memory that must not be written', () => {
    const { made, vm } = slots();
    made.add(0x8000_0800, new Uint8Array(0x1fff), 0x7000_0800n, false);
    expect([...vm.memory.values()]).toEqual([{ gpa: 0x8000_0000, sizeBytes: 0x1000, isReadOnly: true }]);
  });

  test('RAM beyond what the CPU addresses is refused', () => {
    const { add } = slots();
    expect(() => add(2 ** 52, MIB)).toThrow(/SET_MEMSEG 0x10000000000000.*EINVAL/);
  });

  test('the bytes behind an address', () => {
    const { made } = slots();
    const bytes = new Uint8Array(0x2000);
    bytes[0x1234] = 0xaa;
    made.add(0x10_0000, bytes, 0x7000_0000n, true);
    expect(made.bytesAt(0x10_1234)?.[0]).toBe(0xaa);
    expect(made.bytesAt(0x10_2000)).toBeUndefined();
  });
});

describe('CPUID', () => {
  const of = (apicId: number, hasTscDeadline = true) =>
    new Map(
      guestCpuid({
        supported: new FakeKvm().supportedCpuid(),
        apicId,
        vcpuCount: 4,
        tscKhz: 2_100_000,
        hasTscDeadline,
      }).map((entry) => [entry.leaf, entry]),
    );

  test('ACRN’s leaves in the place of KVM’s, with the frequency of the TSC', () => {
    const leaves = of(0);
    const { ebx = 0, ecx = 0, edx = 0, eax } = leaves.get(0x4000_0000) ?? {};
    expect(Buffer.from(Uint32Array.of(ebx, ecx, edx).buffer).toString('latin1')).toBe('ACRNACRNACRN');
    expect(eax).toBe(0x4000_0010);
    expect(leaves.get(0x4000_0010)).toMatchObject({ eax: 2_100_000, ebx: 0, ecx: 0, edx: 0 });
    expect(leaves.has(0x8000_0000)).toBe(true);
  });

  test('each vCPU has its own APIC id; MONITOR is not there, a hypervisor is', () => {
    const one = of(3).get(1);
    expect((one?.ebx ?? 0) >>> 24).toBe(3);
    expect(((one?.ebx ?? 0) >>> 16) & 0xff).toBe(4);
    expect((one?.ecx ?? 0) >>> 0).toBe(0x8100_0001);
    expect(of(3).get(0xb)?.edx).toBe(3);
    expect((of(0, false).get(1)?.ecx ?? 0) >>> 0).toBe(0x8000_0001);
  });
});

describe('topology of an AMD CPU', () => {
  // Mutation: the host's leaf passed on. Linux then has one APIC id for all vCPUs, and takes them for threads of one core.
  test('each vCPU has its own APIC id and is a core of one thread', () => {
    const host = { leaf: 0x8000_001e, subleaf: 0, flags: 0, eax: 5, ebx: 0x0102, ecx: 0x0301, edx: 0 };
    const leafOf = (apicId: number) =>
      guestCpuid({ supported: [host], apicId, vcpuCount: 4, tscKhz: 1, hasTscDeadline: false }).find(
        ({ leaf }) => leaf === host.leaf,
      );
    expect(leafOf(0)).toEqual({ ...host, eax: 0, ebx: 0, ecx: 0 });
    expect(leafOf(3)).toEqual({ ...host, eax: 3, ebx: 3, ecx: 0 });
  });
});

describe('virtualization in the guest', () => {
  // Mutation: the host's bits passed on. KVM refuses the state of a vCPU that is to be reset while VMX is on.
  test('is not shown, whatever KVM would give', () => {
    const none = { subleaf: 0, flags: 0, eax: 0, ebx: 0, ecx: 0, edx: 0 };
    const supported = [
      { ...none, leaf: 1, ecx: 0x61 },
      { ...none, leaf: 0x8000_0001, ecx: 0x25 },
      { ...none, leaf: 0x8000_000a, eax: 1 },
    ];
    const facts = { supported, apicId: 0, vcpuCount: 1, tscKhz: 1, hasTscDeadline: false };
    const leaves = new Map(guestCpuid(facts).map((entry) => [entry.leaf, entry]));
    expect((leaves.get(1)?.ecx ?? 0) >>> 0).toBe(0x8000_0001);
    expect(leaves.get(0x8000_0001)?.ecx).toBe(0x21);
    expect(leaves.has(0x8000_000a)).toBe(false);
  });
});

describe('where vCPUs run', () => {
  const cpuinfo = ['processor\t: 0\napicid\t\t: 0', 'processor\t: 1\napicid\t\t: 4\ninitial apicid\t: 4'].join('\n\n');

  test('by local APIC id; one that no CPU has still counts', () => {
    expect(vcpuCpus({ cpuAffinity: [4, 0] }, cpuinfo)).toEqual({ cpus: [1, 0], unknownIds: [] });
    expect(vcpuCpus({ cpuAffinity: [4, 9] }, cpuinfo)).toEqual({ cpus: [1, undefined], unknownIds: [9] });
    expect(vcpuCpus({ cpuAffinity: [] }, cpuinfo)).toEqual({ cpus: [undefined], unknownIds: [] });
  });

  test('sixteen at most', () => {
    const ids = (count: number) => Array.from({ length: count }, (_, id) => id);
    expect(vcpuProblems({ cpuAffinity: ids(16) })).toEqual([]);
    expect(vcpuProblems({ cpuAffinity: ids(17) })[0]?.message).toContain('at most 16 vCPUs');
  });
});

describe('what is in the way of KVM', () => {
  const directory = mkdtempSync(join(tmpdir(), 'kvm-parts-'));
  afterAll(() => rmSync(directory, { recursive: true, force: true }));
  const intel = 'flags\t\t: fpu vmx sse\n';

  test('no device, a file in its place, a CPU without virtualization', () => {
    const file = join(directory, 'kvm');
    writeFileSync(file, '');
    expect(kvmObstacle(join(directory, 'none'), intel)).toBe('no device');
    expect(kvmObstacle(file, intel)).toBe('no device');
    expect(kvmObstacle('/dev/null', 'flags : fpu sse\n')).toBe('no virtualization');
    expect(kvmObstacle('/dev/null', 'flags : fpu svm_lock sse\n')).toBe('no virtualization');
  });

  test('nothing', () => {
    expect(kvmObstacle('/dev/null', intel)).toBeUndefined();
    expect(kvmObstacle('/dev/null', 'flags : svm\n')).toBeUndefined();
    expect(kvmObstacle('/dev/null', '')).toBeUndefined();
  });

  // Mutation: with access(2) in place of open(2), both are said to be nothing.
  test('a node without a driver, one that a container may not open', () => {
    const failing = (code: string) => () => {
      throw Object.assign(new Error(code), { code });
    };
    expect(kvmObstacle('/dev/null', intel, failing('ENODEV'))).toBe('no device');
    expect(kvmObstacle('/dev/null', intel, failing('EPERM'))).toBe('no permission');
    expect(kvmObstacle('/dev/null', intel, failing('EACCES'))).toBe('no permission');
  });

  test('the group that may, and the command', () => {
    const user = { uid: 1000, name: 'me' };
    const file = join(directory, 'node');
    writeFileSync(file, '');
    chmodSync(file, 0o660);
    // The group of whoever tests may have no name.
    const hasName = groupName(statSync(file).gid) !== undefined;
    const asMember = /^group \S+ may open it: "sudo usermod -aG \S+ me", and log in again$/;
    expect(joinKvmGroup(file, user)).toMatch(hasName ? asMember : /^run as root$/);
    // Mutation: with userInfo() alone, which throws, the program ended with status 71 here.
    const { gid } = statSync(file);
    expect(joinKvmGroup(file, { uid: 1000, name: undefined })).toContain(`--group-add ${gid}`);
    chmodSync(file, 0o600);
    expect(joinKvmGroup(file, user)).toBe('run as root');
    expect(joinKvmGroup(file, { uid: 0, name: 'root' })).toContain(`--device ${file}`);
  });
});
