/** How sysfs names PCI functions, and the commands that move one from driver to driver, for people. */
import type { Bdf } from '../address.ts';

/** Drivers of the host that hold a function for a VM: ACRN takes any, KVM takes it by VFIO. */
export type StubDriver = 'pci-stub' | 'vfio-pci';

/** `0000:02:00.0`, the name of its directory in /sys/bus/pci/devices. @param domain PCI segment group. */
export function sysfsPciName({ bus, device, function: fn }: Bdf, domain = 0): string {
  const hex = (value: number, digits: number) => value.toString(16).padStart(digits, '0');
  return `${hex(domain, 4)}:${hex(bus, 2)}:${hex(device, 2)}.${fn}`;
}

/** @param name as {@link sysfsPciName} makes it. @param isBound a driver has it now. */
export function bindCommand(name: string, driver: StubDriver, isBound: boolean): string {
  const at = `/sys/bus/pci/devices/${name}`;
  const unbind = isBound ? `echo ${name} > ${at}/driver/unbind; ` : '';
  return `modprobe ${driver}; echo ${driver} > ${at}/driver_override; ${unbind}echo ${name} > /sys/bus/pci/drivers_probe`;
}
