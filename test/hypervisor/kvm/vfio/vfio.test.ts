/** A function of the host in a guest on KVM, against a VFIO and a KVM in memory. */
import { mkdtempSync, rmSync } from 'node:fs';
import { constants, tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, describe, expect, test, vi } from 'vitest';
import { HostError } from '../../../../devicemodel/core/errors.ts';
import { signalEventfd, takeEventfd } from '../../../../devicemodel/core/host/eventfd.ts';
import { KvmExit } from '../../../../devicemodel/core/host/kvm-abi.ts';
import { map } from '../../../../devicemodel/core/host/mapping.ts';
import type { Hsm, PcidevAssignment, RamMapping } from '../../../../devicemodel/core/hsm/hsm.ts';
import { IoreqPage } from '../../../../devicemodel/core/ioreq-page.ts';
import { openKvmHsm } from '../../../../hypervisor/kvm/open.ts';
import { mappable } from '../../../../hypervisor/kvm/vfio/bars.ts';
import { answers, exits, FakeKvm, type FakeVcpu } from '../../../support/fake-kvm.ts';
import { At, FakeVfio, fakeRoot, VECTORS } from '../../../support/fake-vfio.ts';
import { memoryLog } from '../../../support/memory-log.ts';

const E = constants.errno;
const NAME = '0000:02:00.0';
const RAM_BYTES = 0x10_0000;
const Bar = { memory: 0xc000_0000, wide: 0x1_0000_0000, ports: 0x6000 } as const;
const assignment: PcidevAssignment = {
  virtualBdf: { bus: 0, device: 3, function: 0 },
  physicalBdf: { bus: 2, device: 0, function: 0 },
  interruptLine: 0xff,
  interruptPin: 1,
  bars: [Bar.memory, 0xc, 1, Bar.ports | 1, 0, 0],
};
const intx = {
  virtualBdf: assignment.virtualBdf,
  physicalBdf: assignment.physicalBdf,
  virtualPin: 17,
  physicalPin: 11,
  isPicPin: false,
};

const cleanUp: Array<() => void> = [];
afterEach(() => {
  for (const step of cleanUp.splice(0).reverse()) step();
});

interface Machine {
  readonly hsm: Hsm;
  readonly kvm: FakeKvm;
  readonly vfio: FakeVfio;
  readonly ram: RamMapping;
  readonly lines: string[];
  /** What came to the device model. */
  readonly seen: number[];
  assign(change?: Partial<PcidevAssignment>): void;
  start(): void;
  read(register: number, size?: number): number;
  write(register: number, value: number, size?: number): void;
  /** An access that leaves the guest, answered. */
  go(exit: (typeof exits)[keyof typeof exits] extends (...args: never[]) => infer R ? R : never): void;
  readonly vcpu: FakeVcpu;
  /** Guest-physical ranges that the guest has without an exit, RAM left out. */
  direct(): string[];
}

