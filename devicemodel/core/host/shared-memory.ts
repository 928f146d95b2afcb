/** Memory that processes share by a name: files of /dev/shm. Any of them may cut it while it is mapped here. */
import { fstatSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { HostError } from '../errors.ts';
import { type CutOutcome, type FaultGuard, guardMapping } from './bus-faults.ts';
import { Errno } from './errno.ts';
import { closeFd, OpenFlag, reserveSpace, setFileSize } from './files.ts';
import { hostCall, must } from './libc.ts';
import { type Mapping, map } from './mapping.ts';
import { howToMakeRoom, otherSize } from './shm-room.ts';
import { OWNER_ONLY, withUmask } from './umask.ts';

const shmOpen = hostCall<[name: string, flags: number, mode: number]>('int shm_open(const char *, int, unsigned int)');

/** Disposing unmaps it. */
export interface SharedMapping extends Mapping, Pick<FaultGuard, 'mend' | 'isReplaced'> {
  /** Be told, in words for the log, that another process cut it. @returns how to stop; the process lives until then. */
  onCut(listener: (line: string) => void): () => void;
}

function describeCut(what: string, outcome: CutOutcome): string {
  return outcome === 'restored'
    ? `${what}: another process cut it; it has its size again, with zeros where it was cut`
    : `${what}: another process cut it, and it cannot have its size again: what is missing is zeroed memory of this VM alone`;
}

/**
 * POSIX shared memory by name (`/name`), made with mode 0600 when it does not exist. It is not unlinked: it outlives
 * the VM on purpose, so that a peer keeps its data over a reboot. All of its pages are there when this returns: a full
 * /dev/shm is an error here, and not a fault at some later access.
 * What another process cuts off later comes back with zeros: see bus-faults.ts.
 * @throws HostError, also when it exists with another size.
 */
export function openSharedMemory(name: string, sizeBytes: number): SharedMapping {
  const what = `shared memory ${name}`;
  const path = join('/dev/shm', name);
  const flags = OpenFlag.ReadWrite | OpenFlag.Create | OpenFlag.CloseOnExec;
  const made = withUmask(OWNER_ONLY, () => shmOpen(name, flags | OpenFlag.Exclusive, 0o600));
  const isNew = made !== -Errno.EEXIST;
  const fd = must(isNew ? made : shmOpen(name, flags, 0o600), 'shm_open', what);
  let isOpen = true;
  try {
    const have = fstatSync(fd).size;
    if (have !== 0 && have !== sizeBytes) {
      const { message, hint } = otherSize(what, path, have, sizeBytes);
      throw new HostError(message, Errno.EEXIST, { hint });
    }
    fillShared(fd, sizeBytes, what);
    const shared = mapShared(fd, sizeBytes, what);
    return {
      ...shared,
      dispose: () => {
        shared.dispose();
        if (isOpen) closeFd(fd);
        isOpen = false;
      },
    };
  } catch (error) {
    // An object of somebody else's stays, and so does one that somebody found here and filled meanwhile.
    if (isNew && fstatSync(fd).size === 0) rmSync(path, { force: true });
    closeFd(fd);
    throw error;
  }
}

/**
 * Give a file its size and all its pages. @param folder where it is.
 * @throws HostError; the file is then as large as it was.
 */
export function fillShared(fd: number, sizeBytes: number, what: string, folder = '/dev/shm'): void {
  const before = fstatSync(fd).size;
  try {
    reserveSpace(fd, sizeBytes, what);
    if (before < sizeBytes) setFileSize(fd, sizeBytes, what);
  } catch (error) {
    setFileSize(fd, before, what);
    if (error instanceof HostError && error.errno === Errno.EFBIG) {
      throw new HostError(error.message, error.errno, {
        cause: error,
        hint: '`ulimit -f` sets how large a file may be',
      });
    }
    if (!(error instanceof HostError) || error.errno !== Errno.ENOSPC) throw error;
    throw new HostError(`${what}: ${folder} has no room for ${sizeBytes} bytes`, Errno.ENOSPC, {
      cause: error,
      hint: howToMakeRoom(folder),
    });
  }
}

/** Map a file that has all its pages. @param fd stays the caller's, open until the mapping is disposed of. @throws HostError */
export function mapShared(fd: number, sizeBytes: number, what: string): SharedMapping {
  const mapping = map(sizeBytes, what, fd);
  try {
    const guard = guardMapping(mapping, fd);
    return {
      ...mapping,
      mend: guard.mend,
      isReplaced: guard.isReplaced,
      onCut: (listener) => guard.onCut((outcome) => listener(describeCut(what, outcome))),
      dispose: () => {
        guard.dispose();
        mapping.dispose();
      },
    };
  } catch (error) {
    mapping.dispose();
    throw error;
  }
}
