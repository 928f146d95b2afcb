import * as fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { type CommandLine, parseCommandLine, type VmOrder } from '../../cmd/cli.ts';
import { optionTable } from '../../config/option-table.ts';
import { ConfigError } from '../../devicemodel/core/errors.ts';
import { GiB, MiB } from '../../devicemodel/core/units.ts';
import { allDrivers } from './drivers.ts';

function parse(...argv: string[]): CommandLine {
  return parseCommandLine(argv, allDrivers);
}

function order(...argv: string[]): VmOrder {
  const parsed = parse(...argv);
  if (parsed.action !== 'run' && parsed.action !== 'dry-run') throw new Error(`parsed as ${parsed.action}`);
  return parsed;
}

const config = (...argv: string[]) => order(...argv).config;
const warnings = (...argv: string[]) =>
  order(...argv).notices.flatMap((notice) => (notice.level === 'warn' ? [notice.text] : []));

describe('a VM', () => {
  test('needs nothing but a name to be described', () => {
    expect(config('vm1')).toMatchObject({ name: 'vm1', hypervisor: 'auto', memoryBytes: 256 * MiB, boot: undefined });
  });
  test('has exactly one name', () => {
    expect(() => parse()).toThrow('the name of the VM is missing');
    expect(() => parse('a', 'b')).toThrow('2 VM names are given: "a", "b"');
    expect(() => parse('a', 'b')).toThrow(expect.objectContaining({ hint: expect.stringContaining('quotes') }));
    const ofCommand = expect.objectContaining({ hint: expect.stringContaining('convert, argv, check') });
    expect(() => parse('config', 'frob')).toThrow(ofCommand);
  });
  test('has one exit port', () => {
    expect(() => parse('--testdev', '--debugexit', '-k', 'k', 'vm1')).toThrow(
      '--debugexit: the exit port of --testdev is there already',
    );
  });
  // Mutation: say "a value with spaces needs quotes" of all of them.
  test.each([
    [['--dry-run', 'json', 'vm1'], 'write --dry-run=json'],
    [['-kernel', 'bzImage', 'vm1'], 'did you mean --kernel? -k has the value "ernel" here'],
    [['--ssram', 'L4,vcpu=0,size=4K', 'vm1'], '"L4,vcpu=0,size=4K" is no value of --ssram: write --ssram {L2|L3},'],
    [['--dry-run', 'vm1', 'vm2'], 'quotes'],
    [['-s', '3,', 'virtio-rnd', 'vm1'], 'quotes'],
    [['-kb', 'c', 'd'], 'quotes'],
  ])('%j: a word that became a name is told how', (argv, hint) => {
    expect(() => parse(...argv)).toThrow(
      expect.objectContaining({
        message: expect.stringContaining('2 VM names'),
        hint: expect.stringContaining(hint),
      }),
    );
  });
  test.each([
    [
      ['-k', 'k', '--scenario', 'vm1'],
      'usage: acrn-dm [OPTIONS] NAME; the last word, "vm1", is the value of --scenario',
    ],
    [['-k', 'k', '-m', '1G'], 'usage: acrn-dm [OPTIONS] NAME; the last word, "1G", is the value of -m'],
    [['-k', 'k', '--scenario=vm1'], 'usage:'],
    [['-k', 'k', '--rtvm'], 'usage:'],
  ])('%j: a name that became a value is told so', (argv, hint) => {
    expect(() => parse(...argv)).toThrow(
      expect.objectContaining({
        message: 'the name of the VM is missing',
        hint: expect.stringContaining(hint),
      }),
    );
  });
  test('its name may stand anywhere, and behind --', () => {
    expect(config('vm1', '-m', '1g')).toMatchObject({ name: 'vm1', memoryBytes: GiB });
    expect(config('-m1g', '--', '-vm')).toMatchObject({ name: '-vm', memoryBytes: GiB });
  });
  test('every plain option reaches the configuration', () => {
    expect(
      config(
        ...['--memsize=512M', '--cpu_affinity', '1,3', '--hypervisor', 'soft', '--scenario', 's.yaml', '--rtvm'],
        ...[
          '--enable_trusty',
          '--windows',
          '--virtio_msi',
          '--virtio_poll',
          '1000',
          '--debugexit',
          '--io-timeout',
          '90',
        ],
        ...['--cmd_monitor', '/run/c.sock', '--intr_monitor', '10000,10,1,100', '--logger_setting', 'kmsg,level=3'],
        ...['--acpidev_pt', 'MSFT0101,00', '--mmiodev_pt', '0xfed40000,0x5000', '--ssram', 'L2,vcpu=0,size=4K'],
        ...['-k', 'bz', '-r', 'rd', '-B', 'quiet', '-s', '1:0,lpc', '-l', 'com1,stdio', 'vm'],
      ),
    ).toEqual({
      name: 'vm',
      hypervisor: 'soft',
      scenarioPath: 's.yaml',
      memoryBytes: 512 * MiB,
      boot: { kind: 'bzimage', kernelPath: 'bz', ramdiskPath: 'rd', bootargs: 'quiet' },
      pci: [{ bdf: { bus: 0, device: 1, function: 0 }, driver: 'lpc', options: { text: '' }, text: '' }],
      com: [{ index: 1, backend: 'stdio' }],
      cpuAffinity: [1, 3],
      rtvm: true,
      lapicPt: true,
      trusty: true,
      windows: true,
      virtioMsi: true,
      virtioPollNs: 1000,
      ioTimeoutMs: 90_000,
      debugExit: true,
      cmdMonitorPath: '/run/c.sock',
      intrMonitor: { thresholdPerSecond: 10000, probePeriodS: 10, delayMs: 1, delayDurationMs: 100 },
      logger: [{ sink: 'kmsg', level: 3 }],
      pmNotifyChannel: undefined,
      platform: [
        { driver: 'acpidev_pt', options: { hid: 'MSFT0101', uid: 0, resources: [] }, text: 'MSFT0101,00' },
        { driver: 'mmiodev_pt', options: { base: 0xfed40000, sizeBytes: 0x5000 }, text: '0xfed40000,0x5000' },
        {
          driver: 'ssram',
          options: { regions: [{ cacheLevel: 2, vcpus: [0], sizeBytes: 4096 }] },
          text: 'L2,vcpu=0,size=4K',
        },
      ],
    });
  });
  test('the last of several values counts', () => {
    expect(config('-m', '1g', '-m', '2g', 'vm').memoryBytes).toBe(2 * GiB);
    expect(config('-s', '1,lpc', '-l', 'com1,stdio', '-l', 'com1,pty', 'vm').com).toEqual([
      { index: 1, backend: 'pty' },
    ]);
  });
  test('serial ports come in the order of their numbers', () => {
    expect(config('-s', '1,lpc', '-l', 'com2', '-l', 'com1', 'vm').com.map((com) => com.index)).toEqual([1, 2]);
  });
  test('lists go on', () => {
    expect(config('--cpu_affinity', '0', '--cpu_affinity', '2,0', 'vm').cpuAffinity).toEqual([0, 2]);
    expect(
      config('--logger_setting', 'console,level=1', '--logger_setting', 'kmsg,level=3;console,level=2', 'vm').logger,
    ).toEqual([
      { sink: 'kmsg', level: 3 },
      { sink: 'console', level: 2 },
    ]);
  });
  test('a wrong value is named with its option', () => {
    expect(() => parse('-m', '64M', 'vm')).toThrow('-m: 64M is too little');
    expect(() => parse('--memsize', '64M', 'vm')).toThrow('--memsize: 64M is too little');
    expect(() => parse('-l', 'com9,stdio', 'vm')).toThrow('-l com9,stdio: there is no LPC device "com9"');
    expect(() => parse('-s', '32,lpc', 'vm')).toThrow('-s 32,lpc: slot 32 does not exist');
  });
});

