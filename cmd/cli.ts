/**
 * The command line → what to do. Pure: nothing on the host is touched, nothing is printed.
 */

import {
  DEFAULT_MEMORY_BYTES,
  type Notice,
  parseBootargs,
  parseCpuAffinity,
  parseHypervisor,
  parseIntrMonitor,
  parseIoTimeout,
  parseLoggerSetting,
  parseMemsize,
  parseOvmf,
  parsePath,
  parsePmNotifyChannel,
  parseSocketGroup,
  parseVirtioPoll,
  parseVmName,
} from '../config/option-values.ts';
import { located, parseLpc, parseSlots, parseSlotText, type SlotText } from '../config/slot.ts';
import { parsePmByVuart } from '../control/life-manager.ts';
import type { BootConfig, ComConfig, OvmfImage, PlatformDeviceConfig, VmConfig } from '../devicemodel/core/config.ts';
import { ConfigError } from '../devicemodel/core/errors.ts';
import { checkOptions, parseSocketPath } from '../devicemodel/core/options.ts';
import {
  type AnyPlatformDriver,
  lookupPciDriver,
  type PciDriverEntry,
  type PlatformOptionName,
  platformDriver,
  platformDrivers,
} from '../devicemodel/hw/registry.ts';
import { getoptLong } from './getopt.ts';
import { type OptionId, optionTable } from './option-table.ts';

/** What `--help`, `-s help`, `-l help` or `-s DRIVER,help` asks for. */
export type HelpTopic =
  | { readonly kind: 'options' }
  | { readonly kind: 'drivers' }
  | { readonly kind: 'lpc' }
  | { readonly kind: 'driver'; readonly driver: PciDriverEntry };

/** A VM as ordered on the command line. */
export interface VmOrder {
  readonly action: 'run' | 'dry-run';
  readonly format: 'text' | 'json';
  readonly config: VmConfig;
  readonly debug: boolean;
  /** Of a dry run: where the tree of another host is. */
  readonly hostRoot: string | undefined;
  /** To be said before anything is done. */
  readonly notices: readonly Notice[];
  /** Slots whose driver does not exist yet. Such a VM can be looked at but not run. */
  readonly later: readonly SlotText[];
}

export type CommandLine =
  | { readonly action: 'help'; readonly topic: HelpTopic }
  | { readonly action: 'version' }
  | { readonly action: 'list-passthru'; readonly format: 'text' | 'json'; readonly hostRoot: string | undefined }
  | VmOrder;

/** Values collected in one pass; what an option means beside the others is decided afterwards. */
interface Collected {
  memoryBytes: number;
  hypervisor: VmConfig['hypervisor'];
  scenarioPath: string | undefined;
  kernelPath: string | undefined;
  ramdiskPath: string | undefined;
  bootargs: string | undefined;
  elfPath: string | undefined;
  ovmf: OvmfImage | undefined;
  readonly slots: string[];
  readonly com: ComConfig[];
  cpuAffinity: readonly number[];
  rtvm: boolean;
  lapicPt: boolean;
  trusty: boolean;
  windows: boolean;
  virtioMsi: boolean;
  virtioPollNs: number | undefined;
  debugExit: boolean;
  cmdMonitorPath: string | undefined;
  intrMonitor: VmConfig['intrMonitor'];
  ioTimeoutMs: number | undefined;
  socketGroup: string | undefined;
  logger: VmConfig['logger'];
  pmNotifyChannel: VmConfig['pmNotifyChannel'];
  pmByVuart: string | undefined;
  readonly platform: PlatformDeviceConfig[];
  dryRun: 'text' | 'json' | undefined;
  listPassthru: 'text' | 'json' | undefined;
  hostRoot: string | undefined;
  debug: boolean;
  readonly notices: Notice[];
}

/** `value` is a text for every option that needs one (getopt has seen to that), but for a bare --ssram or --dry-run. */
type Apply = (into: Collected, value: string, spelled: string) => void;

const obsolete: Apply = (into, _value, spelled) => {
  const option = optionTable.find((o) => spelled === `--${o.name}` || spelled === `-${o.short}`);
  into.notices.push({ level: 'warn', text: `${spelled}: obsolete, ignored: ${option?.help ?? ''}` });
};

