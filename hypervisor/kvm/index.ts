/** The embedded hypervisor on /dev/kvm. What runs a VM is loaded when one is run: a dry run asks less. */
import { closeSync, openSync, statSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { wantedHostFunctions } from '../../devicemodel/core/config.ts';
import type { DmError } from '../../devicemodel/core/errors.ts';
import { hasVirtualization, readCpuinfo } from '../../devicemodel/core/host/cpuinfo.ts';
import { describeErrno } from '../../devicemodel/core/host/errno.ts';
import { errnoOf } from '../../devicemodel/core/host/path-failure.ts';
import { meetingPlaceProblems } from '../embedded/meeting-place.ts';
import { regionProblems } from '../embedded/region-problems.ts';
import { scenarioProblems } from '../embedded/scenario-problems.ts';
import type { Hypervisor } from '../hypervisor.ts';
import { vcpuCpus, vcpuProblems } from './placement.ts';

const DEVICE_PATH = '/dev/kvm';

/** What is in the way of using KVM on this machine: `undefined`: nothing. */
export type KvmObstacle = 'no device' | 'no virtualization' | 'no permission';

/**
 * Opens the device, and closes it again: nodes are made before a driver is there (kmod static-nodes), and what a container
 * may open its mode does not say.
 */
export function kvmObstacle(
  path: string = DEVICE_PATH,
  cpuinfo: string = readCpuinfo(),
  open: (path: string) => void = openAndClose,
): KvmObstacle | undefined {
  if (statSync(path, { throwIfNoEntry: false })?.isCharacterDevice() !== true) return 'no device';
  // Without it KVM is a stand-in in software, which does not run every guest: whoever wants that asks for it by name.
  if (!hasVirtualization(cpuinfo)) return 'no virtualization';
  try {
    open(path);
    return undefined;
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    return code === 'EACCES' || code === 'EPERM' ? 'no permission' : 'no device';
  }
}

function openAndClose(path: string): void {
  closeSync(openSync(path, 'r+'));
}

/** Why the device of this machine cannot be opened. Opens it, and closes it again. */
async function deviceProblems(path = DEVICE_PATH): Promise<readonly DmError[]> {
  try {
    openAndClose(path);
    return [];
  } catch (error) {
    const errno = errnoOf(error);
    return [(await import('./permission.ts')).kvmRefusal(`${path}: open: ${describeErrno(errno)}`, errno, error)];
  }
}

/** @param ownsThread whether the thread may block while it waits for the guest. */
export function kvmHypervisor(ownsThread: boolean): Hypervisor {
  /** The VM opened last has one vCPU, which runs on the thread that waits for it. */
  let runsGuest = false;
  return {
    kind: 'kvm',
    ownRootPorts: true,
    givesHostFunctions: true,
    isPresent: () => kvmObstacle() === undefined,
    open: async (config, log) => {
      runsGuest = ownsThread && config.cpuAffinity.length <= 1;
      return (await import('./open.ts')).openKvmHsm({ config, log, ownsThread });
    },
    loop: async (log) =>
      ownsThread
        ? new (await import('../blocking-loop/loop.ts')).BlockingLoop(log, () => runsGuest)
        : new (await import('../turn-loop/loop.ts')).TurnLoop({ hasSlices: false }),
    problems: async (config, hostRoot) => {
      const functions = wantedHostFunctions(config);
      return [
        ...vcpuProblems(config),
        ...scenarioProblems(config.scenarioPath),
        ...(await regionProblems(config)),
        ...(await meetingPlaceProblems(config)),
        ...(hostRoot === undefined ? await deviceProblems() : []),
        ...(functions.length === 0 ? [] : (await import('./vfio/check.ts')).hostFunctionProblems(functions, hostRoot)),
      ];
    },
    cpus: (config, log) => {
      const { cpus, unknownIds } = vcpuCpus(config);
      if (unknownIds.length > 0) {
        log.warn(
          `--cpu_affinity: no CPU has local APIC id ${unknownIds.join(', ')}; the vCPU runs on any of this machine's ${availableParallelism()}`,
        );
      }
      // The engine knows how many vCPUs there are; KVM's local APICs are numbered from 0.
      const affinity = (1n << BigInt(cpus.length)) - 1n;
      return { affinity, lapicIds: (count) => Array.from({ length: count }, (_, id) => id) };
    },
  };
}
