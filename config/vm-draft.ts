/**
 * Options → VmConfig. A draft collects them one by one, as words of a command line, of a program or of a file; what one
 * means beside the others is decided at the end. Nothing on the host is looked at.
 */
import type {
  AfterEnd,
  BootConfig,
  ComConfig,
  OvmfImage,
  PlatformDeviceConfig,
  VmConfig,
} from '../devicemodel/core/config.ts';
import { ConfigError } from '../devicemodel/core/errors.ts';
import { checkOptions, parseSocketPath } from '../devicemodel/core/options.ts';
import {
  type AnyPlatformDriver,
  type PciDriverEntry,
  type PlatformOptionName,
  platformDriver,
  platformDrivers,
} from '../devicemodel/hw/registry.ts';
import { parseDisplay } from './display-option.ts';
import type { VmOption } from './option-table.ts';
import {
  DEFAULT_MEMORY_BYTES,
  type Notice,
  parseApiSocket,
  parseBootargs,
  parseCpuAffinity,
  parseEventMonitor,
  parseHypervisor,
  parseIntrMonitor,
  parseLoggerSetting,
  parseMemsize,
  parseOvmf,
  parsePath,
  parsePmByVuart,
  parsePmNotifyChannel,
  parseSocketGroup,
  parseTimeout,
  parseVirtioPoll,
  parseVmName,
  parseWord,
} from './option-values.ts';
import { located, parseLpc, parseSlots, type SlotsResult } from './slot.ts';

/** How whoever gave an option writes it, for messages: `--memsize` or `memory`. */
export interface Wording {
  spell(id: VmOption['id']): string;
  /** One value of `lpc`. @throws ConfigError */
  parseCom(text: string): ComConfig;
  /** Before `-s VALUE: what is wrong`, where that does not say it all. */
  readonly slotPrefix?: string;
}

export const argvWording: Wording = { spell: (id) => (id === 'lpc' ? '-l' : `--${id}`), parseCom: parseLpc };

export interface VmDraft {
  readonly wording: Wording;
  memoryBytes: number;
  hypervisor: VmConfig['hypervisor'];
  scenarioPath: string | undefined;
  kernelPath: string | undefined;
  ramdiskPath: string | undefined;
  bootargs: string | undefined;
  elfPath: string | undefined;
  ovmf: OvmfImage | undefined;
  biosPath: string | undefined;
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
  display: VmConfig['display'];
  intrMonitor: VmConfig['intrMonitor'];
  ioTimeoutMs: number | undefined;
  shutdownTimeoutMs: number | undefined;
  apiSocket: VmConfig['apiSocket'];
  eventMonitor: VmConfig['eventMonitor'];
  afterEnd: AfterEnd;
  crashDumpPath: string | undefined;
  socketGroup: string | undefined;
  logger: VmConfig['logger'];
  logFormat: VmConfig['logFormat'];
  pmNotifyChannel: VmConfig['pmNotifyChannel'];
  pmByVuart: string | undefined;
  readonly platform: PlatformDeviceConfig[];
  readonly notices: Notice[];
}

export function emptyDraft(wording: Wording): VmDraft {
  return {
    wording,
    memoryBytes: DEFAULT_MEMORY_BYTES,
    hypervisor: 'auto',
    scenarioPath: undefined,
    kernelPath: undefined,
    ramdiskPath: undefined,
    bootargs: undefined,
    elfPath: undefined,
    ovmf: undefined,
    biosPath: undefined,
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
    display: undefined,
    intrMonitor: undefined,
    ioTimeoutMs: undefined,
    shutdownTimeoutMs: undefined,
    apiSocket: undefined,
    eventMonitor: undefined,
    crashDumpPath: undefined,
    afterEnd: {},
    socketGroup: undefined,
    logger: [],
    logFormat: undefined,
    pmNotifyChannel: undefined,
    pmByVuart: undefined,
    platform: [],
    notices: [],
  };
}

