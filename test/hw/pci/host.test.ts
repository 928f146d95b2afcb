import * as fc from 'fast-check';
import * as v from 'valibot';
import { beforeEach, describe, expect, test } from 'vitest';
import { Msix } from '../../../devicemodel/chips/msix.ts';
import type { BarSpec, ConfigSpace } from '../../../devicemodel/chips/pci-config-space.ts';
import type { AccessSize } from '../../../devicemodel/core/address.ts';
import { ConfigError } from '../../../devicemodel/core/errors.ts';
import { MiB } from '../../../devicemodel/core/units.ts';
import { PciBuses } from '../../../devicemodel/hw/pci/buses.ts';
import { definePciDriver, type PciEnv } from '../../../devicemodel/hw/pci/driver.ts';
import type { EmulatedPciFunction } from '../../../devicemodel/hw/pci/function.ts';
import { hostBridge } from '../../../devicemodel/hw/pci/host-bridge.ts';
import { ivshmem } from '../../../devicemodel/hw/pci/ivshmem.ts';
import { lpc } from '../../../devicemodel/hw/pci/lpc.ts';
import { rootPort } from '../../../devicemodel/hw/pci/root-port.ts';
import { pciUart } from '../../../devicemodel/hw/pci/uart.ts';
import { expectWithin } from '../../support/bus-access.ts';
import { PciMachine } from '../../support/pci-machine.ts';

/** One BAR of each kind, an interrupt pin and MSI-X; reads give the BAR and offset away. */
class Probe implements EmulatedPciFunction {
  readonly backing = 'device-model';
  readonly identity = { vendorId: 0x1234, deviceId: 0x5678, classCode: 0xff0000 };
  readonly bars: readonly BarSpec[] = [
    { index: 0, kind: 'io', sizeBytes: 16 },
    { index: 1, kind: 'mem32', sizeBytes: 4096 },
    { index: 2, kind: 'mem64', sizeBytes: 1 * MiB },
    { index: 4, kind: 'mem32', sizeBytes: 8192 },
  ];
  readonly line;
  readonly msix: Msix;
  readonly events: string[] = [];

  constructor(env: PciEnv) {
    this.line = env.intx();
    this.msix = new Msix(2, 4, env.msi);
  }
  configure(config: ConfigSpace): void {
    this.msix.attach(config);
  }
  readBar(index: number, offset: number, size: AccessSize): number {
    return ((index << 4) | (offset & 0xf)) & (2 ** (8 * size) - 1);
  }
  writeBar(index: number, offset: number, _size: AccessSize, value: number): void {
    this.events.push(`write ${index}+${offset} ${value}`);
  }
  barMoved(index: number, address: number | undefined): void {
    this.events.push(`moved ${index} ${address === undefined ? 'off' : address.toString(16)}`);
  }
  start(): void {
    this.events.push('start');
  }
  stop(): void {
    this.events.push('stop');
  }
  reset(): void {
    this.events.push('reset');
    this.msix.reset();
    this.line.set(false);
  }
}

let probes: Probe[];
const probe = definePciDriver({
  name: 'probe',
  summary: 'for tests',
  options: v.strictObject({}),
  create(_options, env) {
    const fn = new Probe(env);
    probes.push(fn);
    return fn;
  },
});

function probeAt(i: number): Probe {
  return probes[i] as Probe;
}

beforeEach(() => {
  probes = [];
});

const IO = 0x10;
const MEM = 0x14;
const MEM64 = 0x18;

