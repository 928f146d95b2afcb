/** What CREATE_VDEV holds when it fails: nothing. */
import { existsSync, mkdtempSync, readdirSync, rmSync, truncateSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, expect, test, vi } from 'vitest';
import { HostError } from '../../../devicemodel/core/errors.ts';
import { mendAll } from '../../../devicemodel/core/host/bus-faults.ts';
import { regionPath } from '../../../devicemodel/core/host/region-files.ts';
import type { IvshmemVdev } from '../../../devicemodel/core/hsm/vdev.ts';
import { Neighbours } from '../../../hypervisor/embedded/neighbours.ts';
import { derivedScenario } from '../../../hypervisor/embedded/scenario.ts';
import { forgetSharedRegions } from '../../../hypervisor/embedded/shared-region.ts';
import { vdevFactory } from '../../../hypervisor/embedded/vdevs.ts';
import type { VirtualFunctionHost } from '../../../hypervisor/embedded/virtual-function.ts';
import { memoryLog } from '../../support/memory-log.ts';

const vdev: IvshmemVdev = {
  type: 'ivshmem',
  bdf: { bus: 0, device: 5, function: 0 },
  registersBar: 0x8000_0000,
  msixBar: 0x8000_1000,
  memoryBar: 0x8020_0000,
  regionName: `hv:/vdevs${process.pid}`,
  sizeBytes: 0x20_0000,
};
const path = regionPath(vdev.regionName);

const cleanUp: Array<() => void> = [];
afterEach(() => {
  for (const step of cleanUp.splice(0).reverse()) step();
  forgetSharedRegions();
  rmSync(path, { force: true });
});

const fail = (): never => {
  throw new HostError('the host has no more', 12);
};

async function machine() {
  const directory = mkdtempSync(join(tmpdir(), 'vdevs-'));
  cleanUp.push(() => rmSync(directory, { recursive: true, force: true }));
  const { log, lines } = memoryLog();
  const neighbours = new Neighbours({ folder: directory }, log, { hasBells: true });
  const { vmid, release } = await neighbours.join('vm');
  cleanUp.push(release);
  let held = 0;
  const hold = () => {
    held++;
    return { dispose: () => void held-- };
  };
  const host = {
    vmid,
    log,
    eventfds: { ring: hold, interrupts: (wanted) => wanted.map(hold), watch: vi.fn(hold) },
    signal: () => {},
    addRegisters: vi.fn(hold),
    addMemory: vi.fn(hold),
  } satisfies VirtualFunctionHost;
  return {
    host,
    neighbours,
    lines,
    held: () => held,
    make: vdevFactory('vm', derivedScenario, neighbours, { folder: directory }),
  };
}

type Machine = Awaited<ReturnType<typeof machine>>;
const openFds = () => readdirSync('/proc/self/fd').length;

// Mutation: without the catch in openRegion, in Ivshmem or in KernelBells, the region has a user and a listener for ever.
test.each<[string, (machine: Machine) => unknown]>([
  ['eventfds', ({ neighbours }) => vi.spyOn(neighbours, 'bells').mockImplementation(fail)],
  [
    'a watch',
    ({ host }) => host.eventfds.watch.mockImplementationOnce(host.eventfds.ring).mockImplementationOnce(fail),
  ],
  ['room for registers', ({ host }) => host.addRegisters.mockImplementation(fail)],
  ['room for memory', ({ host }) => host.addMemory.mockImplementation(fail)],
])('a region is let go of for which the host has no %s', async (_what, refuse) => {
  const vm = await machine();
  // Once, well: what is open for good from then on is open.
  vm.make(vdev, vm.host)?.dispose();
  const before = openFds();
  expect(vm.held()).toBe(0);
  refuse(vm);
  expect(() => vm.make(vdev, vm.host)).toThrow('the host has no more');
  expect([openFds(), vm.held()]).toEqual([before, 0]);
  truncateSync(path, 0);
  expect([mendAll(), vm.lines.filter((line) => line.includes('cut'))]).toEqual([true, []]);
  forgetSharedRegions();
  expect(existsSync(path)).toBe(false);
});

test('one that is there says that it was cut', async () => {
  const vm = await machine();
  const fn = vm.make(vdev, vm.host);
  truncateSync(path, 0);
  expect([mendAll(), vm.lines.filter((line) => line.includes('cut'))]).toEqual([
    true,
    [expect.stringMatching(/^warn: /)],
  ]);
  fn?.dispose();
});
