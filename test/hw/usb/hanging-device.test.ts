/**
 * A device of the host that hangs, by Linux's own USB core and libusb: the kernel waits for it wherever it is asked to take
 * something back. Skipped without vhci_hcd; the rig has one (test/rig/usb-hang.sh).
 */
import { afterEach, describe, expect, test } from 'vitest';
import { IoPatience } from '../../../devicemodel/core/io-patience.ts';
import type { UsbTransfer } from '../../../devicemodel/hw/usb/device.ts';
import type { HostDevice } from '../../../devicemodel/hw/usb/host-device.ts';
import { type HostUsbDevice, listUsbDevices } from '../../../devicemodel/hw/usb/host-tree.ts';
import { openHostUsb } from '../../../devicemodel/hw/usb/host-usb.ts';
import { PortMapper } from '../../../devicemodel/hw/usb/port-mapper.ts';
import { memoryLog } from '../../support/memory-log.ts';
import { hasVhci, UsbIpDevice } from '../../support/usbip-device.ts';

const undo: Array<() => unknown> = [];
afterEach(async () => {
  for (const step of undo.splice(0)) await step();
});

const pause = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));

async function until(what: string, isSo: () => boolean): Promise<void> {
  const endMs = performance.now() + 60_000;
  while (!isSo()) {
    if (performance.now() > endMs) throw new Error(`not within a minute: ${what}`);
    await pause(50);
  }
}

function bulkIn(): UsbTransfer {
  return {
    type: 'bulk',
    endpoint: 0x81,
    isIn: true,
    streamId: 0,
    setup: undefined,
    buffer: new Uint8Array(512),
    packets: [],
    status: 'completed',
    actualBytes: 0,
    done: () => {},
  };
}

function clearHalt(): UsbTransfer {
  const setup = { requestType: 0x02, request: 0x01, value: 0, index: 0x02, length: 0 };
  return { ...bulkIn(), type: 'control', endpoint: 0, isIn: false, setup, buffer: new Uint8Array(0) };
}

/** Devices that were just plugged in, as the guest has them. */
async function openDevices(count: number) {
  const isOurs = ({ id, deviceNumber }: HostUsbDevice) => id === UsbIpDevice.id && deviceNumber > 0;
  const there = () => listUsbDevices().filter(isOurs);
  const made: UsbIpDevice[] = [];
  const paths: string[] = [];
  for (let port = 0; port < count; port++) {
    const one = new UsbIpDevice(port);
    undo.push(() => one.unplug());
    made.push(one);
    await until('the device is there', () => there().length > port);
    paths.push(there().find(({ path }) => !paths.includes(path))?.path ?? '');
  }
  undo.push(() => until('the devices are gone', () => there().length === 0));
  const plugged: HostDevice[] = [];
  const hub = { connect: (device: HostDevice) => plugged.push(device), disconnect: () => {} };
  const { log, lines } = memoryLog();
  const mapper = new PortMapper(paths, hub as never, openHostUsb(), log, new IoPatience(600_000));
  mapper.start();
  const devices = paths.map((path) => plugged.find(({ where }) => where.path === path) as HostDevice);
  for (const device of devices) expect(await device.open()).toBe(true);
  return { made, devices, mapper, lines };
}

describe.skipIf(!hasVhci)('a device that hangs in the kernel', () => {
  test('keeps neither this thread nor the end', async () => {
    const opened = await openDevices(1);
    const { mapper, lines } = opened;
    const [made] = opened.made as [UsbIpDevice];
    const [device] = opened.devices as [HostDevice];

    let backCount = 0;
    const submit = () => {
      const transfer = { ...bulkIn(), done: () => void backCount++ };
      device.submit(transfer);
      return transfer;
    };
    const first = submit();
    await until('the device has it', () => made.kept.size === 1);
    device.cancel(first);
    await until('the kernel asks for it', () => made.askedBack.size === 1);
    expect(backCount).toBe(0);
    // The kernel has the device locked: neither what is submitted now nor taking it back may wait for it here.
    const second = submit();
    expect(made.kept.size).toBe(1);
    device.cancel(second);
    expect(second.status).toBe('cancelled');
    const beforeMs = performance.now();
    const { isGivenBack, closed } = await mapper.stop();
    expect(isGivenBack).toBe(false);
    // Of a machine in emulation; forever would be ten minutes.
    expect(60_000).toBeGreaterThan(performance.now() - beforeMs);
    expect(lines.filter((line) => line.includes('is not given back')).length).toBe(1);

    made.comeToItself();
    await closed;
    expect(first.status).toBe('cancelled');
    expect(backCount).toBe(2);
  });

  test('in a call, and ends a transfer meanwhile: neither this thread nor another device waits for it', async () => {
    const { made, devices, mapper } = await openDevices(2);
    const [hanging, other] = made as [UsbIpDevice, UsbIpDevice];
    const [hangingDevice, otherDevice] = devices as [HostDevice, HostDevice];
    const ended: UsbTransfer[] = [];
    const submit = (device: HostDevice, asked: UsbTransfer) => {
      const transfer: UsbTransfer = { ...asked, done: () => void ended.push(transfer) };
      device.submit(transfer);
      return transfer;
    };
    const early = submit(hangingDevice, bulkIn());
    await until('the device has it', () => hanging.kept.size === 1);

    hanging.keepsControl = true;
    const call = submit(hangingDevice, clearHalt());
    await until('it hangs in a call', () => hanging.kept.size === 2);
    hanging.complete(64);
    await until('the kernel gives up, and waits', () => hanging.askedBack.size === 1);
    for (let i = 0; i < 50; i++) {
      const transfer = submit(otherDevice, bulkIn());
      await until('the other device has it', () => other.kept.size === 1);
      other.complete(64);
      await until('the other device goes on', () => ended.includes(transfer));
      expect([transfer.status, transfer.actualBytes]).toEqual(['completed', 64]);
    }
    expect([early, call].filter((transfer) => ended.includes(transfer))).toEqual([]);

    hanging.comeToItself();
    await until('the call ends', () => ended.includes(call));
    await until('what was done before is heard of', () => ended.includes(early));
    expect([early.status, early.actualBytes, call.status]).toEqual(['completed', 64, 'stall']);
    expect((await mapper.stop()).isGivenBack).toBe(true);
  });
});
