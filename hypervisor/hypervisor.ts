/** What a hypervisor brings: a way to open a VM on it, a loop that knows how to wait for one, and CPUs. */
import type { VmConfig } from '../devicemodel/core/config.ts';
import type { DmError } from '../devicemodel/core/errors.ts';
import type { GuestLoop } from '../devicemodel/core/guest-loop.ts';
import type { Hsm, HypervisorOffers } from '../devicemodel/core/hsm/hsm.ts';
import type { Log } from '../devicemodel/core/log.ts';

export type { GuestLoop } from '../devicemodel/core/guest-loop.ts';

/** On which CPUs a VM runs, and how its own CPUs are called. */
export interface VcpuPlacement {
  /** Bit n = physical CPU n; 0: the hypervisor decides. */
  readonly affinity: bigint;
  /** Local APIC ids of `count` vCPUs, for the tables. @throws ConfigError if the placement names too few. */
  readonly lapicIds: (count: number) => readonly number[];
}

export interface Hypervisor extends HypervisorOffers {
  readonly kind: 'acrn' | 'kvm' | 'soft';
  /** Whether this host has it; asked when the user left the choice to us. */
  isPresent(): boolean;
  /**
   * Why this hypervisor cannot run such a VM, found without asking it; empty: it can. Also for `--dry-run`.
   * @param hostRoot a saved tree of the host that the VM is for; missing: it is this one.
   * @throws ConfigError for a boot image that cannot be read.
   */
  problems(config: VmConfig, hostRoot?: string): readonly DmError[] | Promise<readonly DmError[]>;
  /** A handle for one life of a VM: called again for every full reset. @throws HostError or ConfigError. */
  open(config: VmConfig, log: Log): Promise<Hsm>;
  /** The loop for one VM on this thread. @param log for what ails it while the VM runs. @throws HostError */
  loop(log: Log): Promise<GuestLoop>;
  /** Before there is a VM. @throws ConfigError or HostError if the CPUs asked for cannot be had. */
  cpus(config: VmConfig, log: Log): VcpuPlacement;
}
