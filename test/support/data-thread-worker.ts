/** The data thread's code for the tests of one file. */
import { beforeAll } from 'vitest';
import { bundledDataThread } from './bundle-data-thread.ts';

/** Build it before the tests of this file, remove it after them. */
export function useDataThreadWorker(): URL {
  const worker = bundledDataThread();
  beforeAll(async () => {
    await worker.build();
    return () => worker.remove();
  });
  return worker.url;
}
