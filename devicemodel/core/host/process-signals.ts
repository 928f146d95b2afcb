/**
 * Every signal of this process that can be caught, from the program's first line to its last. What each does stands in
 * one table; docs/exit-codes.md shows the same. A signal that ends the VM goes to whoever listens; before there is
 * anything to end, the process ends as any program does; after, it is ending already.
 *
 * This file must not need the C library: loading that takes longer than everything before the first line.
 */
import { readdirSync, readlinkSync } from 'node:fs';
import { createRequire } from 'node:module';

/** What a signal does to a running VM. */
export const SignalAction = {
  /** Power off without asking the guest. */
  powerOff: 'power off',
  /** Press the guest's power button. */
  shutDown: 'ask the guest',
  ignore: 'ignored',
} as const;
export type SignalAction = (typeof SignalAction)[keyof typeof SignalAction];

const { powerOff, shutDown, ignore } = SignalAction;

/**
 * Left to the system: SIGKILL and SIGSTOP (nobody can catch them), job control (SIGTSTP, SIGTTIN, SIGTTOU, SIGCONT), what
 * does nothing by itself (SIGCHLD, SIGURG, SIGWINCH), and SIGSEGV, which V8 needs for WebAssembly. Signals of faults and
 * real-time ones are ignored, too: by signals.ts, as Node cannot.
 */
export const signalActions = {
  SIGHUP: powerOff,
  SIGINT: powerOff,
  SIGQUIT: powerOff,
  SIGABRT: powerOff,
  /** Would otherwise make Node listen for a debugger, on a port that everybody on the machine can reach. */
  SIGUSR1: ignore,
  SIGUSR2: ignore,
  SIGPIPE: ignore,
  SIGALRM: ignore,
  SIGTERM: shutDown,
  SIGSTKFLT: ignore,
  SIGXCPU: powerOff,
  /** A write beyond the limit fails with EFBIG, which whoever writes reports. */
  SIGXFSZ: ignore,
  SIGVTALRM: ignore,
  SIGPROF: ignore,
  SIGIO: ignore,
  SIGPWR: powerOff,
} as const satisfies Partial<Record<NodeJS.Signals, SignalAction>>;
export type HandledSignal = keyof typeof signalActions;

const CLOSE_TRIES = 5;
const CLOSE_WAIT_MS = 10;

const names = Object.keys(signalActions) as HandledSignal[];
let isHeld = false;
let listener: ((signal: HandledSignal) => void) | undefined;
/** Somebody listened once: the VM is there, or was. */
let hadListener = false;

function onSignal(name: NodeJS.Signals): void {
  const signal = name as HandledSignal;
  if (signalActions[signal] === ignore) return;
  if (listener !== undefined) listener(signal);
  else if (!hadListener) {
    // Nothing to undo but what hooks do (exit-hooks.ts), whose own handler ends the process if there are any.
    process.off(signal, onSignal);
    process.kill(process.pid, signal);
  }
}

/** For the first line of a program. */
export function holdSignals(): void {
  if (isHeld) return;
  isHeld = true;
  refuseDebugger();
  for (const signal of names) if (signal !== 'SIGUSR1') process.on(signal, onSignal);
}

/** For the first line of a program that does not hold the others. */
export function refuseDebugger(): void {
  process.on('SIGUSR1', onSignal);
  closeInspector();
  // One that was asked for before the first line may still be coming up.
  setImmediate(closeInspector);
}

/**
 * Get the signals that end a VM, from now on.
 * @returns how to stop. After that they do nothing: who stops listening is about to end.
 */
export function listenForSignals(onEnd: (signal: HandledSignal) => void): () => void {
  holdSignals();
  listener = onEnd;
  hadListener = true;
  return () => {
    if (listener === onEnd) listener = undefined;
  };
}

/**
 * A SIGUSR1 before the first line made Node open its debugger's port, where it was not told to use an impossible address
 * (tools/bundle/acrn-dm.js): close it. Whoever starts Node with --inspect keeps it. The module takes milliseconds to load,
 * so a look at our descriptors says first whether there can be a port.
 */
function closeInspector(): void {
  const options = [...process.execArgv, process.env['NODE_OPTIONS'] ?? ''];
  if (options.some((option) => /--inspect(?!-port|-publish)/.test(option)) || !hasSocket()) return;
  const inspector = createRequire(import.meta.url)('node:inspector') as typeof import('node:inspector');
  // Who sends it once sends it again, and a request that Node has taken already opens the port a moment later.
  for (let tries = 0; inspector.url() !== undefined && tries < CLOSE_TRIES; tries++) {
    inspector.close();
    Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, CLOSE_WAIT_MS);
  }
}

function hasSocket(): boolean {
  try {
    return readdirSync('/proc/self/fd').some((fd) => {
      if (Number(fd) <= 2) return false;
      try {
        return readlinkSync(`/proc/self/fd/${fd}`).startsWith('socket:');
      } catch {
        return false; // the one the folder was read with
      }
    });
  } catch {
    return true; // without /proc nobody knows
  }
}