describe('slots', () => {
  test('a function that is not there reads all ones, at any width and by ECAM', () => {
    const machine = new PciMachine().plug('0:0.0', hostBridge).power();
    expect([1, 2, 4].map((size) => machine.cfgRead('0:5.0', 0, size as AccessSize))).toEqual([
      0xff, 0xffff, 0xffffffff,
    ]);
    expect(machine.cfgRead('ff:1f.7', 0)).toBe(0xffffffff);
    expect(machine.mmioRead(0xe0000000 + 0x28000)).toBe(0xffffffff);
    machine.cfgWrite('0:5.0', 4, 7);
    machine.mmioWrite(0xefffffff, 0, 1);
  });

  test('two functions cannot share a place, and places have limits', () => {
    const machine = new PciMachine().plug('0:5.0', probe);
    expect(() => machine.plug('0:5.0', hostBridge)).toThrow(/00:05.0: hostbridge cannot go where probe is/);
    expect(() => machine.plug('0:20.0', probe)).toThrow(ConfigError);
    expect(() => machine.plug('0:0.8', probe)).toThrow(ConfigError);
  });

  test('there is one LPC bridge, on bus 0', () => {
    const machine = new PciMachine().plug('0:1.0', lpc);
    expect(() => machine.plug('0:2.0', lpc)).toThrow(/only one lpc/);
    const below = new PciMachine().plug('0:6.0', rootPort).plug('1:0.0', lpc);
    expect(() => below.power()).toThrow(/-s 1:0:0,lpc: .*bus 0 only/);
  });

  test('the multifunction bit follows the slot', () => {
    const machine = new PciMachine().plug('0:3.0', probe).plug('0:3.1', probe).plug('0:4.0', probe).power();
    expect(['0:3.0', '0:3.1', '0:4.0'].map((at) => machine.cfgRead(at, 0x0e, 1))).toEqual([0x80, 0x80, 0]);
  });

  test('functions are placed bus by bus in slot order, whatever the order they were given in', () => {
    const machine = new PciMachine()
      .plug('1:0.0', probe)
      .plug('0:9.0', probe)
      .plug('0:3.1', probe)
      .plug('0:6.0', rootPort)
      .power();
    const bases = ['0:3.1', '0:9.0', '1:0.0'].map((at) => machine.cfgRead(at, MEM));
    expect(bases).toEqual([...bases].sort((a, b) => a - b));
    // Two BARs of a page on bus 0, one on bus 1, each bus with room behind it.
    expect(machine.host.windows().io).toEqual({ base: 0x2000, end: 0x6020 });
  });

  test('ECAM and PCICFG show the same registers, on a bus below a bridge too', () => {
    const machine = new PciMachine().plug('0:6.0', rootPort).plug('1:0.3', probe).power();
    const at = 0xe0000000 + (1 << 20) + (3 << 12);
    machine.mmioWrite(at + 0x3c, 0x5a, 1);
    expect(machine.cfgRead('1:0.3', 0x3c, 1)).toBe(0x5a);
    expect(machine.mmioRead(at)).toBe(0x56781234);
    expect(machine.mmio.readU64(at)).toBe(0xffff_ffff_ffff_ffffn);
  });
});

describe('buses below bridges', () => {
  test('are numbered in the order of the bridges, and the report says which is below what', () => {
    const machine = new PciMachine().plug('0:9.0', rootPort).plug('0:3.1', rootPort).plug('2:0.0', probe).power();
    expect(machine.host.report().map((fn) => [fn.bdf.device, fn.bdf.bus, fn.secondaryBus])).toEqual([
      [3, 0, 1],
      [9, 0, 2],
      [0, 2, undefined],
    ]);
    expect(machine.host.lastBus).toBe(2);
    expect(new PciMachine().plug('0:3.0', probe).power().host.lastBus).toBe(0);
  });

  test.each([
    ['without a bridge', ['1:0.0'], /PCI slot 01:00.0: bus 1 does not exist, devices are on bus 0/],
    ['without that bridge', ['0:6.0', '2:0.0'], /bus 2 does not exist, there is bus 0 and 1 \(below 6:0\)/],
    ['in another slot', ['0:6.0', '1:3.0'], /slot 3 of bus 1 does not exist/],
  ])('a function %s is refused', (_what, places, message) => {
    const machine = new PciMachine();
    for (const place of places) machine.plug(place, place === '0:6.0' ? rootPort : probe);
    expect(() => machine.host.configure()).toThrow(ConfigError);
    const again = new PciMachine();
    for (const place of places) again.plug(place, place === '0:6.0' ? rootPort : probe);
    expect(() => again.host.configure()).toThrow(message);
  });

  test('a bridge below a bridge is refused', () => {
    const machine = new PciMachine().plug('0:6.0', rootPort).plug('1:0.0', rootPort);
    expect(() => machine.host.configure()).toThrow(/a bridge is on bus 0, not on bus 1/);
  });

  test('legacy interrupts come out at the pins of the bridge’s slot, shared with what is there', () => {
    const machine = new PciMachine()
      .plug('0:6.0', rootPort)
      .plug('0:6.1', probe)
      .plug('1:0.0', probe)
      .plug('1:0.1', probe)
      .power();
    const pins = ['0:6.1', '1:0.0', '1:0.1'].map((at) => machine.cfgRead(at, 0x3d, 1));
    expect(pins).toEqual([1, 2, 3]);
    expect(machine.host.interruptRoutes().map(({ bus, device, pin }) => [bus, device, pin])).toEqual([
      [0, 6, 1],
      [0, 6, 2],
      [0, 6, 3],
    ]);
  });

  test('a number that is given back goes to the next bridge', () => {
    const buses = new PciBuses();
    const at = (device: number) => ({ bus: 0, device, function: 0 });
    const first = buses.open(at(6));
    expect([first.number, buses.open(at(7)).number]).toEqual([1, 2]);
    first.release();
    expect(buses.open(at(8)).number).toBe(1);
    // The late second release is nobody's any more.
    first.release();
    expect(buses.bridges.get(1)).toEqual(at(8));
    expect(() => Array.from({ length: 254 }, (_, i) => buses.open(at(i)))).toThrow(ConfigError);
  });
});

