/**
 * The address space in which functions of one VM do their DMA: a container of VFIO with the groups that were given, and
 * all RAM of the guest at the guest's own addresses. It is there from the first function to the last.
 *
 * Ownership: descriptors of the container and its groups are this object's; a function's belongs to whoever opened it,
 * and is closed before the group is let go.
 */
import { hex } from '../../../devicemodel/core/address.ts';
import { HostError } from '../../../devicemodel/core/errors.ts';
import { describeErrno, Errno } from '../../../devicemodel/core/host/errno.ts';
import { bindCommand } from '../../../devicemodel/core/host/sysfs-pci.ts';
import type { Vfio, VfioContainer, VfioDevice, VfioGroup } from '../../../devicemodel/core/host/vfio.ts';
import type { RamMapping } from '../../../devicemodel/core/hsm/hsm.ts';
import type { Log } from '../../../devicemodel/core/log.ts';
import type { HostFunctionHost } from '../../embedded/host-functions.ts';
import { notViable } from './check.ts';
import { type HostTreeOfVfio, VFIO_DRIVER } from './host-tree.ts';

interface HeldGroup {
  readonly group: VfioGroup;
  /** In KVM, which has it open, too. */
  readonly membership: { dispose(): void };
  /** Functions of it that are open. */
  users: number;
}

/** What a guest runs into that moves memory: other memory, or addresses that the IOMMU does not have. */
const PLACED = [Errno.EEXIST, Errno.EINVAL];

interface Ram {
  readonly mapping: RamMapping;
  /** Functions reach it. Where other memory is already, what a guest puts on it is hidden until that is gone. */
  isMapped: boolean;
}

export class DmaSpace {
  readonly #vfio: Vfio;
  readonly #tree: HostTreeOfVfio;
  readonly #log: Log;
  #container: VfioContainer | undefined;
  readonly #groups = new Map<number, HeldGroup>();
  readonly #ram: Ram[] = [];

  constructor(vfio: Vfio, tree: HostTreeOfVfio, log: Log) {
    this.#vfio = vfio;
    this.#tree = tree;
    this.#log = log;
  }

