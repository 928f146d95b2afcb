/** Two User VMs on one host: memory, doorbells and a serial line between two guests of a few instructions. */
import { mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { forgetSharedRegions } from '../../../hypervisor/embedded/shared-region.ts';
import { asm, SoftVm } from '../../support/soft-vm.ts';
import { ivshmemOf, vuartVdev } from '../../support/vdevs.ts';

const RESULT = 0x6000;
const LAPIC_EOI = 0xfee0_00b0;
const region = ivshmemOf(`hv:/two-vms-${process.pid}`);
const vuart = vuartVdev;

let runDirectory: string;
let vms: SoftVm[] = [];
const regionFiles = () => readdirSync('/dev/shm').filter((file) => file.includes(`two-vms-${process.pid}`));

beforeEach(async () => {
  runDirectory = mkdtempSync(join(tmpdir(), 'two-vms-'));
  vms = [await SoftVm.create({ name: 'left', runDirectory }), await SoftVm.create({ name: 'right', runDirectory })];
  for (const vm of vms) {
    vm.hsm.createVdev(region);
    vm.hsm.createVdev(vuart);
  }
});
afterEach(() => {
  for (const vm of vms) vm.dispose();
  forgetSharedRegions();
  rmSync(runDirectory, { recursive: true, force: true });
});

/** Run both, in turns, until `done`. */
async function runBoth(done: () => boolean): Promise<void> {
  const end = performance.now() + 15_000;
  while (!done()) {
    await Promise.all(vms.map((vm) => vm.step()));
    if (performance.now() > end) throw new Error('the guests did not get there');
  }
}

const left = () => vms[0] as SoftVm;
const right = () => vms[1] as SoftVm;
const halt = [...asm.sti, ...asm.hlt, ...asm.jump(-3)];

test('what one guest writes the other reads, and its doorbell interrupts it', async () => {
  // The right guest: vector 3 of ivshmem is interrupt 43; its handler copies the shared word.
  const msixEntry = region.msixBar + 16 * 3;
  right().setGate(0x43, 0x2000);
  right().ram.set(
    [
      ...asm.loadEax(region.memoryBar + 0x1000),
      ...asm.storeEax(RESULT),
      ...asm.storeImmediate(LAPIC_EOI, 0),
      ...asm.iret,
    ],
    0x2000,
  );
  right().start([
    ...asm.storeImmediate(msixEntry, 0xfee0_0000),
    ...asm.storeImmediate(msixEntry + 8, 0x43),
    ...asm.storeImmediate(msixEntry + 12, 0),
    ...asm.movEax(0x8000_2840), // MSI-X capability of 00:05.0
    ...asm.outEax(0xcf8),
    ...asm.movEax(0x8000_0011), // enable
    ...asm.outEax(0xcfc),
    ...asm.storeImmediate(RESULT + 4, 1),
    ...halt,
  ]);
  await runBoth(() => right().word(RESULT + 4) === 1);
  left().start([
    ...asm.storeImmediate(region.memoryBar + 0x1000, 0x600d_cafe),
    ...asm.storeImmediate(region.registersBar + 0xc, (right().vmid << 16) | 3),
    ...halt,
  ]);
  await runBoth(() => right().word(RESULT) !== 0);
  expect(right().word(RESULT)).toBe(0x600d_cafe);
});

test('a serial line runs between their vUARTs of the same index', async () => {
  const uart = vuart.registersBar;
  // Wait for data ready, store the byte: both ends poll.
  const receive = [0xa0, ...le(uart + 5), 0xa8, 0x01, 0x74, 0xf7, 0xa0, ...le(uart), 0xa2, ...le(RESULT)];
  right().start([...receive, ...halt]);
  // The ends find each other, which nothing tells; until then a byte goes nowhere.
  await new Promise((resolve) => setTimeout(resolve, 1000));
  left().start([0xb0, 0x5a, 0xa2, ...le(uart), ...halt]); // mov al,5a; mov [THR],al
  await runBoth(() => right().word(RESULT) !== 0);
  expect(right().word(RESULT)).toBe(0x5a);
});

test('the region keeps its contents over the life of a VM, and goes with the last process that had it', async () => {
  left().start([...asm.storeImmediate(region.memoryBar + 8, 0x5eed), ...asm.storeImmediate(RESULT, 1), ...halt]);
  await runBoth(() => left().word(RESULT) === 1);
  for (const vm of vms.splice(0)) vm.dispose();
  expect(regionFiles()).toHaveLength(1);

  const next = await SoftVm.create({ name: 'next', runDirectory });
  vms.push(next);
  next.hsm.createVdev(region);
  next.start([...asm.loadEax(region.memoryBar + 8), ...asm.storeEax(RESULT), ...halt]);
  await next.runUntil(() => next.word(RESULT) !== 0);
  expect(next.word(RESULT)).toBe(0x5eed);

  next.dispose();
  forgetSharedRegions(); // as at the end of the process
  expect(regionFiles()).toHaveLength(0);
});

test('the same region with another size is refused', async () => {
  const third = await SoftVm.create({ name: 'third', runDirectory });
  vms.push(third);
  expect(() => third.hsm.createVdev({ ...region, sizeBytes: 0x40_0000, memoryBar: 0x8040_0000 })).toThrow('EINVAL');
});

function le(value: number): number[] {
  return [value & 0xff, (value >>> 8) & 0xff, (value >>> 16) & 0xff, value >>> 24];
}
