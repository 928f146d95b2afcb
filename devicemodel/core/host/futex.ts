/**
 * futex(2): sleep until a word of shared memory changes. Unlike Atomics.wait a signal ends it, which is how the device
 * thread is fetched out of every wait.
 */
import { native } from './libc.ts';

const SYS_FUTEX = 202;
/** FUTEX_WAIT and FUTEX_WAKE with FUTEX_PRIVATE_FLAG: only threads of this process. */
const Operation = { wait: 128, wake: 129 } as const;
const PROTOTYPE = 'int64_t syscall(int64_t, void *, int, uint32_t, uintptr_t)';
const TIMED_PROTOTYPE = 'int64_t syscall(int64_t, void *, int, uint32_t, const void *)';

/** Sleep while `word` (one word of a SharedArrayBuffer) is `value`; also until a wake-up, a signal, or nothing at all. */
export function futexWait(word: Int32Array, value: number): void {
  native(PROTOTYPE)(SYS_FUTEX, word, Operation.wait, value >>> 0, 0);
}

/** As {@link futexWait}, and no longer than this; less than a second. */
export function futexWaitFor(word: Int32Array, value: number, timeoutMs: number): void {
  const timespec = BigUint64Array.of(0n, BigInt(Math.round(timeoutMs * 1e6)));
  native(TIMED_PROTOTYPE)(SYS_FUTEX, word, Operation.wait, value >>> 0, timespec);
}

/** Wake whoever sleeps on the word. */
export function futexWake(word: Int32Array): void {
  native(PROTOTYPE)(SYS_FUTEX, word, Operation.wake, 1, 0);
}
