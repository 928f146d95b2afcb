/** The software engine, by guests of a few instructions. */
import { closeSync, openSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, describe, expect, test } from 'vitest';
import { Eventfd } from '../../../devicemodel/core/host/eventfd.ts';
import { HsmError } from '../../../devicemodel/core/hsm/errors.ts';
import { IoreqPage, IoreqType } from '../../../devicemodel/core/ioreq-page.ts';
import type { GuestBus } from '../../../hypervisor/embedded/cpu-engine.ts';
import { forgetSharedRegions } from '../../../hypervisor/embedded/shared-region.ts';
import { SoftEngine } from '../../../hypervisor/soft/soft-engine.ts';
import { describeHsm, ivshmemVdev } from '../../support/hsm-conformance.ts';
import { memoryLog } from '../../support/memory-log.ts';
import { asm, CODE_BASE, dword, SoftVm, type SoftVmOptions } from '../../support/soft-vm.ts';

/** Where guests leave results. */
const RESULT = 0x6000;
const LAPIC = 0xfee0_0000;
const IOAPIC = 0xfec0_0000;

const vms: SoftVm[] = [];
afterEach(() => {
  for (const vm of vms.splice(0)) vm.dispose();
  forgetSharedRegions();
});

async function makeVm(options: SoftVmOptions = {}): Promise<SoftVm> {
  const vm = await SoftVm.create(options);
  vms.push(vm);
  return vm;
}

interface Access {
  readonly type: number;
  readonly isWrite: boolean;
  readonly address: number;
  readonly size: number;
  readonly value: number;
}

/** A device model that notes every access and answers reads with `answer`. */
function recorder(answer = 0) {
  const accesses: Access[] = [];
  const onRequest = (page: IoreqPage) => {
    const isWrite = page.isWrite(0);
    accesses.push({
      type: page.type(0),
      isWrite,
      address: page.address(0),
      size: page.size(0),
      value: isWrite ? page.value(0) : 0,
    });
    if (!isWrite) page.setValue(0, answer);
  };
  return { accesses, onRequest };
}

// Mutation: without `#isInterrupted` and `stopSoon` in SoftEngine.interrupt, the guest goes on for the rest of its slice.
test('a wait that is interrupted from inside a request ends at once: the guest does not get the rest of its slice', async () => {
  const vm: SoftVm = await makeVm({ onRequest: () => vm.hsm.interruptWait() });
  const count = asm.incMemory(RESULT);
  vm.start([...asm.outAl(0x80), ...count, ...asm.jump(-count.length - 2)]);
  expect(await vm.turn()).toBe('idle');
  const early = vm.word(RESULT);
  // A turn of the CPU that nobody interrupts.
  await vm.turn();
  expect(early).toBeLessThan((vm.word(RESULT) - early) / 4);
});

// Mutation: `warn` in mapMemory, and a guest that moves a BAR without end fills the host's logs.
test.each([
  ['beyond what its CPU reaches', 0x1_0000_0000],
  ['over its RAM', 0x10_0000],
])('a guest that moves shared memory %s again and again is told of a few times', async (_where, at) => {
  const { log, lines } = memoryLog();
  const engine = new SoftEngine(log);
  await engine.create({ page: new IoreqPage(new Uint8Array(4096)) } as unknown as GuestBus);
  engine.ram.allocate([{ base: 0, size: 0x20_0000 }]);
  for (let i = 0; i < 1000; i++) engine.mapMemory(at, new Uint8Array(4096), undefined, true).dispose();
  engine.destroy();
  expect(lines.length).toBeGreaterThan(0);
  expect(lines.length).toBeLessThan(100);
});

