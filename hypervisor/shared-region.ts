/**
 * Memory of one ivshmem region, shared by the VMs of a host: a file in /dev/shm that every VM maps. A lock says who
 * uses it: the first VM finds it zeroed, the last one removes it, and what a crash left behind is taken over.
 */
import { constants, fstatSync, statSync, unlinkSync } from 'node:fs';
import { ExitCode, HostError } from '../devicemodel/core/errors.ts';
import { libc, native, OpenFlag } from '../devicemodel/core/host/libc.ts';
import { type Mapping, map } from '../devicemodel/core/host/mapping.ts';

const SHM_DIR = '/dev/shm';
/** flock(2). */
const Lock = { shared: 1, exclusive: 2, nonBlocking: 4 } as const;
const PRIVATE = constants.S_IRUSR | constants.S_IWUSR;

/** One file name per region and user; what a file name cannot hold is written as its code. */
function pathOf(regionName: string): string {
  const name = regionName.replace(/^hv:\//, '').replace(/[^A-Za-z0-9_-]/g, (c) => `%${c.codePointAt(0)?.toString(16)}`);
  return `${SHM_DIR}/acrn-soft.${process.getuid?.() ?? 0}.${name}`;
}

const flock = (fd: number, operation: number) => native('int flock(int, int)')(fd, operation) === 0;

/**
 * @returns undefined when another VM has the region with another size.
 * @throws HostError
 */
export function openSharedRegion(regionName: string, sizeBytes: number): Mapping | undefined {
  const path = pathOf(regionName);
  for (;;) {
    const fd = libc.open(path, OpenFlag.ReadWrite | OpenFlag.Create | OpenFlag.CloseOnExec, PRIVATE);
    let isKept = false;
    try {
      const isFirst = flock(fd, Lock.exclusive | Lock.nonBlocking);
      if (!isFirst) flock(fd, Lock.shared);
      // The last user may have removed the file between our open and our lock: then it is not the one others will open.
      if (!isSameFile(fd, path)) continue;
      if (isFirst) {
        libc.ftruncate(fd, 0, regionName); // what is left from a crash is not this VM's
        libc.ftruncate(fd, sizeBytes, regionName);
        flock(fd, Lock.shared);
      } else if (fstatSync(fd).size !== sizeBytes) {
        return undefined;
      }
      const mapping = map(sizeBytes, `ivshmem region ${regionName}`, fd);
      isKept = true;
      return {
        ...mapping,
        dispose: () => {
          mapping.dispose();
          release(fd, path);
        },
      };
    } finally {
      if (!isKept) libc.close(fd);
    }
  }
}

function isSameFile(fd: number, path: string): boolean {
  const stat = statSync(path, { throwIfNoEntry: false });
  return stat !== undefined && stat.ino === fstatSync(fd).ino;
}

function release(fd: number, path: string): void {
  try {
    if (flock(fd, Lock.exclusive | Lock.nonBlocking) && isSameFile(fd, path)) unlinkSync(path);
  } catch (cause) {
    throw new HostError(`${path}: ${(cause as Error).message}`, 0, { exitCode: ExitCode.OsError, cause });
  } finally {
    libc.close(fd);
  }
}
