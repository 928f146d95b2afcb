import { describe, expect, test } from 'vitest';
import { parseCommandLine } from '../../cmd/cli.ts';
import { type LaunchConfig, vmConfigOf } from '../../config/launch-config.ts';
import { optionTable } from '../../config/option-table.ts';
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
  expect(notices).toEqual([{ level: 'warn', text: expect.stringContaining('hostbridge has no such option') }]);
});

describe('what is wrong is said with the name of the member', () => {
  test.each<[unknown, RegExp]>([
    [{ kernel: 'k' }, /^name: /],
    [{ name: 'vm', kernel: 'k', memroy: '1G' }, /^memroy: /],
    [{ name: 'vm', kernel: 'k', memory: 256 }, /^memory: /],
    [{ name: 'vm', kernel: 'k', memory: '256' }, /^memory: "256" has no unit$/],
    [{ name: 'a name that is too long', kernel: 'k' }, /^name: VM name/],
    [{ name: 'vm' }, /^one of kernel, elf, ovmf and bios is needed, none is given$/],
    [{ name: 'vm', kernel: 'k', ovmf: 'o' }, /kernel and ovmf is given$/],
    [{ name: 'vm', kernel: '' }, /^kernel: the file name is empty$/],
    [{ name: 'vm', kernel: 'k', pci: ['3,nonsense'] }, /^pci: -s 3,nonsense: unknown device/],
    [{ name: 'vm', kernel: 'k', pci: ['1,virtio-rnd'] }, /^pci: slot 1 of "1,virtio-rnd" is where 1,lpc goes$/],
    [{ name: 'vm', kernel: 'k', com: ['com7,pty'] }, /^com: com7,pty: there is no LPC device/],
    [{ name: 'vm', kernel: 'k', com: [7] }, /^com\.0: /],
    [{ name: 'vm', kernel: 'k', virtioPollNs: 0 }, /^virtioPollNs: "0" is not an interval/],
    [{ name: 'vm', kernel: 'k', ioTimeoutS: 1.5 }, /^ioTimeoutS: "1.5" is not a time/],
    [{ name: 'vm', kernel: 'k', pmNotifyChannel: 'fax' }, /^pmNotifyChannel: /],
    [
      { name: 'vm', kernel: 'k', vtpm2: 'sock_path=t', acpidevPt: 'MSFT0101' },
      /^--vtpm2 and --acpidev_pt: a VM has one/,
    ],
    [{ name: 'vm', kernel: 'k', mmiodevPt: 'x' }, /^mmiodevPt: "x" is not BASE,SIZE/],
    [{ name: 'vm', kernel: 'k', cpuAffinity: [-1] }, /^cpuAffinity\.0: /],
  ])('%o', (config, message) => {
    const parse = () => vmConfigOf(config as LaunchConfig);
    expect(parse).toThrow(ConfigError);
    expect(parse).toThrow(message);
  });
});