async function machine(): Promise<Machine> {
  const kvm = new FakeKvm();
  const vfio = new FakeVfio();
  const { root, dispose } = fakeRoot([{ name: NAME, driver: 'vfio-pci', group: 7 }]);
  const runDirectory = mkdtempSync(join(tmpdir(), 'kvm-'));
  cleanUp.push(dispose, () => rmSync(runDirectory, { recursive: true, force: true }));
  const { log, lines } = memoryLog();
  const slot = { bdf: assignment.virtualBdf, driver: 'passthru', options: { physical: NAME }, text: '' };
  const config = { name: 'vm', scenarioPath: undefined, cpuAffinity: [], pci: [slot] };
  const hsm = await openKvmHsm({ config, log, ownsThread: true, runDirectory, kvm, vfio: { vfio, root } });
  cleanUp.push(() => hsm.close());
  await hsm.createVm({ name: 'vm', flags: 0n, cpuAffinity: 1n });
  const memory = map(RAM_BYTES, 'RAM');
  cleanUp.push(() => memory.dispose());
  const ram = { gpa: 0, sizeBytes: RAM_BYTES, bytes: memory.bytes, hostAddress: memory.address, writable: true };
  hsm.mapRam(ram);
  hsm.createIoreqClient();
  const page = new IoreqPage(hsm.ioreqPage);
  const vcpu = kvm.vm.vcpus[0] as FakeVcpu;
  const seen: number[] = [];
  const serve = () => {
    if (!page.isPending(0)) return;
    seen.push(page.address(0));
    if (!page.isWrite(0)) page.setValue(0, 0xdead_beef);
    hsm.notifyIoreqDone(0);
  };
  const go: Machine['go'] = (exit) => {
    vcpu.script.push(exit);
    hsm.waitForIoreqs(serve);
  };
  const address = (register: number) => (0x8000_0000 | (3 << 11) | (register & 0xfc)) >>> 0;
  return {
    hsm,
    kvm,
    vfio,
    ram,
    lines,
    seen,
    vcpu,
    go,
    assign: (change = {}) => hsm.hostFunctions?.assignPcidev({ ...assignment, ...change }),
    start: () => {
      hsm.setVcpuRegs(0, { rip: 0n, cr0: 0x31n, cs: { selector: 0, base: 0n, limit: 0xffff, attributes: 0x9b } });
      hsm.startVm();
    },
    read: (register, size = 4) => {
      go(exits.out(0xcf8, 4, address(register)));
      go(exits.in(0xcfc + (register & 3), size));
      return Number(answers.port(vcpu.run, size));
    },
    write: (register, value, size = 4) => {
      go(exits.out(0xcf8, 4, address(register)));
      go(exits.out(0xcfc + (register & 3), size, value));
    },
    direct: () =>
      [...kvm.vm.memory.values()]
        .filter(({ gpa }) => gpa !== 0)
        .map(({ gpa, sizeBytes }) => `${gpa.toString(16)}+${sizeBytes.toString(16)}`)
        .sort(),
  };
}

async function running(change?: Partial<PcidevAssignment>): Promise<Machine> {
  const vm = await machine();
  vm.assign(change);
  vm.start();
  return vm;
}

/** Messages that go to the guest by the kernel: by vector's eventfd. */
function messages({ kvm, vfio }: Machine, kind: 'msi' | 'msix'): (string | undefined)[] {
  return (vfio.device.interrupts.get(kind) ?? []).map((fd) => {
    const gsi = kvm.vm.irqfds.get(fd);
    const route = kvm.vm.routes.find((r) => r.gsi === gsi);
    return route === undefined || !('address' in route) ? undefined : `${route.address.toString(16)}:${route.data}`;
  });
}

function setVector(vm: Machine, vector: number, data: number, isMasked = false): void {
  const at = Bar.memory + At.table + 16 * vector;
  for (const [offset, value] of [
    [0, 0xfee0_0000],
    [4, 0],
    [8, data],
    [12, isMasked ? 1 : 0],
  ] as const) {
    vm.go(exits.mmio(at + offset, 4, BigInt(value)));
  }
}

const DIRECT = ['100000000+100000', 'c0000000+2000', 'c0004000+4000'];

