/** Recorded guests of the C device model against the PCI host and the devices on it. */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { ConfigError } from '../../../devicemodel/core/errors.ts';
import { goldenDir, machineOf, replay, whyNot } from '../../support/golden-replay.ts';

const cases = [
  'boot_bzimage_256m',
  'boot_ovmf_devices',
  'com1_nobackend',
  'com1_stdio',
  'devs_all',
  'dev_08_ivshmem_hva_2_xyz',
  'ecam',
  'fail_destroy_vdev',
  'ivshmem_0',
  'ivshmem_2',
  'ivshmem_3',
  'ivshmem_5',
  'ivshmem_7',
  'ivshmem_many',
  'lpc_pirq',
  'opt_virtio_msi',
  'pci_reprogram',
  'pci_uart',
  'vuart_0',
  'vuart_2',
];

/** Command lines the C device model refuses, most of them only after it has created the VM. */
const refused = [
  'bad_lpc_two',
  'bad_slot_dup',
  'dev_00_ivshmem_hva_3',
  'dev_01_ivshmem_hva_1',
  'dev_02_ivshmem_hva_1024',
  'dev_03_ivshmem_xxa_2',
  'dev_09_ivshmem_hva_4096',
  'vuart_bad',
];

const title = (name: string) => (whyNot(name) === undefined ? name : `${name} (skipped: ${whyNot(name)})`);

describe('recorded guests read the same and the hypervisor is asked the same', () => {
  for (const name of cases) {
    test.skipIf(whyNot(name) !== undefined)(title(name), async () => {
      expect(await replay(name)).toBeGreaterThan(0);
    });
  }
});

describe('what the C device model refuses is refused before the hypervisor is asked', () => {
  for (const name of refused) {
    test.skipIf(whyNot(name) !== undefined)(title(name), async () => {
      const { argv } = JSON.parse(readFileSync(join(goldenDir, name, 'case.json'), 'utf8'));
      await expect(machineOf(argv)).rejects.toThrow(ConfigError);
    });
  }
});