describe('decoding', () => {
  const power = () => new PciMachine().plug('0:5.0', probe).power();

  test('BARs answer where they are placed', () => {
    const machine = power();
    expect(machine.inb(0x2003)).toBe(0x03);
    expect(machine.mmioRead(0x80000008, 1)).toBe(0x18);
    machine.outb(0x2001, 7);
    expect(probeAt(0).events).toContain('write 0+1 7');
  });

  test('the command register switches I/O and memory apart', () => {
    const machine = power();
    machine.cfgWrite('0:5.0', 4, 0x2, 2);
    expect([machine.inb(0x2000), machine.mmioRead(0x80000000, 1)]).toEqual([0xff, 0x10]);
    machine.cfgWrite('0:5.0', 4, 0x1, 2);
    expect([machine.inb(0x2000), machine.mmioRead(0x80000000, 1)]).toEqual([0x00, 0xff]);
  });

  test('a moved BAR answers at its new place only', () => {
    const machine = power();
    machine.cfgWrite('0:5.0', IO, 0x5000);
    machine.cfgWrite('0:5.0', MEM, 0x90000000);
    expect([machine.inb(0x5001), machine.inb(0x2001)]).toEqual([0x01, 0xff]);
    expect([machine.mmioRead(0x90000001, 1), machine.mmioRead(0x80000001, 1)]).toEqual([0x11, 0xff]);
    expect(probeAt(0).events).toContain('moved 0 5000');
  });

  test('a 64-bit BAR moves above 4 GiB register by register', () => {
    const machine = power();
    machine.cfgWrite('0:5.0', MEM64 + 4, 0x40);
    machine.cfgWrite('0:5.0', MEM64, 0x10000000);
    expect(machine.mmioRead(0x40_1000_0005, 1)).toBe(0x25);
  });

  test('a size probe while decoding does not move the BAR', () => {
    const machine = power();
    for (const bar of [IO, MEM, MEM64]) machine.cfgWrite('0:5.0', bar, 0xffffffff);
    expect([machine.inb(0x2001), machine.mmioRead(0x80000001, 1)]).toEqual([0x01, 0x11]);
    machine.cfgWrite('0:5.0', IO, 0x6000);
    expect(machine.inb(0x6001)).toBe(0x01);
  });

  test('a port access that runs over the end of a BAR reads all ones', () => {
    const machine = power();
    expect(machine.pio.read(0x200e, 4)).toBe(0xffffffff);
  });
});