/** Later values of an option replace earlier ones, as in the C program, but for those that are lists. */
const apply: Record<Exclude<OptionId, 'help' | 'version' | PlatformOptionName>, Apply> = {
  memsize: (c, value) => void (c.memoryBytes = parseMemsize(value)),
  cpu_affinity: (c, value, spelled) => {
    c.cpuAffinity = parseCpuAffinity(value, notify(c, spelled), c.cpuAffinity);
  },
  hypervisor: (c, value) => void (c.hypervisor = parseHypervisor(value)),
  scenario: (c, value) => void (c.scenarioPath = parsePath(value)),
  config: () => {
    throw new ConfigError('configuration files come later', { hint: 'give the options on the command line' });
  },
  kernel: (c, value) => void (c.kernelPath = parsePath(value)),
  ramdisk: (c, value) => void (c.ramdiskPath = parsePath(value)),
  bootargs: (c, value) => void (c.bootargs = parseBootargs(value)),
  ovmf: (c, value) => void (c.ovmf = parseOvmf(value)),
  elf_file: (c, value) => void (c.elfPath = parsePath(value)),
  pci_slot: (c, value) => void c.slots.push(value),
  lpc: (c, value) => {
    const com = parseLpc(value);
    const earlier = c.com.findIndex((other) => other.index === com.index);
    if (earlier >= 0) {
      c.com.splice(earlier, 1);
      c.notices.push({ level: 'warn', text: `-l ${value}: replaces an earlier com${com.index}` });
    }
    c.com.push(com);
  },
  windows: (c) => void (c.windows = true),
  virtio_msi: (c) => void (c.virtioMsi = true),
  virtio_poll: (c, value) => void (c.virtioPollNs = parseVirtioPoll(value)),
  debugexit: (c) => void (c.debugExit = true),
  rtvm: (c) => void (c.rtvm = true),
  lapic_pt: (c) => void (c.lapicPt = true),
  intr_monitor: (c, value) => void (c.intrMonitor = parseIntrMonitor(value)),
  enable_trusty: (c) => void (c.trusty = true),
  cmd_monitor: (c, value) => void (c.cmdMonitorPath = parseSocketPath(value)),
  'socket-group': (c, value) => void (c.socketGroup = parseSocketGroup(value)),
  'io-timeout': (c, value) => void (c.ioTimeoutMs = parseIoTimeout(value)),
  logger_setting: (c, value, spelled) => void (c.logger = parseLoggerSetting(value, notify(c, spelled), c.logger)),
  'dry-run': (c, value) => void (c.dryRun = formatOf(value)),
  'list-passthru': (c, value) => void (c.listPassthru = formatOf(value)),
  'host-root': (c, value) => void (c.hostRoot = parsePath(value)),
  debug: (c) => void (c.debug = true),

  acpi: obsolete,
  mptgen: obsolete,
  iasl: (c, _value, spelled) => {
    c.notices.push({ level: 'info', text: `${spelled}: not needed, ACPI tables are made without a compiler` });
  },
  mac_seed: obsolete,
  pm_notify_channel: (c, value) => void (c.pmNotifyChannel = parsePmNotifyChannel(value)),
  pm_by_vuart: (c, value) => void (c.pmByVuart = value),
  vsbl: obsolete,
  part_info: obsolete,
  ioc_node: obsolete,
  gvtargs: obsolete,
  uuid: obsolete,
  ncpus: obsolete,
  privil_vm: obsolete,
  pincpu: obsolete,
  vmcfg: obsolete,
  dump: obsolete,
  ptdev_no_reset: obsolete,
  ptdev_msi: obsolete,
  virtio_msix: obsolete,
  psram: obsolete,
  '-T': obsolete,
  '-W': obsolete,
  '-C': obsolete,
  '-x': obsolete,
};

/** A device of the board, by its own option. */
function addPlatformDevice(into: Collected, driver: AnyPlatformDriver, text: string, spelled: string): void {
  const options: unknown = checkOptions(driver.options, driver.parseText(text));
  const reason = driver.ignored?.(options);
  if (reason !== undefined) into.notices.push({ level: 'warn', text: `${spelled}: ignored, ${reason}` });
  const earlier = into.platform.findIndex((device) => device.driver === driver.name);
  if (earlier >= 0 && driver.isList !== true) into.platform.splice(earlier, 1);
  for (const [i, device] of into.platform.entries()) {
    const merged: unknown = device.driver === driver.name ? driver.merge?.(device.options, options) : undefined;
    if (merged === undefined) continue;
    into.platform[i] = {
      ...device,
      text: `${device.text} ${text}`,
      options: checkOptions(driver.options, merged as Record<string, unknown>),
    };
    return;
  }
  if (reason === undefined) into.platform.push({ driver: driver.name, options, text });
}

