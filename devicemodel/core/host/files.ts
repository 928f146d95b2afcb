/**
 * Descriptors and what is behind them: open, read, write, sync. Functions that are called for every request give a
 * count or a negative errno; the others throw.
 */
import { close, fdatasync } from 'node:fs';
import { statfs } from 'node:fs/promises';
import { Errno } from './errno.ts';
import { asyncCall, hostCall, must, native } from './libc.ts';

/** <bits/fcntl-linux.h>, x86-64. */
export const OpenFlag = {
  ReadOnly: 0,
  WriteOnly: 1,
  ReadWrite: 2,
  Create: 0o100,
  Exclusive: 0o200,
  NoCtty: 0o400,
  NonBlock: 0o4000,
  Direct: 0o40000,
  NoFollow: 0o400000,
  CloseOnExec: 0o2000000,
} as const;

const F_GETFL = 3;
const F_SETFL = 4;
const F_DUPFD_CLOEXEC = 1030;
const SEEK_END = 2;
/** <linux/fs.h>: fail rather than wait for the medium. */
const RWF_NOWAIT = 0x08;
/** <linux/falloc.h>: the file keeps its length. */
const KEEP_SIZE = 0x01;
/** The hole reads as zeros. */
const PUNCH_HOLE_KEEP_SIZE = 0x02 | KEEP_SIZE;
/**
 * Room that is asked for at once. A file system in memory (Linux before 6.10) gives up at a signal, having undone what
 * it did: asked for as a whole, a large file is never done while signals come, however often it is tried.
 */
const RESERVE_BYTES = 0x2_0000;

const open = hostCall<[path: string, flags: number, mode: number]>('int open(const char *, int, unsigned int)');
const truncate = hostCall<[fd: number, sizeBytes: number]>('int ftruncate(int, int64_t)');
const fcntl = hostCall<[fd: number, command: number, argument: number]>('int fcntl(int, int, unsigned long)');
const preallocate = hostCall<[fd: number, mode: number, at: number, sizeBytes: number]>(
  'int fallocate(int, int, int64_t, int64_t)',
);
const preadv2 = hostCall<[fd: number, iovecs: Uint8Array, count: number, at: number, flags: number]>(
  'int64_t preadv2(int, const void *, int, int64_t, int)',
);

/** @param flags {@link OpenFlag}. @param mode of a file that is made. @throws HostError */
export function openFile(path: string, flags: number, mode = 0o600): number {
  return must(open(path, flags, mode), 'open', path);
}

/** Never made again: on Linux the descriptor is gone even after EINTR. */
export function closeFd(fd: number): void {
  native('int close(int)')(fd);
}

/** @throws HostError */
export function setFileSize(fd: number, sizeBytes: number, what: string): void {
  must(truncate(fd, sizeBytes), 'ftruncate', what);
}

/**
 * Let the file have the room for so many bytes, so that no later access finds the medium full. Its length stays: whoever
 * looks meanwhile sees no half of a file.
 * @throws HostError, ENOSPC above all; what there was room for stays reserved until the file's size is set.
 */
export function reserveSpace(fd: number, sizeBytes: number, what: string): void {
  for (let at = 0; at < sizeBytes; at += RESERVE_BYTES) {
    must(preallocate(fd, KEEP_SIZE, at, Math.min(RESERVE_BYTES, sizeBytes - at)), 'fallocate', what);
  }
}

const seek = hostCall<[fd: number, offset: number, whence: number]>('int64_t lseek(int, int64_t, int)');

/** Where the file ends now; the position of the open file is there afterwards. @returns bytes, or a negative errno. */
export function endOfFile(fd: number): number {
  return seek(fd, 0, SEEK_END);
}

/** @returns 0 or a negative errno. */
export function punchHole(fd: number, at: number, sizeBytes: number): number {
  return preallocate(fd, PUNCH_HOLE_KEEP_SIZE, at, sizeBytes);
}

/** O_NONBLOCK belongs to the open file, not to the descriptor: whoever shares it sees the change. @returns the old setting. @throws HostError */
export function setNonBlocking(fd: number, on: boolean, what: string): boolean {
  const flags = must(fcntl(fd, F_GETFL, 0), 'fcntl', what);
  const wanted = on ? flags | OpenFlag.NonBlock : flags & ~OpenFlag.NonBlock;
  if (wanted !== flags) must(fcntl(fd, F_SETFL, wanted), 'fcntl', what);
  return (flags & OpenFlag.NonBlock) !== 0;
}

/**
 * Let io_uring read and write a file in memory while a call is handed over. It hands to a thread of its own what a file
 * system does not promise not to wait for, but takes O_NONBLOCK's and O_DIRECT's word for that; a file system in memory
 * heeds neither.
 * @returns false where the host does not take these flags for it.
 */
export function letSubmitTransfer(fd: number): boolean {
  const flags = fcntl(fd, F_GETFL, 0);
  return flags >= 0 && fcntl(fd, F_SETFL, flags | OpenFlag.NonBlock | OpenFlag.Direct) >= 0;
}