/** `value` is a text for every option that needs one (getopt has seen to that), but for a bare --ssram. */
type Apply = (into: VmDraft, value: string, spelled: string) => void;

/** Later values of an option replace earlier ones, as in the C program, but for those that are lists. */
const apply: Record<Exclude<VmOption['id'], PlatformOptionName>, Apply> = {
  memsize: (c, value) => void (c.memoryBytes = parseMemsize(value)),
  cpu_affinity: (c, value, spelled) => {
    c.cpuAffinity = parseCpuAffinity(value, notify(c, spelled), c.cpuAffinity);
  },
  hypervisor: (c, value) => void (c.hypervisor = parseHypervisor(value)),
  scenario: (c, value) => void (c.scenarioPath = parsePath(value)),
  kernel: (c, value) => void (c.kernelPath = parsePath(value)),
  ramdisk: (c, value) => void (c.ramdiskPath = parsePath(value)),
  bootargs: (c, value) => void (c.bootargs = parseBootargs(value)),
  ovmf: (c, value) => void (c.ovmf = parseOvmf(value)),
  bios: (c, value) => void (c.biosPath = parsePath(value)),
  elf_file: (c, value) => void (c.elfPath = parsePath(value)),
  pci_slot: (c, value) => void c.slots.push(value),
  lpc: (c, value) => {
    const com = c.wording.parseCom(value);
    const earlier = c.com.findIndex((other) => other.index === com.index);
    if (earlier >= 0) {
      c.com.splice(earlier, 1);
      c.notices.push({
        level: 'warn',
        text: `${c.wording.spell('lpc')} ${value}: replaces an earlier com${com.index}`,
      });
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
  display: (c, value) => void (c.display = parseDisplay(value)),
  'socket-group': (c, value) => void (c.socketGroup = parseSocketGroup(value)),
  'io-timeout': (c, value) => void (c.ioTimeoutMs = parseTimeout(value)),
  'api-socket': (c, value) => void (c.apiSocket = parseApiSocket(value)),
  'event-monitor': (c, value) => void (c.eventMonitor = parseEventMonitor(value)),
  'on-poweroff': (c, value) => {
    c.afterEnd = { ...c.afterEnd, onPoweroff: parseWord(value, ['exit', 'stay']) };
  },
  'on-reboot': (c, value) => {
    c.afterEnd = { ...c.afterEnd, onReboot: parseWord(value, ['restart', 'exit', 'stay']) };
  },
  'on-crash': (c, value) => {
    c.afterEnd = { ...c.afterEnd, onCrash: parseWord(value, ['exit', 'stay']) };
  },
  'crash-dump': (c, value) => void (c.crashDumpPath = parsePath(value)),
  'shutdown-timeout': (c, value) => void (c.shutdownTimeoutMs = parseTimeout(value)),
  logger_setting: (c, value, spelled) => void (c.logger = parseLoggerSetting(value, notify(c, spelled), c.logger)),
  'log-format': (c, value) => void (c.logFormat = parseWord(value, ['text', 'json'])),
  pm_notify_channel: (c, value) => void (c.pmNotifyChannel = parsePmNotifyChannel(value)),
  pm_by_vuart: (c, value) => void (c.pmByVuart = value),
};

/**
 * One option.
 * @param value its text; empty for a flag.
 * @param spelled what it was called, for warnings.
 * @throws ConfigError whose message goes on after the option's name.
 */
export function applyOption(into: VmDraft, id: VmOption['id'], value: string, spelled: string): void {
  const platform = platformDrivers.find((driver) => driver.name === id);
  if (platform === undefined) apply[id as keyof typeof apply](into, value, spelled);
  else addPlatformDevice(into, platform, value, spelled);
}

/** A device of the board, by its own option. */
function addPlatformDevice(into: VmDraft, driver: AnyPlatformDriver, text: string, spelled: string): void {
  const options: unknown = checkOptions(driver.options, driver.parseText(text));
  const reason = driver.ignored?.(options);
  if (reason !== undefined) into.notices.push({ level: 'warn', text: `${spelled}: ignored, ${reason}` });
  for (const what of driver.passedOver?.(text) ?? []) into.notices.push({ level: 'warn', text: `${spelled}: ${what}` });
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

function notify(into: VmDraft, spelled: string) {
  return (notice: Notice) => void into.notices.push({ ...notice, text: `${spelled}: ${notice.text}` });
}

/** A VM as ordered. */
export interface DraftedVm {
  readonly config: VmConfig;
  /** To be said before anything is done. */
  readonly notices: readonly Notice[];
}

/** @throws ConfigError: one line that says where and what. */
export function finishDraft(draft: VmDraft, givenName: string, drivers: readonly PciDriverEntry[]): DraftedVm {
  const { spell } = draft.wording;
  const notices = [...draft.notices];
  const warn = (text: string) => void notices.push({ level: 'warn', text });
  const name = parseVmName(givenName);
  const slots = slotsOf(draft, drivers);
  for (const line of slots.ignored) warn(line);

  if (draft.lapicPt && !draft.rtvm) {
    const rtvm = spell('rtvm');
    warn(`${spell('lapic_pt')}: ignored, only a real-time VM (${rtvm}) can have the local APIC passed through`);
  }
  for (const { driver } of draft.platform) platformDriver(driver).check?.(draft.platform);
  if (draft.debugExit && draft.platform.some(({ driver }) => driver === 'testdev')) {
    throw new ConfigError(`${spell('debugexit')}: the exit port of ${spell('testdev')} is there already`, {
      hint: 'leave one of them out',
    });
  }
  const hasLpc = slots.pci.some((slot) => slot.driver === 'lpc');
  if (draft.com.length > 0 && !hasLpc) warn(`${spell('lpc')}: has no effect without the LPC bridge, -s 1:0,lpc`);

  const pmByVuart = pmByVuartOf(draft, warn);
  const hasScreens = slots.pci.some((slot) => slot.driver === 'virtio-gpu');
  if (hasScreens && draft.display === undefined) {
    warn(
      `nobody sees the screens of virtio-gpu: ${spell('display')} vnc=unix:PATH shows them, none is content with it`,
    );
  }
  if (!hasScreens && draft.display !== undefined && draft.display.kind !== 'none') {
    warn(`${spell('display')}: there is nothing to show without -s N,virtio-gpu,geometry=WxH`);
  }

  const config: VmConfig = {
    name,
    hypervisor: draft.hypervisor,
    scenarioPath: draft.scenarioPath,
    memoryBytes: draft.memoryBytes,
    boot: bootOf(draft, warn),
    pci: slots.pci,
    // Tables name them, and their back ends are opened, by number.
    com: draft.com.toSorted((a, b) => a.index - b.index),
    cpuAffinity: draft.cpuAffinity,
    rtvm: draft.rtvm,
    lapicPt: draft.rtvm,
    trusty: draft.trusty,
    windows: draft.windows,
    virtioMsi: draft.virtioMsi,
    virtioPollNs: draft.virtioPollNs,
    debugExit: draft.debugExit,
    cmdMonitorPath: draft.cmdMonitorPath,
    intrMonitor: draft.intrMonitor,
    ...(draft.display === undefined ? {} : { display: draft.display }),
    ...(draft.socketGroup === undefined ? {} : { socketGroup: draft.socketGroup }),
    ...(draft.ioTimeoutMs === undefined ? {} : { ioTimeoutMs: draft.ioTimeoutMs }),
    ...(draft.apiSocket === undefined ? {} : { apiSocket: draft.apiSocket }),
    ...(draft.eventMonitor === undefined ? {} : { eventMonitor: draft.eventMonitor }),
    ...(Object.keys(draft.afterEnd).length === 0 ? {} : { afterEnd: draft.afterEnd }),
    ...(draft.crashDumpPath === undefined ? {} : { crashDumpPath: draft.crashDumpPath }),
    ...(draft.shutdownTimeoutMs === undefined ? {} : { shutdownTimeoutMs: draft.shutdownTimeoutMs }),
    logger: draft.logger,
    ...(draft.logFormat === undefined ? {} : { logFormat: draft.logFormat }),
    pmNotifyChannel: draft.pmNotifyChannel,
    ...(pmByVuart === undefined ? {} : { pmByVuart }),
    platform: draft.platform,
  };
  return { config, notices };
}

function slotsOf({ slots, wording }: VmDraft, drivers: readonly PciDriverEntry[]): SlotsResult {
  try {
    return parseSlots(slots, drivers);
  } catch (error) {
    throw wording.slotPrefix === undefined ? error : located(wording.slotPrefix, error);
  }
}

/**
 * The serial line on which the guest's life manager listens, if the options name one. Every VM has an ACPI power button,
 * and is told by that otherwise.
 */
function pmByVuartOf(draft: VmDraft, warn: (text: string) => void): string | undefined {
  const { spell } = draft.wording;
  const channel = draft.pmNotifyChannel;
  if (channel === 'ioc') {
    warn(`${spell('pm_notify_channel')}: obsolete, "ioc" is ignored: the guest is told by its ACPI power button`);
  } else if (channel !== undefined && channel !== 'power_button' && draft.pmByVuart === undefined) {
    const line = spell('pm_by_vuart');
    warn(
      `${spell('pm_notify_channel')}: "${channel}" is ignored without ${line}: the guest is told by its power button`,
    );
  }
  if (draft.pmByVuart === undefined) return undefined;
  if (channel !== 'uart' && channel !== 'uart,allow_trigger_s5') {
    warn(`${spell('pm_by_vuart')}: ignored without ${spell('pm_notify_channel')} uart`);
    return undefined;
  }
  try {
    return parsePmByVuart(draft.pmByVuart);
  } catch (error) {
    throw located(spell('pm_by_vuart'), error);
  }
}

/** Firmware goes before a kernel, a kernel before an ELF image, as in the C program. */
function bootOf(draft: VmDraft, warn: (text: string) => void): BootConfig | undefined {
  const { spell } = draft.wording;
  const values = {
    kernel: draft.kernelPath,
    elf_file: draft.elfPath,
    ramdisk: draft.ramdiskPath,
    bios: draft.biosPath,
  };
  const ignored = (ids: readonly (keyof typeof values)[], chosen: 'ovmf' | 'bios' | 'kernel') => {
    const given = ids.filter((id) => values[id] !== undefined).map(spell);
    if (given.length > 0) warn(`${given.join(', ')}: ignored, ${spell(chosen)} is what boots`);
  };
  if (draft.ovmf !== undefined) {
    ignored(['bios', 'kernel', 'elf_file', 'ramdisk'], 'ovmf');
    return { kind: 'ovmf', image: draft.ovmf };
  }
  if (draft.biosPath !== undefined) {
    ignored(['kernel', 'elf_file', 'ramdisk'], 'bios');
    return { kind: 'bios', imagePath: draft.biosPath };
  }
  if (draft.kernelPath !== undefined) {
    ignored(['elf_file'], 'kernel');
    return { kind: 'bzimage', kernelPath: draft.kernelPath, ramdiskPath: draft.ramdiskPath, bootargs: draft.bootargs };
  }
  if (draft.elfPath !== undefined) {
    const module = draft.ramdiskPath === undefined ? {} : { ramdiskPath: draft.ramdiskPath };
    return { kind: 'elf', imagePath: draft.elfPath, bootargs: draft.bootargs, ...module };
  }
  return undefined;
}
