/**
 * A device of the host that hangs, by Linux's own USB core and libusb: the kernel waits for it wherever it is asked to take
 * something back. Skipped without vhci_hcd; the rig has one (test/rig/usb-hang.sh).
 */
import { afterEach, describe, expect, test } from 'vitest';
import { IoPatience } from '../../../devicemodel/core/io-patience.ts';
import type { UsbTransfer } from '../../../devicemodel/hw/usb/device.ts';
import type { HostDevice } from '../../../devicemodel/hw/usb/host-device.ts';
import { listUsbDevices } from '../../../devicemodel/hw/usb/host-tree.ts';
import { openHostUsb } from '../../../devicemodel/hw/usb/host-usb.ts';
import { PortMapper } from '../../../devicemodel/hw/usb/port-mapper.ts';
import { memoryLog } from '../../support/memory-log.ts';
import { hasVhci, UsbIpDevice } from '../../support/usbip-device.ts';

const undo: Array<() => void> = [];
afterEach(() => {
  for (const step of undo.splice(0).reverse()) step();
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

describe.skipIf(!hasVhci)('a device that hangs in the kernel', () => {
  test('keeps neither this thread nor the end', async () => {
    const made = new UsbIpDevice();
    undo.push(() => made.unplug());
    const isThere = () => listUsbDevices().find(({ id, deviceNumber }) => id === UsbIpDevice.id && deviceNumber > 0);
    await until('the device is there', () => isThere() !== undefined);
    const host = openHostUsb();
    const plugged: HostDevice[] = [];
    const hub = { connect: (device: HostDevice) => plugged.push(device), disconnect: () => {} };
    const { log, lines } = memoryLog();
    const path = isThere()?.path ?? '';
    const mapper = new PortMapper([path], hub as never, host, log, new IoPatience(600_000));
    mapper.start();
    const [device] = plugged as [HostDevice];
    expect(await device.open()).toBe(true);

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
    host.dispose();
  });
});