/** Another descriptor of the same open file. @throws HostError */
export function duplicate(fd: number, what: string): number {
  return must(fcntl(fd, F_DUPFD_CLOEXEC, 3), 'fcntl', what);
}

/** The bytes go to, or come from, an address. @returns bytes, or a negative errno. */
export const readAt = hostCall<[fd: number, address: bigint, sizeBytes: number, at: number]>(
  'int64_t pread(int, uintptr_t, size_t, int64_t)',
);
export const writeAt = hostCall<[fd: number, address: bigint, sizeBytes: number, at: number]>(
  'int64_t pwrite(int, uintptr_t, size_t, int64_t)',
);
export const readToAddress = hostCall<[fd: number, address: bigint | number, sizeBytes: number]>(
  'int64_t read(int, uintptr_t, size_t)',
);

/** The whole of `bytes`, or less. @returns bytes, or a negative errno. */
export const readBytes = hostCall<[fd: number, bytes: ArrayBufferView, sizeBytes: number]>(
  'int64_t read(int, void *, size_t)',
);
export const writeBytes = hostCall<[fd: number, bytes: ArrayBufferView, sizeBytes: number]>(
  'int64_t write(int, const void *, size_t)',
);

/** Arrays of struct iovec. @returns bytes, or a negative errno. */
export const readVector = hostCall<[fd: number, iovecs: Uint8Array, count: number]>(
  'int64_t readv(int, const void *, int)',
);
export const writeVector = hostCall<[fd: number, iovecs: Uint8Array, count: number]>(
  'int64_t writev(int, const void *, int)',
);
export const readVectorAt = hostCall<[fd: number, iovecs: Uint8Array, count: number, at: number]>(
  'int64_t preadv(int, const void *, int, int64_t)',
);
export const writeVectorAt = hostCall<[fd: number, iovecs: Uint8Array, count: number, at: number]>(
  'int64_t pwritev(int, const void *, int, int64_t)',
);

/** What the host has in its cache, without waiting for the medium. @returns bytes, or a negative errno: EAGAIN where it would wait. */
export function readCachedAt(fd: number, iovecs: Uint8Array, count: number, at: number): number {
  return preadv2(fd, iovecs, count, at, RWF_NOWAIT);
}

/** What there is now, also from an open file that somebody else made blocking. @returns bytes, or a negative errno: EAGAIN for none. */
export function readNow(fd: number, iovecs: Uint8Array, count: number): number {
  return preadv2(fd, iovecs, count, -1, RWF_NOWAIT);
}

/** @returns 0 when everything written is on the medium, or a negative errno. */
export const syncData = hostCall<[fd: number]>('int fdatasync(int)');

/** As {@link syncData}, on a thread of Node's: this one goes on. */
export function syncDataAside(fd: number): Promise<number> {
  return new Promise((resolve) => {
    fdatasync(fd, (error) => resolve(error === null ? 0 : (error.errno ?? -Errno.EIO)));
  });
}

// On a thread of Node's: this one goes on. The memory belongs to the call until it has answered.

const openAside = asyncCall<[path: string, flags: number, mode: number]>('int open(const char *, int, unsigned int)');

/** As {@link openFile}. @throws HostError, asynchronously */
export async function openFileAside(path: string, flags: number, mode = 0o600): Promise<number> {
  for (;;) {
    const result = await openAside(path, flags, mode);
    if (result !== -Errno.EINTR) return must(result, 'open', path);
  }
}

/** As {@link closeFd}: a file system may write back what it has of the file before it answers. */
export function closeFdAside(fd: number): Promise<void> {
  return new Promise((resolve) => close(fd, () => resolve()));
}

/** @returns bytes, or a negative errno. */
export const readAtAside = asyncCall<[fd: number, address: bigint, sizeBytes: number, at: number]>(
  'int64_t pread(int, uintptr_t, size_t, int64_t)',
);
export const writeAtAside = asyncCall<[fd: number, address: bigint, sizeBytes: number, at: number]>(
  'int64_t pwrite(int, uintptr_t, size_t, int64_t)',
);

const preallocateAside = asyncCall<[fd: number, mode: number, at: number, sizeBytes: number]>(
  'int fallocate(int, int, int64_t, int64_t)',
);

/** As {@link punchHole}. @returns 0 or a negative errno. */
export async function punchHoleAside(fd: number, at: number, sizeBytes: number): Promise<number> {
  for (;;) {
    const result = await preallocateAside(fd, PUNCH_HOLE_KEEP_SIZE, at, sizeBytes);
    if (result !== -Errno.EINTR) return result;
  }
}

/** <linux/magic.h>: tmpfs and ramfs. Not hugetlbfs: write(2) changes nothing there, only memory that a file is mapped to. */
const MEMORY_FILE_SYSTEMS: readonly number[] = [0x0102_1994, 0x8584_58f6];

/** Whether what is read and written is in memory, so that nobody ever waits for it. */
export async function isInMemory(fd: number): Promise<boolean> {
  try {
    const { type } = await statfs(`/proc/self/fd/${fd}`);
    return MEMORY_FILE_SYSTEMS.includes(type >>> 0);
  } catch {
    return false;
  }
}
