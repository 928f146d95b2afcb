/** What /dev/shm has no room for: regions of a hypervisor without memory of its own. */
import type { VmConfig } from '../../devicemodel/core/config.ts';
import { DmError } from '../../devicemodel/core/errors.ts';
import { regionPath } from '../../devicemodel/core/host/region-files.ts';
import { checkShmRoom } from '../../devicemodel/core/host/shm-room.ts';
import { MiB } from '../../devicemodel/core/units.ts';

export function regionProblems({ pci }: Pick<VmConfig, 'pci'>): DmError[] {
  const files = pci.flatMap(({ driver, options }) => {
    if (driver !== 'ivshmem') return [];
    const { name, size } = options as { readonly name: string; readonly size: number };
    const path = name.startsWith('hv:') ? regionPath(name) : `/dev/shm${name.slice('dm:'.length)}`;
    return [{ path, sizeBytes: size * MiB }];
  });
  try {
    checkShmRoom(files);
    return [];
  } catch (error) {
    if (error instanceof DmError) return [error];
    throw error;
  }
}