describe('a guest that puts BARs where they cannot be', () => {
  const power = (ramBytes = 1 * MiB) => new PciMachine({ ramBytes }).plug('0:5.0', probe).plug('0:6.0', probe).power();
  const guestLines = (machine: PciMachine) => machine.lines.filter((line) => line.includes('guest:'));

  test.each([
    ['address 0', IO, 0],
    ['the configuration ports', IO, 0xcf0],
    ['another BAR’s ports', IO, 0x3000],
    ['address 0', MEM, 0],
    ['RAM', MEM, 0x80000],
    ['below the PCI window', MEM, 0x70000000],
    ['ECAM', MEM, 0xe0000000],
    ['above the PCI window', MEM, 0xfee00000],
    ['a BAR of its own', MEM, 0x80200000],
  ])('%s: not decoded, logged, and home again', (_what, bar, address) => {
    const machine = power();
    const home = machine.cfgRead('0:5.0', bar);
    machine.cfgWrite('0:5.0', bar, address);
    expect(guestLines(machine)).toHaveLength(1);
    if (bar === IO) expect(machine.inb(address + 1)).toBe(address === 0x3000 ? 0x01 : 0xff);
    machine.cfgWrite('0:5.0', bar, home);
    expect(bar === IO ? machine.inb(0x2001) : machine.mmioRead(0x80000001, 1)).toBe(bar === IO ? 0x01 : 0x11);
  });

  test('where SeaBIOS puts them they are decoded', () => {
    const machine = power();
    machine.cfgWrite('0:5.0', MEM, 0xfd000000);
    expect(guestLines(machine)).toEqual([]);
    expect(machine.mmioRead(0xfd000001, 1)).toBe(0x11);
  });

  test('an address no CPU has is not decoded', () => {
    const machine = power();
    machine.cfgWrite('0:5.0', MEM64, 0xfff00000);
    machine.cfgWrite('0:5.0', MEM64 + 4, 0xfffffffe);
    expect(machine.host.report()[0]?.bars[2]?.address).toBe(0x80100000);
    expect(guestLines(machine).length).toBeGreaterThan(0);
  });

  test('a BAR in the way is decoded as soon as the way is free', () => {
    const machine = power();
    machine.cfgWrite('0:5.0', IO, 0x3000);
    machine.cfgWrite('0:6.0', IO, 0x7000);
    probeAt(0).events.length = 0;
    machine.outb(0x3000, 9);
    expect(probeAt(0).events).toEqual(['write 0+0 9']);
  });

  test('functions can swap places', () => {
    const machine = power();
    machine.cfgWrite('0:5.0', IO, 0x3000);
    machine.cfgWrite('0:6.0', IO, 0x2000);
    machine.outb(0x3000, 1);
    machine.outb(0x2000, 2);
    expect([probeAt(0).events.at(-1), probeAt(1).events.at(-1)]).toEqual(['write 0+0 1', 'write 0+0 2']);
  });

  test('decoding switched off twice is off', () => {
    const machine = power();
    machine.cfgWrite('0:5.0', 4, 0, 2);
    machine.cfgWrite('0:5.0', 4, 0, 2);
    expect(machine.inb(0x2001)).toBe(0xff);
    machine.cfgWrite('0:5.0', 4, 7, 2);
    expect(machine.inb(0x2001)).toBe(0x01);
  });

  // CVE-2019-18844: accesses of every width at every offset once reached assertions of the C device model.
  test('every offset and width of configuration space and BARs is answered within width', () => {
    const machine = power();
    for (const size of [1, 2, 4] as const) {
      for (let offset = 0; offset < 0x1100; offset++) {
        expectWithin(machine.cfgRead('0:5.0', offset, size), size);
        if (offset < 0x100 && (offset < 0x10 || offset >= 0x28)) machine.cfgWrite('0:5.0', offset, 0xffffffff, size);
      }
      for (const base of [0x80000000, 0x80002000]) {
        for (let offset = 0; offset < 0x2010; offset++) expectWithin(machine.mmioRead(base + offset, size), size);
      }
      for (let port = 0x1ff0; port < 0x2020; port++) expectWithin(machine.pio.read(port, size) ?? 0, size);
    }
  });

  test('arbitrary configuration writes never throw, never make ranges overlap, and reset undoes them', () => {
    const address = fc.constantFrom(
      0,
      0x10,
      0xcf8,
      0x2000,
      0x3000,
      0xfff0,
      0x80000000,
      0x80100000,
      0xe0000000,
      0xffffffff,
    );
    const write = fc.record({
      where: fc.constantFrom('0:5.0', '0:6.0'),
      offset: fc.oneof(fc.constantFrom(4, IO, MEM, MEM64, MEM64 + 4, 0x20, 0x40), fc.nat({ max: 0x1ff })),
      size: fc.constantFrom(1 as const, 2 as const, 4 as const),
      value: fc.oneof(address, fc.nat({ max: 0xffffffff })),
      byEcam: fc.boolean(),
    });
    fc.assert(
      fc.property(fc.array(write, { maxLength: 60 }), (writes) => {
        probes = [];
        const machine = power();
        const fresh = ['0:5.0', '0:6.0'].map((at) => machine.cfgDump(at));
        for (const { where, offset, size, value, byEcam } of writes) {
          const slot = where === '0:5.0' ? 5 : 6;
          if (byEcam) machine.mmioWrite(0xe0000000 + slot * 0x8000 + offset, value, size);
          else machine.cfgWrite(where, offset, value, size);
          expectWithin(machine.cfgRead(where, offset, size), size);
        }
        machine.host.reset();
        expect(['0:5.0', '0:6.0'].map((at) => machine.cfgDump(at))).toEqual(fresh);
        expect([machine.inb(0x2001), machine.inb(0x3001), machine.mmioRead(0x80000001, 1)]).toEqual([0x01, 0x01, 0x11]);
      }),
      { numRuns: 200 },
    );
  });
});