describe('every option of the table', () => {
  /** What is not about the VM but about this run of the program. */
  const programs = ['config', 'dry-run', 'benchmark', 'host-root', 'debug', 'list-passthru', 'help', 'version'];
  /** A value of each member, and the words that say the same on a command line. */
  const samples: Readonly<Record<string, readonly [unknown, ...string[]]>> = {
    memory: ['1G', '1G'],
    cpuAffinity: [[2, 0], '2,0'],
    hypervisor: ['soft', 'soft'],
    scenario: ['s.json', 's.json'],
    kernel: ['k', 'k'],
    ramdisk: ['r', 'r'],
    bootargs: ['quiet', 'quiet'],
    ovmf: ['w,f', 'w,f'],
    bios: ['b', 'b'],
    elf: ['e', 'e'],
    pci: [['3,virtio-rnd', '4,virtio-blk,d'], '3,virtio-rnd', '4,virtio-blk,d'],
    com: [['com2,pty', 'com1'], 'com2,pty', 'com1'],
    windows: [true, ''],
    virtioMsi: [true, ''],
    virtioPollNs: [50_000, '50000'],
    debugExit: [true, ''],
    rtvm: [true, ''],
    lapicPt: [true, ''],
    intrMonitor: [[10000, 10, 1, 100], '10000,10,1,100'],
    trusty: [true, ''],
    cmdMonitor: ['/run/c', '/run/c'],
    display: ['vnc=unix:/run/vnc', 'vnc=unix:/run/vnc'],
    socketGroup: ['wheel', 'wheel'],
    ioTimeoutS: [90, '90'],
    shutdownTimeoutS: [30, '30'],
    logFormat: ['json', 'json'],
    apiSocket: ['/run/x.sock', '/run/x.sock'],
    eventMonitor: ['fd=5', 'fd=5'],
    onPoweroff: ['stay', 'stay'],
    onReboot: ['exit', 'exit'],
    onCrash: ['stay', 'stay'],
    crashDump: ['/var/tmp/c', '/var/tmp/c'],
    logger: [['kmsg,level=3', 'disk,level=2'], 'kmsg,level=3', 'disk,level=2'],
    pmNotifyChannel: ['uart', 'uart'],
    pmByVuart: ['pty,/run/p', 'pty,/run/p'],
    acpidevPt: ['MSFT0101,00', 'MSFT0101,00'],
    mmiodevPt: [['0xfed40000,0x5000', '0xfe000000,0x1000'], '0xfed40000,0x5000', '0xfe000000,0x1000'],
    vtpm2: ['sock_path=/t', 'sock_path=/t'],
    ssram: ['L2,vcpu=0,size=4K', 'L2,vcpu=0,size=4K'],
    fwCfg: ['opt/a,string=x', 'opt/a,string=x'],
    testdev: [true, ''],
  };
  /** What a member means only beside another, as [member, value, words]. */
  const beside: Readonly<Record<string, readonly [string, unknown, ...string[]]>> = {
    ramdisk: ['kernel', 'k', '--kernel', 'k'],
    bootargs: ['kernel', 'k', '--kernel', 'k'],
    lapicPt: ['rtvm', true, '--rtvm'],
    pmByVuart: ['pmNotifyChannel', 'uart', '--pm_notify_channel', 'uart'],
  };

  test.each(optionTable.map((option) => [option.id, option] as const))('%s', (id, option) => {
    if (!('key' in option)) {
      expect(option.group === 'Obsolete' || programs.includes(id)).toBe(true);
      return;
    }
    const sample = samples[option.key];
    if (sample === undefined) throw new TypeError(`a sample of ${option.key} is missing here`);
    const [value, ...words] = sample;
    const [companion, companionValue, ...companionWords] = beside[option.key] ?? ['', undefined];
    const isImage = ['kernel', 'elf', 'ovmf', 'bios'].includes(option.key);
    const image = isImage || companion === 'kernel' ? {} : { kernel: 'k' };
    const base = { name: 'vm', com: [], ...image, ...(companion === '' ? {} : { [companion]: companionValue }) };
    const baseWords = [...BRIDGES, ...('kernel' in image ? ['-k', 'k'] : []), ...companionWords, 'vm'];

    const given = vmConfigOf({ ...base, [option.key]: value } as LaunchConfig).config;
    const argv = words.flatMap((word) => (word === '' ? [`--${id}`] : [`--${id}`, word]));
    expect(given).toEqual(ordered(...baseWords, ...argv));
    // It reached the VM: the same without it is another one. --lapic_pt says nothing that --rtvm does not.
    if (id !== 'lapic_pt' && !isImage) expect(given).not.toEqual(vmConfigOf(base as LaunchConfig).config);
  });
});

test('warnings call an option by the name of its member', () => {
  const { notices } = vmConfigOf({ name: 'vm', kernel: 'k', lapicPt: true, pmByVuart: 'pty,x', ssram: '' });
  expect(notices.map(({ text }) => text)).toEqual([
    expect.stringMatching(/^ssram: ignored/),
    expect.stringMatching(/^lapicPt: ignored, only a real-time VM \(rtvm\)/),
    'pmByVuart: ignored without pmNotifyChannel uart',
  ]);
});
