/**
 * USB devices of the host, as the kernel shows them (Documentation/ABI/testing/sysfs-bus-usb). Only attributes are read
 * for which the kernel asks no device and waits for no lock.
 */
import { readdirSync, readFileSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { DescriptorType, UsbSpeed } from './device.ts';

const DEVICES = '/sys/bus/usb/devices';
const HUB_CLASS = 9;
const DEVICE_DESCRIPTOR_BYTES = 18;

export interface HostUsbDevice {
  /** `1-2.3`: bus, root hub port, ports of hubs. */
  readonly path: string;
  /** A device that is plugged in again has another number. 0 for the moment of a reset, which leaves the number as it was. */
  readonly deviceNumber: number;
  /** `/dev/bus/usb/001/004`. */
  readonly node: string;
  readonly speed: UsbSpeed;
  /** bcdUSB. */
  readonly release: number;
  /** `0781:5567`. */
  readonly id: string;
  readonly isHub: boolean;
}

/** Without root hubs. One that goes while it is looked at is left out. */
export function listUsbDevices(folder = DEVICES): HostUsbDevice[] {
  let names: string[];
  try {
    names = readdirSync(folder);
  } catch {
    return [];
  }
  return names
    .filter((name) => /^\d+-\d+(\.\d+)*$/.test(name))
    .sort()
    .flatMap((name) => {
      try {
        return [describe(folder, name)];
      } catch {
        return [];
      }
    });
}

function describe(folder: string, path: string): HostUsbDevice {
  const attribute = (name: string) => readFileSync(join(folder, path, name), 'utf8').trim();
  const number = (name: string, radix = 10) => Number.parseInt(attribute(name), radix);
  const digits = (value: number) => String(value).padStart(3, '0');
  // Once, as a reset may begin or end meanwhile.
  const deviceNumber = number('devnum');
  const [major = '0', minor = '0'] = attribute('version').split('.');
  return {
    path,
    deviceNumber,
    node: `/dev/bus/usb/${digits(number('busnum'))}/${digits(deviceNumber)}`,
    speed: speedOf(Number(attribute('speed'))),
    release: Number.parseInt(major, 16) * 0x100 + Number.parseInt(minor, 16),
    id: `${attribute('idVendor')}:${attribute('idProduct')}`,
    isHub: number('bDeviceClass', 16) === HUB_CLASS,
  };
}

/** Compat: what is faster than 5 Gbit/s has no name in C; here it is SuperSpeed, the fastest the controller has. */
function speedOf(megabitsPerSecond: number): UsbSpeed {
  if (megabitsPerSecond >= 5000) return UsbSpeed.Super;
  if (megabitsPerSecond >= 480) return UsbSpeed.High;
  return megabitsPerSecond >= 12 ? UsbSpeed.Full : UsbSpeed.Low;
}

/** Numbers of the interfaces of the configuration the device has now; none without one. */
export async function activeInterfaces(path: string, folder = DEVICES): Promise<number[]> {
  const [descriptors, value] = await Promise.all([
    readFile(join(folder, path, 'descriptors')),
    readFile(join(folder, path, 'bConfigurationValue'), 'utf8'),
  ]);
  return interfacesOf(descriptors, Number.parseInt(value, 10));
}

/** @param descriptors of the device, then of each of its configurations with all it contains. */
export function interfacesOf(descriptors: Uint8Array, configuration: number): number[] {
  const numbers = new Set<number>();
  let current = -1;
  for (let at = DEVICE_DESCRIPTOR_BYTES; at + 2 < descriptors.length; ) {
    const length = descriptors[at] ?? 0;
    const type = descriptors[at + 1];
    if (length < 2) break;
    if (type === DescriptorType.Configuration) current = descriptors[at + 5] ?? -1;
    if (type === DescriptorType.Interface && current === configuration) numbers.add(descriptors[at + 2] ?? 0);
    at += length;
  }
  return [...numbers];
}