describe('legacy interrupts', () => {
  test('pins are routed in slot order, and their idle level is high', () => {
    const machine = new PciMachine().plug('0:6.0', probe).plug('0:5.0', probe).power();
    expect(machine.takeIrqs()).toEqual(['16 high', '17 high']);
    expect(machine.cfgRead('0:5.0', 0x3c, 2)).toBe(0x0103); // irq 3, INTA#
    expect(machine.host.interruptRoutes()).toEqual([
      { bus: 0, device: 5, pin: 1, gsi: 16, link: 1 },
      { bus: 0, device: 6, pin: 1, gsi: 17, link: 2 },
    ]);
  });

  test('functions of a slot take the four pins in turn and then share', () => {
    const machine = new PciMachine();
    for (const fn of [0, 1, 2, 3, 4]) machine.plug(`0:5.${fn}`, probe);
    machine.power();
    expect([0, 1, 2, 3, 4].map((fn) => machine.cfgRead(`0:5.${fn}`, 0x3d, 1))).toEqual([1, 2, 3, 4, 1]);
    machine.takeIrqs();
    probeAt(0).line.set(true);
    probeAt(4).line.set(true);
    probeAt(0).line.set(false);
    expect(machine.takeIrqs()).toEqual(['16 low']);
    probeAt(4).line.set(false);
    expect(machine.takeIrqs()).toEqual(['16 high']);
  });

  test('a function without interrupts has line 255 and pin 0', () => {
    const machine = new PciMachine().plug('0:0.0', hostBridge).power();
    expect(machine.cfgRead('0:0.0', 0x3c, 2)).toBe(0x00ff);
  });

  test('asserting is low, once; INTx disable holds it back and gives it again', () => {
    const machine = new PciMachine().plug('0:5.0', probe).power();
    machine.takeIrqs();
    probeAt(0).line.set(true);
    probeAt(0).line.set(true);
    expect(machine.takeIrqs()).toEqual(['16 low']);
    machine.cfgWrite('0:5.0', 4, 0x407, 2);
    expect(machine.takeIrqs()).toEqual(['16 high']);
    machine.cfgWrite('0:5.0', 4, 0x007, 2);
    expect(machine.takeIrqs()).toEqual(['16 low']);
  });

  test('MSI-X turns INTx off', () => {
    const machine = new PciMachine().plug('0:5.0', probe).power();
    machine.takeIrqs();
    machine.cfgWrite('0:5.0', 0x42, 0x8000, 2);
    probeAt(0).line.set(true);
    expect(machine.takeIrqs()).toEqual([]);
  });

  test('a hypervisor that refuses an interrupt does not end the VM', () => {
    const machine = new PciMachine().plug('0:5.0', probe).power();
    machine.hsm.failing = 'SET_IRQLINE';
    expect(() => probeAt(0).line.set(true)).not.toThrow();
    expect(machine.lines.some((line) => line.includes('INTx on line 16'))).toBe(true);
  });

  test('reset deasserts and gives PIRQ links back their power-on irq', () => {
    const machine = new PciMachine().plug('0:1.0', lpc).plug('0:5.0', probe).power();
    probeAt(0).line.set(true);
    machine.cfgWrite('0:1.0', 0x60, 0x0b, 1);
    machine.takeIrqs();
    machine.host.reset();
    expect(machine.cfgRead('0:1.0', 0x60, 1)).toBe(0x03);
    expect(machine.pirq.read(1)).toBe(0x03);
    machine.host.createVdevs();
    expect(machine.takeIrqs()).toEqual(['16 high']);
  });
});

