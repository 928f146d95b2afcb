/** `--mmiodev_pt BASE,SIZE`: device memory of the host passed through. The guest finds no word of it in its tables. */
import * as v from 'valibot';
import { hex } from '../../core/address.ts';
import { ConfigError } from '../../core/errors.ts';
import { Layout } from '../../core/layout.ts';
import { KiB } from '../../core/units.ts';
import { definePlatformDriver } from './driver.ts';
import { assertRoomForHostDevices, checkGivesDevices, HostMmio } from './host-devices.ts';

const PAGE_BYTES = 4 * KiB;

const page = (what: string) =>
  v.pipe(
    v.number(),
    v.check((value) => value > 0 && value % PAGE_BYTES === 0, what),
  );

export const MmiodevOptions = v.strictObject({
  // The hypervisor maps pages (assign_mmio_dev).
  base: v.pipe(page('must be the address of a page'), v.metadata({ arg: 'BASE', help: 'host address, hexadecimal' })),
  sizeBytes: v.pipe(
    page('must be a number of 4 KiB pages'),
    v.metadata({ arg: 'SIZE', help: 'bytes, hexadecimal, whole pages' }),
  ),
});
export type MmiodevOptions = v.InferOutput<typeof MmiodevOptions>;

/** `0xfe000000,0x4000`, hexadecimal with or without 0x. Compat: C only logs a bad value and starts without the range. */
function parseText(text: string): Record<string, unknown> {
  const match = /^(?:0x)?([0-9a-f]{1,13}),(?:0x)?([0-9a-f]{1,13})$/i.exec(text);
  if (match === null) {
    throw new ConfigError(`"${text}" is not BASE,SIZE in hexadecimal`, { hint: 'write it as in 0xfed40000,0x5000' });
  }
  const [base, sizeBytes] = match.slice(1).map((digits) => Number.parseInt(digits, 16)) as [number, number];
  if (base % PAGE_BYTES !== 0 || base === 0) throw new ConfigError(`base ${hex(base)} is not the address of a page`);
  if (sizeBytes % PAGE_BYTES !== 0 || sizeBytes === 0) {
    throw new ConfigError(`size ${hex(sizeBytes)} is not a number of 4 KiB pages`);
  }
  const roomBytes = Layout.deviceWindow.end - Layout.deviceWindow.base;
  // Compat: C also takes what reaches exactly up to 4 GiB, over the guest's interrupt controllers.
  if (sizeBytes > roomBytes) throw new ConfigError(`${hex(sizeBytes)} bytes have no room, ${hex(roomBytes)} do`);
  return { base, sizeBytes };
}

export const mmiodevPt = definePlatformDriver({
  name: 'mmiodev_pt',
  group: 'Devices',
  arg: 'BASE,SIZE',
  summary: 'pass device memory through (hexadecimal, whole pages, at most twice)',
  options: MmiodevOptions,
  isList: true,
  parseText,
  check: assertRoomForHostDevices,
  checkHypervisor: checkGivesDevices,
  claims: ({ base, sizeBytes }) => [
    { what: `device memory at ${hex(base)}`, key: 'device memory', range: { base, sizeBytes }, hint: 'give it once' },
  ],
  create: ({ base, sizeBytes }, { hsm, window }) => {
    const gpa = window.allocate(sizeBytes, `--mmiodev_pt ${hex(base)}`);
    return new HostMmio(hsm, { name: '', resources: [{ gpa, hostPhysical: base, sizeBytes }] });
  },
});