function formatOf(value: string): 'text' | 'json' {
  const format = value === '' ? 'text' : value;
  if (format !== 'text' && format !== 'json') throw new ConfigError(`"${value}" is not a format, it is json or text`);
  return format;
}

function notify(into: Collected, spelled: string) {
  return (notice: Notice) => void into.notices.push({ ...notice, text: `${spelled}: ${notice.text}` });
}

/**
 * @param argv without the program's name.
 * @param drivers the PCI drivers there are.
 * @throws ConfigError: one line that says where, what and, in its hint, what to write instead.
 */
export function parseCommandLine(argv: readonly string[], drivers: readonly PciDriverEntry[]): CommandLine {
  const collected = emptyCollected();
  const names: string[] = [];
  for (const item of getoptLong(argv, optionTable)) {
    if (item.kind === 'positional') {
      names.push(item.text);
      continue;
    }
    const { spelled, value } = item;
    const id = item.option.id;
    if (id === 'help') return { action: 'help', topic: { kind: 'options' } };
    if (id === 'version') return { action: 'version' };
    const topic = helpTopic(id, value, drivers);
    if (topic !== undefined) return { action: 'help', topic };
    // There may be several -l, so the line says which one it means; parseSlots does the same for -s.
    const where = id === 'lpc' ? `${spelled} ${value}` : spelled;
    try {
      const platform = platformDrivers.find((driver) => driver.name === id);
      if (platform === undefined) apply[id as keyof typeof apply](collected, value ?? '', spelled);
      else addPlatformDevice(collected, platform, value ?? '', spelled);
    } catch (error) {
      throw located(where, error);
    }
  }
  if (collected.listPassthru !== undefined) {
    return { action: 'list-passthru', format: collected.listPassthru, hostRoot: collected.hostRoot };
  }
  if (collected.hostRoot !== undefined && collected.dryRun === undefined) {
    throw new ConfigError('--host-root: a VM runs with the devices of this host', {
      hint: 'it goes with --dry-run and --list-passthru',
    });
  }
  return orderOf(collected, names, drivers);
}

/** `-s help`, `-s DRIVER,help`, `-s SLOT,DRIVER,help`, `-l help`. */
function helpTopic(id: OptionId, value: string | undefined, drivers: readonly PciDriverEntry[]): HelpTopic | undefined {
  if (id === 'lpc') return value === 'help' ? { kind: 'lpc' } : undefined;
  if (id !== 'pci_slot' || value === undefined) return undefined;
  if (value === 'help') return { kind: 'drivers' };
  const words = value.split(',');
  if (words.at(-1) !== 'help' || words.length > 3) return undefined;
  if (words.length === 3) parseSlotText(value);
  const found = lookupPciDriver(words.at(-2) as string, drivers);
  if (found.kind === 'driver') return { kind: 'driver', driver: found.entry };
  throw new ConfigError(`-s ${value}: ${found.message}`, found.kind === 'unknown' ? { hint: found.hint } : {});
}

function orderOf(c: Collected, names: readonly string[], drivers: readonly PciDriverEntry[]): VmOrder {
  const notices = [...c.notices];
  const warn = (text: string) => void notices.push({ level: 'warn', text });

  if (names.length > 1) {
    throw new ConfigError(`${names.length} VM names are given: ${names.map((n) => `"${n}"`).join(', ')}`, {
      hint: 'give one; a value with spaces needs quotes',
    });
  }
  const [givenName] = names;
  if (givenName === undefined) {
    throw new ConfigError('the name of the VM is missing', {
      hint: 'usage: acrn-dm [OPTIONS] NAME; acrn-dm --help lists the options',
    });
  }
  const name = parseVmName(givenName);
  const slots = parseSlots(c.slots, drivers);
  for (const line of slots.ignored) warn(line);

  if (c.lapicPt && !c.rtvm)
    warn('--lapic_pt: ignored, only a real-time VM (--rtvm) can have the local APIC passed through');
  for (const { driver } of c.platform) platformDriver(driver).check?.(c.platform);
  const hasLpc = slots.pci.some((slot) => slot.driver === 'lpc');
  if (c.com.length > 0 && !hasLpc) warn('-l: has no effect without the LPC bridge, -s 1:0,lpc');

  const pmByVuart = pmByVuartOf(c, warn);

  const config: VmConfig = {
    name,
    hypervisor: c.hypervisor,
    scenarioPath: c.scenarioPath,
    memoryBytes: c.memoryBytes,
    boot: bootOf(c, warn),
    pci: slots.pci,
    // Tables name them, and their back ends are opened, by number.
    com: c.com.toSorted((a, b) => a.index - b.index),
    cpuAffinity: c.cpuAffinity,
    rtvm: c.rtvm,
    lapicPt: c.rtvm,
    trusty: c.trusty,
    windows: c.windows,
    virtioMsi: c.virtioMsi,
    virtioPollNs: c.virtioPollNs,
    debugExit: c.debugExit,
    cmdMonitorPath: c.cmdMonitorPath,
    intrMonitor: c.intrMonitor,
    ...(c.socketGroup === undefined ? {} : { socketGroup: c.socketGroup }),
    ...(c.ioTimeoutMs === undefined ? {} : { ioTimeoutMs: c.ioTimeoutMs }),
    logger: c.logger,
    pmNotifyChannel: c.pmNotifyChannel,
    ...(pmByVuart === undefined ? {} : { pmByVuart }),
    platform: c.platform,
  };
  return {
    action: c.dryRun === undefined ? 'run' : 'dry-run',
    format: c.dryRun ?? 'text',
    config,
    debug: c.debug,
    hostRoot: c.hostRoot,
    notices,
    later: slots.later,
  };
}