describeHsm('soft', async () => {
  const vm = await SoftVm.create();
  vm.dispose();
  const { openSoftHsm } = await import('../../../hypervisor/soft/open.ts');
  const { silentLog } = await import('../../../devicemodel/core/log.ts');
  const { mkdtempSync, rmSync } = await import('node:fs');
  const directory = mkdtempSync(join(tmpdir(), 'soft-conformance-'));
  const fds = [new Eventfd(), new Eventfd()];
  const notEventfd = openSync('/dev/null', 'r');
  return {
    hsm: await openSoftHsm({
      config: { name: 'conformance', scenarioPath: undefined },
      log: silentLog,
      runDirectory: directory,
    }),
    eventfd: fds[0]?.fd as number,
    otherEventfd: fds[1]?.fd as number,
    notEventfd,
    dispose: () => {
      for (const fd of fds) fd.dispose();
      closeSync(notEventfd);
      forgetSharedRegions();
      rmSync(directory, { recursive: true, force: true });
    },
  };
});

const endOfInterrupt = asm.storeImmediate(LAPIC + 0xb0, 0);

/** A handler at `at` that counts in RESULT. */
function countingHandler(vm: SoftVm, vector: number, at: number, more: readonly number[] = []): void {
  vm.setGate(vector, at);
  vm.ram.set([...asm.incMemory(RESULT), ...more, ...endOfInterrupt, ...asm.iret], at);
}

describe('accesses', () => {
  test('ports of every width reach the device model with their value, and reads come back', async () => {
    const { accesses, onRequest } = recorder(0x1234_5678);
    const vm = await makeVm({ onRequest });
    vm.start([
      ...asm.movEax(0xa1b2_c3d4),
      ...asm.outAl(0x3f8),
      ...asm.outEax(0xc000),
      ...asm.inEax(0xc004),
      ...asm.storeEax(RESULT),
      ...asm.movEax(0),
      ...asm.inAl(0x64),
      ...asm.storeEax(RESULT + 4),
      ...asm.hlt,
    ]);
    await vm.runUntil(() => accesses.length === 4);
    expect(accesses.map((a) => [a.type, a.isWrite, a.address, a.size, a.value])).toEqual([
      [IoreqType.PortIo, true, 0x3f8, 1, 0xd4],
      [IoreqType.PortIo, true, 0xc000, 4, 0xa1b2_c3d4],
      [IoreqType.PortIo, false, 0xc004, 4, 0],
      [IoreqType.PortIo, false, 0x64, 1, 0],
    ]);
    expect([vm.word(RESULT), vm.word(RESULT + 4)]).toEqual([0x1234_5678, 0x78]);
  });

  test('memory that is not RAM is an MMIO request', async () => {
    const { accesses, onRequest } = recorder(0xcafe_f00d);
    const vm = await makeVm({ onRequest });
    vm.start([
      ...asm.loadEax(0xfed0_00f0),
      ...asm.storeEax(0xdf00_0010),
      ...asm.storeEax(RESULT),
      ...[0x66, 0xa3, ...dword(0xdf00_0020)], // mov [..], ax
      ...[0xa2, ...dword(0xdf00_0031)], // mov [..], al
      ...asm.hlt,
    ]);
    await vm.runUntil(() => accesses.length === 4);
    expect(accesses.map((a) => [a.address, a.size, a.value])).toEqual([
      [0xfed0_00f0, 4, 0],
      [0xdf00_0010, 4, 0xcafe_f00d],
      [0xdf00_0020, 2, 0xf00d],
      [0xdf00_0031, 1, 0x0d],
    ]);
    expect(vm.word(RESULT)).toBe(0xcafe_f00d);
  });

  test('CF8/CFC arrive as config requests, the firmware area and the VGA window are RAM', async () => {
    const { accesses, onRequest } = recorder(0x8086);
    const vm = await makeVm({ onRequest });
    vm.start([
      ...asm.movEax(0x8000_f810),
      ...asm.outEax(0xcf8),
      ...asm.inEax(0xcfc),
      ...asm.storeEax(0xf_0000),
      ...asm.loadEax(0xf_0000),
      ...asm.storeEax(0xa_0000),
      ...asm.loadEax(0xa_0000),
      ...asm.storeEax(RESULT),
      ...asm.hlt,
    ]);
    await vm.runUntil(() => vm.word(RESULT) !== 0);
    expect(accesses).toHaveLength(1);
    expect(accesses[0]?.type).toBe(IoreqType.PciConfig);
    expect([vm.word(RESULT), vm.word(0xa_0000)]).toEqual([0x8086, 0x8086]);
  });

  test('memory mapped by mapRam is served from its bytes, and goes again', async () => {
    const { accesses, onRequest } = recorder(0xffff_ffff);
    const vm = await makeVm({ onRequest });
    const bytes = new Uint8Array(0x20_0000);
    new DataView(bytes.buffer).setUint32(0x1000, 0x600d_f00d, true);
    const mapping = { gpa: 0x8020_0000, sizeBytes: bytes.length, bytes, hostAddress: 0n, writable: true };
    vm.hsm.mapRam(mapping);
    vm.start([
      ...asm.loadEax(0x8020_1000),
      ...asm.storeEax(RESULT),
      ...asm.storeEax(0x8020_1004),
      ...asm.inAl(0x80),
      ...asm.loadEax(0x8020_1000),
      ...asm.storeEax(RESULT + 4),
      ...asm.hlt,
    ]);
    await vm.runUntil(() => {
      if (accesses.length === 1 && accesses[0]?.address === 0x80) vm.hsm.unmapRam?.(mapping);
      return vm.word(RESULT + 4) !== 0;
    });
    expect(vm.word(RESULT)).toBe(0x600d_f00d);
    expect(new DataView(bytes.buffer).getUint32(0x1004, true)).toBe(0x600d_f00d);
  });

  test('real-mode code starts where a waking vector points', async () => {
    const { accesses, onRequest } = recorder();
    const vm = await makeVm({ onRequest });
    vm.start([0xb0, 0x5a, 0xe6, 0x80, 0xf4], 'real'); // mov al,5a; out 80,al; hlt
    await vm.runUntil(() => accesses.length === 1);
    expect([accesses[0]?.address, accesses[0]?.value]).toEqual([0x80, 0x5a]);
  });
});