describe('memory', () => {
  test('the function reaches all RAM of the guest, also what comes later, until it is taken away', async () => {
    const { hsm, kvm, vfio, assign } = await machine();
    expect(vfio.open.size).toBe(0);
    assign();
    expect([...vfio.dma]).toEqual([[0, RAM_BYTES]]);
    expect([...kvm.vm.vfioGroups]).toEqual([1007]);
    const more = map(0x2000, 'more');
    cleanUp.push(() => more.dispose());
    const later = { gpa: 0x4000_0000, sizeBytes: 0x2000, bytes: more.bytes, hostAddress: more.address, writable: true };
    hsm.mapRam(later);
    expect(vfio.dma.get(0x4000_0000)).toBe(0x2000);
    hsm.unmapRam?.(later);
    expect([...vfio.dma.keys()]).toEqual([0]);
    hsm.hostFunctions?.deassignPcidev(assignment);
    expect([...vfio.open]).toEqual([]);
    expect(kvm.vm.vfioGroups.size).toBe(0);
  });

  // Mutation: EEXIST passed on: the memory of a BAR that a guest moved over RAM is mapped nowhere for ever.
  test('memory on other memory is hidden from the function until that is gone, and takes nothing with it', async () => {
    const vm = await machine();
    const memory = map(0x4000, 'more');
    cleanUp.push(() => memory.dispose());
    const at = (gpa: number, sizeBytes: number): RamMapping => {
      const bytes = memory.bytes.subarray(0, sizeBytes);
      return { gpa, sizeBytes, bytes, hostAddress: memory.address, writable: true };
    };
    const [first, over, apart] = [at(0x4000_0000, 0x2000), at(0x4000_0000, 0x4000), at(0x5000_0000, 0x1000)];
    vm.assign();
    for (const one of [first, over, apart]) vm.hsm.mapRam(one);
    expect(vm.vfio.dma.get(0x4000_0000)).toBe(0x2000);
    expect(vm.lines.join('\n')).toContain('guest memory 0x40000000+0x4000 is hidden from functions of the host');
    vm.hsm.unmapRam?.(over);
    expect([...vm.vfio.dma.keys()]).toEqual([0, 0x4000_0000, 0x5000_0000]);
    vm.hsm.mapRam(over);
    // The function comes back after a reset.
    vm.hsm.hostFunctions?.deassignPcidev(assignment);
    vm.assign();
    expect(vm.vfio.dma.get(0x4000_0000)).toBe(0x2000);
    vm.hsm.unmapRam?.(first);
    expect(vm.vfio.dma.get(0x4000_0000)).toBe(0x4000);
  });

  test('memory where the IOMMU has no address is not reached, and the guest goes on', async () => {
    const vm = await running();
    vm.vfio.fails.mapDma = -E.EINVAL;
    const memory = map(0x2000, 'far');
    cleanUp.push(() => memory.dispose());
    const far = { gpa: 2 ** 45, sizeBytes: 0x2000, bytes: memory.bytes, hostAddress: memory.address, writable: true };
    vm.hsm.mapRam(far);
    expect(vm.lines.join('\n')).toContain('is hidden from functions of the host: EINVAL');
    vm.hsm.unmapRam?.(far);
    expect([...vm.vfio.dma.keys()]).toEqual([0]);
  });

  test("BARs are the guest's without an exit, but for the pages of the MSI-X table and of its pending bits", async () => {
    const vm = await running();
    expect(vm.direct()).toEqual(DIRECT);
    expect([...vm.vfio.device.mapped.values()]).toEqual(['0 0+2000', '0 4000+4000', '1 0+100000']);
  });

  test("the rest of the table's page and ports go to the device access by access", async () => {
    const vm = await running();
    vm.go(exits.mmio(Bar.memory + At.table + 0xf00, 4, 0x1234n));
    vm.go(exits.mmio(Bar.memory + At.table + 0xf04, 2));
    vm.go(exits.out(Bar.ports + 4, 2, 0x77));
    vm.go(exits.in(Bar.ports + 0x10, 1));
    expect(vm.vfio.device.accesses).toEqual(['w 0 2f00 4 1234', 'r 0 2f04 2', 'w 3 4 2 77', 'r 3 10 1']);
    expect(answers.port(vm.vcpu.run, 1)).toBe(0x55n);
    expect(vm.seen).toEqual([]);
  });

  test('a BAR that the guest moves is elsewhere, and nowhere while it is sized', async () => {
    const vm = await running();
    vm.write(0x10, 0xffff_ffff);
    expect(vm.read(0x10)).toBe(0xffff_8000);
    expect(vm.direct()).toEqual(['100000000+100000']);
    vm.write(0x10, 0xd000_0000);
    expect(vm.direct()).toEqual(['100000000+100000', 'd0000000+2000', 'd0004000+4000']);
    vm.write(0x18, 2);
    expect(vm.direct()).toContain('200000000+100000');
  });

  // Mutation: BARs left mapped. The host answers an access by a signal, and KVM_RUN fails with EFAULT.
  test('while the function does not decode memory, or sleeps, the guest has none of it', async () => {
    const vm = await running();
    vm.write(4, 1, 2);
    expect(vm.direct()).toEqual([]);
    vm.go(exits.mmio(Bar.memory, 4));
    expect(vm.seen).toEqual([Bar.memory]);
    vm.write(4, 6, 2);
    expect(vm.direct()).toEqual(DIRECT);
    vm.write(At.power + 4, 3, 2);
    expect(vm.direct()).toEqual([]);
    vm.write(At.power + 4, 0, 2);
    expect(vm.direct()).toEqual(DIRECT);
    expect(vm.vfio.device.view.getUint16(4, true)).toBe(6);
  });

  // Mutation: mapped before. Another vCPU's access would be a signal between the two, and end the VM.
  test('the guest has the memory after the device began to decode it, and loses it before it stops', async () => {
    const vm = await running();
    const { device } = vm.vfio;
    const write = device.write.bind(device);
    const direct: string[][] = [];
    device.write = (region, offset, size, value) => {
      direct.push(vm.direct());
      write(region, offset, size, value);
    };
    vm.write(4, 4, 2);
    vm.write(4, 6, 2);
    vm.write(At.power + 4, 3, 2);
    vm.write(At.power + 4, 0, 2);
    expect(direct).toEqual([[], [], [], []]);
    expect(vm.direct()).toEqual(DIRECT);
  });

  // Mutation: by the ports of the BAR: the device has the write, and the VM stands still.
  test('a triple fault powers the VM off with ports over PM1a', async () => {
    const vm = await running();
    vm.write(0x1c, 0x400);
    vm.go(exits.out(0x404, 2, 0x77));
    expect(vm.vfio.device.accesses).toEqual(['w 3 4 2 77']);
    vm.go(exits.reason(KvmExit.Shutdown));
    expect(vm.seen).toEqual([0x404]);
    expect(vm.vfio.device.accesses).toHaveLength(1);
  });

  // Mutation: without whereGuestPutIt the guest ends its VM by a register write.
  test('a BAR beyond what the CPU addresses is nowhere, and the guest goes on', async () => {
    const vm = await running();
    vm.write(0x18, 0x10_0000);
    expect(vm.direct()).toEqual(['c0000000+2000', 'c0004000+4000']);
    expect(vm.lines.join('\n')).toMatch(/SET_MEMSEG .*EINVAL/);
    vm.write(0x18, 1);
    expect(vm.direct()).toEqual(DIRECT);
  });

  test('a BAR over RAM hides nothing of it', async () => {
    const vm = await running();
    vm.write(0x10, 0x8_0000);
    expect(vm.direct()).toEqual(['100000000+100000']);
    expect(vm.lines.join('\n')).toContain('is hidden by what is there');
  });

  test('what may be mapped is whole pages of the areas, without holes', () => {
    const areas = [{ offset: 0, sizeBytes: 0x6800 }];
    expect(mappable({ areas, sizeBytes: 0x6800 }, [{ offset: 0x2ff0, sizeBytes: 0x20 }])).toEqual([
      { offset: 0, sizeBytes: 0x2000 },
      { offset: 0x4000, sizeBytes: 0x2000 },
    ]);
    expect(mappable({ areas: [{ offset: 0, sizeBytes: 0x100 }], sizeBytes: 0x100 }, [])).toEqual([]);
    expect(mappable({ areas: [], sizeBytes: 0x1000 }, [])).toEqual([]);
  });
});

