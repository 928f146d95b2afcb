/** The code of a disk's data thread as JavaScript: a worker takes nothing else. */
import { type BundledWorker, bundledWorker } from './bundle-worker.ts';

export type { BundledWorker };

const main = 'devicemodel/hw/pci/virtio/data-thread/data-thread-main.ts';

/** @param first a module that is run before the thread begins. */
export function bundledDataThread(first?: string): BundledWorker {
  return bundledWorker(main, first);
}
