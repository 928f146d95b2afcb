/** libusb as far as a machine without USB goes; with devices: test/rig/usb.sh. */
import { existsSync } from 'node:fs';
import { expect, test } from 'vitest';
import { Libusb } from '../../../devicemodel/core/host/libusb.ts';
import { watchUevents } from '../../../devicemodel/core/host/uevents.ts';

const hasLibrary = ['/lib/x86_64-linux-gnu', '/usr/lib/x86_64-linux-gnu', '/usr/lib64', '/usr/lib'].some((folder) =>
  existsSync(`${folder}/libusb-1.0.so.0`),
);

test.skipIf(!hasLibrary)('a context is made and disposed of, twice over', async () => {
  for (let i = 0; i < 2; i++) {
    const libusb = new Libusb();
    await expect(libusb.open('/dev/bus/usb/999/999')).rejects.toThrow(/ENOENT/);
    libusb.dispose();
    libusb.dispose();
  }
});

test.skipIf(!hasLibrary)('what is no USB device is refused, and its descriptor is closed', async () => {
  const libusb = new Libusb();
  await expect(libusb.open('/dev/null')).rejects.toThrow(/libusb_wrap_sys_device: LIBUSB_ERROR/);
  libusb.dispose();
});

test('the kernel’s messages are watched without udev, and no longer when they need not be', async () => {
  const stop = watchUevents('usb', () => {});
  await new Promise((resolve) => setTimeout(resolve, 20));
  stop();
});
