/** The embedded hypervisor with a software CPU. What runs a VM is loaded when one is run: a dry run asks less. */
import { meetingPlaceProblems } from '../embedded/meeting-place.ts';
import { regionProblems } from '../embedded/region-problems.ts';
import { scenarioProblems } from '../embedded/scenario-problems.ts';
import type { Hypervisor } from '../hypervisor.ts';
import { softNotes, softProblems } from './limits.ts';

export function softHypervisor(): Hypervisor {
  return {
    kind: 'soft',
    ownRootPorts: true,
    isPresent: () => true,
    open: async (config, log) => (await import('./open.ts')).openSoftHsm({ config, log }),
    loop: async () => new (await import('../turn-loop/loop.ts')).TurnLoop({ hasSlices: true }),
    problems: async (config) => [
      ...softProblems(config),
      ...scenarioProblems(config.scenarioPath),
      ...(await regionProblems(config)),
      ...(await meetingPlaceProblems(config)),
    ],
    // Its vCPU runs on whatever CPU is free.
    cpus: (config, log) => {
      for (const note of softNotes(config)) log.warn(note);
      return { affinity: 0n, lapicIds: (count) => Array.from({ length: count }, (_, id) => id) };
    },
  };
}
