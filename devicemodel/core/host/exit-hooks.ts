/**
 * Last steps that must happen however the process ends: a terminal left in raw mode, or output still in a buffer, is
 * what the user sees of a crash. Covers process.exit, a natural end, uncaught exceptions, and every signal that would
 * otherwise end the process with nobody listening. SIGKILL and faults in native code cannot be caught here; for
 * terminals see terminal-guard.ts.
 */
import { exitAtOnce } from './libc.ts';

/**
 * Signals that end a process which does not handle them. Left out: those of faults (a handler in JavaScript would never
 * get to run), SIGPIPE (Node ignores it), SIGPROF (Node's profiler). SIGUSR1 would otherwise make Node listen for a
 * debugger, on a port that everybody on the machine can reach.
 */
const FATAL_SIGNALS = [
  'SIGHUP',
  'SIGINT',
  'SIGQUIT',
  'SIGTERM',
  'SIGABRT',
  'SIGALRM',
  'SIGVTALRM',
  'SIGUSR1',
  'SIGUSR2',
  'SIGXCPU',
  'SIGXFSZ',
  'SIGIO',
  'SIGPWR',
] as const;

const hooks = new Set<() => void>();
let installed = false;
let isThreadLeft = false;

/**
 * A thread of this process sits in a system call that may never end. Node would wait for it at the process's end; so the
 * process ends without Node once the hooks have run.
 */
export function leaveThreadBehind(): void {
  isThreadLeft = true;
}

function onExit(status: number): void {
  runAll();
  if (isThreadLeft) exitAtOnce(status);
}

function runAll(): void {
  // Last in, first out, as every teardown here; a hook that fails must not keep the others from running.
  for (const hook of [...hooks].reverse()) {
    try {
      hook();
    } catch {
      // The process is ending: there is nobody left to tell.
    }
  }
}

function onSignal(signal: NodeJS.Signals): void {
  // Somebody else handles it, and will end the process in good order.
  if (process.listenerCount(signal) > 1) return;
  runAll();
  process.removeListener(signal, onSignal);
  process.kill(process.pid, signal);
}

function install(): void {
  installed = true;
  process.on('exit', onExit);
  for (const signal of FATAL_SIGNALS) process.on(signal, onSignal);
}

function uninstall(): void {
  installed = false;
  process.removeListener('exit', onExit);
  for (const signal of FATAL_SIGNALS) process.removeListener(signal, onSignal);
}

/**
 * Run `hook` when the process ends. It must be synchronous, quick, and harmless when it runs twice.
 * @returns removes the hook again; signal handlers are only installed while there is a hook.
 */
export function onProcessEnd(hook: () => void): () => void {
  hooks.add(hook);
  if (!installed) install();
  return () => {
    hooks.delete(hook);
    if (hooks.size === 0 && installed) uninstall();
  };
}
