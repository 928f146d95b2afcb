/** Makes the functions CREATE_VDEV asks for, as far as the scenario has them. */
import type { HvVdev } from '../../devicemodel/core/hsm/vdev.ts';
import type { RegionBells } from './doorbells.ts';
import type { Neighbours } from './neighbours.ts';
import type { Scenario } from './scenario.ts';
import { openSharedRegion } from './shared-region.ts';
import type { VirtualFunction, VirtualFunctionFactory, VirtualFunctionHost } from './virtual-function.ts';
import { createIvshmem, IVSHMEM_VECTORS, type IvshmemRegion } from './vpci/ivshmem.ts';
import { createRootPort } from './vpci/root-port.ts';
import { createVuart } from './vpci/vuart.ts';

export function vdevFactory(vmName: string, scenario: Scenario, neighbours: Neighbours): VirtualFunctionFactory {
  /** One function a region and vUART: a second one would take the first one's interrupts. */
  const inUse = new Set<string>();

  const claimed = (key: string, make: () => VirtualFunction | undefined): VirtualFunction | undefined => {
    if (inUse.has(key)) return undefined;
    const fn = make();
    if (fn === undefined) return undefined;
    inUse.add(key);
    return {
      bdf: fn.bdf,
      readConfig: (offset, size) => fn.readConfig(offset, size),
      writeConfig: (offset, size, value) => fn.writeConfig(offset, size, value),
      dispose: () => {
        inUse.delete(key);
        fn.dispose();
      },
    };
  };

  return (vdev: HvVdev, host: VirtualFunctionHost) => {
    switch (vdev.type) {
      case 'ivshmem': {
        const config = scenario.region(vmName, vdev.regionName);
        if (config === undefined) return undefined;
        if (config.sizeBytes !== undefined && config.sizeBytes !== vdev.sizeBytes) return undefined;
        return claimed(vdev.regionName, () => {
          const region = openRegion(vdev.regionName, vdev.sizeBytes, config.regionId, neighbours, host);
          return region === undefined ? undefined : createIvshmem(vdev, region, host);
        });
      }
      case 'vuart': {
        const config = scenario.vuart(vmName, vdev.vuartIndex);
        if (config === undefined) return undefined;
        return claimed(`vuart ${vdev.vuartIndex}`, () =>
          createVuart(vdev, neighbours.wire(vdev.vuartIndex, config.peer), host),
        );
      }
      case 'root-port':
        // Compat: without an entry in the scenario ACRN answers success and creates nothing.
        return scenario.hasRootPort(vmName, vdev.secondaryBus) ? createRootPort(vdev) : undefined;
    }
  };
}

/** @throws HostError */
function openRegion(
  name: string,
  sizeBytes: number,
  regionId: number,
  neighbours: Neighbours,
  host: VirtualFunctionHost,
): IvshmemRegion | undefined {
  const memory = openSharedRegion(name, sizeBytes);
  if (memory === undefined) return undefined;
  let stopWatching = () => {};
  const letGo = () => {
    stopWatching();
    memory.dispose();
  };
  let bells: RegionBells | undefined;
  try {
    stopWatching = memory.onCut((line) => host.log.rationed('warn', () => line));
    bells = host.eventfds === undefined ? undefined : neighbours.bells(name, IVSHMEM_VECTORS);
  } catch (error) {
    letGo();
    throw error;
  }
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
    dispose: () => {
      neighbours.offDoorbell(name);
      letGo();
    },
  };
}
