/** A VM on the embedded hypervisor with a software CPU. */
import type { VmConfig } from '../../devicemodel/core/config.ts';
import type { Hsm } from '../../devicemodel/core/hsm/hsm.ts';
import type { Log } from '../../devicemodel/core/log.ts';
import { EmbeddedHsm } from '../embedded/embedded-hsm.ts';
import { hostEventfds } from '../embedded/host-eventfds.ts';
import { meetingPlace } from '../embedded/meeting-place.ts';
import { Neighbours } from '../embedded/neighbours.ts';
import { derivedScenario, readScenario } from '../embedded/scenario.ts';
import { awaitRegions, vdevFactory } from '../embedded/vdevs.ts';
import { SoftEngine } from './soft-engine.ts';

export interface SoftHsmOptions {
  readonly config: Pick<VmConfig, 'name' | 'scenarioPath'> & Partial<Pick<VmConfig, 'pci' | 'socketGroup'>>;
  readonly log: Log;
  /** Where the VMs of this user meet, if not as meeting-place.ts has it. */
  readonly runDirectory?: string;
  readonly onTripleFault?: () => void;
}

/**
 * A handle for one VM life. Guest RAM comes from its `engineRam`; at most 2047 MiB, one vCPU, 32 bits.
 * @throws ConfigError for a bad scenario file; `createVm` rejects with HostError when v86 is not installed.
 */
export async function openSoftHsm(options: SoftHsmOptions): Promise<Hsm> {
  const { config } = options;
  const log = options.log.child('soft');
  const scenario = config.scenarioPath === undefined ? derivedScenario : readScenario(config.scenarioPath);
  const { runDirectory: folder } = options;
  const place = folder === undefined ? await meetingPlace(config, options.log) : { folder };
  const neighbours = new Neighbours(place, log);
  const hasVga = config.pci?.some(({ driver }) => driver === 'virtio-gpu') === true;
  return new EmbeddedHsm({
    engine: new SoftEngine(log, hasVga),
    vdevs: vdevFactory(config.name, scenario, neighbours, place),
    eventfds: hostEventfds,
    claimVmid: (name, ending) => neighbours.join(name, ending),
    awaitRegions: (ending) => awaitRegions(config, scenario, place, ending),
    log,
    ...(options.onTripleFault === undefined ? {} : { onTripleFault: options.onTripleFault }),
  });
}