describe('the legacy VGA window', () => {
  const write = [...asm.storeImmediate(0xb8000, 0x1f41), ...asm.outAl(0x80), ...asm.hlt, ...asm.jump(-3)];

  test('is the VGA of a VM that has one', async () => {
    const { accesses, onRequest } = recorder();
    const vm = await makeVm({ onRequest, drivers: ['hostbridge', 'virtio-gpu'] });
    vm.start(write);
    await vm.runUntil(() => accesses.length === 2);
    expect(accesses[0]).toMatchObject({ isWrite: true, address: 0xb8000, size: 4, value: 0x1f41 });
  });

  test('is RAM without one', async () => {
    const { accesses, onRequest } = recorder();
    const vm = await makeVm({ onRequest, drivers: ['hostbridge'] });
    vm.start(write);
    await vm.runUntil(() => accesses.length > 0);
    expect(accesses.map(({ address }) => address)).toEqual([0x80]);
    expect(vm.word(0xb8000)).toBe(0x1f41);
  });
});

describe('interrupts', () => {
  /** Interrupts on, then HLT for ever. */
  const idle = [...asm.sti, ...asm.hlt, ...asm.jump(-3)];

  test('an MSI wakes a halted CPU; each message counts', async () => {
    const vm = await makeVm();
    countingHandler(vm, 0x41, 0x2000);
    vm.start(idle);
    await vm.step();
    for (let sent = 1; sent <= 20; sent++) {
      vm.hsm.injectMsi({ address: 0xfee0_0000, data: 0x41 });
      await vm.runUntil(() => vm.word(RESULT) === sent, `message ${sent}`);
    }
  });

  test('an MSI that comes while interrupts are off is delivered when they are on', async () => {
    const { accesses, onRequest } = recorder();
    const vm = await makeVm({ onRequest });
    countingHandler(vm, 0x41, 0x2000);
    vm.start([...asm.outAl(0x80), ...asm.loadEax(RESULT), ...asm.storeEax(RESULT + 4), ...idle]);
    const serve = () => {
      if (accesses.length === 1) vm.hsm.injectMsi({ address: 0xfee0_0000, data: 0x41 });
      return vm.word(RESULT) === 1;
    };
    await vm.runUntil(serve);
    expect(vm.word(RESULT + 4)).toBe(0);
  });

  test('an interrupt raised from inside an MMIO write comes after it, with registers in place', async () => {
    // A loop hot enough to be compiled: mov [mmio], ecx; dec ecx; jnz. The handler must see a consistent frame.
    const rounds = 50_000;
    let writes = 0;
    const vm = await makeVm({
      onRequest: () => {
        writes++;
        if (writes % 100 === 0) vm.hsm.injectMsi({ address: 0xfee0_0000, data: 0x41 });
      },
    });
    countingHandler(vm, 0x41, 0x2000);
    vm.start([
      ...asm.sti,
      ...[0xb9, ...dword(rounds)],
      ...[0x89, 0x0d, ...dword(0xdf00_0000)], // mov [df000000], ecx
      0x49, // dec ecx
      ...[0x75, 0xf7], // jnz to the mov
      ...asm.storeImmediate(RESULT + 4, 1),
      ...asm.hlt,
      ...asm.jump(-3),
    ]);
    await vm.runUntil(() => vm.word(RESULT + 4) === 1);
    expect(writes).toBe(rounds);
    expect(vm.word(RESULT)).toBeGreaterThan(0);
  });

  /** The guest programs pin 17, and says so at RESULT + 4. */
  const listenAt17 = (entry: number) => [
    ...asm.storeImmediate(IOAPIC, 0x10 + 2 * 17),
    ...asm.storeImmediate(IOAPIC + 0x10, entry),
    ...asm.storeImmediate(RESULT + 4, 1),
    ...idle,
  ];
  /** Level-triggered, vector 50. */
  const ACTIVE_LOW = 0xa050;
  const ACTIVE_HIGH = 0x8050;

  // Mutation: the level taken for the assertion, whatever the polarity: the device's release is what interrupts, for ever.
  for (const [name, entry, asserted, released] of [
    ['low, as INTx is', ACTIVE_LOW, 'low', 'high'],
    ['high', ACTIVE_HIGH, 'high', 'low'],
  ] as const) {
    test(`a level line that is active ${name}, comes again until the device releases it`, async () => {
      let isAsserted = false;
      const vm = await makeVm({
        onRequest: (page) => {
          if (page.address(0) !== 0x81 || vm.word(RESULT) !== 3) return;
          isAsserted = false;
          vm.hsm.setIrqLine(17, released);
        },
      });
      countingHandler(vm, 0x50, 0x2000, asm.outAl(0x81));
      vm.start(listenAt17(entry));
      vm.hsm.setIrqLine(17, released);
      await vm.runUntil(() => vm.word(RESULT + 4) === 1);
      for (let i = 0; i < 20; i++) await vm.step();
      expect(vm.word(RESULT)).toBe(0);
      isAsserted = true;
      vm.hsm.setIrqLine(17, asserted);
      await vm.runUntil(() => !isAsserted);
      for (let i = 0; i < 20; i++) await vm.step();
      expect(vm.word(RESULT)).toBe(3);
    });
  }

  test('a line that is asserted before the guest says what its level means interrupts from then on', async () => {
    const vm = await makeVm({
      onRequest: (page) => {
        if (page.address(0) === 0x81) vm.hsm.setIrqLine(17, 'high');
      },
    });
    countingHandler(vm, 0x50, 0x2000, asm.outAl(0x81));
    vm.hsm.setIrqLine(17, 'low');
    vm.start(listenAt17(ACTIVE_LOW));
    await vm.runUntil(() => vm.word(RESULT) === 1);
    for (let i = 0; i < 20; i++) await vm.step();
    expect(vm.word(RESULT)).toBe(1);
  });

  test('a pin that nothing is connected to is silent, however the guest programs it', async () => {
    const vm = await makeVm();
    countingHandler(vm, 0x50, 0x2000);
    vm.start(listenAt17(ACTIVE_LOW));
    await vm.runUntil(() => vm.word(RESULT + 4) === 1);
    for (let i = 0; i < 20; i++) await vm.step();
    expect(vm.word(RESULT)).toBe(0);
  });

  test('an ISA edge reaches the PIC, and gsi 2 is its line 0', async () => {
    const vm = await makeVm();
    const picEnd = [...asm.movAl(0x20), ...asm.outAl(0x20)];
    for (const [vector, at, counter] of [
      [0x20, 0x2000, RESULT],
      [0x24, 0x2100, RESULT + 4],
    ] as const) {
      vm.setGate(vector, at);
      vm.ram.set([0x50, 0x52, ...asm.incMemory(counter), ...picEnd, 0x5a, 0x58, ...asm.iret], at); // eax, edx kept
    }
    const initialize = [
      [0x20, 0x11],
      [0x21, 0x20],
      [0x21, 0x04],
      [0x21, 0x01],
      [0x21, 0xee], // lines 0 and 4 on
    ].flatMap(([port, value]) => [...asm.movAl(value as number), ...asm.outAl(port as number)]);
    vm.start([...initialize, ...asm.storeImmediate(RESULT + 8, 1), ...idle]);
    await vm.runUntil(() => vm.word(RESULT + 8) === 1);
    vm.hsm.setIrqLine(4, 'rising-pulse');
    await vm.runUntil(() => vm.word(RESULT + 4) === 1);
    vm.hsm.setIrqLine(2, 'rising-pulse');
    await vm.runUntil(() => vm.word(RESULT) === 1);
    expect(vm.word(RESULT + 4)).toBe(1);
  });

  test('the local APIC timer wakes an idle CPU, which uses no time in between', async () => {
    const vm = await makeVm();
    countingHandler(vm, 0x60, 0x2000);
    vm.start([
      ...asm.storeImmediate(LAPIC + 0x3e0, 0xb), // divide by 1: 1 GHz
      ...asm.storeImmediate(LAPIC + 0x320, 0x2_0060), // periodic
      ...asm.storeImmediate(LAPIC + 0x380, 20_000_000), // 20 ms
      ...idle,
    ]);
    let waits = 0;
    await vm.runUntil(() => {
      waits++;
      return vm.word(RESULT) >= 5;
    });
    expect(waits).toBeLessThan(100); // one promise a tick, give or take; never a busy loop
  });
});

