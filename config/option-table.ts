/**
 * Every option there is, once, in the order --help lists them. What the command line, help, docs/option-reference.md and
 * launch() (config/launch-config.ts) know of options is made of this.
 */
import { type AnyPlatformDriver, type PlatformOptionName, platformDrivers } from '../devicemodel/hw/registry.ts';

export const optionGroups = ['Machine', 'Boot', 'Devices', 'Real time', 'Running', 'Information', 'Obsolete'] as const;
export type OptionGroup = (typeof optionGroups)[number];

/** What getopt needs to know of an option. */
export interface GetoptOption {
  /** Without the dashes; absent: only the short form exists. */
  readonly name?: string;
  /** One letter. */
  readonly short?: string;
  /** `none`: a flag. `required`: takes the next word if need be. `optional`: a value only with `=`. */
  readonly arg: 'none' | 'required' | 'optional';
  /**
   * Which prefixes are unambiguous is decided among the options of the lowest rank that match: an option added later
   * (a higher rank) never breaks an abbreviation that worked before it. Undefined: cannot be abbreviated.
   */
  readonly rank?: number;
  /** For a `required` value that callers are known to leave out: what a value looks like. Any other word is not taken. */
  readonly argPattern?: RegExp;
}

/**
 * How the value is written where it is not a word of a command line: a flag is `true`, `texts` are the values of an
 * option that may be repeated, `numbers` one value with commas; a list of words is a choice.
 */
export type Shape = 'text' | 'flag' | 'texts' | 'number' | 'numbers' | readonly string[];

export interface OptionSpec<Id extends string = string> extends GetoptOption {
  readonly id: Id;
  /** How the value is shown; flags have none. */
  readonly metavar?: string;
  readonly help: string;
  readonly group: OptionGroup;
  /** Of what says something about the VM: its name in a LaunchConfig. */
  readonly key?: string;
  readonly shape?: Shape;
}

/** Ranks of abbreviation: what the C program knows comes first, so that a prefix means what it always meant. */
const Rank = { acrnDm: 0, ours: 1 } as const;

type Entry<Id extends string> = Omit<OptionSpec<Id>, 'group' | 'key' | 'shape'>;
type Extra = Pick<GetoptOption, 'short' | 'argPattern'>;

/** `--name VALUE`, known to the C program. */
function value<const Id extends string>(id: Id, metavar: string, help: string, extra: Extra = {}): Entry<Id> {
  return { id, name: id, arg: 'required', rank: Rank.acrnDm, metavar, help, ...extra };
}
/** `--name`, known to the C program. */
function flag<const Id extends string>(id: Id, help: string, extra: Extra = {}): Entry<Id> {
  return { id, name: id, arg: 'none', rank: Rank.acrnDm, help, ...extra };
}
/** An option the C program does not have. */
function ours<const Id extends string>(entry: Entry<Id>): Entry<Id> {
  return { ...entry, rank: Rank.ours };
}
/** An option the C program once had: only its full name counts. */
function removed<const Id extends string>(entry: Entry<Id>): Entry<Id> {
  const { rank: _, ...exact } = entry;
  return exact;
}
/** A flag the C program once had, with a letter and no name. */
function removedLetter<const Letter extends string>(letter: Letter, help: string): Entry<`-${Letter}`> {
  return { id: `-${letter}`, short: letter, arg: 'none', help };
}
/** An option that says something about the VM, and what it is called in a LaunchConfig. */
function vm<Id extends string, const Key extends string, const S extends Shape>(key: Key, shape: S, entry: Entry<Id>) {
  return { ...entry, key, shape };
}
/** Options of devices of the board. Those that C does not have begin like none of its own: abbreviations stay. */
function board(group: AnyPlatformDriver['group']) {
  const drivers: readonly AnyPlatformDriver[] = platformDrivers;
  return drivers
    .filter((driver) => driver.group === group)
    .map(({ name, arg, summary, argPattern, isList }) => {
      const key = boardKey(name);
      if (arg === undefined) return vm(key, 'flag' as const, flag(name, summary));
      const option = value(name, arg, summary, argPattern === undefined ? {} : { argPattern });
      return vm(key, isList === true ? ('texts' as const) : ('text' as const), option);
    });
}
export type BoardKey<Name extends string = PlatformOptionName> = Name extends `${infer Head}_${infer Tail}`
  ? `${Head}${Capitalize<BoardKey<Tail>>}`
  : Name;