  /**
   * Open a function, with its group in this space.
   * @param name as in sysfs. @returns how to let go of its group, once the function is closed.
   * @throws HostError that says what is in the way; nothing is held then.
   */
  open(name: string, host: Pick<HostFunctionHost, 'joinGroup'>): { readonly device: VfioDevice; release(): void } {
    const id = this.#tree.groupOf(name);
    if (id === undefined) throw new HostError(`${name} is behind no IOMMU`, Errno.ENODEV);
    const group = this.#take(id, name, host);
    try {
      return { device: group.openDevice(name), release: () => this.#release(id) };
    } catch (error) {
      this.#release(id);
      throw explained(error, Errno.EBUSY, `${name} is in use by another process`, `fuser -v /dev/vfio/${id}`);
    }
  }

  /** Those of its groups. @returns undefined if one of them is not in this space. */
  groups(ids: Iterable<number>): readonly VfioGroup[] | undefined {
    const held = [...new Set(ids)].map((id) => this.#groups.get(id)?.group);
    return held.every((group) => group !== undefined) ? held : undefined;
  }

  /** What is in the way of memory that a guest placed itself is no error: functions do not reach it. @throws HostError */
  mapRam(mapping: RamMapping): void {
    const ram = { mapping, isMapped: false };
    if (this.#container !== undefined) this.#map(this.#container, ram, PLACED);
    this.#ram.push(ram);
  }

  unmapRam(mapping: RamMapping): void {
    const at = this.#ram.findIndex((ram) => ram.mapping === mapping);
    const [gone] = at < 0 ? [] : this.#ram.splice(at, 1);
    const container = this.#container;
    if (gone?.isMapped !== true || container === undefined) return;
    container.unmapDma(mapping.gpa, mapping.sizeBytes);
    // Nothing that is in the way here is worse than before.
    for (const ram of this.#ram) if (!ram.isMapped) this.#map(container, ram, [...PLACED, Errno.ENOMEM]);
  }

  /** Safe twice. */
  dispose(): void {
    for (const { group, membership } of this.#groups.values()) {
      membership.dispose();
      group.close();
    }
    this.#groups.clear();
    this.#closeUnused();
    this.#ram.length = 0;
  }

  #take(id: number, name: string, host: Pick<HostFunctionHost, 'joinGroup'>): VfioGroup {
    const held = this.#groups.get(id);
    if (held !== undefined) {
      held.users++;
      return held.group;
    }
    const group = this.#openGroup(id, name);
    try {
      if (!group.isViable()) {
        const [message, hint] = notViable(name, id, this.#tree.strangersOf(name));
        throw new HostError(message, Errno.EPERM, { hint });
      }
      this.#join(group);
      this.#groups.set(id, { group, membership: host.joinGroup(group.fd), users: 1 });
      return group;
    } catch (error) {
      // A group that is closed leaves its container.
      group.close();
      this.#closeUnused();
      throw error;
    }
  }

  #openGroup(id: number, name: string): VfioGroup {
    try {
      return this.#vfio.openGroup(id);
    } catch (error) {
      const busy = explained(
        error,
        Errno.EBUSY,
        `IOMMU group ${id} of ${name} is in use by another process`,
        `fuser -v /dev/vfio/${id} says which`,
      );
      throw explained(busy, Errno.ENOENT, `${name} is not bound to vfio-pci`, bindCommand(name, VFIO_DRIVER, true));
    }
  }

  /** The first one brings the address space about. */
  #join(group: VfioGroup): void {
    const isFirst = this.#container === undefined;
    this.#container ??= this.#vfio.openContainer();
    const container = this.#container;
    const joined = group.setContainer(container);
    if (joined < 0) throw failed(`IOMMU group ${group.id} does not fit the VM's others`, joined);
    if (!isFirst) return;
    const set = container.setIommu();
    if (set === -Errno.EPERM) {
      throw new HostError(
        'the IOMMU of this host does not remap interrupts: a guest could send any to the host',
        -set,
        {
          hint: "enable interrupt remapping (x2APIC) in the firmware's setup, or, for a guest you trust: echo 1 > /sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts",
        },
      );
    }
    if (set < 0) throw failed('VFIO_SET_IOMMU', set);
    for (const ram of this.#ram) this.#map(container, ram, [Errno.EEXIST]);
  }

  #release(id: number): void {
    const held = this.#groups.get(id);
    if (held === undefined || --held.users > 0) return;
    this.#groups.delete(id);
    held.membership.dispose();
    held.group.close();
    this.#closeUnused();
  }

  /** The container goes with the last group. */
  #closeUnused(): void {
    if (this.#groups.size > 0) return;
    this.#container?.close();
    this.#container = undefined;
    for (const ram of this.#ram) ram.isMapped = false;
  }

  /** @param tolerated errors that hide it. @throws HostError */
  #map(container: VfioContainer, ram: Ram, tolerated: readonly number[]): void {
    const { gpa, sizeBytes, hostAddress, writable } = ram.mapping;
    const result = container.mapDma(gpa, sizeBytes, hostAddress, writable);
    ram.isMapped = result === 0;
    if (ram.isMapped) return;
    const what = `guest memory ${hex(gpa)}+${hex(sizeBytes)}`;
    if (tolerated.includes(-result)) {
      this.#log.guest(() => `${what} is hidden from functions of the host: ${describeErrno(-result)}`);
      return;
    }
    if (result === -Errno.ENOMEM) {
      throw new HostError(
        `${what} cannot be pinned for a function of the host: over the limit of locked memory`,
        -result,
        {
          hint: 'raise it (ulimit -l, LimitMEMLOCK= of a systemd unit) above the memory of all VMs of this user, or run as root',
        },
      );
    }
    throw failed(`${what}: VFIO_IOMMU_MAP_DMA`, result);
  }
}

function failed(what: string, result: number): HostError {
  return new HostError(`${what}: ${describeErrno(-result)}`, -result);
}

/** The same error in words, if it is of this kind. */
function explained(error: unknown, errno: number, message: string, hint: string): unknown {
  if (!(error instanceof HostError) || error.errno !== errno) return error;
  return new HostError(message, errno, { hint, cause: error });
}