describe('NMI', () => {
  const ICR = LAPIC + 0x300;
  const enableApic = asm.storeImmediate(LAPIC + 0xf0, 0x1ff);
  const SPIN_THEN_STORE = (at: number) => [0xb9, ...dword(1_000_000), 0xe2, 0xfe, ...asm.incMemory(at)];
  const start = async (code: readonly number[]) => {
    const vm = await makeVm({});
    countingHandler(vm, 2, 0x2000);
    vm.start([...enableApic, ...code]);
    return vm;
  };

  // Without #takeNmiCommand the command register keeps the command and nothing is delivered.
  test.each([
    ['to its own id', [...asm.storeImmediate(ICR + 0x10, 0), ...asm.storeImmediate(ICR, 0x4400)]],
    ['shorthand self', asm.storeImmediate(ICR, 0x4_4400)],
    ['shorthand all', asm.storeImmediate(ICR, 0x8_4400)],
    ['broadcast', [...asm.storeImmediate(ICR + 0x10, 0xff00_0000 | 0), ...asm.storeImmediate(ICR, 0x4400)]],
  ])('%s, with interrupts off, arrives while the CPU runs', async (_, command) => {
    const vm = await start([...asm.cli, ...command, ...SPIN_THEN_STORE(0x4000), ...asm.jump(-2)]);
    await vm.runUntil(() => vm.word(0x4000) === 1);
    expect(vm.word(RESULT)).toBe(1);
  });

  test('wakes a CPU that halted with interrupts off, each time', async () => {
    const vm = await start([
      ...asm.cli,
      ...asm.storeImmediate(ICR, 0x4_4400),
      ...asm.hlt,
      ...asm.incMemory(0x4000),
      ...asm.storeImmediate(ICR, 0x4_4400),
      ...asm.hlt,
      ...asm.incMemory(0x4000),
      ...asm.hlt,
    ]);
    await vm.runUntil(() => vm.word(0x4000) === 2);
    expect(vm.word(RESULT)).toBe(2);
  });

  test('for another CPU it is not taken', async () => {
    const vm = await start([
      ...asm.storeImmediate(ICR, 0xc_4400), // all but self
      ...asm.storeImmediate(ICR + 0x10, 0x0500_0000),
      ...asm.storeImmediate(ICR, 0x4400),
      ...SPIN_THEN_STORE(0x4000),
      ...asm.jump(-2),
    ]);
    await vm.runUntil(() => vm.word(0x4000) === 1);
    expect(vm.word(RESULT)).toBe(0);
  });

  test('also as a message of a device', async () => {
    const vm = await start([...asm.cli, ...asm.incMemory(0x4000), ...asm.hlt, ...asm.incMemory(0x4000), ...asm.hlt]);
    await vm.runUntil(() => vm.word(0x4000) === 1);
    await vm.step();
    vm.hsm.injectMsi({ address: 0xfee0_0000, data: 0x400 });
    await vm.runUntil(() => vm.word(0x4000) === 2);
    expect(vm.word(RESULT)).toBe(1);
  });
});

