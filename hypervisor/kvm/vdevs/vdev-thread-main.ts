/** The thread that has the hypervisor's functions of one VM; see vdev-server.ts. */
import { type MessagePort, parentPort, workerData } from 'node:worker_threads';
import { kvmVmOf } from '../../../devicemodel/core/host/kvm.ts';
import type { VdevThreadSetup } from './orders.ts';
import { VdevServer } from './vdev-server.ts';

new VdevServer(workerData as VdevThreadSetup, parentPort as MessagePort, kvmVmOf);
