/** A VM on the embedded hypervisor, on /dev/kvm. */
import { type VmConfig, wantedHostFunctions, wantsHypervisorDevices } from '../../devicemodel/core/config.ts';
import { HostError } from '../../devicemodel/core/errors.ts';
import { KVM_DEVICE, type Kvm, openKvm } from '../../devicemodel/core/host/kvm.ts';
import type { KvmCapName } from '../../devicemodel/core/host/kvm-abi.ts';
import type { Vfio } from '../../devicemodel/core/host/vfio.ts';
import type { Hsm } from '../../devicemodel/core/hsm/hsm.ts';
import type { Log } from '../../devicemodel/core/log.ts';
import { accessMapWords } from '../embedded/access-map.ts';
import { EmbeddedHsm, type EmbeddedHsmOptions } from '../embedded/embedded-hsm.ts';
import { hostEventfds } from '../embedded/host-eventfds.ts';
import { type MeetingPlace, meetingPlace } from '../embedded/meeting-place.ts';
import { Neighbours } from '../embedded/neighbours.ts';
import { derivedScenario, readScenario, type Scenario } from '../embedded/scenario.ts';
import { awaitRegions, vdevFactory, vdevParts } from '../embedded/vdevs.ts';
import { InlineRunner } from './inline-runner.ts';
import { KvmEngine } from './kvm-engine.ts';
import { kvmRefusal } from './permission.ts';
import { vcpuCpus } from './placement.ts';
import { ThreadedRunner, type ThreadedRunnerOptions } from './threaded-runner.ts';
import { VdevThread } from './vdevs/vdev-thread.ts';

/** Without these nothing runs. */
const REQUIRED: readonly KvmCapName[] = [
  'IRQCHIP',
  'USER_MEMORY',
  'EXT_CPUID',
  'MP_STATE',
  'IRQ_ROUTING',
  'IRQFD',
  'IOEVENTFD',
  'VCPU_EVENTS',
  'GET_TSC_KHZ',
  'SIGNAL_MSI',
  'IMMEDIATE_EXIT',
];

export interface KvmHsmOptions {
  readonly config: Pick<VmConfig, 'name' | 'scenarioPath' | 'cpuAffinity'> &
    Partial<Pick<VmConfig, 'pci' | 'socketGroup'>>;
  readonly log: Log;
  /** The thread may block while it waits for the guest. */
  readonly ownsThread: boolean;
  /** Where the VMs of this user meet, if not as meeting-place.ts has it. */
  readonly runDirectory?: string;
  readonly kvm?: Kvm;
  /** For functions of the host; default: this machine's. */
  readonly vfio?: { readonly vfio: Vfio; readonly root: string };
  /** @internal Another place of the hypervisor's thread, for tests. */
  readonly vdevWorkerUrl?: URL;
  /** @internal Of vCPUs' threads, for tests. */
  readonly threads?: Pick<ThreadedRunnerOptions, 'thread' | 'koffiPath'>;
}

/** A handle for one VM life. @throws ConfigError for a bad scenario file; HostError when KVM cannot be had. */
export async function openKvmHsm(options: KvmHsmOptions): Promise<Hsm> {
  const { config, ownsThread } = options;
  const log = options.log.child('kvm');
  const scenario = config.scenarioPath === undefined ? derivedScenario : readScenario(config.scenarioPath);
  const { cpus } = vcpuCpus(config);
  const functions = wantedHostFunctions({ pci: config.pci ?? [] });
  const hostFunctions =
    functions.length === 0 ? undefined : (await import('./vfio/index.ts')).openVfioFunctions({ log, ...options.vfio });
  const kvm = options.kvm ?? openDevice();
  try {
    checkKvm(kvm, cpus.length);
    const { runDirectory: folder } = options;
    const place = folder === undefined ? await meetingPlace(config, options.log) : { folder };
    const runsGuest = ownsThread && cpus.length === 1;
    const thread = runsGuest ? undefined : hypervisorThread(options, place, log);
    const accessMap = runsGuest ? undefined : (thread?.accessMap ?? accessMapWords());
    const engine = new KvmEngine({
      kvm,
      vcpuCount: cpus.length,
      log,
      hypervisorThread: thread,
      makeRunner: (vcpus) => {
        const [first] = vcpus;
        if (runsGuest && first !== undefined) return new InlineRunner(first, cpus[0]);
        return new ThreadedRunner({
          vcpus,
          cpus,
          accessMap,
          hypervisor: thread,
          blocks: ownsThread,
          ...options.threads,
        });
      },
    });
    return new EmbeddedHsm({
      engine,
      ...vdevsOf(config.name, scenario, { thread, place, log }),
      awaitRegions: (ending) => awaitRegions(config, scenario, place, ending),
      eventfds: hostEventfds,
      log,
      ...(accessMap === undefined ? {} : { accessMap }),
      ...(thread === undefined ? {} : { thread }),
      ...(hostFunctions === undefined ? {} : { hostFunctions }),
    });
  } catch (error) {
    kvm.close();
    throw error;
  }
}

/** Present where vCPUs have threads of their own, and the VM is to have devices of the hypervisor's. */
function hypervisorThread(
  { config, vdevWorkerUrl }: KvmHsmOptions,
  place: MeetingPlace,
  log: Log,
): VdevThread | undefined {
  if (!wantsHypervisorDevices({ pci: config.pci ?? [] })) return undefined;
  const workerUrl = vdevWorkerUrl ?? VdevThread.workerUrl();
  return workerUrl === undefined ? undefined : new VdevThread({ log, place, workerUrl });
}

interface VdevPlace {
  readonly thread: VdevThread | undefined;
  readonly place: MeetingPlace;
  readonly log: Log;
}

/** Who makes the hypervisor's devices, and meets the other VMs of this host: on this thread, or on one of theirs. */
function vdevsOf(
  vmName: string,
  scenario: Scenario,
  { thread, place, log }: VdevPlace,
): Pick<EmbeddedHsmOptions, 'vdevs' | 'claimVmid'> {
  if (thread === undefined) {
    const neighbours = new Neighbours(place, log, { hasBells: true });
    return {
      vdevs: vdevFactory(vmName, scenario, neighbours, place),
      claimVmid: (name, ending) => neighbours.join(name, ending),
    };
  }
  const find = vdevParts(vmName, scenario, place);
  return {
    vdevs: (vdev) => {
      const found = find(vdev, log);
      if (found === undefined) return undefined;
      try {
        return thread.create(vdev, found);
      } catch (error) {
        found.release();
        throw error;
      }
    },
    claimVmid: (name, ending) => thread.join(name, ending),
  };
}

/** @throws HostError */
function openDevice(): Kvm {
  try {
    return openKvm();
  } catch (error) {
    if (!(error instanceof HostError)) throw error;
    throw kvmRefusal(error.message, error.errno, error);
  }
}

/** @throws HostError that names what this KVM does not have. */
function checkKvm(kvm: Kvm, vcpuCount: number): void {
  const missing = REQUIRED.filter((name) => kvm.capability(name) === 0);
  if (missing.length > 0) {
    throw new HostError(`${KVM_DEVICE} lacks ${missing.map((name) => `KVM_CAP_${name}`).join(', ')}`, 0, {
      hint: 'a newer kernel has it; --hypervisor soft needs none',
    });
  }
  const most = kvm.capability('MAX_VCPUS');
  if (most !== 0 && vcpuCount > most) {
    throw new HostError(`${KVM_DEVICE} runs at most ${most} vCPUs, --cpu_affinity asks for ${vcpuCount}`, 0);
  }
}