describe('boot image', () => {
  test('firmware', () => {
    expect(config('--ovmf', 'w,f', 'vm').boot).toEqual({
      kind: 'ovmf',
      image: { form: 'single', path: 'f', writeBack: true },
    });
  });
  test('ELF', () => {
    expect(config('-E', 'z.elf', '-B', 'x', 'vm').boot).toEqual({ kind: 'elf', imagePath: 'z.elf', bootargs: 'x' });
  });
  test('firmware goes before a kernel, a kernel before an ELF image, and what is ignored is said', () => {
    expect(config('-k', 'k', '-E', 'e', '--ovmf', 'f', 'vm').boot?.kind).toBe('ovmf');
    expect(config('-E', 'e', '-k', 'k', 'vm').boot?.kind).toBe('bzimage');
    expect(warnings('-k', 'k', '-E', 'e', '--ovmf', 'f', 'vm')).toEqual([
      '--kernel, --elf_file: ignored, --ovmf is what boots',
    ]);
    expect(warnings('-k', 'k', 'vm')).toEqual([]);
  });
});

describe('real time', () => {
  test('--rtvm has the local APIC passed through', () => {
    expect(config('--rtvm', 'vm')).toMatchObject({ rtvm: true, lapicPt: true });
    expect(warnings('--lapic_pt', '--rtvm', 'vm')).toEqual([]);
  });
  test('--lapic_pt alone is dropped with a warning', () => {
    expect(config('--lapic_pt', 'vm')).toMatchObject({ rtvm: false, lapicPt: false });
    expect(warnings('--lapic_pt', 'vm')).toEqual([expect.stringMatching('^--lapic_pt: ignored, only a real-time VM')]);
  });
});

