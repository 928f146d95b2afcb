/** The USB of this machine: libusb, sysfs and the kernel's uevents. */
import { loadLibusb, openUsbDevice } from '../../core/host/libusb.ts';
import { watchUevents } from '../../core/host/uevents.ts';
import { activeInterfaces, listUsbDevices } from './host-tree.ts';
import type { HostUsb } from './port-mapper.ts';

/** @throws HostError without libusb. */
export function openHostUsb(): HostUsb {
  loadLibusb();
  return {
    open: (node) => openUsbDevice(node),
    activeInterfaces: (path) => activeInterfaces(path),
    list: () => listUsbDevices(),
    watch: (onChange) => watchUevents('usb', onChange),
  };
}