describe('configuration space', () => {
  test("is the device's, with pin, line, slot and ROM of the guest", async () => {
    const vm = await running();
    expect(vm.read(0)).toBe(0x10d3_8086);
    expect(vm.read(0x3c, 2)).toBe(0x01ff);
    vm.write(0x3c, 10, 1);
    expect(vm.read(0x3c, 1)).toBe(10);
    expect(vm.read(0x0e, 1)).toBe(0x80);
    vm.write(0x30, 0xffff_ffff);
    expect(vm.read(0x30)).toBe(0);
    vm.write(0x0c, 0x10, 1);
    expect(vm.vfio.device.config[0x0c]).toBe(0x10);
    expect(vm.seen).toEqual([]);
  });

  test("the ROM register is the device model's where it has the ROM", async () => {
    const vm = await running({ quirk: true });
    vm.read(0x30);
    vm.read(0x2c);
    expect(vm.seen).toHaveLength(1);
  });

  test('MSI has no masks of its own, and MSI-X is off whatever the device says', async () => {
    const vm = await running();
    expect(vm.read(At.msi + 2, 2)).toBe(0x84);
    expect(vm.read(At.msix + 2, 2)).toBe(VECTORS - 1);
  });
});

describe('extended capabilities', () => {
  const aer = 0x1001_0001;
  async function withList(headers: Readonly<Record<number, number>>): Promise<Machine> {
    const vm = await machine();
    for (const [at, header] of Object.entries(headers)) vm.vfio.device.view.setUint32(Number(at), header, true);
    vm.assign();
    vm.start();
    return vm;
  }
  const ecam = (vm: Machine, register: number, size = 4) => {
    vm.go(exits.mmio(0xe000_0000 + (3 << 15) + register, size));
    return Number(answers.mmio(vm.vcpu.run, size));
  };

  test('that are the host’s are not in the list, those behind them are', async () => {
    const vm = await withList({ 256: 0x1401_000e, 320: 0x1801_0010, 384: 0x1c01_0015, 448: aer & 0xfffff });
    expect([0x100, 0x140, 0x180, 0x1c0].map((at) => ecam(vm, at))).toEqual([
      0x1400_0000, 0x1800_0000, 0x1c00_0000, 0x1_0001,
    ]);
    expect(ecam(vm, 0x140, 2)).toBe(0);
    expect(ecam(vm, 0x142, 2)).toBe(0x1800);
    expect(ecam(vm, 0x143, 1)).toBe(0x18);
  });

  test('a list that ends nowhere is no endless one', async () => {
    const vm = await withList({ 256: aer | 0x4000_0000, 1280: 0x1001_0010 });
    expect(ecam(vm, 0x500)).toBe(0x1000_0000);
  });
});

