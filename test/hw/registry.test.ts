/** Every driver of the registry keeps the rules of all PCI functions; names lead to drivers or to one clear line. */
import { describe, expect, test } from 'vitest';
import { loadPciDriver, lookupPciDriver, pciDrivers } from '../../devicemodel/hw/registry.ts';
import { describeConformance, type Example } from '../support/pci-conformance.ts';

/** Options under which a driver is tried. One that needs none, or is most interesting without, has no line here. */
const examples: Readonly<Record<string, readonly Example[]>> = {
  'vhost-vsock': [{ text: 'cid=3', canStart: false }],
  // They are made of functions of the host: test/hw/pci/passthru.
  passthru: [],
  'igd-lpc': [],
  ahci: [{ text: '' }, { text: 'cd:nodisk,hd:' }, { text: 'hd:/nowhere,ro,cd:nodisk', canStart: false }],
  ivshmem: [{ text: 'hv:/shm0,2' }, { text: 'dm:/shm1,4,7', memoryBar: 2 }],
  'root-port': [{ text: '' }, { text: 'ptm' }],
  uart: [{ text: '' }, { text: 'stdio' }, { text: 'vuart_idx:1' }],
  'virtio-blk': [{ text: 'nodisk' }],
  'virtio-console': [{ text: '@stdio:port0' }, { text: '@stdio:a,pty:b' }],
  'virtio-gpio': [
    { text: '@gpiochip0{1:6:reset=shutdown}@gpiochip1{0=reset}', canStart: false },
    { text: '@gpiochip0{0},transport=modern', canStart: false },
  ],
  'virtio-gpu': [{ text: 'geometry=800x600+0+0,geometry=fullscreen', memoryBar: 0 }],
  'virtio-heci': [{ text: '0/16/0,d1', canStart: false }],
  'virtio-i2c': [{ text: '0:1c', canStart: false }],
  'virtio-input': [{ text: '/dev/null', canStart: false }],
  xhci: [{ text: 'tablet' }, { text: 'tablet:cap=apl:log=D' }],
  'virtio-net': [{ text: 'tap=tap0', canStart: false }],
  'virtio-rpmb': [{ text: 'physical_rpmb' }, { text: 'path=/var/lib/vm1.rpmb', canStart: false }],
};

for (const entry of pciDrivers) {
  describe(entry.name, () => {
    describeConformance({ entry, examples: examples[entry.name] ?? [{ text: '' }] });
  });
}

describe('names', () => {
  test('are used once', () => {
    const names = pciDrivers.flatMap((d) => [d.name, ...(d.aliases ?? [])]);
    expect(new Set(names).size).toBe(names.length);
  });

  test('of every driver lead to it', async () => {
    for (const entry of pciDrivers) expect((await loadPciDriver(entry.name)).name).toBe(entry.name);
  });

  test.each(['pci-gvt', 'virtio-hdcp', 'npk', 'virtio-coreu', 'virtio-audio', 'virtio-ipu', 'virtio-hyper_dmabuf'])(
    '%s is obsolete, in one line',
    async (name) => {
      expect(lookupPciDriver(name)).toMatchObject({ kind: 'obsolete' });
      await expect(loadPciDriver(name)).rejects.toThrow(new RegExp(`^device "${name}" is obsolete: [^\\n]+$`));
    },
  );

  test.each([
    ['ivshmen', 'did you mean "ivshmem"?'],
    ['virtio-bkl', 'did you mean "virtio-blk"?'],
    ['hostbrigde', 'did you mean "hostbridge"?'],
    ['something-else-entirely', '-s help lists the devices'],
    ['', '-s help lists the devices'],
    ['constructor', '-s help lists the devices'],
  ])('%s is unknown: %s', async (name, hint) => {
    await expect(loadPciDriver(name)).rejects.toMatchObject({ message: `unknown device "${name}"`, hint });
  });
});

// Mutation: `did you mean "virtio-gpu"?` for virtio-9p.
test.each([
  ['virtio-9p', undefined],
  ['virtio-fs', undefined],
  ['virtio-bkl', 'virtio-blk'],
  ['virtio-ntet', 'virtio-net'],
  ['virtio-inputt', 'virtio-input'],
  ['virtio_rnd', 'virtio-rnd'],
  ['virtio-vga', 'virtio-gpu'],
  ['ehci', 'xhci'],
  ['e1000', 'virtio-net'],
  ['vfio-pci', 'passthru'],
  ['AHCI', 'ahci'],
  ['E1000', 'virtio-net'],
])('a device %s may have been meant as %s', (name, meant) => {
  const found = lookupPciDriver(name);
  const guess = found.kind === 'unknown' ? /did you mean "([^"]+)"/.exec(found.hint)?.[1] : name;
  expect(guess).toBe(meant);
});