describe('obsolete options', () => {
  test.each([
    [['-A']],
    [['--acpi']],
    [['-Y']],
    [['--mptgen']],
    [['-i', '/run/acrn/ioc_vm1,0x20']],
    [['--ioc_node', 'x']],
    [['-G', '64 448 8']],
    [['-U', 'd2795438-25d6-11e8-864e-cb7a18b34643']],
    [['--uuid', 'x']],
    [['-c', '2']],
    [['-c2']],
    [['--vsbl', '/usr/share/acrn/bios/VSBL.bin']],
    [['--part_info', 'x']],
    [['--mac_seed', '00:16']],
    [['--pm_by_vuart', 'tty,/dev/ttyS1']],
    [['--pm_notify_channel', 'uart']],
    [['--pm_notify_channel', 'uart,allow_trigger_s5']],
    [['--privil_vm']],
    [['-p', '0:2']],
    [['--pincpu=0:2']],
    [['--vmcfg', '1']],
    [['--dump', '0']],
    [['--ptdev_no_reset']],
    [['--ptdev_msi']],
    [['-M']],
    [['--virtio_msix']],
    [['--psram']],
    [['--apcidev_pt', 'MSFT0101']],
    [['-T']],
    [['-W']],
    [['-C']],
    [['-x']],
  ])('%j: one warning, its value is consumed', (argv) => {
    expect(warnings(...argv, 'vm')).toHaveLength(1);
    expect(config(...argv, 'vm').name).toBe('vm');
  });
  test('--apcidev_pt, as two releases spelled it, means what it meant', () => {
    const { platform } = config('--apcidev_pt', 'MSFT0101', 'vm');
    expect(platform).toEqual(config('--acpidev_pt', 'MSFT0101', 'vm').platform);
    expect(platform).toHaveLength(1);
  });
  test('--iasl is not needed and says so', () => {
    expect(order('--iasl', '/nonexistent/iasl', 'vm').notices).toEqual([
      { level: 'info', text: '--iasl: not needed, ACPI tables are made without a compiler' },
    ]);
  });
  test('every one has its own line', () => {
    expect(warnings('-A', '-A', '-U', 'x', '-s', '2,npk', 'vm')).toHaveLength(4);
  });
});

describe('options that exclude each other', () => {
  test('two TPMs', () => {
    expect(() => parse('--vtpm2', 'sock_path=/t', '--acpidev_pt', 'MSFT0101', 'vm')).toThrow('a VM has one TPM');
  });
  test('more than two devices in memory', () => {
    const range = ['--mmiodev_pt', '0xfe000000,0x1000'];
    expect(config(...range, ...range, 'vm').platform).toHaveLength(2);
    expect(() => parse(...range, ...range, ...range, 'vm')).toThrow('at most 2');
  });
  test('COM ports without an LPC bridge have no effect, with a warning', () => {
    expect(warnings('-l', 'com1,stdio', 'vm')).toEqual(['-l: has no effect without the LPC bridge, -s 1:0,lpc']);
    expect(warnings('-s', '1,lpc', '-l', 'com1,stdio', 'vm')).toEqual([]);
  });
});

describe('--ssram as launch scripts have it', () => {
  test('without a value', () => {
    expect(config('--ssram', '--ovmf', 'f', 'vm')).toMatchObject({ platform: [], boot: { kind: 'ovmf' } });
    expect(config('--ssram', 'vm')).toMatchObject({ platform: [], name: 'vm' });
    expect(warnings('--ssram', 'vm')).toEqual([expect.stringMatching(/^--ssram: ignored, it names no region/)]);
  });
  test('with a value', () => {
    expect(config('--ssram', 'L3,vcpu=all,size=2M', 'vm').platform).toHaveLength(1);
  });
  test('not at all', () => {
    expect(config('vm').platform).toEqual([]);
  });
});

describe('help and version', () => {
  test.each([[['-h']], [['--help']], [['--he']], [['-Yh']], [['-m', '1g', '-h', '--frobnicate']]])('%j', (argv) => {
    expect(parse(...argv)).toEqual({ action: 'help', topic: { kind: 'options' } });
  });
  test.each([[['-v']], [['--version']]])('%j', (argv) => {
    expect(parse(...argv)).toEqual({ action: 'version' });
  });
  test('a mistake left of it comes first', () => {
    expect(() => parse('--frobnicate', '-h')).toThrow('unknown option --frobnicate');
  });
  test('-s help and -l help', () => {
    expect(parse('-s', 'help')).toEqual({ action: 'help', topic: { kind: 'drivers' } });
    expect(parse('-l', 'help')).toEqual({ action: 'help', topic: { kind: 'lpc' } });
  });
  test('-s DRIVER,help, with or without a slot', () => {
    for (const text of ['shm,help', '5,shm,help', '0:5:0,shm,help']) {
      expect(parse('-s', text)).toMatchObject({ action: 'help', topic: { kind: 'driver', driver: { name: 'shm' } } });
    }
  });
  test('-s with an unknown driver and help', () => {
    expect(() => parse('-s', 'shn,help')).toThrow(expect.objectContaining({ hint: 'did you mean "shm"?' }));
  });
});

