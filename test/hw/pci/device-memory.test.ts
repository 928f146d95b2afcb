/** Memory of a device that the guest has as RAM, wherever its BAR is. */
import { afterEach, beforeEach, expect, test } from 'vitest';
import type { Hsm, RamMapping } from '../../../devicemodel/core/hsm/hsm.ts';
import { silentLog } from '../../../devicemodel/core/log.ts';
import { DeviceMemory } from '../../../devicemodel/hw/pci/device-memory.ts';

let mapped: number[];
/** The CPU has no addresses from here on. */
const END = 0x1_0000_0000;
const hsm = {
  mapRam: ({ gpa }: RamMapping) => {
    if (gpa >= END) throw new Error('EINVAL');
    mapped.push(gpa);
  },
  unmapRam: ({ gpa }: RamMapping) => {
    mapped = mapped.filter((at) => at !== gpa);
  },
} as unknown as Hsm;

let memory: DeviceMemory;
beforeEach(() => {
  mapped = [];
  memory = new DeviceMemory(4096, 'memory of a test', { hsm, log: silentLog });
});
afterEach(() => memory.detach());

test('it follows the BAR', () => {
  memory.moveTo(0x8000_0000);
  expect(mapped).toEqual([]);
  memory.attach(0x8000_0000);
  memory.moveTo(undefined);
  memory.moveTo(0x8000_0000);
  expect(mapped).toEqual([0x8000_0000]);
  memory.moveTo(0x9000_0000);
  expect(mapped).toEqual([0x9000_0000]);
});

// Mutation: take a memory that is mapped nowhere for one that is not attached.
test('a place that the hypervisor does not take leaves it unmapped only until the next', () => {
  memory.attach(0x8000_0000);
  memory.moveTo(END);
  memory.write(8, 4, 0x1234);
  expect(mapped).toEqual([]);
  memory.moveTo(0x8000_0000);
  expect(mapped).toEqual([0x8000_0000]);
  expect(memory.read(8, 2)).toBe(0x1234);
  memory.detach();
  memory.moveTo(0x9000_0000);
  expect(mapped).toEqual([0x8000_0000]);
});
