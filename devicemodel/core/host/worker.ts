/** Threads of Node's, where the host has one to give. */
import { Worker, type WorkerOptions } from 'node:worker_threads';
import { ExitCode, HostError } from '../errors.ts';
import { Errno } from './errno.ts';
import { whileThreadRuns } from './exit-hooks.ts';
import { whileThreadStarts } from './inlining.ts';
import { startUnpinned } from './scheduling.ts';

/**
 * A thread that begins to run, on any CPU.
 * @param code where its code is, or with `eval` the code itself. @param what for the message: `data thread`.
 * @throws HostError when the host gives no more threads: pthread_create(3) has EAGAIN for all reasons, memory included.
 */
export function startWorker(code: string | URL, options: WorkerOptions, what: string): Worker {
  const hasStarted = whileThreadStarts();
  try {
    const worker = startUnpinned(() => new Worker(code, options));
    worker.once('online', hasStarted).once('exit', hasStarted).once('exit', whileThreadRuns());
    return worker;
  } catch (cause) {
    hasStarted();
    if ((cause as NodeJS.ErrnoException).code !== 'ERR_WORKER_INIT_FAILED') throw cause;
    throw new HostError(`${what}: the host gives this process no more threads`, Errno.EAGAIN, {
      exitCode: ExitCode.OsError,
      hint: '`ulimit -u`, and pids.max of the control group, say how many there may be',
      cause,
    });
  }
}
