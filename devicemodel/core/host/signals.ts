/** What the kernel does with signals that are not Node's: the real-time ones, the kick of a blocked thread, faults. */
import { constants } from 'node:os';
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
/** Without SIGSEGV, which V8 handles. */
export const FAULTS = ['SIGILL', 'SIGTRAP', 'SIGBUS', 'SIGFPE', 'SIGSYS'] as const;
/** The C library's struct sigaction, x86-64. */
const LIBC_ACTION = { handler: 0, mask: 8, flags: 136, size: 152 } as const;
const SA_SIGINFO = 4;
const SA_RESTART = 0x1000_0000;

const rtSigaction = hostCall<
  [number: number, signal: number, action: Uint8Array | null, old: Uint8Array | null, maskBytes: number]
>('int64_t syscall(int64_t, int64_t, const void *, void *, int64_t)');
const sigaction = hostCall<[signal: number, action: Uint8Array, old: null]>('int sigaction(int, const void *, void *)');

/**
 * The kick signal must interrupt a blocked call and do nothing else. Its handler is a C function without side effects;
 * SA_RESTART is not set, so that the call returns.
 */
export function installKickSignal(): void {
  const action = new DataView(new ArrayBuffer(LIBC_ACTION.size));
  action.setBigUint64(LIBC_ACTION.handler, nativeAddress('abs'), true); // mask, flags and restorer stay 0
  must(sigaction(KICK_SIGNAL, new Uint8Array(action.buffer), null), 'sigaction', 'kick signal');
}

/**
 * What Node cannot listen to, or had better not: real-time signals, which end a process that does not handle them, and
 * those of faults. A real fault ends the process with a core also when its signal is ignored; a handler that returns
 * would make it come again, for ever.
 */
export function ignoreOtherSignals(): void {
  for (const signal of FAULTS) ignore(constants.signals[signal]);
  for (let signal = FIRST_REAL_TIME; signal <= LAST_REAL_TIME; signal++) ignore(signal);
}

/**
 * Native code for the faults of this process, with all other signals blocked meanwhile, unless somebody handles them.
 * @param handler address of a void (int, siginfo_t *, void *). @returns whether it is there.
 */
export function handleFaults(name: (typeof FAULTS)[number], handler: bigint): boolean {
  const signal = constants.signals[name];
  if (faultHandler(name) !== undefined) return false;
  const action = new DataView(new ArrayBuffer(LIBC_ACTION.size));
  action.setBigUint64(LIBC_ACTION.handler, handler, true);
  action.setBigUint64(LIBC_ACTION.mask, 0xffff_ffff_ffff_ffffn, true);
  action.setUint32(LIBC_ACTION.flags, SA_SIGINFO | SA_RESTART, true);
  return sigaction(signal, new Uint8Array(action.buffer), null) === 0;
}

/** Address of the code that handles a fault in this process, whoever put it there; undefined: none does. */
export function faultHandler(name: (typeof FAULTS)[number]): bigint | undefined {
  const action = new Uint8Array(KERNEL_ACTION.size);
  must(rtSigaction(SYS_RT_SIGACTION, constants.signals[name], null, action, MASK_BYTES), 'sigaction', name);
  const handler = new DataView(action.buffer).getBigUint64(KERNEL_ACTION.handler, true);
  return handler === SIG_DFL || handler === SIG_IGN ? undefined : handler;
}

/** Unless somebody handles it. */
function ignore(signal: number): void {
  const action = new DataView(new ArrayBuffer(KERNEL_ACTION.size));
  const bytes = new Uint8Array(action.buffer);
  if (rtSigaction(SYS_RT_SIGACTION, signal, null, bytes, MASK_BYTES) < 0) return;
  if (action.getBigUint64(KERNEL_ACTION.handler, true) !== SIG_DFL) return;
  action.setBigUint64(KERNEL_ACTION.handler, SIG_IGN, true);
  rtSigaction(SYS_RT_SIGACTION, signal, bytes, null, MASK_BYTES);
}
