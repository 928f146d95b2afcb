/** The names that Cloud Hypervisor's dialect has for devices: `_disk3` for that in slot 3, or what vm.create called them. */
import { type Bdf, formatBdf } from '../../devicemodel/core/address.ts';
import type { VmConfig } from '../../devicemodel/core/config.ts';
import type { ChConfig } from './vmm.ts';

type Slot = VmConfig['pci'][number];

/** Members of its configuration that list devices, and the driver each stands for. */
const lists = { disks: 'virtio-blk', net: 'virtio-net' } as const;

const words: Readonly<Record<string, string>> = { 'virtio-blk': 'disk', 'virtio-net': 'net', passthru: 'vfio' };

/** For a device that its client gave no name: `_disk3`; with bus and function where those are not 0. */
export function defaultDeviceId(driver: string, { bus, device, function: fn }: Bdf): string {
  const at = bus === 0 && fn === 0 ? `${device}` : `${bus}_${device}_${fn}`;
  return `_${words[driver] ?? driver.replace(/^virtio-/, '').replaceAll('-', '_')}${at}`;
}

/**
 * Every device with its id. A list of the client's with as many devices as there are of the driver names them in order.
 * @param added ids that came with vm.add-disk, by slot.
 */
export function deviceIds(
  slots: readonly Slot[],
  config: ChConfig | undefined,
  added: ReadonlyMap<string, string>,
): ReadonlyMap<string, Slot> {
  const given = new Map<Slot, string>();
  for (const [member, driver] of Object.entries(lists)) {
    const listed = config?.[member];
    const ofDriver = slots.filter((slot) => slot.driver === driver);
    if (!Array.isArray(listed) || listed.length !== ofDriver.length) continue;
    for (const [i, slot] of ofDriver.entries()) {
      const id: unknown = (listed[i] as { readonly id?: unknown } | null)?.id;
      if (typeof id === 'string' && id !== '') given.set(slot, id);
    }
  }
  const idOf = (slot: Slot) =>
    added.get(formatBdf(slot.bdf)) ?? given.get(slot) ?? defaultDeviceId(slot.driver, slot.bdf);
  return new Map(slots.map((slot) => [idOf(slot), slot]));
}