describe('what was served comes before the wait', () => {
  // Without #hasServed the slice of the last access returns the promise of the sleep.
  test('a guest that prints and halts gives the device model a turn first', async () => {
    const { accesses, onRequest } = recorder();
    const vm = await makeVm({ onRequest });
    vm.start([...asm.movAl(0x41), ...asm.outAl(0xf8), ...asm.cli, ...asm.hlt]);
    for (let i = 0; accesses.length === 0 && i < 1000; i++) expect(vm.turn()).not.toBeInstanceOf(Promise);
    expect(accesses).toHaveLength(1);
    expect(vm.turn()).toBeInstanceOf(Promise);
  });
});

describe('life', () => {
  test('a guest that shuts down is reported once, powered off in its name, and stands still', async () => {
    let faults = 0;
    const { accesses, onRequest } = recorder();
    const vm = await makeVm({ onRequest, onTripleFault: () => faults++ });
    const noIdt = 0x3000;
    vm.start([0x0f, 0x01, 0x1d, ...dword(noIdt), 0xcc]); // lidt with limit 0; int3
    await vm.runUntil(() => faults > 0);
    await vm.step();
    expect(faults).toBe(1);
    expect(accesses.map((a) => [a.isWrite, a.address, a.size, a.value])).toEqual([[true, 0x404, 2, 0x3400]]); // S5
  });

  test('after a shutdown a reset brings the CPU back', async () => {
    let faults = 0;
    const { accesses, onRequest } = recorder();
    const vm = await makeVm({ onRequest, onTripleFault: () => faults++ });
    vm.start([0x0f, 0x01, 0x1d, ...dword(0x3000), 0xcc]);
    await vm.runUntil(() => faults > 0);
    vm.hsm.pauseVm();
    vm.hsm.destroyIoreqClient();
    vm.hsm.resetVm();
    accesses.length = 0;
    vm.start([...asm.outAl(0x80), ...asm.hlt]);
    await vm.runUntil(() => accesses.length === 1);
  });

  test('a request that is not answered stops the guest until the VM is reset', async () => {
    const { accesses, onRequest } = recorder();
    const vm = await makeVm({ onRequest });
    vm.holdAnswers = true;
    const code = [...asm.outAl(0xf9), ...asm.outAl(0x80), ...asm.hlt];
    vm.start(code);
    await vm.runUntil(() => accesses.length === 1);
    expect(vm.turn()).toBe('pending');
    expect(accesses).toHaveLength(1);
    vm.hsm.pauseVm();
    vm.hsm.clearIoreqs();
    vm.hsm.destroyIoreqClient();
    vm.hsm.resetVm();
    vm.holdAnswers = false;
    vm.start(code);
    await vm.runUntil(() => accesses.length === 3);
    expect(accesses.map((a) => a.address)).toEqual([0xf9, 0xf9, 0x80]);
  });

  // Mutation: drop what the guest writes while an answer is held; the CPU ends only with its compiled block.
  test('what is written behind a request that is held comes after it, in order', async () => {
    const { accesses, onRequest } = recorder();
    const vm = await makeVm({
      onRequest: (page) => {
        onRequest(page);
        // Often enough that the loop is compiled; each of its accesses is held at times.
        vm.holdAnswers = accesses.length > 60_000 && accesses.length % 7 === 0;
      },
    });
    const stores = [0, 4, 8].flatMap((offset) => asm.storeImmediate(0xd000_0000 + offset, offset));
    vm.start([...stores, ...asm.outAl(0x80), ...asm.jump(-stores.length - 7)]);
    let held = 0;
    await vm.runUntil(() => {
      if (vm.holdAnswers) {
        held++;
        const before = accesses.length;
        expect(vm.turn()).toBe('pending');
        expect(accesses).toHaveLength(before);
        vm.holdAnswers = false;
        vm.hsm.notifyIoreqDone(0);
      }
      return held === 200;
    });
    const order = [0xd000_0000, 0xd000_0004, 0xd000_0008, 0x80];
    expect(accesses.findIndex(({ address }, i) => address !== order[i % 4])).toBe(-1);
  });

  test('what is written behind a request that is held is gone with a reset', async () => {
    const { accesses, onRequest } = recorder();
    const vm = await makeVm({ onRequest });
    vm.holdAnswers = true;
    vm.start([...asm.outAl(0xf9), ...asm.outAl(0x80), ...asm.outAl(0x81), ...asm.hlt]);
    await vm.runUntil(() => accesses.length === 1);
    expect(vm.turn()).toBe('pending');
    vm.hsm.pauseVm();
    vm.hsm.clearIoreqs();
    vm.hsm.destroyIoreqClient();
    vm.hsm.resetVm();
    vm.holdAnswers = false;
    vm.start([...asm.outAl(0x82), ...asm.hlt]);
    await vm.runUntil(() => accesses.length > 1);
    await vm.step();
    expect(accesses.map((a) => a.address)).toEqual([0xf9, 0x82]);
  });

  test('pausing from inside a request stops the guest there', async () => {
    const { accesses, onRequest } = recorder();
    const vm = await makeVm({
      onRequest: (page) => {
        onRequest(page);
        if (accesses.length === 3) vm.hsm.pauseVm();
      },
    });
    vm.start([...asm.outAl(0x80), ...asm.jump(-7)]);
    await vm.runUntil(() => accesses.length >= 3);
    const wait = vm.turn();
    vm.hsm.destroyIoreqClient();
    expect(await wait).toBe('closed');
    // The access that is under way ends; the next one may begin before the CPU has come to a stop, but none is served.
    expect(accesses.length).toBeLessThanOrEqual(3);
  });

  test('what the device model throws while it serves comes out of the wait', async () => {
    const vm = await makeVm({
      onRequest: () => {
        throw new HsmError('NOTIFY_REQUEST_FINISH', 5);
      },
    });
    vm.start([...asm.outAl(0x80), ...asm.hlt]);
    expect(() => vm.turn()).toThrow('NOTIFY_REQUEST_FINISH');
  });

  test('code that the host replaces is not run from the old compilation', async () => {
    const vm = await makeVm();
    // mov eax, 1; store; loop for ever: compiled after a while
    const program = (value: number) => [...asm.movEax(value), ...asm.storeEax(RESULT), ...asm.jump(-12)];
    vm.start(program(1));
    await vm.runUntil(() => vm.word(RESULT) === 1);
    for (let i = 0; i < 30; i++) {
      await vm.step();
      await new Promise((resolve) => setImmediate(resolve));
    }
    vm.hsm.pauseVm();
    vm.hsm.destroyIoreqClient();
    vm.hsm.resetVm();
    vm.start(program(2));
    await vm.runUntil(() => vm.word(RESULT) === 2);
    expect(vm.ram[CODE_BASE + 1]).toBe(2);
  });

  test('a running guest sees code that a device wrote', async () => {
    const vm = await makeVm();
    // for ever: call the function at 3000, store what it returns
    vm.ram.set([...asm.movEax(1), 0xc3], 0x3000);
    const call = 0x3000 - (CODE_BASE + 5);
    vm.start([0xe8, ...dword(call), ...asm.storeEax(RESULT), ...asm.jump(-12)]);
    for (let i = 0; i < 30; i++) await vm.step(); // long enough to be compiled
    vm.memory.write(0x3000, Uint8Array.from([...asm.movEax(2), 0xc3]));
    await vm.runUntil(() => vm.word(RESULT) === 2);
  });

  test('more memory than a 32-bit CPU has is refused with the largest size', async () => {
    const { openSoftHsm } = await import('../../../hypervisor/soft/open.ts');
    const { silentLog } = await import('../../../devicemodel/core/log.ts');
    const { mkdtempSync, rmSync } = await import('node:fs');
    const runDirectory = mkdtempSync(join(tmpdir(), 'soft-memory-'));
    const hsm = await openSoftHsm({ config: { name: 'big', scenarioPath: undefined }, log: silentLog, runDirectory });
    await hsm.createVm({ name: 'big', flags: 0n, cpuAffinity: 0n });
    expect(() => hsm.engineRam?.allocate([{ base: 0, size: 2 ** 31 }])).toThrow('2 GiB');
    hsm.close();
    rmSync(runDirectory, { recursive: true });
  });
});

