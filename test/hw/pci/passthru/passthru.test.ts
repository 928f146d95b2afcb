/** A passed-through function in a PCI host, against a made-up host: what the hypervisor is told, what the guest reads. */
import { rmSync } from 'node:fs';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { checkOptions } from '../../../../devicemodel/core/options.ts';
import { ivshmem } from '../../../../devicemodel/hw/pci/ivshmem.ts';
import { lpc } from '../../../../devicemodel/hw/pci/lpc.ts';
import { igdLpc } from '../../../../devicemodel/hw/pci/passthru/igd-lpc.ts';
import { PassthruOptions, parsePassthruText } from '../../../../devicemodel/hw/pci/passthru/options.ts';
import { passthru } from '../../../../devicemodel/hw/pci/passthru/passthru.ts';
import { pciUart } from '../../../../devicemodel/hw/pci/uart.ts';
import { FakeHostPci } from '../../../support/fake-host-pci.ts';
import { bdf, PciMachine } from '../../../support/pci-machine.ts';

let host: FakeHostPci;
beforeEach(() => {
  host = new FakeHostPci();
});
afterEach(() => host.dispose());

const machine = () => new PciMachine({ hostRoot: host.root });
const options = (text: string) => checkOptions(PassthruOptions, parsePassthruText(text));
const mem = (address: number, sizeBytes: number) => ({ kind: 'mem32', address, sizeBytes }) as const;

describe('BARs', () => {
  test('memory from the windows of the guest in whole pages, I/O where it is on the host', () => {
    host.add('0a:00.0', {
      bars: [mem(0xa400_0000, 128), { kind: 'io', address: 0x4000, sizeBytes: 256 }],
      interrupt: [20, 1],
    });
    const m = machine().plug('0:6.0', passthru, options('0a/00/0')).power();
    expect(m.hsm.calls).toEqual([
      {
        name: 'ASSIGN_PCIDEV',
        assignment: {
          virtualBdf: bdf('0:6.0'),
          physicalBdf: { domain: 0, ...bdf('a:0.0') },
          interruptLine: 255,
          interruptPin: 1,
          bars: [0x8000_0000, 0x4001, 0, 0, 0, 0],
          quirk: false,
        },
      },
      { name: 'SET_IRQLINE', gsi: 16, op: 'high' },
      {
        name: 'SET_PTDEV_INTR',
        intx: {
          virtualBdf: bdf('0:6.0'),
          physicalBdf: { domain: 0, ...bdf('a:0.0') },
          virtualPin: 16,
          physicalPin: 20,
          isPicPin: false,
        },
      },
    ]);
    expect(m.host.report()[0]?.bars.map(({ address, sizeBytes }) => [address, sizeBytes])).toEqual([
      [0x8000_0000, 4096],
      [0x4000, 256],
    ]);
  });

  test('kind and prefetchable bit are those of the function; 12 KiB become 16', () => {
    host.add('0a:00.0', {
      bars: [
        { kind: 'mem64', address: 0x40_0000_0000, sizeBytes: 0x1000_0000, prefetchable: true },
        { kind: 'mem64', address: 0xa500_0000, sizeBytes: 0x3000 },
        mem(0xa600_0000, 0x1000),
      ],
      hasMsi: true,
    });
    const m = machine().plug('0:6.0', passthru, options('0a/00/0')).power();
    expect(m.hsm.calls[0]).toMatchObject({ assignment: { bars: [0xc, 0x40, 0x8000_0004, 0, 0x8000_4000, 0] } });
  });

  test('ports of devices that are emulated go around those of the host', () => {
    host.add('0a:00.0', { bars: [{ kind: 'io', address: 0x2000, sizeBytes: 0x1000 }], interrupt: [20, 1] });
    const m = machine().plug('0:3.0', pciUart, {}).plug('0:6.0', passthru, options('0a/00/0')).power();
    const io = m.host.report().flatMap(({ bars }) => bars.filter((bar) => bar.kind === 'io'));
    expect(io.map(({ address }) => address)).toEqual([0x3000, 0x2000]);
    expect(m.host.windows().io.base).toBe(0x2000);
  });

  test('a table for MSI-X goes into an unused register, behind the others; no pin is taken', () => {
    host.add('0a:00.0', { bars: [mem(0xa400_0000, 0x1000)], interrupt: [20, 1] });
    const m = machine().plug('0:6.0', passthru, options('0a/00/0,vmsix_on_msi,4')).power();
    expect(m.hsm.names).toEqual(['ASSIGN_PCIDEV']);
    expect(m.hsm.calls[0]).toMatchObject({
      assignment: { bars: [0x8000_0000, 0, 0, 0, 0x8000_1000, 0], interruptPin: 0 },
    });
    expect(() => machine().plug('0:6.0', passthru, options('0a/00/0,vmsix_on_msi,0')).power()).toThrow(/uses BAR 0/);
  });

  test.each([
    ['does not start on a page', { bars: [mem(0xa400_1800, 256)] }, /not the start of a page/],
    [
      'of 64 bits in the last register',
      { bars: [{ kind: 'mem64', address: 0xa4a0_0000, sizeBytes: 4096, index: 5 }] },
      /no register for its upper half/,
    ],
    ['of a bridge', { headerType: 1 }, /is a bridge/],
  ] as const)('one that %s is refused', (_what, fn, message) => {
    host.add('0a:00.0', fn);
    expect(() => machine().plug('0:6.0', passthru, options('0a/00/0')).power()).toThrow(message);
  });
});