describe('interrupts', () => {
  test('MSI: all messages of the guest, none when it is off', async () => {
    const vm = await running();
    vm.write(At.msi + 4, 0xfee0_1000);
    vm.write(At.msi + 12, 0x43, 2);
    vm.write(At.msi + 2, 0x11, 2);
    expect(messages(vm, 'msi')).toEqual(['fee01000:66', 'fee01000:67']);
    vm.write(At.msi + 12, 0x50, 2);
    expect(messages(vm, 'msi')).toEqual(['fee01000:80', 'fee01000:81']);
    vm.write(At.msi + 2, 0, 2);
    expect(vm.vfio.device.interrupts.size).toBe(0);
    expect(vm.kvm.vm.irqfds.size).toBe(0);
  });

  // Mutation: without the check KVM interrupts by the lower bits, as if the address were the local APICs'.
  test.each([
    ['below 4 GiB', 0, 0x1000_0000],
    ['above 4 GiB', 1, 0xfee0_1000],
  ])('a message to memory (%s) interrupts nobody, and the guest goes on', async (_where, high, low) => {
    const vm = await running();
    vm.write(At.msi + 4, low);
    vm.write(At.msi + 8, high);
    vm.write(At.msi + 12, 0x40, 2);
    vm.write(At.msi + 2, 1, 2);
    expect(messages(vm, 'msi')).toEqual([undefined]);
    expect(vm.lines.join('\n')).toContain('which is no interrupt address: dropped');
    vm.write(At.msi + 4, 0xfee0_1000);
    vm.write(At.msi + 8, 0);
    expect(messages(vm, 'msi')).toEqual(['fee01000:64']);
  });

  test('MSI-X: vectors as the guest lets them through, more of them when it uses more', async () => {
    const vm = await running();
    setVector(vm, 0, 0x41);
    expect(vm.vfio.device.interrupts.size).toBe(0);
    vm.write(At.msix + 2, 0x8000, 2);
    expect(messages(vm, 'msix')).toEqual(['fee00000:65', ...new Array(7).fill(undefined)]);
    setVector(vm, 9, 0x42);
    expect(vm.vfio.device.interrupts.get('msix')).toHaveLength(16);
    expect(messages(vm, 'msix').filter((m) => m !== undefined)).toEqual(['fee00000:65', 'fee00000:66']);
    vm.write(At.msix + 2, 0xc000, 2);
    expect(messages(vm, 'msix').every((m) => m === undefined)).toBe(true);
    vm.write(At.msix + 2, 0x8000, 2);
    expect(messages(vm, 'msix')[9]).toBe('fee00000:66');
    expect(vm.vfio.device.accesses).toEqual([]);
  });

  // Mutation: a vector at a time: with 2048 of them the device thread is busy for seconds by one write.
  test('one write of the guest sets the table of KVM once, however many vectors it connects', async () => {
    const vm = await running();
    for (let vector = 0; vector < VECTORS; vector++) setVector(vm, vector, 0x40 + vector);
    const setRoutes = vi.spyOn(vm.kvm.vm, 'setRoutes');
    const calls = (value: number) => {
      setRoutes.mockClear();
      vm.write(At.msix + 2, value, 2);
      return setRoutes.mock.calls.length;
    };
    expect(calls(0x8000)).toBe(1);
    expect(messages(vm, 'msix')).toEqual(Array.from({ length: VECTORS }, (_, i) => `fee00000:${0x40 + i}`));
    expect(calls(0xc000)).toBe(0);
    expect(vm.kvm.vm.irqfds.size).toBe(0);
    expect(calls(0x8000)).toBe(1);
    expect(messages(vm, 'msix')).not.toContain(undefined);
  });

  test('a masked vector that is signalled is pending, and is connected with its signal', async () => {
    const vm = await running();
    setVector(vm, 0, 0x41);
    vm.write(At.msix + 2, 0x8000, 2);
    setVector(vm, 0, 0x41, true);
    const pending = () => {
      vm.go(exits.mmio(Bar.memory + At.pending, 4));
      return Number(answers.mmio(vm.vcpu.run, 4));
    };
    expect(pending()).toBe(0);
    const [fd = -1] = vm.vfio.device.interrupts.get('msix') ?? [];
    signalEventfd(fd);
    expect(pending()).toBe(1);
    setVector(vm, 0, 0x41);
    expect(vm.kvm.vm.irqfds.has(fd)).toBe(true);
    expect(pending()).toBe(0);
  });

  test('a guest has no more messages than the function, and none beyond what KVM takes', async () => {
    const vm = await running();
    vm.write(At.msi + 4, 0xfee0_1000);
    vm.write(At.msi + 2, 0x71, 2);
    expect(vm.vfio.device.interrupts.get('msi')).toHaveLength(4);
    vm.write(At.msi + 2, 0, 2);
    // Mutation: the error of KVM_SET_GSI_ROUTING passed on: the guest ends its VM by unmasking a vector.
    const { setRoutes } = vm.kvm.vm;
    vm.kvm.vm.setRoutes = (routes) => {
      if (routes.some((route) => 'address' in route)) throw new HostError('KVM_SET_GSI_ROUTING', E.EINVAL);
      setRoutes.call(vm.kvm.vm, routes);
    };
    vm.write(At.msix + 2, 0x8000, 2);
    setVector(vm, 0, 0x41);
    expect(messages(vm, 'msix').every((m) => m === undefined)).toBe(true);
    expect(vm.lines.join('\n')).toContain('interrupt 0 cannot be had');
  });

  test('a host with fewer messages gives those', async () => {
    const vm = await running();
    vm.vfio.device.room = 3;
    setVector(vm, 0, 0x41);
    vm.write(At.msix + 2, 0x8000, 2);
    expect(vm.vfio.device.interrupts.get('msix')).toHaveLength(3);
    expect(messages(vm, 'msix')[0]).toBe('fee00000:65');
  });

  test('the line is asserted and unmasked in the kernel, gives way to MSI-X and comes back', async () => {
    const vm = await machine();
    vm.assign();
    vm.hsm.hostFunctions?.setPtdevIntx(intx);
    const { device } = vm.vfio;
    const [fd = -1] = device.interrupts.get('intx') ?? [];
    expect(vm.kvm.vm.irqfds.get(fd)).toBe(17);
    expect(vm.kvm.vm.resampleFds.get(fd)).toBe(device.unmaskFd);
    vm.start();
    vm.write(At.msix + 2, 0x8000, 2);
    expect([...device.interrupts.keys()]).toEqual(['msix']);
    expect(vm.kvm.vm.irqfds.has(fd)).toBe(false);
    vm.write(At.msix + 2, 0, 2);
    expect([...device.interrupts.keys()]).toEqual(['intx']);
    vm.hsm.pauseVm();
    vm.hsm.hostFunctions?.resetPtdevIntx(intx);
    expect(device.interrupts.size).toBe(0);
    expect(vm.kvm.vm.irqfds.size).toBe(0);
  });

  test('a device without a pin has no line, and starts', async () => {
    const vm = await machine();
    vm.vfio.device.config[0x3d] = 0;
    vm.assign();
    vm.hsm.hostFunctions?.setPtdevIntx(intx);
    vm.start();
    expect(vm.read(0x3d, 1)).toBe(0);
    vm.write(At.msix + 2, 0x8000, 2);
    vm.write(At.msix + 2, 0, 2);
    expect(vm.vfio.device.interrupts.size).toBe(0);
    expect(vm.lines.join('\n')).not.toContain('its line');
    vm.hsm.pauseVm();
    vm.hsm.hostFunctions?.resetPtdevIntx(intx);
  });

  // Mutation: a reset that leaves it alone. The device masked its line until an end of interrupt that never comes.
  test('after S3 the line interrupts again, whatever the guest had not finished', async () => {
    const vm = await machine();
    vm.assign();
    vm.hsm.hostFunctions?.setPtdevIntx(intx);
    vm.start();
    vm.hsm.pauseVm();
    expect(takeEventfd(vm.vfio.device.unmaskFd ?? -1)).toBe(0);
    vm.hsm.resetVm();
    expect(takeEventfd(vm.vfio.device.unmaskFd ?? -1)).toBe(1);
    expect([...vm.vfio.device.interrupts.keys()]).toEqual(['intx']);
  });

  test('a line beyond the pins is refused with what to do', async () => {
    const vm = await machine();
    vm.assign();
    expect(() => vm.hsm.hostFunctions?.setPtdevIntx({ ...intx, virtualPin: 24 })).toThrow(
      expect.objectContaining({ errno: E.EINVAL, hint: expect.stringContaining('24 pins') }),
    );
  });
});

