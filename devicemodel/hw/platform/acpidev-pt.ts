/** `--acpidev_pt HID[,UID]`: a TPM 2.0 of the host passed through. */
import * as v from 'valibot';
import type { PlatformDeviceConfig } from '../../core/config.ts';
import { ConfigError } from '../../core/errors.ts';
import { definePlatformDriver } from './driver.ts';
import { assertRoomForHostDevices } from './host-devices.ts';

export const AcpidevOptions = v.strictObject({
  hid: v.pipe(v.string(), v.metadata({ arg: 'HID', help: 'hardware id of the host device, MSFT0101 for a TPM' })),
  uid: v.optional(v.pipe(v.string(), v.metadata({ arg: 'UID', help: 'which of several, decimal; default 00' }))),
});
export type AcpidevOptions = v.InferOutput<typeof AcpidevOptions>;

/** `MSFT0101`, `MSFT0101,00`. */
function parseText(text: string): Record<string, unknown> {
  const [, hid, uid] = /^([A-Za-z0-9]{7,8})(?:,(\d{1,4}))?$/.exec(text) ?? [];
  if (hid === undefined) {
    throw new ConfigError(`"${text}" is not an ACPI device id`, { hint: 'write HID or HID,UID, as in MSFT0101,00' });
  }
  return uid === undefined ? { hid } : { hid, uid };
}

function check(all: readonly PlatformDeviceConfig[]): void {
  assertRoomForHostDevices(all);
  if (all.filter(({ driver }) => driver === 'acpidev_pt').length > 1) {
    throw new ConfigError('--acpidev_pt: a VM has one TPM', { hint: 'give one' });
  }
}

export const acpidevPt = definePlatformDriver({
  name: 'acpidev_pt',
  group: 'Devices',
  arg: 'HID[,UID]',
  summary: 'pass an ACPI device through (a TPM: MSFT0101)',
  options: AcpidevOptions,
  isList: true,
  parseText,
  check,
});
