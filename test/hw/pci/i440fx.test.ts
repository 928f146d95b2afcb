/** The host bridge for firmware of other hypervisors, and the power management function that comes with it. */
import { describe, expect, test } from 'vitest';
import { dwordMemory } from '../../../devicemodel/core/firmware/aml-resources.ts';
import { checkOptions, optionsFromText } from '../../../devicemodel/core/options.ts';
import { hostBridgeAml } from '../../../devicemodel/hw/pci/host-aml.ts';
import { hostBridge } from '../../../devicemodel/hw/pci/host-bridge.ts';
import { PIIX4_PM_SLOT, piix4Pm } from '../../../devicemodel/hw/pci/piix4-pm.ts';
import { pciUart } from '../../../devicemodel/hw/pci/uart.ts';
import { PciMachine } from '../../support/pci-machine.ts';

const BRIDGE = '0:0.0';
const PM = '0:1.3';
const UART = '0:5.0';

function machine(model = true) {
  const pc = new PciMachine();
  pc.plug(BRIDGE, hostBridge, model ? { model: 'i440fx' } : {});
  pc.plug(PM, piix4Pm, {});
  pc.plug(UART, pciUart, { backend: 'stdio' });
  pc.power();
  return pc;
}

describe('440FX', () => {
  test('is there when it is asked for, with the ids firmware looks for and its companion', () => {
    expect(machine().cfgRead(BRIDGE, 0, 4)).toBe(0x1237_8086);
    expect(machine(false).cfgRead(BRIDGE, 0, 4)).toBe(0x1275_1275);
    const options = checkOptions(hostBridge.options, optionsFromText(hostBridge.options, 'model=i440fx'));
    expect(hostBridge.companions?.(options, { root: '', isPlan: true })).toEqual([PIIX4_PM_SLOT]);
    expect(hostBridge.companions?.({}, { root: '', isPlan: true })).toEqual([]);
    expect(() => checkOptions(hostBridge.options, { model: 'q35' })).toThrow(/model/);
  });

  test('says that RAM answers below 1 MiB, and keeps what firmware writes there', () => {
    const pc = machine();
    expect(pc.cfgRead(BRIDGE, 0x59, 1) & 0x30).toBe(0x30);
    pc.cfgWrite(BRIDGE, 0x5a, 0x11, 1);
    expect(pc.cfgRead(BRIDGE, 0x5a, 1)).toBe(0x11);
  });
});

// Mutation: without the upper bits SeaBIOS finds 4 GiB of ports in each BAR, and stops.
test('a size probe of an I/O BAR has all 32 bits, and without the 440FX 16, as in C', () => {
  const probe = (pc: PciMachine) => {
    pc.cfgWrite(UART, 0x10, 0xffff_ffff);
    return (pc.cfgRead(UART, 0x10) & ~3) >>> 0;
  };
  const wide = probe(machine());
  expect((~wide >>> 0) + 1).toBeLessThanOrEqual(0x100);
  expect(probe(machine(false))).toBe(wide & 0xffff);
});

test('a BAR beyond the ports there are is decoded nowhere', () => {
  const pc = machine();
  pc.cfgWrite(UART, 0x10, 0x1_c000);
  expect(pc.pio.read(0xc000, 1)).toBeUndefined();
  pc.cfgWrite(UART, 0x10, 0xc000);
  expect(pc.pio.read(0xc000, 1)).toBeTypeOf('number');
});

describe('PIIX4 power management', () => {
  const enable = (pc: PciMachine, base: number) => {
    pc.cfgWrite(PM, 0x40, base | 1);
    pc.cfgWrite(PM, 0x80, 1, 1);
  };

  test('its timer counts at 3.579545 MHz where firmware puts it, and moves with it', () => {
    const pc = machine();
    expect(pc.pio.read(0x608, 4)).toBeUndefined();
    enable(pc, 0x600);
    const before = pc.pio.read(0x608, 4) as number;
    pc.clock.advance(1_000_000);
    expect(((pc.pio.read(0x608, 4) as number) - before + 2 ** 24) % 2 ** 24).toBeCloseTo(3579, -1);
    pc.cfgWrite(PM, 0x40, 0xb001);
    expect([pc.pio.read(0x608, 4), typeof pc.pio.read(0xb008, 4)]).toEqual([undefined, 'number']);
    pc.cfgWrite(PM, 0x80, 0, 1);
    expect(pc.pio.read(0xb008, 4)).toBeUndefined();
  });

  test('soft off is type 0, and only with SLP_EN', () => {
    const pc = machine();
    enable(pc, 0xb000);
    pc.pio.write(0xb004, 2, 0);
    pc.pio.write(0xb004, 2, 0x3400);
    expect(pc.power_.kinds).toEqual([]);
    pc.pio.write(0xb004, 2, 0x2000);
    expect(pc.power_.kinds).toEqual(['poweroff']);
  });

  // Mutation: without a look at what is there, registering throws, and the guest ends the program.
  test('ports of others stay theirs', () => {
    const pc = machine();
    enable(pc, 0xb000);
    const taken = pc.pio.register({ base: 0x640, size: 4, name: 'other' }, { read: () => 7, write: () => {} });
    enable(pc, 0x640);
    expect([pc.pio.read(0x640, 4), pc.pio.read(0xb008, 4)]).toEqual([7, undefined]);
    taken.dispose();
  });

  test('a reset takes the ports away', () => {
    const pc = machine();
    enable(pc, 0x600);
    pc.host.reset();
    expect(pc.pio.read(0x608, 4)).toBeUndefined();
  });
});

test('the guest is told of the range that a BIOS moves BARs to, or its kernel would move them again', () => {
  const bus = { bus: 0, lastBus: 0, ioWindow: { base: 0x2000, end: 0x1_0000 }, routes: [], functions: [] };
  const has = (aml: readonly number[]) => Buffer.from(aml).includes(Buffer.from(dwordMemory(0xf010_0000, 0xeb0_0000)));
  expect(has(hostBridgeAml({ ...bus, firmwareWindow: { base: 0xf010_0000, end: 0xfec0_0000 } }, false))).toBe(true);
  expect(has(hostBridgeAml(bus, false))).toBe(false);
});
