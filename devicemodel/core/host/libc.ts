/**
 * System calls, through koffi. One place turns -1 into a HostError with the call, what it was about, and the errno, read
 * before anything else can change it. Functions are declared at first use: a declaration costs about 50 us, and a run
 * needs only some of them.
 */

import { constants } from 'node:os';
import { getSystemErrorMap } from 'node:util';
import koffi from 'koffi';
import { HostError } from '../errors.ts';

export const Errno = constants.errno;

type NativeFunction = (...args: unknown[]) => number;

const processLibrary = koffi.load(null);
const declared = new Map<string, NativeFunction>();

/**
 * A C function of this process by its prototype, e.g. `int eventfd(unsigned int, int)`.
 * Pointers may be given as typed arrays, addresses as bigint or safe integers (`uintptr_t`).
 */
export function native(prototype: string): NativeFunction {
  let fn = declared.get(prototype);
  if (fn === undefined) {
    fn = processLibrary.func(prototype) as unknown as NativeFunction;
    declared.set(prototype, fn);
  }
  return fn;
}

/**
 * As {@link native}, on a thread of its own: for a call that blocks for long and that nothing can interrupt.
 * @returns a function whose promise gives the result and the errno of that thread.
 */
export function nativeAsync(prototype: string): (...args: unknown[]) => Promise<{ result: number; errno: number }> {
  const fn = native(prototype) as unknown as { async: (...args: unknown[]) => void };
  return (...args) =>
    new Promise((resolve, reject) => {
      fn.async(...args, (error: unknown, result: number) => {
        if (error) reject(error);
        else resolve({ result, errno: result === -1 ? koffi.errno() : 0 });
      });
    });
}

/** The address of a C function, for a signal handler that need not do anything. */
export function nativeAddress(symbol: string): bigint {
  return koffi.address(processLibrary.symbol(symbol));
}

/** errno of the last native call of this thread; only right immediately after it. */
export function lastErrno(): number {
  return koffi.errno();
}

/** `EINVAL: invalid argument`. */
export function describeErrno(errno: number): string {
  const [name, text] = getSystemErrorMap().get(-errno) ?? [`errno ${errno}`, 'unknown error'];
  return `${name}: ${text}`;
}

/** Throw for a call that just failed. `what` names the thing it was about. */
function fail(call: string, what: string): never {
  const errno = lastErrno();
  throw new HostError(`${what}: ${call}: ${describeErrno(errno)}`, errno);
}

/** Run a call that answers -1 on failure, again when a signal interrupted it. */
function check(call: string, what: string, fn: () => number): number {
  for (;;) {
    const result = fn();
    if (result !== -1) return result;
    if (lastErrno() !== Errno.EINTR) return fail(call, what);
  }
}

// Flags, x86-64 Linux: <bits/fcntl-linux.h>, <bits/mman.h>, <linux/memfd.h>, <sys/eventfd.h>.
export const OpenFlag = {
  ReadOnly: 0,
  WriteOnly: 1,
  ReadWrite: 2,
  Create: 0o100,
  Exclusive: 0o200,
  NoCtty: 0o400,
  NonBlock: 0o4000,
  CloseOnExec: 0o2000000,
} as const;
export const Protection = { None: 0, Read: 1, Write: 2 } as const;
export const MapFlag = {
  Shared: 1,
  Private: 2,
  Fixed: 0x10,
  Anonymous: 0x20,
  NoReserve: 0x4000,
  Populate: 0x8000,
} as const;
export const MemfdFlag = {
  CloseOnExec: 1,
  AllowSealing: 2,
  HugeTlb: 4,
  Huge2Mib: 21 << 26,
  Huge1Gib: 30 << 26,
} as const;

export const libc = {
  open(path: string, flags: number, mode = 0o600): number {
    return check('open', path, () => native('int open(const char *, int, unsigned int)')(path, flags, mode));
  },

  close(fd: number): void {
    // Never repeated: on Linux the descriptor is gone even after EINTR.
    native('int close(int)')(fd);
  },

  ftruncate(fd: number, sizeBytes: number, what: string): void {
    check('ftruncate', what, () => native('int ftruncate(int, int64_t)')(fd, sizeBytes));
  },

  mmap(
    sizeBytes: number,
    protection: number,
    flags: number,
    fd: number,
    offset: number,
    what: string,
    at = 0n,
  ): bigint {
    const address = native('uintptr_t mmap(uintptr_t, size_t, int, int, int, int64_t)')(
      at,
      sizeBytes,
      protection,
      flags,
      fd,
      offset,
    );
    const failed = BigInt(address) === 0xffff_ffff_ffff_ffffn;
    return failed ? fail('mmap', what) : BigInt(address);
  },

  munmap(address: bigint, sizeBytes: number): void {
    native('int munmap(uintptr_t, size_t)')(address, sizeBytes);
  },

  memfdCreate(name: string, flags: number): number {
    return check('memfd_create', name, () => native('int memfd_create(const char *, unsigned int)')(name, flags));
  },

  /** F_ADD_SEALS. */
  addSeals(fd: number, seals: number, what: string): void {
    check('fcntl(F_ADD_SEALS)', what, () => native('int fcntl(int, int, unsigned long)')(fd, 1033, seals));
  },

  eventfd(flags: number): number {
    return check('eventfd', 'eventfd', () => native('int eventfd(unsigned int, int)')(0, flags));
  },

  timerfd(clock: number, flags: number): number {
    return check('timerfd_create', 'timer', () => native('int timerfd_create(int, int)')(clock, flags));
  },

  /** Whole-file record lock of this process (lockf); blocks. */
  lockFile(fd: number, what: string): void {
    check('lockf', what, () => native('int lockf(int, int, int64_t)')(fd, 1, 0));
  },
  unlockFile(fd: number): void {
    native('int lockf(int, int, int64_t)')(fd, 0, 0);
  },

  shmOpen(name: string, flags: number, mode: number): number {
    return check('shm_open', name, () => native('int shm_open(const char *, int, unsigned int)')(name, flags, mode));
  },

  gettid(): number {
    return native('int gettid()')();
  },
} as const;

/** _exit(2): nothing of the process is tidied up, and no thread is waited for. */
export function exitAtOnce(status: number): void {
  native('void _exit(int)')(status);
}

/** The bytes at an address, as a view that owns nothing: valid until the memory is unmapped. At most 4 GiB. */
export function viewOf(address: bigint, sizeBytes: number): Uint8Array<ArrayBuffer> {
  return new Uint8Array(koffi.view(address, sizeBytes));
}

/** The address of a typed array's bytes. Stable only for memory that does not move: mapped pages. */
export function addressOf(bytes: Uint8Array): bigint {
  return koffi.address(bytes);
}

let watchAdded: (() => void) | undefined;

/**
 * Be told of every watch that is added: the event loop looks at a new one only from its next turn on, and a thread that
 * has its own wait has to give it that turn. @returns how to stop.
 */
export function onWatchAdded(listener: () => void): () => void {
  watchAdded = listener;
  return () => {
    if (watchAdded === listener) watchAdded = undefined;
  };
}

/** Call back on the event loop whenever the descriptor is readable. @returns how to stop. Keeps the process alive until then. */
export function watchFd(fd: number, onReadable: () => void): () => void {
  const handle = koffi.node.poll(fd, { readable: true }, onReadable);
  watchAdded?.();
  return () => handle.close();
}