describe('configuration space', () => {
  test("is the device's own, in both directions", () => {
    host.add('0b:00.0', { deviceId: 0xa80a, bars: [mem(0xa500_0000, 0x4000)], hasMsi: true });
    const m = machine().plug('0:5.0', passthru, options('0b/00/0')).power();
    expect(m.cfgRead('0:5.0', 0x00, 4)).toBe(0xa80a_8086);
    expect(m.cfgRead('0:5.0', 0x10, 4)).toBe(0xa500_0000);
    m.cfgWrite('0:5.0', 0x10c, 0xdead_beef);
    expect(host.config('0b:00.0').readUInt32LE(0x10c)).toBe(0xdead_beef);
    expect(m.cfgRead('0:5.0', 0x10d, 1)).toBe(0xbe);
    expect(m.cfgRead('0:5.0', 0x10d, 2)).toBe(0xffff);
  });

  test('the multifunction bit follows the slot and not the device', () => {
    for (const n of [0, 1]) host.add(`0a:08.${n}`, { headerType: 0x80, bars: [mem(0xa4e0_0000 + n * 0x1_0000, 4096)] });
    const alone = machine().plug('0:6.0', passthru, options('a/8/0')).power();
    expect(alone.cfgRead('0:6.0', 0x0c, 4)).toBe(0);
    const both = machine().plug('0:6.0', passthru, options('a/8/0')).plug('0:6.1', passthru, options('a/8/1')).power();
    expect(both.cfgRead('0:6.0', 0x0e, 1)).toBe(0x80);
    expect(both.cfgRead('0:6.1', 0x0c, 4)).toBe(0x80_0000);
  });

  test('a function that was pulled out reads as all ones, and writes go nowhere', () => {
    host.add('0b:00.0', { bars: [mem(0xa500_0000, 0x4000)], hasMsi: true });
    const m = machine().plug('0:5.0', passthru, options('0b/00/0')).power();
    host.remove('0b:00.0');
    expect(m.cfgRead('0:5.0', 0, 4)).toBe(0xffff_ffff);
    expect(m.cfgRead('0:5.0', 0x0e, 1)).toBe(0xff);
    m.cfgWrite('0:5.0', 4, 6, 2);
    expect(m.lines.some((line) => line.includes('did not reach it'))).toBe(true);
  });

  test('a virtual function of SR-IOV has the ids and the BARs that the kernel knows', () => {
    host.add('00:00.0', { classCode: 0x060000 }).add('02:10.0', {
      deviceId: 0x154c,
      bars: [{ kind: 'mem64', address: 0xa900_0000, sizeBytes: 0x1_0000, prefetchable: true }],
      hasMsi: true,
      isVirtualFunction: true,
    });
    const m = machine().plug('0:5.0', passthru, options('02/10/0')).power();
    expect(m.cfgRead('0:5.0', 0, 4)).toBe(0x154c_8086);
    expect(m.cfgRead('0:5.0', 2, 2)).toBe(0x154c);
    expect(m.hsm.calls[0]).toMatchObject({ assignment: { bars: [0x8000_000c, 0, 0, 0, 0, 0] } });
  });
});

