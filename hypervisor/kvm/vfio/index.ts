/** Functions of the host for a VM on KVM, by VFIO. Loaded for a VM that asks for one. */
import { HostError } from '../../../devicemodel/core/errors.ts';
import { describeErrno } from '../../../devicemodel/core/host/errno.ts';
import { sysfsPciName } from '../../../devicemodel/core/host/sysfs-pci.ts';
import { hostVfio, type Vfio, type VfioDevice } from '../../../devicemodel/core/host/vfio.ts';
import type { PcidevAssignment, RamMapping } from '../../../devicemodel/core/hsm/hsm.ts';
import type { Log } from '../../../devicemodel/core/log.ts';
import type { HostFunction, HostFunctionHost, HostFunctionProvider } from '../../embedded/host-functions.ts';
import { VfioFunction } from './function.ts';
import { HostTreeOfVfio, VFIO_DRIVER } from './host-tree.ts';
import { DmaSpace } from './space.ts';

export interface VfioOptions {
  readonly log: Log;
  readonly vfio?: Vfio;
  /** Where `sys` and `dev` are. */
  readonly root?: string;
}

export function openVfioFunctions({ log, vfio = hostVfio, root = '/' }: VfioOptions): HostFunctionProvider {
  return new VfioFunctions(vfio, new HostTreeOfVfio(root), log);
}

class VfioFunctions implements HostFunctionProvider {
  readonly driver = VFIO_DRIVER;
  readonly #space: DmaSpace;
  readonly #log: Log;

  constructor(vfio: Vfio, tree: HostTreeOfVfio, log: Log) {
    this.#space = new DmaSpace(vfio, tree, log);
    this.#log = log;
  }

  assign(assignment: PcidevAssignment, host: HostFunctionHost): HostFunction {
    const name = sysfsPciName(assignment.physicalBdf);
    const { device, release } = this.#space.open(name, host);
    try {
      this.#reset(device, name);
      return new VfioFunction({ assignment, device, host, log: this.#log.child(name), onClosed: release });
    } catch (error) {
      if (!(error instanceof HostError)) throw error;
      const hint = error.hint === undefined ? {} : { hint: error.hint };
      throw new HostError(`${name}: ${error.message}`, error.errno, { cause: error, ...hint });
    }
  }

  mapRam(mapping: RamMapping): void {
    this.#space.mapRam(mapping);
  }

  unmapRam(mapping: RamMapping): void {
    this.#space.unmapRam(mapping);
  }

  dispose(): void {
    this.#space.dispose();
  }

  /**
   * VFIO has reset a function that can be when it was opened. One that cannot goes with its bus, if all that is there is
   * the VM's.
   */
  #reset(device: VfioDevice, name: string): void {
    if (device.hasReset) return;
    const dependents = device.dependents();
    const why = (reason: string) => this.#log.warn(`${name} is not reset: ${reason}`);
    if (typeof dependents === 'number') {
      why('neither it nor its bus can be');
      return;
    }
    const groups = this.#space.groups(dependents.map(({ group }) => group));
    if (groups === undefined) {
      const others = dependents.filter((other) => other.name !== name);
      why(`its bus has ${others.map((other) => other.name).join(', ')}, too`);
      return;
    }
    const result = device.hotReset(groups);
    if (result < 0) why(`that of its bus failed, the kernel's log may say why (${describeErrno(-result)})`);
    else this.#log.info(`${name}: reset with its bus`);
  }
}
