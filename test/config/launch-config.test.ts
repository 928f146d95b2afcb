import { describe, expect, test } from 'vitest';
import { parseCommandLine } from '../../cmd/cli.ts';
import { type LaunchConfig, vmConfigOf } from '../../config/launch-config.ts';
import { ConfigError } from '../../devicemodel/core/errors.ts';
import { pciDrivers } from '../../devicemodel/hw/registry.ts';

function ordered(...argv: string[]) {
  const order = parseCommandLine(argv, pciDrivers);
  if (order.action !== 'run') throw new TypeError('no VM was ordered');
  return order.config;
}

const BRIDGES = ['-s', '0,hostbridge', '-s', '1,lpc'];

test.each<[string, LaunchConfig, string[]]>([
  [
    'a kernel with devices',
    {
      name: 'vm1',
      hypervisor: 'acrn',
      memory: '512M',
      kernel: 'bzImage',
      ramdisk: 'initrd',
      bootargs: 'console=ttyS0',
      pci: ['3,virtio-blk,disk.img,ro', '4,virtio-rnd'],
      com: ['com2,pty', 'com1,stdio'],
      cpuAffinity: [0, 2],
      cmdMonitor: '/run/vm1',
    },
    [
      ...['--hypervisor', 'acrn', '-m', '512M', '-k', 'bzImage', '-r', 'initrd', '-B', 'console=ttyS0', ...BRIDGES],
      ...['-s', '3,virtio-blk,disk.img,ro', '-s', '4,virtio-rnd', '-l', 'com2,pty', '-l', 'com1,stdio'],
      ...['--cpu_affinity', '0,2', '--cmd_monitor', '/run/vm1', 'vm1'],
    ],
  ],
  [
    'firmware, real time',
    { name: 'rt', ovmf: 'w,code=c.fd,vars=v.fd', rtvm: true, windows: true, com: [] },
    [...BRIDGES, '--ovmf', 'w,code=c.fd,vars=v.fd', '--rtvm', '--windows', 'rt'],
  ],
  [
    'an ELF image, bridges elsewhere',
    { name: 'elf', elf: 'x.elf', pci: ['0:0,hostbridge', '31,lpc'], com: [], scenario: 's.json' },
    ['-s', '0:0,hostbridge', '-s', '31,lpc', '--elf_file', 'x.elf', '--scenario', 's.json', 'elf'],
  ],
])('%s is the same VM as on the command line', (_name, config, argv) => {
  expect(vmConfigOf(config).config).toEqual(ordered(...argv));
});

test('the console is events unless something else is said', () => {
  expect(vmConfigOf({ name: 'vm', kernel: 'k' }).config.com).toEqual([{ index: 1, backend: 'events' }]);
});

test('what the command line would warn of is in the notices', () => {
  const { notices } = vmConfigOf({ name: 'vm', kernel: 'k', pci: ['0,hostbridge,x'] });
  expect(notices).toEqual([{ level: 'warn', text: expect.stringContaining('hostbridge has no options') }]);
});

describe('what is wrong is said with the name of the member', () => {
  test.each<[unknown, RegExp]>([
    [{ kernel: 'k' }, /^name: /],
    [{ name: 'vm', kernel: 'k', memroy: '1G' }, /^memroy: /],
    [{ name: 'vm', kernel: 'k', memory: 256 }, /^memory: /],
    [{ name: 'vm', kernel: 'k', memory: '256' }, /^memory: "256" has no unit$/],
    [{ name: 'a name that is too long', kernel: 'k' }, /^name: VM name/],
    [{ name: 'vm' }, /^one of kernel, elf and ovmf is needed, none is given$/],
    [{ name: 'vm', kernel: 'k', ovmf: 'o' }, /kernel and ovmf is given$/],
    [{ name: 'vm', kernel: '' }, /^kernel: the file name is empty$/],
    [{ name: 'vm', kernel: 'k', pci: ['3,nonsense'] }, /^pci: -s 3,nonsense: unknown device/],
    [{ name: 'vm', kernel: 'k', pci: ['1,virtio-rnd'] }, /^pci: slot 1 of "1,virtio-rnd" is where 1,lpc goes$/],
    [{ name: 'vm', kernel: 'k', com: ['com7,pty'] }, /^com: com7,pty: there is no LPC device/],
    [{ name: 'vm', kernel: 'k', com: [7] }, /^com\.0: /],
    [{ name: 'vm', kernel: 'k', cpuAffinity: [-1] }, /^cpuAffinity\.0: /],
  ])('%o', (config, message) => {
    const parse = () => vmConfigOf(config as LaunchConfig);
    expect(parse).toThrow(ConfigError);
    expect(parse).toThrow(message);
  });
});
