/** Where configuration accesses go when the hypervisor has a bridge of its own. */
import { describe, expect, test } from 'vitest';
import type { AccessSize, Bdf } from '../../../devicemodel/core/address.ts';
import type { RootPortVdev } from '../../../devicemodel/core/hsm/vdev.ts';
import { IOREQ_PAGE_BYTES, IoreqPage, IoreqType } from '../../../devicemodel/core/ioreq-page.ts';
import { EventfdTable } from '../../../hypervisor/embedded/eventfd-table.ts';
import { AccessRouter } from '../../../hypervisor/embedded/guest-bus.ts';
import { createRootPort } from '../../../hypervisor/embedded/vpci/root-port.ts';

const portAt = (device: number, secondaryBus: number): RootPortVdev => ({
  type: 'root-port',
  bdf: { bus: 0, device, function: 0 },
  physicalBdf: { bus: 0, device, function: 0 },
  maxPayload: 0,
  primaryBus: 0,
  secondaryBus,
  subordinateBus: secondaryBus,
  ptmCapOffset: 0x100,
});

/** What became of an access: answered with a value, or handed to the device model as this. */
type Outcome = number | string;

function machine(...ports: RootPortVdev[]) {
  const page = new IoreqPage(new Uint8Array(IOREQ_PAGE_BYTES));
  const noEventfds = { check: () => 0, signal: () => {}, watch: () => ({ dispose: () => {} }) };
  const router = new AccessRouter(page, new EventfdTable(noEventfds, { signal: () => {} }));
  router.isUnattended = false;
  for (const port of ports) router.addFunction(createRootPort(port));
  const outcome = (): Outcome => {
    if (router.submit(0)) return page.value(0);
    if (page.type(0) === IoreqType.Mmio) return `mmio ${page.address(0).toString(16)}`;
    const at = [page.pciBus(0), page.pciDevice(0), page.pciFunction(0)].join(':');
    return `config ${at} ${page.pciRegister(0).toString(16)}${page.isWrite(0) ? `=${page.value(0)}` : ''}`;
  };
  const number = ({ bus, device, function: fn }: Bdf) => (bus << 8) | (device << 3) | fn;
  return {
    router,
    /** By the ports CF8 and CFC. */
    io(bdf: Bdf, register: number, write?: number): Outcome {
      page.fillPortIo(0, true, 0xcf8, 4, (0x8000_0000 | (number(bdf) << 8) | register) >>> 0);
      router.submit(0);
      page.fillPortIo(0, write !== undefined, 0xcfc, 4, write ?? 0);
      return outcome();
    },
    ecam(bdf: Bdf, register: number, write?: number, size: AccessSize | 8 = 4): Outcome {
      page.fillMmio(0, write !== undefined, 0xe000_0000 + number(bdf) * 4096 + register, size, write ?? 0);
      return outcome();
    },
  };
}

const at = (bus: number, device = 0): Bdf => ({ bus, device, function: 0 });
const BUS_NUMBERS = 0x18;

describe.each(['io', 'ecam'] as const)('by %s', (way) => {
  test('the port answers itself, the function below it is the device model’s', () => {
    const vm = machine(portAt(6, 1));
    expect(vm[way](at(0, 6), 0)).toBe(0x9d14_8086);
    expect(vm[way](at(1), 0x10)).toBe(way === 'io' ? 'config 1:0:0 10' : 'mmio e0100010');
    expect(vm[way](at(0, 3), 0x10)).toBe(way === 'io' ? 'config 0:3:0 10' : 'mmio e0018010');
  });

  test('a bus that no port passes on is empty', () => {
    const vm = machine(portAt(6, 1));
    expect(vm[way](at(2), 0)).toBe(0xffff_ffff);
    expect(vm[way](at(2), 4, 7)).toBe(7); // written, and gone
  });

  test('the function follows the bus number the guest gives to the port', () => {
    const vm = machine(portAt(6, 1), portAt(7, 2));
    vm[way](at(0, 6), BUS_NUMBERS, 0x0005_0500);
    expect(vm[way](at(5), 0x10)).toBe('config 1:0:0 10');
    expect(vm[way](at(5), 4, 7)).toBe('config 1:0:0 4=7');
    expect(vm[way](at(1), 0)).toBe(0xffff_ffff);
    expect(vm[way](at(2), 0x10)).toBe(way === 'io' ? 'config 2:0:0 10' : 'mmio e0200010');
  });

  test('without a port of the hypervisor every bus is the device model’s', () => {
    expect(machine()[way](at(1), 0)).toBe(way === 'io' ? 'config 1:0:0 0' : 'mmio e0100000');
  });

  test('a port that is taken off passes nothing on any more', () => {
    const vm = machine(portAt(6, 1), portAt(7, 2));
    const port = vm.router.functionAt(at(0, 7));
    if (port === undefined) throw new Error('the port is there');
    vm.router.removeFunction(port);
    expect(vm[way](at(2), 0)).toBe(0xffff_ffff);
    expect(vm[way](at(0, 7), 0)).toBe(way === 'io' ? 'config 0:7:0 0' : 'mmio e0038000');
  });
});

test('the window takes a dword at most', () => {
  const vm = machine(portAt(6, 1));
  expect(vm.ecam(at(0, 6), 0, undefined, 8)).toBe(0xffff_ffff);
  vm.ecam(at(0, 6), BUS_NUMBERS, 0x0005_0500);
  expect(vm.ecam(at(5), 0, undefined, 8)).toBe(0xffff_ffff);
});
