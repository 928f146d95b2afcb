/**
 * A VM as Cloud Hypervisor describes it, in the body of vm.create (both of its generations: `kernel`, `cmdline` and
 * `initramfs` at the top, or within `payload`) or on that program's command line → options of ours. What there is no
 * counterpart of is refused; a member that switches off what there is not says nothing.
 */
import * as v from 'valibot';
import { RAW_DISKS } from '../devicemodel/core/boot/file-kind.ts';
import { ConfigError, ExitCode, RefusedError } from '../devicemodel/core/errors.ts';
import { KiB } from '../devicemodel/core/units.ts';

const path = v.looseObject({ path: v.optional(v.string()) });
const consoleSchema = v.looseObject({
  mode: v.picklist(['Off', 'Pty', 'Tty', 'File', 'Socket', 'Null']),
  file: v.nullish(v.string()),
  socket: v.nullish(v.string()),
});
type ChConsole = v.InferOutput<typeof consoleSchema>;

/** In vm.create, and as vm.add-disk has it. */
const diskEntries = {
  path: v.nullish(v.string()),
  id: v.nullish(v.string()),
  readonly: v.nullish(v.boolean()),
  direct: v.nullish(v.boolean()),
} as const;
const diskSchema = v.looseObject(diskEntries);
/** The body of vm.add-disk. */
export const addedDiskSchema = v.looseObject({ ...diskEntries, path: v.string() });

/** What is looked at. Members of other names come to {@link refuseStrangers}. */
const known = {
  cpus: v.optional(
    v.looseObject({
      boot_vcpus: v.optional(v.number(), 1),
      max_vcpus: v.optional(v.number()),
      affinity: v.nullish(v.array(v.object({ vcpu: v.number(), host_cpus: v.array(v.number()) }))),
    }),
  ),
  memory: v.optional(v.looseObject({ size: v.number() })),
  payload: v.nullish(
    v.looseObject({
      kernel: v.nullish(v.string()),
      cmdline: v.nullish(v.string()),
      initramfs: v.nullish(v.string()),
      firmware: v.nullish(v.string()),
    }),
  ),
  kernel: v.nullish(path),
  cmdline: v.nullish(v.looseObject({ args: v.optional(v.string()) })),
  initramfs: v.nullish(path),
  disks: v.nullish(v.array(diskSchema)),
  net: v.nullish(v.array(v.looseObject({ tap: v.nullish(v.string()), mac: v.nullish(v.string()) }))),
  devices: v.nullish(v.array(v.looseObject({ path: v.string() }))),
  rng: v.nullish(v.looseObject({ src: v.optional(v.string()) })),
  console: v.nullish(consoleSchema),
  serial: v.nullish(consoleSchema),
  watchdog: v.nullish(v.boolean()),
  platform: v.nullish(v.looseObject({})),
  /** Ours: what the VM is called. */
  acrn: v.optional(v.looseObject({ name: v.optional(v.string()) })),
} as const;

const schema = v.looseObject(known);
/** The body of vm.create. */
export const createSchema: v.GenericSchema = schema;
type ChVm = v.InferOutput<typeof schema>;

const PLACE = ['id', 'pci_segment', 'pci_device_id'] as const;
/** What firmware tables say the machine is called. */
const PLATFORM = [
  ...[
    'num_pci_segments',
    'iommu_segments',
    'iommu_address_width',
    'iommu_address_width_bits',
    'oem_strings',
    'iommufd',
  ],
  ...['serial_number', 'uuid', 'chassis_asset_tag', 'vfio_p2p_dma', 'system_serial_number', 'system_uuid'],
  ...['system_manufacturer', 'system_product_name', 'system_version', 'system_family', 'system_sku_number'],
];
/** How the host goes about it, or a label: a guest does not miss what there is no place for here. */
const harmless: Readonly<Record<string, readonly string[]>> = {
  cpus: ['max_phys_bits', 'nested', 'core_scheduling'],
  memory: ['mergeable', 'shared', 'hugepages', 'hugepage_size', 'prefault', 'reserve', 'thp', 'hotplug_method'],
  disks: [
    ...PLACE,
    ...['num_queues', 'queue_size', 'queue_affinity', 'disable_io_uring', 'disable_aio', 'sparse', 'lock_granularity'],
  ],
  net: [...PLACE, 'num_queues', 'queue_size', 'vhost_mode', 'offload_tso', 'offload_ufo', 'offload_csum'],
  devices: [...PLACE, 'x_exclude_mmap_bars'],
  rng: PLACE,
  console: PLACE,
  serial: PLACE,
  platform: PLATFORM,
};

/**
 * What may be said since it is so, or is what a client made from the API's document sends unasked; in small letters. The
 * tap has the address it was given. A disk is a raw image, whatever is in it.
 */
const harmlessValues: Readonly<Record<string, Readonly<Record<string, readonly string[]>>>> = {
  disks: { image_type: ['raw', 'unknown'] },
  net: { ip: ['192.168.249.1'], mask: ['255.255.255.0'] },
};

