/** Memory behind a descriptor that has no name (memfd_create(2)), of huge pages. */
import { closeFd, setFileSize } from './files.ts';
import { hostCall, must } from './libc.ts';

/** <linux/memfd.h>; the size of a page is given by its logarithm. */
const MFD_CLOEXEC = 1;
const MFD_ALLOW_SEALING = 2;
const MFD_HUGETLB = 4;
const MFD_HUGE_SHIFT = 26;
/** fcntl: F_ADD_SEALS with F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW: nobody can cut the memory away. */
const F_ADD_SEALS = 1033;
const SEALS = 0x1 | 0x2 | 0x4;

const memfdCreate = hostCall<[name: string, flags: number]>('int memfd_create(const char *, unsigned int)');
const fcntl = hostCall<[fd: number, command: number, argument: number]>('int fcntl(int, int, unsigned long)');

/** Sealed, of huge pages of this size; the descriptor is the caller's. @throws HostError */
export function createHugeMemfd(name: string, pageBytes: number, sizeBytes: number, what: string): number {
  const flags = MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_HUGETLB | (Math.log2(pageBytes) << MFD_HUGE_SHIFT);
  const fd = must(memfdCreate(name, flags), 'memfd_create', what);
  try {
    setFileSize(fd, sizeBytes, what);
    must(fcntl(fd, F_ADD_SEALS, SEALS), 'fcntl(F_ADD_SEALS)', what);
    return fd;
  } catch (error) {
    closeFd(fd);
    throw error;
  }
}
