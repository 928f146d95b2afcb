/** Functions of the hypervisor as a machine has them: BARs that are placed, apart from each other. */
import type { IvshmemVdev, RootPortVdev, VuartVdev } from '../../devicemodel/core/hsm/vdev.ts';

export const ivshmemOf = (regionName: string): IvshmemVdev => ({
  type: 'ivshmem',
  bdf: { bus: 0, device: 5, function: 0 },
  registersBar: 0x8000_0000,
  msixBar: 0x8000_1000,
  memoryBar: 0x8020_0000,
  regionName,
  sizeBytes: 0x20_0000,
});

export const vuartVdev: VuartVdev = {
  type: 'vuart',
  bdf: { bus: 0, device: 6, function: 0 },
  registersBar: 0x8040_0000,
  msixBar: 0x8040_1000,
  vuartIndex: 1,
};

export const rootPortVdev: RootPortVdev = {
  type: 'root-port',
  bdf: { bus: 0, device: 7, function: 0 },
  physicalBdf: { bus: 0, device: 7, function: 0 },
  maxPayload: 0,
  primaryBus: 0,
  secondaryBus: 1,
  subordinateBus: 1,
  ptmCapOffset: 0x100,
};