describe('life', () => {
  test('reset before and after; what fails is undone, last first', async () => {
    host.add('0a:00.0', { bars: [mem(0xa400_0000, 4096)], interrupt: [20, 1] });
    host.add('0b:00.0', { bars: [mem(0xa500_0000, 4096)], hasMsi: true });
    const m = machine()
      .plug('0:6.0', passthru, options('0a/00/0'))
      .plug('0:7.0', passthru, options('0b/00/0,no_reset'));
    m.host.configure();
    await m.host.start();
    expect([host.read('0a:00.0', 'reset'), host.read('0b:00.0', 'reset')]).toEqual(['1', '']);
    m.hsm.failing = 'SET_PTDEV_INTR';
    expect(() => m.host.createVdevs()).toThrow('SET_PTDEV_INTR');
    expect(m.hsm.names).toEqual([
      'ASSIGN_PCIDEV',
      'ASSIGN_PCIDEV',
      'SET_IRQLINE',
      'SET_PTDEV_INTR',
      'DEASSIGN_PCIDEV',
      'DEASSIGN_PCIDEV',
    ]);
    expect(m.hsm.calls.slice(4).map((call) => 'assignment' in call && call.assignment.virtualBdf.device)).toEqual([
      7, 6,
    ]);
    await m.host.stop();
    expect(host.read('0b:00.0', 'reset')).toBe('1');
  });

  test('an orderly end goes by slot, whatever was created between', () => {
    host.add('0a:00.0', { bars: [mem(0xa400_0000, 4096)], interrupt: [20, 1] });
    const m = machine()
      .plug('0:1.0', lpc, {})
      .plug('0:5.0', ivshmem, { name: 'hv:/shm', size: 2, regionId: 0 })
      .plug('0:6.0', passthru, options('0a/00/0'))
      .power();
    m.hsm.calls.length = 0;
    m.host.destroyVdevs();
    m.host.destroyVdevs();
    expect(m.hsm.names).toEqual(['DESTROY_VDEV', 'RESET_PTDEV_INTR', 'DEASSIGN_PCIDEV']);
  });

  test('managed: from its driver to pci-stub and back', async () => {
    host.add('0b:00.0', { bars: [mem(0xa500_0000, 4096)], hasMsi: true, driver: 'nvme' });
    const m = machine().plug('0:7.0', passthru, options('0b/00/0,managed'));
    m.host.configure();
    await m.host.start();
    expect(host.readDriver('nvme', 'unbind')).toBe('0000:0b:00.0');
    expect(host.readDriver('pci-stub', 'bind')).toBe('0000:0b:00.0');
    expect(host.read('0b:00.0', 'driver_override')).toMatch(/^pci-stub/);
    host.bind('0b:00.0', 'pci-stub');
    await m.host.stop();
    // Between two lives nobody gets it.
    expect(host.readDriver('nvme', 'bind')).toBe('');
    await m.managed.giveBack();
    expect(host.readDriver('pci-stub', 'unbind')).toBe('0000:0b:00.0');
    expect(host.readDriver('nvme', 'bind')).toBe('0000:0b:00.0');
    expect(host.read('0b:00.0', 'driver_override')).toMatch(/^\n/);
  });

  test('managed: one that cannot be taken is not reset: its driver uses it', async () => {
    host.add('0b:00.0', { bars: [mem(0xa500_0000, 4096)], hasMsi: true, driver: 'nvme' });
    rmSync(join(host.path('0b:00.0'), 'driver_override'));
    const m = machine().plug('0:7.0', passthru, options('0b/00/0,managed'));
    m.host.configure();
    await expect(m.host.start()).rejects.toThrow('managed: 0b:00.0 is not bound to pci-stub');
    await m.host.stop();
    expect(host.read('0b:00.0', 'reset')).toBe('');
    expect(host.readDriver('nvme', 'unbind')).toBe('');
  });
});