/** `acpidev_pt` is `acpidevPt`. */
function boardKey<const Name extends string>(name: Name): BoardKey<Name> {
  return name.replace(/_([a-z])/g, (_, letter: string) => letter.toUpperCase()) as BoardKey<Name>;
}
function group<const E extends readonly Entry<string>[]>(
  name: OptionGroup,
  entries: E,
): { readonly [I in keyof E]: E[I] & { readonly group: OptionGroup } } {
  return entries.map((entry) => ({ ...entry, group: name })) as {
    readonly [I in keyof E]: E[I] & { readonly group: OptionGroup };
  };
}

export const optionTable = [
  ...group('Machine', [
    vm(
      'memory',
      'text',
      value('memsize', 'SIZE', 'guest memory: a number and g, m or k, a multiple of 2m, at least 128m (default 256m)', {
        short: 'm',
      }),
    ),
    vm(
      'cpuAffinity',
      'numbers',
      value('cpu_affinity', 'ID[-ID][,...]', 'CPUs given to this VM, by local APIC id: one vCPU for each'),
    ),
    vm(
      'hypervisor',
      ['auto', 'acrn', 'kvm', 'soft'],
      ours(
        value(
          'hypervisor',
          'auto|acrn|kvm|soft',
          'ACRN, /dev/kvm, or a software CPU; auto: the first of them that is there',
        ),
      ),
    ),
    vm(
      'scenario',
      'text',
      ours(
        value(
          'scenario',
          'FILE',
          'ivshmem regions and vUARTs of the embedded hypervisor (default: those that VMs ask for)',
        ),
      ),
    ),
    ours(
      value(
        'config',
        'FILE',
        'a VM in a YAML or JSON file; options beside it win, lists add up; config.schema.json says what is in it',
      ),
    ),
  ]),
  ...group('Boot', [
    vm('kernel', 'text', value('kernel', 'FILE', 'Linux bzImage', { short: 'k' })),
    vm('ramdisk', 'text', value('ramdisk', 'FILE', 'initial RAM disk for --kernel', { short: 'r' })),
    vm('bootargs', 'text', value('bootargs', 'TEXT', 'kernel command line, at most 2047 bytes', { short: 'B' })),
    vm(
      'ovmf',
      'text',
      value('ovmf', '[w,]FILE', 'UEFI firmware, or [w,]code=FILE,vars=FILE; w: changed variables are written back'),
    ),
    vm(
      'bios',
      'text',
      ours(value('bios', 'FILE', 'firmware of the BIOS kind, as SeaBIOS: with --fw_cfg and hostbridge,model=i440fx')),
    ),
    vm(
      'elf',
      'text',
      value('elf_file', 'FILE', 'ELF image: Multiboot 1 or 2, PVH, or 32-bit as it is', { short: 'E' }),
    ),
  ]),
  ...group('Devices', [
    vm(
      'pci',
      'texts',
      value(
        'pci_slot',
        '[BUS:]SLOT[:FN],DRIVER[,...]',
        'a PCI device; -s help: the drivers, -s DRIVER,help: its options',
        {
          short: 's',
        },
      ),
    ),
    vm(
      'com',
      'texts',
      value('lpc', 'COMn[,BACKEND]', 'a serial port of the LPC bridge (-s 1:0,lpc); -l help: more', { short: 'l' }),
    ),
    vm('windows', 'flag', flag('windows', "virtio devices use Oracle's PCI ids")),
    vm('virtioMsi', 'flag', flag('virtio_msi', 'virtio devices use MSI with one vector instead of MSI-X')),
    vm(
      'virtioPollNs',
      'number',
      value('virtio_poll', 'NS', 'poll virtio queues every 1 to 10000000 ns instead of waiting for the guest'),
    ),
    ...board('Devices'),
    vm('debugExit', 'flag', flag('debugexit', 'a debug exit port at 0xf4, for test guests')),
  ]),
  ...group('Real time', [
    vm('rtvm', 'flag', flag('rtvm', 'real-time VM, with its local APIC passed through')),
    vm('lapicPt', 'flag', flag('lapic_pt', 'part of --rtvm, ignored without it')),
    ...board('Real time'),
    vm(
      'intrMonitor',
      'numbers',
      value(
        'intr_monitor',
        'PER_S,PERIOD_S,DELAY_MS,DURATION_MS',
        'slow down a passed-through device that storms interrupts',
      ),
    ),
  ]),
  ...group('Running', [
    vm('trusty', 'flag', flag('enable_trusty', 'secure world for the guest')),
    vm(
      'pmNotifyChannel',
      ['ioc', 'power_button', 'uart', 'uart,allow_trigger_s5'],
      value(
        'pm_notify_channel',
        'power_button|uart[,allow_trigger_s5]|ioc',
        'power_button: the power button of this machine presses that of the guest; uart: the guest is told by --pm_by_vuart; ioc is ignored',
      ),
    ),
    vm(
      'pmByVuart',
      'text',
      value('pm_by_vuart', 'pty,LINK|tty,PATH', 'the serial line of the life manager, for --pm_notify_channel uart'),
    ),
    vm('cmdMonitor', 'text', value('cmd_monitor', 'PATH', 'Unix socket for JSON commands')),
    vm(
      'display',
      'text',
      ours(
        value(
          'display',
          'none|sdl|vnc=unix:PATH|vnc=HOST:PORT,password-file=FILE',
          'where the screens of virtio-gpu are to be seen (default none)',
        ),
      ),
    ),
    vm(
      'socketGroup',
      'text',
      ours(
        value(
          'socket-group',
          'GROUP',
          "a group that may use this VM's sockets, and, where root made their folder, whose VMs it meets on kvm and soft; by name or number (default: nobody else)",
        ),
      ),
    ),
    vm(
      'ioTimeoutS',
      'number',
      ours(value('io-timeout', 'S', 'seconds after which storage that does not answer ends the VM (default 60)')),
    ),
    vm(
      'shutdownTimeoutS',
      'number',
      ours(
        value('shutdown-timeout', 'S', 'seconds until a guest that was asked to shut down is powered off (default 20)'),
      ),
    ),
    vm(
      'apiSocket',
      'text',
      ours(
        value(
          'api-socket',
          'off|[path=]PATH|fd=N',
          'where the HTTP API listens (default: /run/acrn/vm/NAME/api.sock); with nothing else: wait for vm.create',
        ),
      ),
    ),
    vm(
      'eventMonitor',
      'text',
      ours(value('event-monitor', 'path=PATH|fd=N', 'write what happens to the VM there, as JSON objects')),
    ),
    vm(
      'onPoweroff',
      ['exit', 'stay'],
      ours(
        value(
          'on-poweroff',
          'exit|stay',
          'once the guest powered off: end, or wait for orders of the API (default exit)',
        ),
      ),
    ),
    vm(
      'onReboot',
      ['restart', 'exit', 'stay'],
      ours(value('on-reboot', 'restart|exit|stay', 'when the guest resets itself (default restart)')),
    ),
    vm('onCrash', ['exit', 'stay'], ours(value('on-crash', 'exit|stay', 'after a triple fault (default exit)'))),
    vm(
      'crashDump',
      'text',
      ours(
        value(
          'crash-dump',
          'FILE',
          'after a triple fault, or when its watchdog resets it: write what is known of the guest there, as JSON',
        ),
      ),
    ),
    vm(
      'logger',
      'texts',
      value(
        'logger_setting',
        'SINK,level=N[;...]',
        'console, kmsg and disk; levels 1 (errors) to 5; default console,level=4',
      ),
    ),
    vm(
      'logFormat',
      ['text', 'json'],
      ours(
        value(
          'log-format',
          'text|json',
          'lines of the console and disk sinks as text or as JSON objects (default text)',
        ),
      ),
    ),
    ours({
      id: 'dry-run',
      name: 'dry-run',
      arg: 'optional',
      metavar: '[=json]',
      help: 'print what would be created and touch nothing; works on any machine',
    }),
    ours({
      id: 'host-root',
      name: 'host-root',
      arg: 'required',
      metavar: 'DIR',
      help: 'the host whose devices are looked at: DIR/sys is a saved tree (with --dry-run and --list-passthru)',
    }),
    ours(flag('debug', 'log everything on the console, show the stack of an error')),
  ]),
  ...group('Information', [
    ours({
      id: 'benchmark',
      name: 'benchmark',
      arg: 'optional',
      metavar: '[=json]',
      help: 'guest instructions and exits a second of the embedded hypervisor (--hypervisor soft, kvm or auto), and no VM',
    }),
    ours({
      id: 'list-passthru',
      name: 'list-passthru',
      arg: 'optional',
      metavar: '[=json]',
      help: 'PCI functions of this host that can be passed through, and why others cannot',
    }),
    flag('help', 'the options', { short: 'h' }),
    flag('version', 'the version', { short: 'v' }),
  ]),
  ...group('Obsolete', [
    flag('acpi', 'ACPI tables are always there', { short: 'A' }),
    flag('mptgen', 'the MP table is always there', { short: 'Y' }),
    value('iasl', 'PATH', 'no compiler is needed, ACPI tables are made in memory'),
    value('mac_seed', 'TEXT', 'use -s SLOT,virtio-net,tap=NAME,mac_seed=TEXT'),
    value('vsbl', 'FILE', 'the virtual bootloader is gone, use --ovmf or --kernel'),
    value('part_info', 'FILE', 'belonged to the virtual bootloader'),
    value('ioc_node', 'TEXT', 'the IOC mediator is gone', { short: 'i' }),
    value('gvtargs', 'TEXT', 'GVT-g is gone, a GPU is passed through by -s 2,passthru,0/2/0', { short: 'G' }),
    removed(value('uuid', 'UUID', 'the scenario knows a VM by its name', { short: 'U' })),
    removed(value('ncpus', 'N', 'the number of vCPUs follows from --cpu_affinity', { short: 'c' })),
    removed(flag('privil_vm', 'there are no privileged VMs any more')),
    removed(value('pincpu', 'VCPU:CPU', 'use --cpu_affinity', { short: 'p' })),
    removed(value('vmcfg', 'INDEX', 'configurations are not built in any more, give the options')),
    removed(value('dump', 'INDEX', 'there is no built-in configuration to show, use --dry-run')),
    removed(flag('ptdev_no_reset', 'use -s SLOT,passthru,B/D/F,no_reset')),
    removed(flag('ptdev_msi', 'an INTx pin is kept by -s SLOT,passthru,B/D/F,keep_gsi', { short: 'M' })),
    removed(flag('virtio_msix', 'MSI-X is the default, use --virtio_msi for MSI')),
    removed(flag('psram', 'use --ssram')),
    removed(value('apcidev_pt', 'HID', 'how releases 2.1 and 2.2 spelled --acpidev_pt, and taken as that')),
    removedLetter('T', 'guest memory of ACRN is in huge pages anyway'),
    removedLetter('W', 'use --virtio_msi'),
    removedLetter('C', 'guest memory is never part of a core dump'),
    removedLetter('x', 'the hypervisor decides on x2APIC'),
  ]),
];

export type OptionId = (typeof optionTable)[number]['id'];

/** Options that say something about the VM. */
export type VmOption = Extract<(typeof optionTable)[number], { readonly key: string }>;

/** The value of a member of a LaunchConfig. */
export type ShapeValue<S extends Shape> = S extends readonly string[]
  ? S[number]
  : S extends 'flag'
    ? boolean
    : S extends 'number'
      ? number
      : S extends 'numbers'
        ? readonly number[]
        : S extends 'texts'
          ? readonly string[]
          : string;
