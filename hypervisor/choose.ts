/** Which hypervisor runs the VM: the only file that names them all. One is loaded when it is used. */
import type { VmConfig } from '../devicemodel/core/config.ts';
import { HostError } from '../devicemodel/core/errors.ts';
import { Errno } from '../devicemodel/core/host/errno.ts';
import type { StubDriver } from '../devicemodel/core/host/sysfs-pci.ts';
import type { Log } from '../devicemodel/core/log.ts';
import type { Hypervisor } from './hypervisor.ts';

const load = {
  acrn: async (ownsThread: boolean): Promise<Hypervisor> =>
    (await import('./acrn/index.ts')).acrnHypervisor(ownsThread),
  kvm: async (ownsThread: boolean): Promise<Hypervisor> => (await import('./kvm/index.ts')).kvmHypervisor(ownsThread),
  soft: async (): Promise<Hypervisor> => (await import('./soft/index.ts')).softHypervisor(),
};

export interface ChooseOptions {
  /**
   * This VM is all the thread is for: it may block in the hypervisor while it waits for the guest, which is the quickest
   * way. Two such VMs on one thread would keep each other from being served. Default false.
   */
  readonly ownsThread?: boolean;
}

/** `auto` takes ACRN when this host has it, else KVM when its CPU can, else the software engine, saying so in one line. */
export async function chooseHypervisor(
  config: Pick<VmConfig, 'hypervisor'>,
  log: Log,
  { ownsThread = false }: ChooseOptions = {},
): Promise<Hypervisor> {
  if (config.hypervisor === 'soft') return load.soft();
  if (config.hypervisor === 'kvm') return load.kvm(ownsThread);
  const acrn = await load.acrn(ownsThread);
  if (config.hypervisor === 'acrn') return withAlternative(acrn);
  if (acrn.isPresent()) return acrn;
  const { kvmObstacle } = await import('./kvm/index.ts');
  const obstacle = kvmObstacle();
  if (obstacle === undefined) {
    log.notice('no ACRN on this machine: using the embedded hypervisor on /dev/kvm');
    return load.kvm(ownsThread);
  }
  const why =
    obstacle === 'no permission' ? `, and this user may not open /dev/kvm (${await howToOpenKvm()})` : ' or KVM';
  log.notice(`no ACRN${why} on this machine: using the embedded software hypervisor`);
  return load.soft();
}

/** The driver of this host that a function has to be bound to before a VM can have it. */
export async function stubDriverHere(): Promise<StubDriver> {
  return (await load.acrn(false)).isPresent() ? 'pci-stub' : 'vfio-pci';
}

async function howToOpenKvm(): Promise<string> {
  return (await import('./kvm/permission.ts')).joinKvmGroup();
}

/** Where ACRN was asked for and is not there, the user is told what else there is. */
function withAlternative(acrn: Hypervisor): Hypervisor {
  return {
    ...acrn,
    open: async (config, log) => {
      try {
        return await acrn.open(config, log);
      } catch (error) {
        if (!(error instanceof HostError) || error.errno !== Errno.ENOENT) throw error;
        throw new HostError(error.message, error.errno, {
          exitCode: error.exitCode,
          cause: error,
          hint: `${error.hint}, or use --hypervisor kvm or soft`,
        });
      }
    },
  };
}
