/** USB devices of the host, as sysfs shows them. */
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect, onTestFinished, test } from 'vitest';
import { UsbSpeed } from '../../../devicemodel/hw/usb/device.ts';
import { listUsbDevices } from '../../../devicemodel/hw/usb/host-tree.ts';

const stick = {
  busnum: '2',
  devnum: '14',
  speed: '5000',
  version: ' 3.10',
  idVendor: '0781',
  idProduct: '5567',
  bDeviceClass: '00',
};

function tree(devices: Record<string, Record<string, string>>): string {
  const folder = mkdtempSync(join(tmpdir(), 'usb-tree-'));
  onTestFinished(() => rmSync(folder, { recursive: true, force: true }));
  for (const [name, attributes] of Object.entries(devices)) {
    mkdirSync(join(folder, name));
    for (const [attribute, value] of Object.entries(attributes)) {
      writeFileSync(join(folder, name, attribute), `${value}\n`);
    }
  }
  return folder;
}

test('devices and hubs, without root hubs and interfaces', () => {
  const hub = { ...stick, devnum: '3', speed: '12', version: ' 1.10', bDeviceClass: '09' };
  expect(listUsbDevices(tree({ usb2: stick, '2-1': hub, '2-1.4': stick, '2-1.4:1.0': {} }))).toEqual([
    {
      path: '2-1',
      deviceNumber: 3,
      node: '/dev/bus/usb/002/003',
      speed: UsbSpeed.Full,
      release: 0x110,
      id: '0781:5567',
      isHub: true,
    },
    {
      path: '2-1.4',
      deviceNumber: 14,
      node: '/dev/bus/usb/002/014',
      speed: UsbSpeed.Super,
      release: 0x310,
      id: '0781:5567',
      isHub: false,
    },
  ]);
});

test('one that is being reset is there, without its number', () => {
  expect(listUsbDevices(tree({ '2-1': { ...stick, devnum: '0' } }))).toMatchObject([{ path: '2-1', deviceNumber: 0 }]);
});

test('one that goes while it is looked at is left out, and so is a folder that is not there', () => {
  const { speed, ...rest } = stick;
  const folder = tree({ '2-1': rest, '2-2': { ...rest, speed } });
  expect(listUsbDevices(folder).map(({ path }) => path)).toEqual(['2-2']);
  expect(listUsbDevices(join(folder, 'none'))).toEqual([]);
});