describe('the virtual root port', () => {
  const port = { classCode: 0x060400, headerType: 1, secondaryBus: 2, express: { type: 4, maxPayload: 2 } } as const;
  const card = { bars: [mem(0xa120_0000, 0x1000)], hasMsi: true, express: { type: 0 } } as const;

  test('is created before its endpoint, which goes behind it, and destroyed after it', () => {
    host.add('00:1c.0', { ...port, ptm: [6, 3] }).add('02:00.0', { ...card, ptm: [1, 0] });
    const m = machine().plug('0:6.0', passthru, options('02/00/0,enable_ptm')).power();
    m.host.destroyVdevs();
    expect(m.hsm.names).toEqual(['CREATE_VDEV', 'ASSIGN_PCIDEV', 'DEASSIGN_PCIDEV', 'DESTROY_VDEV']);
    expect(m.hsm.calls[0]).toMatchObject({
      vdev: { type: 'root-port', bdf: bdf('0:6.0'), maxPayload: 2, secondaryBus: 1, ptmCapOffset: 0x100 },
    });
    expect(m.hsm.calls[1]).toMatchObject({ assignment: { virtualBdf: bdf('1:0.0') } });
    expect(m.hsm.calls[2]).toMatchObject({ assignment: { virtualBdf: bdf('1:0.0') } });
    m.hsm.calls.length = 0;
    m.host.createVdevs();
    expect(m.hsm.calls[0]).toMatchObject({ vdev: { secondaryBus: 1 } });
  });

  test.each([
    ['02:00.0 has no PTM capability', { ...port, ptm: [6, 3] }, card],
    ['02:00.0 is no PTM requester', { ...port, ptm: [6, 3] }, { ...card, ptm: [2, 0] }],
    ['02:00.0 has no PCI Express capability', { ...port, ptm: [6, 3] }, { bars: card.bars, hasMsi: true, ptm: [1, 0] }],
    ['there is no bridge above 02:00.0', { ...port, ptm: [6, 3], secondaryBus: 3 }, { ...card, ptm: [1, 0] }],
    ['00:1c.0 above 02:00.0 is no root port', { ...port, ptm: [6, 3], express: { type: 7 } }, { ...card, ptm: [1, 0] }],
    ['root port 00:1c.0 has no PTM capability', port, { ...card, ptm: [1, 0] }],
    ['root port 00:1c.0 cannot be a PTM root', { ...port, ptm: [2, 3] }, { ...card, ptm: [1, 0] }],
    [
      '02:00.0 is a function of a device with several',
      { ...port, ptm: [6, 3] },
      { ...card, headerType: 0x80, ptm: [1, 0] },
    ],
    ['PTM is not enabled on root port 00:1c.0', { ...port, ptm: [6, 2] }, { ...card, ptm: [1, 0] }],
    ['root port 00:1c.0 is not selected as PTM root', { ...port, ptm: [6, 1] }, { ...card, ptm: [1, 0] }],
  ] as const)('%s: an ordinary assignment and one line', (why, above, fn) => {
    host.add('00:1c.0', above as never).add('02:00.0', fn as never);
    const m = machine().plug('0:6.0', passthru, options('02/00/0,enable_ptm')).power();
    expect(m.hsm.names).toEqual(['ASSIGN_PCIDEV']);
    expect(m.lines.filter((line) => line.includes(`no virtual root port: ${why}`))).toHaveLength(1);
  });

  // Mutation: keep the bus in `#plugRootPort`.
  test('that the hypervisor refuses leaves the function where it is, and no bus behind', () => {
    host.add('00:1c.0', { ...port, ptm: [6, 3] }).add('02:00.0', { ...card, ptm: [1, 0] });
    const m = machine();
    m.hsm.createVdev = () => {
      throw new Error('planned');
    };
    m.plug('0:6.0', passthru, options('02/00/0,enable_ptm')).power();
    expect(m.hsm.names).toEqual(['ASSIGN_PCIDEV']);
    expect(m.hsm.calls[0]).toMatchObject({ assignment: { virtualBdf: bdf('0:6.0') } });
    expect(m.lines.filter((line) => line.includes('no PTM for 02:00.0: planned'))).toHaveLength(1);
    expect(m.host.report().map(({ secondaryBus }) => secondaryBus)).toEqual([undefined]);
  });

  test('extended capabilities that lead in a circle, or read as all ones, end', () => {
    host.add('00:1c.0', { ...port, registers: [[0x100, 0x1001_0001]] }).add('02:00.0', { ...card, ptm: [1, 0] });
    host.add('03:00.0', { ...card, registers: [[0x100, 0xffff_ffff]] });
    expect(machine().plug('0:6.0', passthru, options('02/00/0,enable_ptm')).power().hsm.names).toEqual([
      'ASSIGN_PCIDEV',
    ]);
    expect(machine().plug('0:6.0', passthru, options('03/00/0,enable_ptm')).power().hsm.names).toEqual([
      'ASSIGN_PCIDEV',
    ]);
  });
});

