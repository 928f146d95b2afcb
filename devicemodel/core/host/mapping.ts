/** Mapped memory of this process, as bytes and as an address; disposing unmaps it. */
import { fstatSync } from 'node:fs';
import { HostError } from '../errors.ts';
import { Errno, libc, MapFlag, OpenFlag, Protection, viewOf } from './libc.ts';

export interface Mapping {
  readonly address: bigint;
  readonly bytes: Uint8Array<ArrayBuffer>;
  dispose(): void;
}

/** Map `fd` (shared) or anonymous zero pages (fd undefined). @throws HostError */
export function map(sizeBytes: number, what: string, fd?: number): Mapping {
  const flags = fd === undefined ? MapFlag.Private | MapFlag.Anonymous : MapFlag.Shared;
  const address = libc.mmap(sizeBytes, Protection.Read | Protection.Write, flags, fd ?? -1, 0, what);
  return mapped(address, sizeBytes);
}

/** Wrap memory that is mapped already. */
export function mapped(address: bigint, sizeBytes: number): Mapping {
  let live = true;
  return {
    address,
    bytes: viewOf(address, sizeBytes),
    dispose: () => {
      if (live) libc.munmap(address, sizeBytes);
      live = false;
    },
  };
}

/**
 * POSIX shared memory by name (`/name`), made with mode 0600 when it does not exist. It is not unlinked: it outlives
 * the VM on purpose, so that a peer keeps its data over a reboot.
 * @throws HostError, also when it exists with another size.
 */
export function openSharedMemory(name: string, sizeBytes: number): Mapping {
  const fd = libc.shmOpen(name, OpenFlag.ReadWrite | OpenFlag.Create | OpenFlag.CloseOnExec, 0o600);
  try {
    const have = fstatSync(fd).size;
    if (have === 0) libc.ftruncate(fd, sizeBytes, `shared memory ${name}`);
    else if (have !== sizeBytes) {
      throw new HostError(
        `shared memory ${name} exists with ${have} bytes, ${sizeBytes} were asked for`,
        Errno.EEXIST,
        {
          hint: `use the same size, or remove /dev/shm${name} when no VM uses it`,
        },
      );
    }
    return map(sizeBytes, `shared memory ${name}`, fd);
  } finally {
    libc.close(fd);
  }
}
