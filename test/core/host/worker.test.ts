/** Threads that the host does not give, as Node says it. */
import { expect, test, vi } from 'vitest';
import { ExitCode, HostError } from '../../../devicemodel/core/errors.ts';
import { startWorker } from '../../../devicemodel/core/host/worker.ts';

let failure: Error & { code?: string } = new Error();
vi.mock('node:worker_threads', async (original) => ({
  ...(await original<typeof import('node:worker_threads')>()),
  Worker: class {
    constructor() {
      throw failure;
    }
  },
}));

function thrown(): unknown {
  try {
    return startWorker('', { eval: true }, 'data thread');
  } catch (error) {
    return error;
  }
}

test.each(['EAGAIN', 'ENOMEM', 'EPERM'])('no thread (%s) is the host’s refusal, with what to do', (errno) => {
  failure = Object.assign(new Error(`Worker initialization failure: ${errno}`), { code: 'ERR_WORKER_INIT_FAILED' });
  const error = thrown();
  expect(error).toBeInstanceOf(HostError);
  expect(error).toMatchObject({
    message: 'data thread: the host gives this process no more threads',
    hint: expect.stringContaining('ulimit -u'),
    exitCode: ExitCode.OsError,
  });
});

test('a wrong order is no refusal of the host', () => {
  failure = Object.assign(new TypeError('bad argument'), { code: 'ERR_INVALID_ARG_TYPE' });
  expect(thrown()).toBe(failure);
});
