/** What /dev/shm, or the place where a group's VMs meet, has no room for: regions of a hypervisor without memory of its own. */
import type { VmConfig } from '../../devicemodel/core/config.ts';
import { DmError } from '../../devicemodel/core/errors.ts';
import { groupRegionFiles, groupRegionPath, regionPath } from '../../devicemodel/core/host/region-files.ts';
import { checkShmRoom, type ShmFile } from '../../devicemodel/core/host/shm-room.ts';
import { MiB } from '../../devicemodel/core/units.ts';
import { findMeetingPlace } from './meeting-place.ts';

/** Of ivshmem devices: those of the hypervisor (`hv:/`) and those of the device model (`dm:/`). */
export function wantedRegions({ pci }: Pick<VmConfig, 'pci'>): Array<{ name: string; sizeBytes: number }> {
  return pci.flatMap(({ driver, options }) => {
    if (driver !== 'ivshmem') return [];
    const { name, size } = options as { readonly name: string; readonly size: number };
    return [{ name, sizeBytes: size * MiB }];
  });
}

export async function regionProblems(config: Pick<VmConfig, 'pci' | 'socketGroup'>): Promise<DmError[]> {
  const wanted = wantedRegions(config);
  const files = (begin: string, pathOf: (name: string) => string): ShmFile[] =>
    wanted
      .filter(({ name }) => name.startsWith(begin))
      .map(({ name, sizeBytes }) => ({ path: pathOf(name), sizeBytes }));
  const ofDevices = files('dm:', (name) => `/dev/shm${name.slice('dm:'.length)}`);
  try {
    const { folder = '', groupId } = (await findMeetingPlace(config)) ?? {};
    if (groupId === undefined) {
      checkShmRoom([...ofDevices, ...files('hv:', regionPath)]);
    } else {
      checkShmRoom(ofDevices);
      checkShmRoom(
        files('hv:', (name) => groupRegionPath(folder, name)),
        folder,
        groupRegionFiles(folder),
      );
    }
    return [];
  } catch (error) {
    if (error instanceof DmError) return [error];
    throw error;
  }
}
