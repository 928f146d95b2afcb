/** Drivers for tests of the command line: every name the C program knows, and one with a real schema. */
import * as v from 'valibot';
import type { DriverInfo } from '../../cmd/slot.ts';
import { integer } from '../../devicemodel/core/options.ts';

/** Takes any text. */
export function anyTextDriver(name: string, aliases: readonly string[] = []): DriverInfo {
  return {
    name,
    aliases,
    summary: `${name} for tests`,
    options: v.strictObject({ text: v.optional(v.string()) }),
    parseText: (text) => ({ text }),
  };
}

/** `shm,NAME,SIZE[,id=ID]`, by schema. */
export const shmDriver: DriverInfo = {
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
};

export const allDrivers: readonly DriverInfo[] = [
  ...[
    'hostbridge',
    'lpc',
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
