/**
 * Advisory locks on open files. These are open-file-description locks (fcntl(2)): they belong to the descriptor, so
 * closing another descriptor of the same file does not drop them, as it does with the traditional kind, and two
 * descriptors of one process exclude each other, too.
 */
import { HostError } from '../errors.ts';
import { describeErrno, Errno } from './errno.ts';
import { asyncCall, hostCall, must } from './libc.ts';

/** <bits/fcntl-linux.h>, x86-64. */
const Command = { SetLock: 37, SetLockWait: 38 } as const;
const LockType = { shared: 0, exclusive: 1, none: 2 } as const;
/** How often a lock that somebody has is tried again. */
const RETRY_MS = 5;
export type LockKind = 'shared' | 'exclusive';

const fcntl = hostCall<[fd: number, command: number, flock: Uint8Array]>('int fcntl(int, int, void *)');

/** Part of a file; without a size, to its end, however far that moves. */
export interface LockRange {
  readonly base: number;
  readonly sizeBytes: number;
}
const WHOLE_FILE: LockRange = { base: 0, sizeBytes: 0 };

const fcntlAside = asyncCall<[fd: number, command: number, flock: Uint8Array]>('int fcntl(int, int, void *)');

/** struct flock: l_type, l_whence (SEEK_SET), l_start, l_len, l_pid (0 for this kind of lock). */
function encodeLock(type: number, { base, sizeBytes }: LockRange): Uint8Array {
  const flock = new DataView(new ArrayBuffer(32));
  flock.setInt16(0, type, true);
  flock.setBigInt64(8, BigInt(base), true);
  flock.setBigInt64(16, BigInt(sizeBytes), true);
  return new Uint8Array(flock.buffer);
}

function lock(fd: number, command: number, type: number, range: LockRange): number {
  return fcntl(fd, command, encodeLock(type, range));
}

/** @returns whether the lock was taken. @throws HostError for any failure but that somebody else has it. */
function isTaken(result: number, what: string): boolean {
  if (result >= 0) return true;
  if (-result === Errno.EAGAIN || -result === Errno.EACCES) return false;
  throw new HostError(`${what}: cannot be locked: ${describeErrno(-result)}`, -result);
}

/**
 * Take a lock, or change the one this descriptor has, until the descriptor is closed.
 * @returns false if another process, or another descriptor of this one, holds a lock that excludes it.
 * @throws HostError for any other failure.
 */
export function tryLock(fd: number, kind: LockKind, what: string, range: LockRange = WHOLE_FILE): boolean {
  return isTaken(lock(fd, Command.SetLock, LockType[kind], range), what);
}

/** As {@link tryLock}, on a thread of Node's: the lock of a file on another machine is that machine's to give. */
export async function tryLockAside(fd: number, kind: LockKind, what: string, range = WHOLE_FILE): Promise<boolean> {
  return isTaken(await fcntlAside(fd, Command.SetLock, encodeLock(LockType[kind], range)), what);
}

/**
 * As {@link tryLock}, and waits for who has it, with the event loop running meanwhile: who has it may be another VM of
 * this process.
 * @param patienceMs for a file that others may lock as long as they like. @param ending gives up.
 * @throws HostError, or the signal's reason
 */
export async function lockWhenFree(
  fd: number,
  kind: LockKind,
  what: string,
  patienceMs = Number.POSITIVE_INFINITY,
  ending?: AbortSignal,
): Promise<void> {
  await onceFree(what, patienceMs, () => tryLock(fd, kind, what) || undefined, ending);
}

function keptLocked(what: string, patienceMs: number): HostError {
  return new HostError(`${what}: somebody has kept it locked for ${patienceMs / 1000} s`, Errno.EWOULDBLOCK, {
    hint: `\`fuser -v ${what}\` shows who has it open`,
  });
}

/**
 * What others have locked for a while, with the event loop running meanwhile.
 * @param attempt gives undefined as long as they have it. @param ending gives up. @throws HostError, or the signal's reason
 */
export async function onceFree<T>(
  what: string,
  patienceMs: number,
  attempt: () => T | undefined,
  ending?: AbortSignal,
): Promise<T> {
  const end = performance.now() + patienceMs;
  for (;;) {
    ending?.throwIfAborted();
    const found = attempt();
    if (found !== undefined) return found;
    if (performance.now() > end) throw keptLocked(what, patienceMs);
    await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
  }
}

/** As {@link onceFree}, and this thread does nothing else meanwhile: not even a signal is heard. @throws HostError */
export function onceFreeBlocking<T>(what: string, patienceMs: number, attempt: () => T | undefined): T {
  const end = performance.now() + patienceMs;
  const nobody = new Int32Array(new SharedArrayBuffer(4));
  for (;;) {
    const found = attempt();
    if (found !== undefined) return found;
    if (performance.now() > end) throw keptLocked(what, patienceMs);
    Atomics.wait(nobody, 0, 0, RETRY_MS);
  }
}

/** As {@link tryLock}, and blocks this thread until who has it lets go: for what is held for no longer than a few calls. @throws HostError */
export function lockWait(fd: number, kind: LockKind, what: string, range: LockRange = WHOLE_FILE): void {
  must(lock(fd, Command.SetLockWait, LockType[kind], range), 'lock', what);
}
