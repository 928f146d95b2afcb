/** The hypervisor's thread with a KVM that notes what it is asked, in the file VDEV_THREAD_LOG. */
import { appendFileSync } from 'node:fs';
import { type MessagePort, parentPort, workerData } from 'node:worker_threads';
import type { KvmVmPart } from '../../devicemodel/core/host/kvm.ts';
import type { VdevThreadSetup } from '../../hypervisor/kvm/vdevs/orders.ts';
import { VdevServer } from '../../hypervisor/kvm/vdevs/vdev-server.ts';

/** A register that no good guest writes: whoever moves a doorbell there ends the thread. */
const DEADLY_DOORBELL = 0xdead_0000 + 0xc;
/** A doorbell there keeps the thread for a while, once for each vector. */
const SLOW_DOORBELL = 0x8555_0000 + 0xc;
const SLOW_MS = 20;

const note = (...what: readonly (string | number | boolean | bigint)[]) => {
  const path = process.env['VDEV_THREAD_LOG'];
  if (path !== undefined) appendFileSync(path, `${what.join(' ')}\n`);
  return 0;
};

const vm: KvmVmPart = {
  setMemory: (_slot, gpa, sizeBytes) => note('memory', gpa.toString(16), sizeBytes),
  setRoutes: (routes) => void note('routes', routes.filter((route) => 'address' in route).length),
  signalMsi: (address, data) => note('msi', address.toString(16), data) === 0,
  irqfd: (_fd, _gsi, assign) => note('irqfd', assign),
  ioeventfd: ({ address }, assign) => {
    if (address === DEADLY_DOORBELL && assign) {
      if (process.env['VDEV_THREAD_ENDS'] === 'silently') setImmediate(() => process.exit(0));
      throw new Error('no more');
    }
    if (address === SLOW_DOORBELL && assign) Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, SLOW_MS);
    return note('ioeventfd', address.toString(16), assign);
  },
};

new VdevServer(workerData as VdevThreadSetup, parentPort as MessagePort, () => vm);
