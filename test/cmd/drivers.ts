/** Drivers for tests of the command line: every name the C program knows, and one with a real schema. */
import * as v from 'valibot';
import { integer } from '../../devicemodel/core/options.ts';
import { definePciDriver } from '../../devicemodel/hw/pci/driver.ts';
import type { AnyPciDriver, PciDriverEntry } from '../../devicemodel/hw/registry.ts';

const create = () => {
  throw new Error('not made by these tests');
};

export function entry(driver: AnyPciDriver): PciDriverEntry {
  return { ...driver, load: async () => driver };
}

/** Takes any text. */
export function anyTextDriver(name: string, extra: { aliases?: readonly string[]; isSingle?: boolean } = {}) {
  return entry(
    definePciDriver({
      name,
      ...extra,
      summary: `${name} for tests`,
      options: v.strictObject({ text: v.optional(v.string()) }),
      parseText: (text) => ({ text }),
      create,
    }),
  );
}

/** `shm,NAME,SIZE[,id=ID]`, by schema. */
export const shmDriver = entry(
  definePciDriver({
    name: 'shm',
    summary: 'shared memory for tests',
    options: v.strictObject({
      name: v.pipe(
        v.string(),
        v.regex(/^hv:\//, 'must be hv:/NAME'),
        v.metadata({ arg: 'hv:/NAME', help: 'the region' }),
      ),
      size: v.pipe(integer({ min: 2, max: 512 }), v.metadata({ arg: 'SIZE_MIB' })),
      id: v.optional(v.pipe(integer(), v.metadata({ arg: 'id=ID', named: true })), 0),
    }),
    create,
  }),
);

export const allDrivers: readonly PciDriverEntry[] = [
  anyTextDriver('lpc', { isSingle: true }),
  ...[
    'hostbridge',
    'virtio-blk',
    'virtio-net',
    'virtio-console',
    'passthru',
    'xhci',
    'virtio-input',
    'uart',
    'ivshmem',
    'virtio-gpu',
    'virtio-rnd',
    'ahci',
    'wdt-i6300esb',
    'vhost-vsock',
    'virtio-i2c',
    'virtio-gpio',
    'virtio-heci',
    'virtio-rpmb',
  ].map((name) => anyTextDriver(name)),
  shmDriver,
];
