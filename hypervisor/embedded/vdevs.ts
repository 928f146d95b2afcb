/** Makes the functions CREATE_VDEV asks for, as far as the scenario has them. */
import type { VmConfig } from '../../devicemodel/core/config.ts';
import type { SharedMapping } from '../../devicemodel/core/host/shared-memory.ts';
import type { HvVdev, IvshmemVdev } from '../../devicemodel/core/hsm/vdev.ts';
import type { Log } from '../../devicemodel/core/log.ts';
import type { RegionBells } from './doorbells.ts';
import type { MeetingPlace } from './meeting-place.ts';
import type { Neighbours } from './neighbours.ts';
import { wantedRegions } from './region-problems.ts';
import type { Scenario, VuartAddress } from './scenario.ts';
import { awaitSharedRegion, openSharedRegion } from './shared-region.ts';
import type { VirtualFunction, VirtualFunctionFactory, VirtualFunctionHost } from './virtual-function.ts';
import { createIvshmem, IVSHMEM_VECTORS, type IvshmemRegion } from './vpci/ivshmem.ts';
import { createRootPort } from './vpci/root-port.ts';
import { createVuart } from './vpci/vuart.ts';

/** What the scenario and this host have for a vdev. Numbers and texts: it may go to another thread. */
export type VdevParts =
  | { readonly type: 'ivshmem'; readonly regionId: number; readonly memory: Pick<SharedMapping, 'bytes' | 'address'> }
  | { readonly type: 'vuart'; readonly peer: VuartAddress | undefined }
  | { readonly type: 'root-port' };

/** A vdev's parts, which are its alone until they are given back. */
export interface ClaimedParts {
  readonly parts: VdevParts;
  release(): void;
}

/** @returns finds the parts of a vdev; undefined: there are none for this VM. That throws HostError. */
export function vdevParts(
  vmName: string,
  scenario: Scenario,
  place: MeetingPlace,
): (vdev: HvVdev, log: Log) => ClaimedParts | undefined {
  /** One function a region and vUART: a second one would take the first one's interrupts. */
  const inUse = new Set<string>();
  const claimed = (key: string, find: () => ClaimedParts | undefined): ClaimedParts | undefined => {
    const found = inUse.has(key) ? undefined : find();
    if (found === undefined) return undefined;
    inUse.add(key);
    return {
      parts: found.parts,
      release: () => {
        inUse.delete(key);
        found.release();
      },
    };
  };

  return (vdev, log) => {
    switch (vdev.type) {
      case 'ivshmem': {
        const config = scenario.region(vmName, vdev.regionName);
        if (config === undefined) return undefined;
        if (config.sizeBytes !== undefined && config.sizeBytes !== vdev.sizeBytes) return undefined;
        return claimed(vdev.regionName, () => openRegion(vdev, config.regionId, place, log));
      }
      case 'vuart': {
        const config = scenario.vuart(vmName, vdev.vuartIndex);
        if (config === undefined) return undefined;
        const parts = { type: 'vuart', peer: config.peer } as const;
        return claimed(`vuart ${vdev.vuartIndex}`, () => ({ parts, release: () => {} }));
      }
      case 'root-port':
        // Compat: without an entry in the scenario ACRN answers success and creates nothing.
        return scenario.hasRootPort(vmName, vdev.secondaryBus)
          ? { parts: { type: 'root-port' }, release: () => {} }
          : undefined;
    }
  };
}

/** A VM's regions, had before CREATE_VDEV asks for them on a thread that others need. @throws HostError, or the signal's reason */
export async function awaitRegions(
  { name: vmName, pci = [] }: Pick<VmConfig, 'name'> & Partial<Pick<VmConfig, 'pci'>>,
  scenario: Scenario,
  place: MeetingPlace,
  ending?: AbortSignal,
): Promise<void> {
  for (const { name, sizeBytes } of wantedRegions({ pci })) {
    const config = name.startsWith('hv:/') ? scenario.region(vmName, name) : undefined;
    if (config === undefined || (config.sizeBytes ?? sizeBytes) !== sizeBytes) continue;
    await awaitSharedRegion(name, sizeBytes, place, ending);
  }
}

/** @throws HostError */
function openRegion(vdev: IvshmemVdev, regionId: number, place: MeetingPlace, log: Log): ClaimedParts | undefined {
  const memory = openSharedRegion(vdev.regionName, vdev.sizeBytes, place);
  if (memory === undefined) return undefined;
  try {
    const stopWatching = memory.onCut((line) => log.rationed('warn', () => line));
    return {
      parts: { type: 'ivshmem', regionId, memory },
      release: () => {
        stopWatching();
        memory.dispose();
      },
    };
  } catch (error) {
    memory.dispose();
    throw error;
  }
}

/** The function, of parts that are another's to give back. @throws HostError */
export function makeVdev(
  vdev: HvVdev,
  parts: VdevParts,
  neighbours: Neighbours,
  host: VirtualFunctionHost,
): VirtualFunction | undefined {
  if (vdev.type === 'ivshmem' && parts.type === 'ivshmem') {
    return createIvshmem(vdev, regionOf(vdev.regionName, parts, neighbours, host), host);
  }
  if (vdev.type === 'vuart' && parts.type === 'vuart') {
    return createVuart(vdev, neighbours.wire(vdev.vuartIndex, parts.peer), host);
  }
  return vdev.type === 'root-port' ? createRootPort(vdev) : undefined;
}

/** @throws HostError */
function regionOf(
  name: string,
  { regionId, memory }: Extract<VdevParts, { readonly type: 'ivshmem' }>,
  neighbours: Neighbours,
  host: VirtualFunctionHost,
): IvshmemRegion {
  const bells: RegionBells | undefined =
    host.eventfds === undefined ? undefined : neighbours.bells(name, IVSHMEM_VECTORS);
  return {
    ...(bells === undefined ? {} : { bells }),
    regionId,
    bytes: memory.bytes,
    hostAddress: memory.address,
    ring: (peer, vector) => {
      if (!neighbours.ring(name, peer, vector))
        host.log.guest(() => `${name}: doorbell for VM ${peer}, which is not there`);
    },
    onRing: (handler) => neighbours.onDoorbell(name, handler),
    dispose: () => neighbours.offDoorbell(name),
  };
}

/** Functions on this thread. */
export function vdevFactory(
  vmName: string,
  scenario: Scenario,
  neighbours: Neighbours,
  place: MeetingPlace,
): VirtualFunctionFactory {
  const find = vdevParts(vmName, scenario, place);
  return (vdev, host) => {
    const found = find(vdev, host.log);
    if (found === undefined) return undefined;
    let fn: VirtualFunction | undefined;
    try {
      fn = makeVdev(vdev, found.parts, neighbours, host);
    } finally {
      if (fn === undefined) found.release();
    }
    return fn === undefined ? undefined : releasing(fn, found);
  };
}

/** The function, which gives its parts back at its end. */
export function releasing(fn: VirtualFunction, { release }: Pick<ClaimedParts, 'release'>): VirtualFunction {
  return {
    bdf: fn.bdf,
    ...(fn.bridge === undefined ? {} : { bridge: fn.bridge }),
    readConfig: (offset, size) => fn.readConfig(offset, size),
    writeConfig: (offset, size, value) => fn.writeConfig(offset, size, value),
    dispose: () => {
      fn.dispose();
      release();
    },
  };
}