/** @returns the words of our command line, without the name. @throws ConfigError, RefusedError. */
export function optionsOfChVm(body: unknown): {
  readonly argv: string[];
  readonly name: string | undefined;
  readonly config: Record<string, unknown>;
} {
  const parsed = v.safeParse(schema, body);
  if (!parsed.success) {
    const [issue] = parsed.issues;
    throw new ConfigError(`${v.getDotPath(issue) ?? 'the VM'}: ${issue.message}`, { exitCode: ExitCode.Config });
  }
  const vm = parsed.output;
  refuseStrangers('', vm, known);
  for (const [name, part] of Object.entries(known)) {
    const given = vm[name as keyof typeof known];
    const entries = entriesOf(part);
    const isHarmless = harmlessIn(name);
    if (Array.isArray(given))
      for (const [i, each] of given.entries()) refuseStrangers(`${name}.${i}.`, each, entries, isHarmless);
    else if (typeof given === 'object' && given !== null) refuseStrangers(`${name}.`, given, entries, isHarmless);
  }
  const argv = [
    '--memsize',
    `${(vm.memory?.size ?? DEFAULT_MEMORY_BYTES) / KiB}k`,
    ...cpuOptions(vm),
    ...bootOptions(vm),
  ];
  return {
    argv: [...argv, ...deviceOptions(vm)],
    name: vm.acrn?.name,
    config: { ...(body as object), ...payloadOf(vm) },
  };
}

/**
 * @param disk of {@link addedDiskSchema}. @returns the medium as blkrescan takes it: `PATH[,ro][,nocache]`.
 * @throws ConfigError, RefusedError.
 */
export function mediumOf(disk: v.InferOutput<typeof addedDiskSchema>): string {
  refuseStrangers('', disk, diskEntries, harmlessIn('disks'));
  return mediumWords('path', disk.path, disk);
}

function mediumWords(where: string, path: string, { readonly, direct }: v.InferOutput<typeof diskSchema>): string {
  return `${word(where, path)}${readonly === true ? ',ro' : ''}${direct === true ? ',nocache' : ''}`;
}

function harmlessIn(part: string): (member: string, value: unknown) => boolean {
  return (member, value) =>
    harmless[part]?.includes(member) === true ||
    (typeof value === 'string' && harmlessValues[part]?.[member]?.includes(value.toLowerCase()) === true);
}

/** Of Cloud Hypervisor. */
const DEFAULT_MEMORY_BYTES = 512 * 1024 * KiB;

/** The members of an object, or of those in a list, whether it may be left out or not. */
function entriesOf(part: object): object {
  const { entries, wrapped, item } = part as { entries?: object; wrapped?: object; item?: object };
  const inner = wrapped ?? item;
  return entries ?? (inner === undefined ? {} : entriesOf(inner));
}

/** @throws RefusedError for a member that asks for what there is not. */
function refuseStrangers(
  where: string,
  given: object,
  entries: object,
  isHarmless: (name: string, value: unknown) => boolean = () => false,
): void {
  for (const [name, value] of Object.entries(given)) {
    if (name in entries || isOff(value) || isHarmless(name, value)) continue;
    const hint = RAW_ONLY.has(name) ? { hint: RAW_DISKS } : {};
    throw new RefusedError('impossible', `${where}${name}: there is nothing of that kind here`, hint);
  }
}

/** Members of a disk that ask for another format. */
const RAW_ONLY: ReadonlySet<string> = new Set(['image_type', 'backing_files']);

function isOff(value: unknown): boolean {
  if (value === 'off' || value === 'false' || value === '0') return true;
  if (value === null || value === false || value === undefined || value === 0) return true;
  if (Array.isArray(value)) return value.length === 0;
  if (typeof value !== 'object') return false;
  return 'mode' in value ? value.mode === 'Off' || value.mode === 'Null' : Object.values(value).every(isOff);
}

function cpuOptions({ cpus }: ChVm): string[] {
  if (cpus === undefined) return [];
  const affinity = cpus.affinity?.toSorted((a, b) => a.vcpu - b.vcpu) ?? [];
  for (const { vcpu, host_cpus } of affinity) {
    if (host_cpus.length === 1) continue;
    throw new RefusedError('impossible', `cpus.affinity: vCPU ${vcpu} has ${host_cpus.length} host CPUs, not one`, {
      hint: 'a vCPU stays on the host CPU that it is given',
    });
  }
  if (affinity.length > 0) {
    if (affinity.some(({ vcpu }, i) => vcpu !== i) || affinity.length !== cpus.boot_vcpus) {
      throw new RefusedError(
        'impossible',
        `cpus.affinity: it is of vCPU ${affinity.map(({ vcpu }) => vcpu).join(', ')}, and boot_vcpus is ${cpus.boot_vcpus}`,
        { hint: 'give each vCPU from 0 up one host CPU' },
      );
    }
    return ['--cpu_affinity', affinity.map(({ host_cpus: [first] }) => first).join(',')];
  }
  if (cpus.boot_vcpus > 1) {
    throw new RefusedError('impossible', `cpus.boot_vcpus: ${cpus.boot_vcpus} vCPUs are not made by their number`, {
      hint: 'give cpus.affinity one host CPU for each',
    });
  }
  return [];
}