describe('giving it back', () => {
  test('nothing is open after the VM, whatever the guest had set up', async () => {
    const vm = await running();
    setVector(vm, 0, 0x41);
    vm.write(At.msix + 2, 0x8000, 2);
    vm.hsm.pauseVm();
    vm.hsm.destroyVm();
    expect([...vm.vfio.open]).toEqual([]);
    expect(vm.vfio.device.mapped.size).toBe(0);
    expect(vm.vfio.device.interrupts.size).toBe(0);
    expect(vm.kvm.vm.memory.size).toBe(0);
    expect(vm.kvm.vm.irqfds.size).toBe(0);
  });

  test('a reset gives it back and takes it again, as it was at first', async () => {
    const vm = await running();
    vm.write(0x10, 0xd000_0000);
    vm.hsm.pauseVm();
    vm.hsm.hostFunctions?.deassignPcidev(assignment);
    expect([...vm.vfio.open]).toEqual([]);
    vm.hsm.resetVm();
    vm.assign();
    vm.start();
    expect(vm.direct()).toEqual(DIRECT);
  });

  test.each([
    ['the group is in use', { group: -E.EBUSY }, /IOMMU group 7 of 0000:02:00\.0 is in use by another process/],
    ['no interrupt remapping', { setIommu: -E.EPERM }, /does not remap interrupts/],
    ['too much locked memory', { mapDma: -E.ENOMEM }, /guest memory 0x0\+0x100000 cannot be pinned/],
    ['memory out of reach', { mapDma: -E.EINVAL }, /VFIO_IOMMU_MAP_DMA: EINVAL/],
    ['the function is in use', { device: -E.EBUSY }, /0000:02:00\.0 is in use by another process/],
  ] as const)('%s: one line, and nothing is held', async (_what, fails, message) => {
    const vm = await machine();
    const positive = Object.fromEntries(
      Object.entries(fails).map(([step, errno]) => [step, step === 'group' || step === 'device' ? -errno : errno]),
    );
    Object.assign(vm.vfio.fails, positive);
    expect(() => vm.assign()).toThrow(message);
    expect([...vm.vfio.open]).toEqual([]);
    expect(vm.direct()).toEqual([]);
  });

  test('a group that KVM does not take is closed, with its container', async () => {
    const vm = await machine();
    vm.kvm.vm.vfioGroup = () => {
      throw new HostError('argument of KVM_DEV_VFIO_GROUP: mmap', E.ENOMEM);
    };
    expect(() => vm.assign()).toThrow(/mmap/);
    expect([...vm.vfio.open]).toEqual([]);
  });

  test('a group that is not viable names who holds it back', async () => {
    const vm = await machine();
    vm.vfio.isViable = false;
    expect(() => vm.assign()).toThrow(/IOMMU group 7 of 0000:02:00\.0 cannot be given away/);
    expect([...vm.vfio.open]).toEqual([]);
  });
});

