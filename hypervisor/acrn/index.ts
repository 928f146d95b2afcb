/** ACRN: the hypervisor below the driver behind /dev/acrn_hsm. What runs a VM is loaded when one is run. */
import type { Hypervisor } from '../hypervisor.ts';
import { acrnCpus, affinityProblems } from './cpus.ts';
import { findHsmNode, isWaitInterruptible } from './node.ts';

/** @param ownsThread whether the thread may block in ATTACH: if not, or if no signal ends it there, another one waits. */
export function acrnHypervisor(ownsThread: boolean): Hypervisor {
  const isInterruptible = ownsThread && isWaitInterruptible();
  return {
    kind: 'acrn',
    isPresent: () => findHsmNode() !== undefined,
    open: async () => (await import('./acrn-hsm.ts')).openAcrnHsm(isInterruptible),
    loop: async (log) =>
      isInterruptible
        ? new (await import('../blocking-loop/loop.ts')).BlockingLoop(log)
        : new (await import('../turn-loop/loop.ts')).TurnLoop({ hasSlices: false }),
    givesHostFunctions: true,
    givesDeviceMemory: true,
    problems: affinityProblems,
    cpus: acrnCpus,
  };
}