/**
 * The serial line on which the guest's life manager listens, if the options name one. Every VM has an ACPI power button,
 * and is told by that otherwise.
 */
function pmByVuartOf(c: Collected, warn: (text: string) => void): string | undefined {
  const channel = c.pmNotifyChannel;
  if (channel === 'power_button') {
    warn('--pm_notify_channel: obsolete, power_button is what every VM has');
  } else if (channel === 'ioc') {
    warn('--pm_notify_channel: obsolete, "ioc" is ignored: the guest is told by its ACPI power button');
  } else if (channel !== undefined && c.pmByVuart === undefined) {
    warn(`--pm_notify_channel: "${channel}" is ignored without --pm_by_vuart: the guest is told by its power button`);
  }
  if (c.pmByVuart === undefined) return undefined;
  if (channel !== 'uart' && channel !== 'uart,allow_trigger_s5') {
    warn('--pm_by_vuart: ignored without --pm_notify_channel uart');
    return undefined;
  }
  return parsePmByVuart(c.pmByVuart);
}

/** Firmware goes before a kernel, a kernel before an ELF image, as in the C program. */
function bootOf(c: Collected, warn: (text: string) => void): BootConfig | undefined {
  const ignored = (options: Record<string, unknown>, chosen: string) => {
    const given = Object.keys(options).filter((name) => options[name] !== undefined);
    if (given.length > 0) warn(`${given.join(', ')}: ignored, ${chosen} is what boots`);
  };
  if (c.ovmf !== undefined) {
    ignored({ '--kernel': c.kernelPath, '--elf_file': c.elfPath, '--ramdisk': c.ramdiskPath }, '--ovmf');
    return { kind: 'ovmf', image: c.ovmf };
  }
  if (c.kernelPath !== undefined) {
    ignored({ '--elf_file': c.elfPath }, '--kernel');
    return { kind: 'bzimage', kernelPath: c.kernelPath, ramdiskPath: c.ramdiskPath, bootargs: c.bootargs };
  }
  if (c.elfPath !== undefined) {
    const module = c.ramdiskPath === undefined ? {} : { ramdiskPath: c.ramdiskPath };
    return { kind: 'elf', imagePath: c.elfPath, bootargs: c.bootargs, ...module };
  }
  return undefined;
}

function emptyCollected(): Collected {
  return {
    memoryBytes: DEFAULT_MEMORY_BYTES,
    hypervisor: 'auto',
    scenarioPath: undefined,
    kernelPath: undefined,
    ramdiskPath: undefined,
    bootargs: undefined,
    elfPath: undefined,
    ovmf: undefined,
    slots: [],
    com: [],
    cpuAffinity: [],
    rtvm: false,
    lapicPt: false,
    trusty: false,
    windows: false,
    virtioMsi: false,
    virtioPollNs: undefined,
    debugExit: false,
    cmdMonitorPath: undefined,
    intrMonitor: undefined,
    ioTimeoutMs: undefined,
    socketGroup: undefined,
    logger: [],
    pmNotifyChannel: undefined,
    pmByVuart: undefined,
    platform: [],
    dryRun: undefined,
    listPassthru: undefined,
    hostRoot: undefined,
    debug: false,
    notices: [],
  };
}
