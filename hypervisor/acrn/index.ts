/** ACRN: the hypervisor below the driver behind /dev/acrn_hsm. */
import { BlockingLoop } from '../blocking-loop/loop.ts';
import type { Hypervisor } from '../hypervisor.ts';
import { TurnLoop } from '../turn-loop/loop.ts';
import { findHsmNode, openAcrnHsm } from './acrn-hsm.ts';
import { acrnCpus, affinityProblems } from './cpus.ts';
import { isWaitInterruptible } from './polled-attach.ts';

/** @param ownsThread whether the thread may block in ATTACH: if not, or if no signal ends it there, another one waits. */
export function acrnHypervisor(ownsThread: boolean): Hypervisor {
  const isInterruptible = ownsThread && isWaitInterruptible();
  return {
    kind: 'acrn',
    isPresent: () => findHsmNode() !== undefined,
    open: async () => openAcrnHsm(isInterruptible),
    loop: () => (isInterruptible ? new BlockingLoop() : new TurnLoop({ hasSlices: false })),
    givesHostFunctions: true,
    problems: affinityProblems,
    cpus: acrnCpus,
  };
}