describe('graphics of the processor', () => {
  const gpu = (deviceId: number, control: number, others: readonly (readonly [number, ...number[]])[] = []) =>
    host.add('00:1f.0', { deviceId: 0xa082, classCode: 0x060100 }).add('00:02.0', {
      deviceId,
      classCode: 0x030000,
      bars: [{ kind: 'mem64', address: 0x60_0000_0000, sizeBytes: 0x100_0000 }],
      hasMsi: true,
      registers: [[0x50, control], [0x5c, 0x7c00_0001], [0xc0, 0x7b80_0001, 0], [0xfc, 0x6fa1_f018], ...others],
    });

  test.each([
    ['generation 12', 0x9a49, 0x7b80_0000, 0x7b80_0000, [0xc0, 0xc4, 0xfc]],
    ['generation 9', 0x3e9b, 0x7c00_0000, 0x7c00_0000, [0x5c, 0xfc]],
    ['an unknown one', 0x1234, 0x7b80_0000, 0x7b80_0000, [0xc0, 0xc4, 0xfc]],
  ] as const)('%s: memory is mapped and its registers say where', (_what, deviceId, gpa, hpa, registers) => {
    gpu(deviceId, 0x02c1);
    const m = machine().plug('0:2.0', passthru, options('0/2/0')).power();
    const stolen = { gpa, physicalAddress: hpa, sizeBytes: 64 << 20 };
    const opRegion = { gpa: gpa - 0x5000, physicalAddress: 0x6fa1_f000, sizeBytes: 0x5000 };
    expect(m.hsm.calls.slice(0, 4)).toEqual([
      { name: 'UNSET_MMIO', mmio: stolen },
      { name: 'SET_MMIO', mmio: stolen },
      { name: 'UNSET_MMIO', mmio: opRegion },
      { name: 'SET_MMIO', mmio: opRegion },
    ]);
    expect(m.hsm.calls[4]).toMatchObject({ name: 'ASSIGN_PCIDEV', assignment: { quirk: true } });
    expect(m.host.reservedMemory).toEqual({ base: gpa - 0x5000, size: 0x5000 + (64 << 20) });
    expect(m.cfgRead('0:2.0', registers[0], 4)).toBe(gpa | 1);
    expect(m.cfgRead('0:2.0', 0xfc, 4)).toBe((gpa - 0x5000) | 0x18);
    expect(m.cfgRead('0:2.0', 0xfe, 2)).toBe((gpa - 0x5000) >>> 16);
    const before = host.config('00:02.0');
    for (const register of registers) m.cfgWrite('0:2.0', register, 0x1234_5678);
    expect(host.config('00:02.0')).toEqual(before);
  });

  test('the stand-in for the LPC bridge has its ids', () => {
    gpu(0x9a49, 0x02c1);
    const m = machine().plug('0:1f.0', igdLpc, {}).power();
    expect(m.cfgRead('0:1f.0', 0, 4)).toBe(0xa082_8086);
    expect(m.cfgRead('0:1f.0', 8, 4)).toBe(0x0601_0003);
    expect(passthru.companions?.(options('0/2/0'), { root: host.root, isPlan: false })).toMatchObject([
      { driver: 'igd-lpc', bdf: { device: 31 } },
    ]);
    expect(passthru.companions?.(options('0/1f/0'), { root: host.root, isPlan: false })).toEqual([]);
    host.remove('00:1f.0');
    expect(() => machine().plug('0:1f.0', igdLpc, {}).power()).toThrow(/no LPC bridge/);
  });

  test.each([
    ['at 0 of generation 12', 0x9a49, [0xc0, 0, 0]],
    ['at 0 of generation 9', 0x3e9b, [0x5c, 0]],
    ['beyond 4 GiB', 0x9a49, [0xc0, 0x7b80_0001, 0xffff_ffff]],
  ] as const)('stolen memory %s is refused: it would be memory of the host', (_where, deviceId, register) => {
    gpu(deviceId, 0x02c1, [register]);
    const m = machine().plug('0:2.0', passthru, options('0/2/0'));
    expect(() => m.power()).toThrow(/stolen memory of graphics 00:02.0 cannot be at 0x/);
    expect(m.hsm.calls).toEqual([]);
  });

  test('an OpRegion at 0 is none: only stolen memory is mapped, the register stays as it is', () => {
    gpu(0x9a49, 0x02c1, [[0xfc, 0]]);
    const m = machine().plug('0:2.0', passthru, options('0/2/0')).power();
    expect(m.hsm.names).toEqual(['UNSET_MMIO', 'SET_MMIO', 'ASSIGN_PCIDEV']);
    expect(m.cfgRead('0:2.0', 0xfc)).toBe(0);
    expect(m.host.reservedMemory).toEqual({ base: 0x7b80_0000, size: 64 << 20 });
    expect(m.lines.some((line) => line.includes('graphics 00:02.0 has no OpRegion'))).toBe(true);
  });

  test('without stolen memory it is a function like any other', () => {
    gpu(0x9a49, 0x00c1);
    const m = machine().plug('0:2.0', passthru, options('0/2/0')).power();
    m.host.destroyVdevs();
    expect(m.hsm.names).toEqual(['ASSIGN_PCIDEV', 'DEASSIGN_PCIDEV']);
    expect(m.lines.some((line) => line.includes('DVMT Pre-Allocated'))).toBe(true);
  });
});
