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

/** Run at the process's end, and when a signal ends it. */
const hooks = new Set<() => void>();
/** Run at the process's end only. */
const exitHooks = new Set<() => void>();
let hearsExit = false;
let hearsSignals = false;
let isThreadLeft = false;
let threadCount = 0;

/**
 * A thread of this process sits in a system call that may never end, or is V8's and compiles what nobody will run. Node
 * would wait for it at the process's end; so the process ends without Node once the hooks have run: whatever is to happen
 * at its end has to be one of them.
 */
export function leaveThreadBehind(): void {
  isThreadLeft = true;
  update();
}

/**
 * A thread of this process runs JavaScript. Node stops such a thread at the process's end, and where it is just loading
 * native code, or calling it, an exception can no longer be thrown there: the process aborts. So while there is one the
 * process ends without Node, as with {@link leaveThreadBehind}.
 * @returns to be called when the thread has ended.
 */
export function whileThreadRuns(): () => void {
  threadCount++;
  update();
  let hasEnded = false;
  return () => {
    if (hasEnded) return;
    hasEnded = true;
    threadCount--;
    update();
  };
}

/** Somebody wants what Node writes at its own end: a profile, coverage. */
export function isObserved(): boolean {
  return process.env['NODE_V8_COVERAGE'] !== undefined || process.execArgv.some((option) => option.includes('prof'));
}

function onExit(status: number): void {
  runAll(exitHooks);
  runAll(hooks);
  if (!isThreadLeft && (threadCount === 0 || isObserved())) return;
  // Node would not get to them: the listeners of a program that uses the library.
  const listeners = process.rawListeners('exit');
  const left = listeners.slice(listeners.indexOf(onExit) + 1).reverse();
  runAll(left.map((listener) => () => listener.call(process, status)));
  exitAtOnce(Number(process.exitCode ?? status));
}

/** Last in, first out, as every teardown here; one that fails must not keep the others from running. */
function runAll(of: Iterable<() => void>): void {
  for (const hook of [...of].reverse()) {
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
  runAll(hooks);
  process.removeListener(signal, onSignal);
  process.kill(process.pid, signal);
}

/** Handlers are there only while there is a hook. */
function update(): void {
  const needsSignals = hooks.size > 0;
  const needsExit = needsSignals || exitHooks.size > 0 || isThreadLeft || threadCount > 0;
  if (needsExit !== hearsExit) {
    if (needsExit) process.on('exit', onExit);
    else process.removeListener('exit', onExit);
    hearsExit = needsExit;
  }
  if (needsSignals === hearsSignals) return;
  for (const signal of FATAL_SIGNALS) {
    if (needsSignals) process.on(signal, onSignal);
    else process.removeListener(signal, onSignal);
  }
  hearsSignals = needsSignals;
}

function add(to: Set<() => void>, hook: () => void): () => void {
  to.add(hook);
  update();
  return () => {
    to.delete(hook);
    update();
  };
}

/**
 * Run `hook` when the process ends. It must be synchronous, quick, and harmless when it runs twice.
 * @returns removes the hook again; signal handlers are only installed while there is a hook.
 */
export function onProcessEnd(hook: () => void): () => void {
  return add(hooks, hook);
}

/**
 * As {@link onProcessEnd}, and signals stay as they are: for what a process leaves in the file system. Its next start
 * removes it, too, so that it need not go when a signal ends the process that nobody handles.
 */
export function onProcessExit(hook: () => void): () => void {
  return add(exitHooks, hook);
}