describe('vdevs', () => {
  test('config space and registers of a vdev are answered without the device model', async () => {
    const { accesses, onRequest } = recorder(0xffff_ffff);
    const vm = await makeVm({ onRequest });
    vm.hsm.createVdev(ivshmemVdev);
    vm.start([
      ...asm.movEax(0x8000_2800), // 00:05.0 register 0
      ...asm.outEax(0xcf8),
      ...asm.inEax(0xcfc),
      ...asm.storeEax(RESULT),
      ...asm.loadEax(0xe002_8000), // the same by ECAM
      ...asm.storeEax(RESULT + 4),
      ...asm.loadEax(ivshmemVdev.type === 'ivshmem' ? ivshmemVdev.registersBar + 8 : 0),
      ...asm.storeEax(RESULT + 8),
      ...asm.movEax(0x8000_3000), // 00:06.0 is the device model's
      ...asm.outEax(0xcf8),
      ...asm.inEax(0xcfc),
      ...asm.storeImmediate(RESULT + 12, 1),
      ...asm.hlt,
    ]);
    await vm.runUntil(() => vm.word(RESULT + 12) === 1);
    expect([vm.word(RESULT), vm.word(RESULT + 4), vm.word(RESULT + 8)]).toEqual([0x1110_1af4, 0x1110_1af4, vm.vmid]);
    expect(accesses.map((a) => a.type)).toEqual([IoreqType.PciConfig]);
  });
});