describe('reset', () => {
  test('one that VFIO can reset was, when it was opened', async () => {
    const vm = await machine();
    vm.assign();
    expect(vm.vfio.device.resets).toEqual([]);
  });

  test("one that cannot be reset by itself is, with its bus, if all of the bus is the VM's", async () => {
    const vm = await machine();
    vm.vfio.device.hasReset = false;
    vm.vfio.device.dependentsNow = [{ group: 7, name: NAME }];
    vm.assign();
    expect(vm.vfio.device.resets).toEqual(['bus with groups 7']);
  });

  // A root port whose link does not come up again is ENOTTY, which alone would read as "no such call".
  test('where that fails, the line says that it was tried', async () => {
    const vm = await machine();
    vm.vfio.device.hasReset = false;
    vm.vfio.device.dependentsNow = [{ group: 7, name: NAME }];
    vm.vfio.device.hotResetResult = -constants.errno.ENOTTY;
    vm.assign();
    expect(vm.lines.join('\n')).toContain("is not reset: that of its bus failed, the kernel's log may say why (ENOTTY");
  });

  test('and is not where others are on it, with a line', async () => {
    const vm = await machine();
    vm.vfio.device.hasReset = false;
    vm.vfio.device.dependentsNow = [
      { group: 7, name: NAME },
      { group: 8, name: '0000:02:00.1' },
    ];
    vm.assign();
    expect(vm.vfio.device.resets).toEqual([]);
    expect(vm.lines.join('\n')).toContain('is not reset: its bus has 0000:02:00.1, too');
  });
});
