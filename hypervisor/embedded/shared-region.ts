/**
 * Memory of one ivshmem region, shared by the VMs of a host: a file that every process with such a VM maps, in /dev/shm, or where
 * the VMs of a group meet.
 *
 * As the hypervisor's memory it outlives each VM: a guest that resets finds it as it was. Here it lives until the last
 * process that had it ends; a lock on the file says who has it. The first one finds it zeroed, the last one removes it.
 * What VMs that were killed left is taken over, or removed by the next VM that starts, whatever its regions.
 */
import { fstatSync } from 'node:fs';
import { dirname } from 'node:path';
import {
  groupRegions,
  isSameFile,
  ownRegions,
  type RegionHome,
  removeDeadRegions,
  removeIfUnused,
} from '../../devicemodel/core/host/dead-regions.ts';
import { onProcessExit } from '../../devicemodel/core/host/exit-hooks.ts';
import { lockWait, onceFree, onceFreeBlocking, tryLock } from '../../devicemodel/core/host/file-lock.ts';
import { closeFd, setFileSize } from '../../devicemodel/core/host/files.ts';
import { fillShared, mapShared, type SharedMapping } from '../../devicemodel/core/host/shared-memory.ts';
import type { MeetingPlace } from './meeting-place.ts';

/** Whoever comes first has a file locked while it takes all of its pages; longer than this only somebody who means no good. */
const LOCK_PATIENCE_MS = 60_000;
/** When the thread stands still meanwhile: for what {@link awaitSharedRegion} has found free. */
const BLOCKED_PATIENCE_MS = 2000;

interface Region {
  readonly fd: number;
  readonly path: string;
  readonly mapping: SharedMapping;
  /** VMs of this process that use it now. */
  users: number;
}

/** What a file is when it is not the region that is wanted. */
const OTHER_SIZE = 'of another size';

/** By path: what this process has mapped, in use or kept. */
const regions = new Map<string, Region>();
let isExitHooked = false;

function homeOf({ folder, groupId }: MeetingPlace): RegionHome {
  return groupId === undefined ? ownRegions : groupRegions(folder, groupId);
}

/**
 * Have a region ready for {@link openSharedRegion}, which then waits for nobody: kept as one that a former VM used.
 * @param ending gives up. @throws HostError, or the signal's reason
 */
export async function awaitSharedRegion(
  regionName: string,
  sizeBytes: number,
  place: MeetingPlace,
  ending?: AbortSignal,
): Promise<void> {
  const home = homeOf(place);
  const path = home.pathOf(regionName);
  const find = () => {
    const found = regions.get(path) ?? tryMapRegion(home, path, regionName, sizeBytes);
    if (typeof found === 'object') regions.set(path, found);
    return found;
  };
  await onceFree(path, LOCK_PATIENCE_MS, find, ending);
}

/**
 * The region for one VM; disposing ends its use, not its memory.
 * @param place of a group: without, it is this user's alone. @param patienceMs for one that somebody else has locked.
 * @returns undefined when the region exists with another size.
 * @throws HostError
 */
export function openSharedRegion(
  regionName: string,
  sizeBytes: number,
  place: MeetingPlace = { folder: '' },
  patienceMs = BLOCKED_PATIENCE_MS,
): SharedMapping | undefined {
  const home = homeOf(place);
  const path = home.pathOf(regionName);
  let region = regions.get(path);
  region?.mapping.mend(); // it may have been cut since, under a VM or under none
  if (region?.users === 0 && !isAsShared(region, sizeBytes)) {
    forget(region);
    region = undefined;
  }
  const found = region ?? onceFreeBlocking(path, patienceMs, () => tryMapRegion(home, path, regionName, sizeBytes));
  if (found === OTHER_SIZE || found.mapping.bytes.length !== sizeBytes) return undefined;
  region = found;
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

/** Give the host back what killed VMs left, of any name: those of this user, or of all who meet in that place. */
export function sweepDeadRegions(place: MeetingPlace = { folder: '' }): void {
  removeDeadRegions((path) => regions.has(path), homeOf(place));
}

function forgetAtExit(): void {
  if (isExitHooked) return;
  isExitHooked = true;
  onProcessExit(() => {
    for (const region of [...regions.values()]) forget(region);
  });
}

/** @returns undefined while somebody else is making or removing the file: it is to be opened again. @throws HostError */
function tryMapRegion(
  home: RegionHome,
  path: string,
  regionName: string,
  sizeBytes: number,
): Region | typeof OTHER_SIZE | undefined {
  forgetAtExit();
  const fd = home.open(path, { isMade: true });
  let isKept = false;
  /** Nobody else has the file that others will open. */
  let isOurs = false;
  try {
    const isFirst = tryLock(fd, 'exclusive', path);
    // Whoever comes first has it locked while it takes all of its pages.
    if (!isFirst && !tryLock(fd, 'shared', path)) return undefined;
    // The last user may have removed the file between our open and our lock: then it is not the one others will open.
    if (!isSameFile(fd, path)) return undefined;
    isOurs = isFirst;
    if (isFirst) {
      setFileSize(fd, 0, regionName); // what is left from a crash is not this VM's
      fillShared(fd, sizeBytes, `ivshmem region ${regionName}`, dirname(path));
      lockWait(fd, 'shared', path);
    } else {
      const { size } = fstatSync(fd);
      // Somebody has just emptied what is not theirs to remove, or looks at it as we do: who is first fills it.
      if (size === 0) return undefined;
      if (size !== sizeBytes) return OTHER_SIZE;
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

function forget(region: Region): void {
  regions.delete(region.path);
  region.mapping.dispose();
  removeIfUnused(region.fd, region.path);
  closeFd(region.fd);
}
