/** What sysfs says of functions and their IOMMU groups, as far as VFIO needs it. */
import { readdirSync, readlinkSync } from 'node:fs';
import { basename, join } from 'node:path';

const DEVICES = 'sys/bus/pci/devices';

/** Drivers that VFIO tolerates in a group: they do no DMA, or are its own. A bridge's is pcieport. */
const HARMLESS_DRIVERS: readonly string[] = ['vfio-pci', 'pci-stub', 'pcieport'];
/** What a function has to be bound to. */
export const VFIO_DRIVER = 'vfio-pci';

/** @param root where `sys` is; a directory of its own in tests. */
export class HostTreeOfVfio {
  readonly #root: string;

  constructor(root = '/') {
    this.#root = root;
  }

  exists(name: string): boolean {
    return this.driverOf(name) !== undefined || names(join(this.#root, DEVICES)).includes(name);
  }

  driverOf(name: string): string | undefined {
    return this.#link(name, 'driver');
  }

  /** Number of its group; undefined: no IOMMU is above it. */
  groupOf(name: string): number | undefined {
    const group = this.#link(name, 'iommu_group');
    return group === undefined ? undefined : Number(group);
  }

  /** Functions of the same group that a driver of the host uses, and that driver. */
  strangersOf(name: string): { readonly name: string; readonly driver: string }[] {
    return names(join(this.#root, DEVICES, name, 'iommu_group', 'devices')).flatMap((other) => {
      const driver = other === name ? undefined : this.driverOf(other);
      return driver === undefined || HARMLESS_DRIVERS.includes(driver) ? [] : [{ name: other, driver }];
    });
  }

  #link(name: string, link: string): string | undefined {
    try {
      return basename(readlinkSync(join(this.#root, DEVICES, name, link)));
    } catch {
      return undefined;
    }
  }
}

function names(directory: string): string[] {
  try {
    return readdirSync(directory).sort();
  } catch {
    return [];
  }
}
