/** libusb as far as a machine without USB goes; with devices: test/rig/usb.sh. */
import { existsSync, readdirSync } from 'node:fs';
import { expect, test } from 'vitest';
import { loadLibusb, openUsbDevice } from '../../../devicemodel/core/host/libusb.ts';
import { watchUevents } from '../../../devicemodel/core/host/uevents.ts';

const hasLibrary = ['/lib/x86_64-linux-gnu', '/usr/lib/x86_64-linux-gnu', '/usr/lib64', '/usr/lib'].some((folder) =>
  existsSync(`${folder}/libusb-1.0.so.0`),
);

test.skipIf(!hasLibrary)('a device that is not there is not opened, twice over', async () => {
  for (let i = 0; i < 2; i++) {
    loadLibusb();
    await expect(openUsbDevice('/dev/bus/usb/999/999')).rejects.toThrow(/ENOENT/);
  }
});

test.skipIf(!hasLibrary)('what is no USB device is refused, and nothing of it stays open', async () => {
  // What libusb and the loop open once and keep is there by then.
  await openUsbDevice('/dev/null').catch(() => {});
  const before = readdirSync('/proc/self/fd').length;
  for (let i = 0; i < 8; i++) await expect(openUsbDevice('/dev/null')).rejects.toThrow(/libusb_\w+: LIBUSB_ERROR/);
  expect(readdirSync('/proc/self/fd').length).toBeLessThan(before + 8);
});

test('the kernel’s messages are watched without udev, and no longer when they need not be', async () => {
  const stop = watchUevents('usb', () => {});
  await new Promise((resolve) => setTimeout(resolve, 20));
  stop();
});