/** Both generations, as the newer one has it. */
function payloadOf({ payload, kernel, cmdline, initramfs }: ChVm) {
  return {
    payload: {
      ...payload,
      ...(kernel?.path === undefined ? {} : { kernel: kernel.path }),
      ...(cmdline?.args === undefined ? {} : { cmdline: cmdline.args }),
      ...(initramfs?.path === undefined ? {} : { initramfs: initramfs.path }),
    },
  };
}

function bootOptions(vm: ChVm): string[] {
  const { kernel, cmdline, initramfs, firmware } = payloadOf(vm).payload;
  const option = (name: string, value: string | null | undefined) =>
    value === undefined || value === null || value === '' ? [] : [name, value];
  return [
    ...option('--kernel', kernel),
    ...option('--bootargs', cmdline),
    ...option('--ramdisk', initramfs),
    ...option('--ovmf', firmware),
  ];
}

/** Host bridge and LPC bridge have the first two slots, as everywhere. */
const FIRST_SLOT = 2;
const SLOTS = 32;

function deviceOptions(vm: ChVm): string[] {
  const devices = [
    ...consoleDevice(vm.console),
    ...(vm.disks ?? []).map((disk, i) => {
      return `virtio-blk,${mediumWords(`disks.${i}.path`, disk.path ?? 'nodisk', disk)}`;
    }),
    ...(vm.net ?? []).map(({ tap, mac }, i) => {
      if (tap === undefined || tap === null) {
        throw new RefusedError('impossible', `net.${i}: name the tap, none is made up`, { hint: 'tap=NAME' });
      }
      return `virtio-net,tap=${word(`net.${i}.tap`, tap)}${mac === undefined || mac === null ? '' : `,mac=${word(`net.${i}.mac`, mac)}`}`;
    }),
    ...(vm.devices ?? []).map(({ path: of }, i) => `passthru,${functionOf(of, i)}`),
    ...(vm.rng === undefined || vm.rng === null ? [] : ['virtio-rnd']),
    ...(vm.watchdog === true ? ['wdt-i6300esb'] : []),
  ];
  // Said here, before each of however many is looked at.
  if (devices.length > SLOTS - FIRST_SLOT) {
    throw new ConfigError(`${devices.length} devices: there are ${SLOTS - FIRST_SLOT} slots for them`, {
      exitCode: ExitCode.Config,
    });
  }
  const slots = ['0:0,hostbridge', '1:0,lpc', ...devices.map((device, i) => `${FIRST_SLOT + i},${device}`)];
  return [...slots.flatMap((slot) => ['--pci_slot', slot]), ...serialPort(vm.serial)];
}

/** A comma ends a word of ours. */
function word(where: string, text: string): string {
  if (text.includes(',')) throw new ConfigError(`${where}: "${text}" has a comma in it, which is not possible`);
  return text;
}

function functionOf(sysfsPath: string, i: number): string {
  const [, bus, device, fn] = /\/?0000:([0-9a-f]{2}):([0-9a-f]{2})\.([0-7])\/?$/i.exec(sysfsPath) ?? [];
  if (bus === undefined) throw new ConfigError(`devices.${i}.path: "${sysfsPath}" is no PCI function of this host`);
  return `${bus}/${device}/${fn}`;
}

function consoleDevice(console: ChConsole | null | undefined): string[] {
  const { mode, file, socket } = console ?? { mode: 'Off' };
  switch (mode) {
    case 'Off':
    case 'Null':
      return [];
    case 'Pty':
      return ['virtio-console,@pty:console'];
    case 'Tty':
      return ['virtio-console,@stdio:console'];
    case 'File':
      return [`virtio-console,@file:console=${word('console.file', needed('console.file', file))}`];
    case 'Socket':
      return [`virtio-console,@socket:console=${word('console.socket', needed('console.socket', socket))}`];
  }
}

function serialPort(serial: ChConsole | null | undefined): string[] {
  const { mode, file, socket } = serial ?? { mode: 'Off' };
  const backend = {
    Off: () => undefined,
    Null: () => 'null',
    Pty: () => 'pty',
    Tty: () => 'stdio',
    File: () => `file:${needed('serial.file', file)}`,
    Socket: () => `unix:${needed('serial.socket', socket)}`,
  }[mode as ChConsole['mode']]();
  return backend === undefined ? [] : ['--lpc', `com1,${backend}`];
}

function needed(where: string, text: string | null | undefined): string {
  if (text !== undefined && text !== null && text !== '') return text;
  throw new ConfigError(`${where}: is missing`);
}
