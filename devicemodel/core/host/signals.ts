/**
 * What the kernel does with a signal, for those that Node cannot listen to: the real-time ones, the kick of a blocked
 * thread, and those of faults.
 */
import { hostCall, must, nativeAddress } from './libc.ts';

/** SIGRTMIN+6: free in Node. */
export const KICK_SIGNAL = 40;
/** The C library keeps 32 and 33 for itself, and its sigaction does not touch them; the system call does. */
const FIRST_REAL_TIME = 32;
const LAST_REAL_TIME = 64;

const SYS_RT_SIGACTION = 13;
/** The kernel's struct sigaction, x86-64: handler, flags, restorer, mask. */
const KERNEL_ACTION = { handler: 0, flags: 8, restorer: 16, mask: 24, size: 32 } as const;
const MASK_BYTES = 8;
const SIG_DFL = 0n;
const SIG_IGN = 1n;
const SA_RESETHAND = 0x8000_0000n;
/** The C library's struct sigaction, x86-64. */
const SIGACTION_BYTES = 152;

const rtSigaction = hostCall<
  [number: number, signal: number, action: Uint8Array | null, old: Uint8Array | null, maskBytes: number]
>('int64_t syscall(int64_t, int64_t, const void *, void *, int64_t)');
const sigaction = hostCall<[signal: number, action: Uint8Array, old: null]>('int sigaction(int, const void *, void *)');

function actionOf(signal: number): DataView | undefined {
  const action = new DataView(new ArrayBuffer(KERNEL_ACTION.size));
  return rtSigaction(SYS_RT_SIGACTION, signal, null, new Uint8Array(action.buffer), MASK_BYTES) < 0
    ? undefined
    : action;
}

function setAction(signal: number, action: DataView): void {
  rtSigaction(SYS_RT_SIGACTION, signal, new Uint8Array(action.buffer), null, MASK_BYTES);
}

/**
 * The kick signal must interrupt a blocked call and do nothing else. Its handler is a C function without side effects;
 * SA_RESTART is not set, so that the call returns.
 */
export function installKickSignal(): void {
  const action = new DataView(new ArrayBuffer(SIGACTION_BYTES));
  action.setBigUint64(0, nativeAddress('abs'), true); // sa_handler; mask, flags and restorer stay 0
  must(sigaction(KICK_SIGNAL, new Uint8Array(action.buffer), null), 'sigaction', 'kick signal');
}

/** Real-time signals that nobody handles end a process; from now on they do nothing. */
export function ignoreRealTimeSignals(): void {
  for (let signal = FIRST_REAL_TIME; signal <= LAST_REAL_TIME; signal++) {
    const action = actionOf(signal);
    if (action === undefined || action.getBigUint64(KERNEL_ACTION.handler, true) !== SIG_DFL) continue;
    action.setBigUint64(KERNEL_ACTION.handler, SIG_IGN, true);
    setAction(signal, action);
  }
}

/**
 * After Node listens to a signal of a fault: its handler runs once. A signal that was sent is heard; a real fault comes
 * again when the handler returns, and then ends the process with a core as if nobody had listened, instead of coming
 * again for ever. To be called again once one was heard.
 */
export function handleOnce(signal: number): void {
  const action = actionOf(signal);
  if (action === undefined || action.getBigUint64(KERNEL_ACTION.handler, true) <= SIG_IGN) return;
  action.setBigUint64(KERNEL_ACTION.flags, action.getBigUint64(KERNEL_ACTION.flags, true) | SA_RESETHAND, true);
  setAction(signal, action);
}
