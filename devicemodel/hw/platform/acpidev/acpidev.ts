/** `--acpidev_pt`: a TPM, GPIO controller or UART of the host passed through. */
import type { PlatformDeviceConfig } from '../../../core/config.ts';
import { ConfigError } from '../../../core/errors.ts';
import { definePlatformDriver } from '../driver.ts';
import { assertRoomForHostDevices, checkGivesDevices } from '../host-devices.ts';
import { readHostTpm } from './host.ts';
import { AcpidevOptions, parseAcpidevText } from './options.ts';
import { HostAcpiDevice, kindOfHostDevice } from './resources.ts';
import { HostTpmDevice } from './tpm.ts';

function check(all: readonly PlatformDeviceConfig[]): void {
  assertRoomForHostDevices(all);
  const devices = all.filter(({ driver }) => driver === 'acpidev_pt').map(({ options }) => options as AcpidevOptions);
  if (devices.filter(({ resources }) => resources.length === 0).length > 1) {
    throw new ConfigError('--acpidev_pt: a VM has one TPM', { hint: 'give one' });
  }
  for (const { hid, resources } of devices) if (resources.length > 0) kindOfHostDevice(hid);
}

export const acpidevPt = definePlatformDriver({
  name: 'acpidev_pt',
  group: 'Devices',
  arg: 'HID[,UID]',
  summary: 'pass an ACPI device through (a TPM: MSFT0101; GPIO and UARTs by their resources)',
  options: AcpidevOptions,
  isList: true,
  parseText: parseAcpidevText,
  merge: (earlier, added) =>
    added.resources.length > 0 && earlier.hid === added.hid && earlier.uid === added.uid
      ? { ...earlier, resources: [...earlier.resources, ...added.resources] }
      : undefined,
  check,
  checkHypervisor: checkGivesDevices,
  inspectHost: ({ hid, uid, resources }) => {
    if (resources.length === 0) readHostTpm(hid, uid);
  },
  create: (options, env) =>
    options.resources.length === 0
      ? new HostTpmDevice(options.hid, options.uid, env)
      : new HostAcpiDevice(options, env),
});