describe('devices of the hypervisor', () => {
  const power = () =>
    new PciMachine()
      .plug('0:6.0', pciUart, { backend: 'vuart_idx:1' })
      .plug('0:4.0', ivshmem, { name: 'hv:/shm0', size: 2, regionId: 0 });

  test('are created in slot order and destroyed in the same, once', () => {
    const machine = power().power();
    machine.host.destroyVdevs();
    machine.host.destroyVdevs();
    expect(machine.hsm.names).toEqual(['CREATE_VDEV', 'CREATE_VDEV', 'DESTROY_VDEV', 'DESTROY_VDEV']);
    const types = machine.hsm.calls.map((c) => ('vdev' in c ? c.vdev.type : ''));
    expect(types).toEqual(['ivshmem', 'vuart', 'ivshmem', 'vuart']);
  });

  test('come back after a reset at the same addresses', () => {
    const machine = power().power();
    machine.cfgWrite('0:4.0', MEM, 0x90000000);
    machine.host.destroyVdevs();
    machine.host.reset();
    machine.host.createVdevs();
    const created = machine.hsm.calls.filter((c) => c.name === 'CREATE_VDEV');
    expect(created[2]).toEqual(created[0]);
    expect(created).toHaveLength(4);
  });

  test('one that is refused takes the earlier ones along', () => {
    const machine = power();
    machine.host.configure();
    const create = machine.hsm.createVdev.bind(machine.hsm);
    machine.hsm.createVdev = (vdev) => {
      create(vdev);
      if (vdev.type === 'vuart') throw new Error('EINVAL');
    };
    expect(() => machine.host.createVdevs()).toThrow('EINVAL');
    expect(machine.hsm.names).toEqual(['CREATE_VDEV', 'CREATE_VDEV', 'DESTROY_VDEV']);
  });

  test('one that cannot be destroyed does not stop the others', () => {
    const machine = power().power();
    machine.hsm.failing = 'DESTROY_VDEV';
    machine.host.destroyVdevs();
    expect(machine.hsm.names.filter((name) => name === 'DESTROY_VDEV')).toHaveLength(2);
    expect(machine.lines.filter((line) => line.startsWith('warn'))).toHaveLength(2);
  });

  test('nothing is asked of the hypervisor before they are created', () => {
    const machine = power();
    machine.host.configure();
    expect(machine.host.report().map((f) => f.vdev?.type)).toEqual(['ivshmem', 'vuart']);
    expect(machine.hsm.calls).toEqual([]);
  });
});

describe('life cycle', () => {
  test('functions start in order and stop in reverse, once', async () => {
    const machine = new PciMachine().plug('0:5.0', probe).plug('0:6.0', probe).power();
    const order: string[] = [];
    for (const [i, fn] of probes.entries()) {
      fn.start = () => void order.push(`start ${i}`);
      fn.stop = () => void order.push(`stop ${i}`);
    }
    await machine.host.start();
    await machine.host.stop();
    await machine.host.stop();
    expect(order).toEqual(['start 0', 'start 1', 'stop 1', 'stop 0']);
  });

  test('one that cannot start is stopped with those before it', async () => {
    const machine = new PciMachine().plug('0:5.0', probe).plug('0:6.0', probe).power();
    probeAt(1).start = () => {
      throw new Error('no file');
    };
    await expect(machine.host.start()).rejects.toThrow('no file');
    await machine.host.stop();
    expect([probeAt(0).events.at(-1), probeAt(1).events.at(-1)]).toEqual(['stop', 'stop']);
  });

  test('a disposed host leaves the buses empty', () => {
    const machine = new PciMachine().plug('0:5.0', probe).power();
    machine.host.dispose();
    expect([machine.pio.read(0x2000, 1), machine.mmio.read(0x80000000, 4), machine.mmio.read(0xe0000000, 4)]).toEqual([
      undefined,
      undefined,
      undefined,
    ]);
    machine.cfgWrite('0:5.0', 4, 7, 2);
    expect(machine.pio.read(0x2000, 1)).toBeUndefined();
  });
});