describe('our own options', () => {
  test('--dry-run', () => {
    expect(order('vm')).toMatchObject({ action: 'run' });
    expect(order('--dry-run', 'vm')).toMatchObject({ action: 'dry-run', format: 'text' });
    expect(order('--dry-run=json', 'vm')).toMatchObject({ action: 'dry-run', format: 'json' });
    expect(() => parse('--dry-run=xml', 'vm')).toThrow('--dry-run: "xml" is not a format');
  });
  test('--debug is not --debugexit, and --deb still is', () => {
    expect(order('--debug', 'vm')).toMatchObject({ debug: true, config: { debugExit: false } });
    expect(order('--deb', 'vm')).toMatchObject({ debug: false, config: { debugExit: true } });
  });
  test('--config is read by whoever can', () => {
    expect(() => parse('--config', 'x.json', 'vm')).toThrow('--config: no file is read here');
  });
});

test.each(['0', '-1', '1.5', '86401', '60s', ''])('--io-timeout %j is refused', (value) => {
  expect(() => parse(`--io-timeout=${value}`, 'vm')).toThrow('--io-timeout');
});

test.each(['', ' kvm', 'a b', 'a:b', 'x'.repeat(40), '-1', '12345678901'])('--socket-group %j is refused', (value) => {
  expect(() => parse(`--socket-group=${value}`, 'vm')).toThrow('--socket-group');
});
test.each(['kvm', '36', '_apt', 'Users', 'vm.users-1'])('--socket-group %s', (value) => {
  expect(config('--socket-group', value, 'vm').socketGroup).toBe(value);
});

test('every option of the table is understood', () => {
  // A value each of them takes.
  const samples: Record<string, string> = {
    memsize: '256M',
    cpu_affinity: '0',
    hypervisor: 'soft',
    kernel: 'k',
    pci_slot: '3,virtio-rnd',
    lpc: 'com1',
    virtio_poll: '1',
    'io-timeout': '5',
    'shutdown-timeout': '5',
    'event-monitor': 'fd=3',
    'log-format': 'json',
    'on-poweroff': 'stay',
    'on-reboot': 'exit',
    'on-crash': 'exit',
    'crash-dump': '/c',
    'socket-group': 'kvm',
    display: 'none',
    acpidev_pt: 'MSFT0101',
    apcidev_pt: 'MSFT0101',
    mmiodev_pt: '1000,1000',
    vtpm2: 'sock_path=/s',
    ssram: 'L2,vcpu=0,size=4K',
    fw_cfg: 'opt/a,string=x',
    intr_monitor: '1,1,1,1',
    logger_setting: 'console,level=1',
    pm_notify_channel: 'ioc',
  };
  for (const option of optionTable) {
    if (option.id === 'config') continue;
    const words = [
      option.name === undefined ? [] : [`--${option.name}`],
      option.short === undefined ? [] : [`-${option.short}`],
    ];
    for (const word of words.flat()) {
      // What has a pattern takes the next word only if that fits.
      const isTaken = option.arg === 'required' && option.argPattern?.test(samples[option.id] ?? 'x') !== false;
      const value = isTaken ? [samples[option.id] ?? 'x'] : [];
      const beside = option.id === 'host-root' ? ['--dry-run'] : [];
      const name = option.id === 'benchmark' ? [] : ['vm'];
      expect(() => parse(word, ...value, ...beside, ...name), word).not.toThrow();
    }
  }
});

test('any command line ends in an order, help or a ConfigError', () => {
  const word = fc.oneof(
    fc.string(),
    fc.constantFrom(...optionTable.flatMap((o) => [o.name === undefined ? `-${o.short}` : `--${o.name}`])),
    fc.constantFrom(
      'help',
      '3,shm,hv:/a,2',
      '1,lpc',
      'com1,stdio',
      '256M',
      '0,1',
      'vm',
      '--',
      'w,code=a',
      'shm,help',
      ',help',
    ),
    fc
      .tuple(fc.constantFrom(...optionTable.map((o) => o.name ?? 'x')), fc.string())
      .map(([name, v]) => `--${name}=${v}`),
  );
  fc.assert(
    fc.property(fc.array(word, { maxLength: 10 }), (argv) => {
      try {
        expect(parse(...argv).action).toMatch(/^(run|dry-run|help|version|list-passthru|benchmark|serve)$/);
      } catch (error) {
        expect(error).toBeInstanceOf(ConfigError);
        expect((error as ConfigError).message).not.toBe('');
      }
    }),
    { numRuns: 1000 },
  );
});
