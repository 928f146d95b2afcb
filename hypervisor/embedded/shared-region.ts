/**
 * Memory of one ivshmem region, shared by the VMs of a host: a file in /dev/shm that every process with such a VM maps.
 *
 * As the hypervisor's memory it outlives each VM: a guest that resets finds it as it was. Here it lives until the last
 * process that had it ends; a lock on the file says who has it. The first one finds it zeroed, the last one removes it.
 * What VMs that were killed left is taken over, or removed by the next VM that starts, whatever its regions.
 */
import { constants, fstatSync } from 'node:fs';
import { checkOurs, isSameFile, removeDeadRegions, removeIfUnused } from '../../devicemodel/core/host/dead-regions.ts';
import { onProcessExit } from '../../devicemodel/core/host/exit-hooks.ts';
import { lockWait, tryLock } from '../../devicemodel/core/host/file-lock.ts';
import { closeFd, OpenFlag, openFile, setFileSize } from '../../devicemodel/core/host/files.ts';
import { regionPath } from '../../devicemodel/core/host/region-files.ts';
import { fillShared, mapShared, type SharedMapping } from '../../devicemodel/core/host/shared-memory.ts';
import { OWNER_ONLY, withUmask } from '../../devicemodel/core/host/umask.ts';

const PRIVATE = constants.S_IRUSR | constants.S_IWUSR;

interface Region {
  readonly fd: number;
  readonly path: string;
  readonly mapping: SharedMapping;
  /** VMs of this process that use it now. */
  users: number;
}

/** By path: what this process has mapped, in use or kept. */
const regions = new Map<string, Region>();
let isExitHooked = false;

/**
 * The region for one VM; disposing ends its use, not its memory.
 * @returns undefined when the region exists with another size.
 * @throws HostError
 */
export function openSharedRegion(regionName: string, sizeBytes: number): SharedMapping | undefined {
  const path = regionPath(regionName);
  let region = regions.get(path);
  region?.mapping.mend(); // it may have been cut since, under a VM or under none
  if (region?.users === 0 && !isAsShared(region, sizeBytes)) {
    forget(region);
    region = undefined;
  }
  region ??= mapRegion(path, regionName, sizeBytes);
  if (region === undefined || region.mapping.bytes.length !== sizeBytes) return undefined;
  regions.set(path, region);
  region.users++;
  const { mapping } = region;
  const used = region;
  let isUsed = true;
  return {
    ...mapping,
    dispose: () => {
      if (isUsed) used.users--;
      isUsed = false;
    },
  };
}

/**
 * Whether what was kept from a former VM will do for the next one. It is kept for nobody in particular: another
 * configuration may have another size. What became memory of this process alone is not the region any more.
 */
function isAsShared({ mapping }: Region, sizeBytes: number): boolean {
  return mapping.bytes.length === sizeBytes && !mapping.isReplaced();
}

/**
 * Let go of every region no VM of this process uses; files nobody else has are removed. The process does so when it ends.
 * @internal for tests
 */
export function forgetSharedRegions(): void {
  for (const region of [...regions.values()]) {
    if (region.users === 0) forget(region);
  }
}

/** Give the host back what killed VMs of this user left, of any name. */
export function sweepDeadRegions(): void {
  removeDeadRegions((path) => regions.has(path));
}

function mapRegion(path: string, regionName: string, sizeBytes: number): Region | undefined {
  if (!isExitHooked) {
    isExitHooked = true;
    onProcessExit(() => {
      for (const region of [...regions.values()]) forget(region);
    });
  }
  for (;;) {
    const flags = OpenFlag.ReadWrite | OpenFlag.Create | OpenFlag.NoFollow | OpenFlag.NonBlock | OpenFlag.CloseOnExec;
    const fd = withUmask(OWNER_ONLY, () => openFile(path, flags, PRIVATE));
    let isKept = false;
    /** Nobody else has the file that others will open. */
    let isOurs = false;
    try {
      checkOurs(fd, path);
      const isFirst = tryLock(fd, 'exclusive', path);
      if (!isFirst) lockWait(fd, 'shared', path);
      // The last user may have removed the file between our open and our lock: then it is not the one others will open.
      if (!isSameFile(fd, path)) continue;
      isOurs = isFirst;
      if (isFirst) {
        setFileSize(fd, 0, regionName); // what is left from a crash is not this VM's
        fillShared(fd, sizeBytes, `ivshmem region ${regionName}`);
        lockWait(fd, 'shared', path);
      } else if (fstatSync(fd).size !== sizeBytes) {
        return undefined;
      }
      const mapping = mapShared(fd, sizeBytes, `ivshmem region ${regionName}`);
      isKept = true;
      return { fd, path, mapping, users: 0 };
    } finally {
      if (!isKept) {
        if (isOurs) removeIfUnused(fd, path);
        closeFd(fd);
      }
    }
  }
}

function forget(region: Region): void {
  regions.delete(region.path);
  region.mapping.dispose();
  removeIfUnused(region.fd, region.path);
  closeFd(region.fd);
}
