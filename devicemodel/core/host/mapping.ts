/** Mapped memory of this process, as bytes and as an address; disposing unmaps it. */
import { isMainThread } from 'node:worker_threads';
import koffi from 'koffi';
import { HostError } from '../errors.ts';
import { describeErrno } from './errno.ts';
import { asyncCall, hostCall, lastErrno, must, native } from './libc.ts';

/** <bits/mman.h>, x86-64 Linux. */
const Protection = { None: 0, Read: 1, Write: 2, Execute: 4 } as const;
const MapFlag = {
  Shared: 1,
  Private: 2,
  Fixed: 0x10,
  Anonymous: 0x20,
  NoReserve: 0x4000,
  Populate: 0x8000,
} as const;
const MAP_FAILED = 0xffff_ffff_ffff_ffffn;
const READ_WRITE = Protection.Read | Protection.Write;

const mprotect = hostCall<[address: bigint, sizeBytes: number, protection: number]>(
  'int mprotect(uintptr_t, size_t, int)',
);

export interface Mapping {
  readonly address: bigint;
  readonly bytes: Uint8Array<ArrayBuffer>;
  dispose(): void;
}

/** What is read and written by its address alone. */
export interface UnseenMapping extends Pick<Mapping, 'address' | 'dispose'> {
  /** As `dispose`, on a thread of Node's: each page that was touched takes a while. */
  disposeAside(): Promise<void>;
}

function mmap(
  at: bigint,
  sizeBytes: number,
  protection: number,
  flags: number,
  fd: number,
  offset: number,
  what: string,
): bigint {
  const call = native('uintptr_t mmap(uintptr_t, size_t, int, int, int, int64_t)');
  const address = BigInt(call(at, sizeBytes, protection, flags, fd, offset));
  if (address !== MAP_FAILED) return address;
  const errno = lastErrno();
  throw new HostError(`${what}: mmap: ${describeErrno(errno)}`, errno);
}

function munmap(address: bigint, sizeBytes: number): void {
  native('int munmap(uintptr_t, size_t)')(address, sizeBytes);
}

const munmapAside = asyncCall<[address: bigint, sizeBytes: number]>('int munmap(uintptr_t, size_t)');

/** The bytes at an address, as a view that owns nothing: valid until the memory is unmapped. At most 4 GiB. */
export function viewOf(address: bigint, sizeBytes: number): Uint8Array<ArrayBuffer> {
  return new Uint8Array(koffi.view(address, sizeBytes));
}

/** The address of a typed array's bytes. Stable only for memory that does not move: mapped pages. */
export function addressOf(bytes: Uint8Array): bigint {
  return koffi.address(bytes);
}

/** Map `fd` (shared) or anonymous zero pages (fd undefined). @throws HostError */
export function map(sizeBytes: number, what: string, fd?: number): Mapping {
  const flags = fd === undefined ? MapFlag.Private | MapFlag.Anonymous : MapFlag.Shared;
  return mapped(mmap(0n, sizeBytes, READ_WRITE, flags, fd ?? -1, 0, what), sizeBytes);
}

/**
 * Anonymous pages for as long as the calling thread: they would be the process's, and stay when a worker ends, of which a
 * guest that resets itself makes many. @throws HostError
 */
export function mapForThread(sizeBytes: number, what: string): Mapping {
  const mapping = map(sizeBytes, what);
  if (!isMainThread) process.once('exit', () => mapping.dispose());
  return mapping;
}

/** Map a part of `fd` with its pages present at once. @throws HostError */
export function mapPresent(sizeBytes: number, what: string, fd: number, offset: number): Mapping {
  return mapped(mmap(0n, sizeBytes, READ_WRITE, MapFlag.Shared | MapFlag.Populate, fd, offset, what), sizeBytes);
}

/** Map `fd` where it may not be read or written: for a driver that hands it on by its address. @throws HostError */
export function mapUntouched(sizeBytes: number, what: string, fd: number): Pick<Mapping, 'address' | 'dispose'> {
  const address = mmap(0n, sizeBytes, Protection.None, MapFlag.Shared, fd, 0, what);
  return { address, dispose: () => munmap(address, sizeBytes) };
}

/**
 * Map what is read and written by its address alone, by others and by system calls: registers of a device, which answers
 * with a signal when it is switched off, or a file that may shrink. Nothing of this process looks at it. @throws HostError
 */
export function mapUnseen(sizeBytes: number, what: string, fd: number, offset: number): UnseenMapping {
  const address = mmap(0n, sizeBytes, READ_WRITE, MapFlag.Shared, fd, offset, what);
  return {
    address,
    dispose: () => munmap(address, sizeBytes),
    disposeAside: async () => void (await munmapAside(address, sizeBytes)),
  };
}

/** Wrap memory that is mapped already. */
function mapped(address: bigint, sizeBytes: number): Mapping {
  let live = true;
  return {
    address,
    bytes: viewOf(address, sizeBytes),
    dispose: () => {
      if (live) munmap(address, sizeBytes);
      live = false;
    },
  };
}

/** Addresses that are set aside, to be filled piece by piece. */
export interface AddressSpace {
  /** A multiple of the alignment asked for. */
  readonly base: bigint;
  /** Everything mapped into it goes, too. */
  dispose(): void;
}

/** @throws HostError */
export function reserveAddressSpace(sizeBytes: number, alignment: number, what: string): AddressSpace {
  const reserved = sizeBytes + alignment;
  const flags = MapFlag.Private | MapFlag.Anonymous | MapFlag.NoReserve;
  const address = mmap(0n, reserved, Protection.None, flags, -1, 0, what);
  const mask = BigInt(alignment) - 1n;
  let live = true;
  return {
    base: (address + mask) & ~mask,
    dispose: () => {
      if (live) munmap(address, reserved);
      live = false;
    },
  };
}

/** Map part of a file into an address space that was reserved. @throws HostError */
export function mapFileAt(at: bigint, sizeBytes: number, fd: number, offset: number, what: string): void {
  mmap(at, sizeBytes, READ_WRITE, MapFlag.Shared | MapFlag.Fixed, fd, offset, what);
}

/** Zero pages of the usual size, taken as they are touched. @throws HostError */
export function mapZeroAt(at: bigint, sizeBytes: number, what: string): void {
  mmap(at, sizeBytes, READ_WRITE, MapFlag.Shared | MapFlag.Fixed | MapFlag.Anonymous | MapFlag.NoReserve, -1, 0, what);
}

/** Zero pages at an address that is a multiple of `alignment`. @throws HostError */
export function mapAligned(sizeBytes: number, alignment: number, what: string): Mapping {
  const space = reserveAddressSpace(sizeBytes, alignment, what);
  try {
    mapZeroAt(space.base, sizeBytes, what);
  } catch (error) {
    space.dispose();
    throw error;
  }
  return { address: space.base, bytes: viewOf(space.base, sizeBytes), dispose: () => space.dispose() };
}

/** Instructions of this CPU. @throws HostError */
export function mapCode(code: Uint8Array, what: string): Pick<Mapping, 'address' | 'dispose'> {
  const mapping = map(code.length, what);
  mapping.bytes.set(code);
  must(mprotect(mapping.address, code.length, Protection.Read | Protection.Execute), 'mprotect', what);
  return mapping;
}
