/** The data thread's code for the tests of one file. */
import { beforeAll } from 'vitest';
import { bundledDataThread } from './bundle-data-thread.ts';

/** Build it before the tests of this file, remove it after them. @param first a module that is run before the thread begins. */
export function useDataThreadWorker(first?: string): URL {
  const worker = bundledDataThread(first);
  beforeAll(async () => {
    await worker.build();
    return () => worker.remove();
  });
  return worker.url;
}
