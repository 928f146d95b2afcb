/**
 * A VM as a program describes it (library/launch.ts) → VmConfig. The words are those of the command line, and go through
 * the same functions. Nothing on the host is looked at.
 */
import * as v from 'valibot';
import type { BootConfig, ComConfig, VmConfig } from '../devicemodel/core/config.ts';
import { ConfigError } from '../devicemodel/core/errors.ts';
import { parseSocketPath } from '../devicemodel/core/options.ts';
import { pciDrivers } from '../devicemodel/hw/registry.ts';
import {
  DEFAULT_MEMORY_BYTES,
  type Notice,
  parseBootargs,
  parseMemsize,
  parseOvmf,
  parsePath,
  parseVmName,
} from './option-values.ts';
import { located, parseLpc, parseSlots, parseSlotText } from './slot.ts';

/** What {@link launch} takes. Give one of `kernel`, `elf` and `ovmf`. */
export interface LaunchConfig {
  /** Its name in the hypervisor scenario, at most 15 bytes. */
  readonly name: string;
  /** `auto`: ACRN where there is one, else the embedded software hypervisor, which needs the package v86. Default `auto`. */
  readonly hypervisor?: 'auto' | 'acrn' | 'soft';
  /** With a unit, as in `512M`. Default `256M`. */
  readonly memory?: string;
  /** A bzImage. */
  readonly kernel?: string;
  readonly ramdisk?: string;
  /** The kernel's command line. */
  readonly bootargs?: string;
  /** An ELF or Multiboot image. */
  readonly elf?: string;
  /** `[w,]FILE` or `[w,]code=FILE,vars=FILE`. */
  readonly ovmf?: string;
  /**
   * `[BUS:]SLOT[:FUNCTION],DRIVER[,OPTIONS]` each, as in `3,virtio-blk,disk.img`. A host bridge in slot 0 and the LPC
   * bridge of the serial ports in slot 1 are added where none is named.
   */
  readonly pci?: readonly string[];
  /** `comN,BACKEND` each; the back end `events` makes `console` events. Default: `com1,events`. */
  readonly com?: readonly string[];
  /** Local APIC ids of the CPUs this VM gets (ACRN). Default: what the scenario says. */
  readonly cpuAffinity?: readonly number[];
  /** A real-time VM with its local APIC passed through (ACRN). */
  readonly rtvm?: boolean;
  /** virtio devices use Oracle's PCI ids. */
  readonly windows?: boolean;
  /** Scenario file of the embedded hypervisor. */
  readonly scenario?: string;
  /** Path of a socket that libvirt and other managers speak to. */
  readonly cmdMonitor?: string;
}

/** The back end that only a program has. */
export const EVENTS_BACKEND = 'events';

const words = v.optional(v.array(v.string()), []);
const schema = v.strictObject({
  name: v.string(),
  hypervisor: v.optional(v.picklist(['auto', 'acrn', 'soft']), 'auto'),
  memory: v.optional(v.string()),
  kernel: v.optional(v.string()),
  ramdisk: v.optional(v.string()),
  bootargs: v.optional(v.string()),
  elf: v.optional(v.string()),
  ovmf: v.optional(v.string()),
  pci: words,
  com: v.optional(v.array(v.string()), [`com1,${EVENTS_BACKEND}`]),
  cpuAffinity: v.optional(v.array(v.pipe(v.number(), v.integer(), v.minValue(0))), []),
  rtvm: v.optional(v.boolean(), false),
  windows: v.optional(v.boolean(), false),
  scenario: v.optional(v.string()),
  cmdMonitor: v.optional(v.string()),
});
type Checked = v.InferOutput<typeof schema>;

/** @throws ConfigError whose message begins with the member: `memory: "512" has no unit`. */
export function vmConfigOf(input: LaunchConfig): { readonly config: VmConfig; readonly notices: readonly Notice[] } {
  const parsed = v.safeParse(schema, input);
  if (!parsed.success) {
    const [issue] = parsed.issues;
    const where = v.getDotPath(issue);
    throw new ConfigError(`${where === null ? '' : `${where}: `}${issue.message}`);
  }
  const given = parsed.output;
  const slots = at('pci', () => parseSlots(withBridges(given.pci), pciDrivers));
  if (slots.later.length > 0) throw new ConfigError(`pci: ${slots.later[0]?.driver} comes in a later version`);
  const scenario = given.scenario;
  const cmdMonitor = given.cmdMonitor;
  const config: VmConfig = {
    name: at('name', () => parseVmName(given.name)),
    hypervisor: given.hypervisor,
    scenarioPath: scenario === undefined ? undefined : at('scenario', () => parsePath(scenario)),
    memoryBytes:
      given.memory === undefined ? DEFAULT_MEMORY_BYTES : at('memory', () => parseMemsize(`${given.memory}`)),
    boot: bootOf(given),
    pci: slots.pci,
    com: given.com.map((text) => at(`com: ${text}`, () => comOf(text))).sort((a, b) => a.index - b.index),
    cpuAffinity: given.cpuAffinity,
    rtvm: given.rtvm,
    lapicPt: given.rtvm,
    trusty: false,
    windows: given.windows,
    virtioMsi: false,
    virtioPollNs: undefined,
    debugExit: false,
    cmdMonitorPath: cmdMonitor === undefined ? undefined : at('cmdMonitor', () => parseSocketPath(cmdMonitor)),
    intrMonitor: undefined,
    logger: [],
    pmNotifyChannel: undefined,
    platform: [],
  };
  return { config, notices: slots.ignored.map((text) => ({ level: 'warn', text })) };
}

/** A PC has both, and nobody wants to write them. */
function withBridges(slots: readonly string[]): string[] {
  const drivers = slots.map((slot) => /^[^,]*,([^,]*)/.exec(slot)?.[1]);
  const bridges = [
    ['hostbridge', '0,hostbridge'],
    ['lpc', '1,lpc'],
  ] as const;
  const added = bridges.filter(([driver]) => !drivers.includes(driver)).map(([, slot]) => slot);
  for (const slot of added) {
    const { device } = parseSlotText(slot).bdf;
    const holder = slots.find((other) => /^(0[:/.])?\d+,/.test(other) && parseSlotText(other).bdf.device === device);
    if (holder !== undefined) {
      throw new ConfigError(`slot ${device} of "${holder}" is where ${slot} goes`, { hint: 'use another slot' });
    }
  }
  return [...added, ...slots];
}

function comOf(text: string): ComConfig {
  const [, index] = new RegExp(`^com([1-4]),${EVENTS_BACKEND}$`).exec(text) ?? [];
  if (index === undefined) return parseLpc(text);
  return { index: Number(index) as ComConfig['index'], backend: EVENTS_BACKEND };
}

function bootOf({ kernel, ramdisk, bootargs, elf, ovmf }: Checked): BootConfig {
  const images = Object.entries({ kernel, elf, ovmf }).filter(([, image]) => image !== undefined);
  if (images.length !== 1) {
    const given = images.length === 0 ? 'none' : images.map(([name]) => name).join(' and ');
    throw new ConfigError(`one of kernel, elf and ovmf is needed, ${given} is given`);
  }
  const module = ramdisk === undefined ? undefined : at('ramdisk', () => parsePath(ramdisk));
  const line = bootargs === undefined ? undefined : at('bootargs', () => parseBootargs(bootargs));
  if (kernel !== undefined) {
    return { kind: 'bzimage', kernelPath: at('kernel', () => parsePath(kernel)), ramdiskPath: module, bootargs: line };
  }
  if (elf !== undefined) {
    const imagePath = at('elf', () => parsePath(elf));
    return { kind: 'elf', imagePath, bootargs: line, ...(module === undefined ? {} : { ramdiskPath: module }) };
  }
  return { kind: 'ovmf', image: at('ovmf', () => parseOvmf(`${ovmf}`)) };
}

function at<T>(where: string, parse: () => T): T {
  try {
    return parse();
  } catch (error) {
    throw located(where, error);
  }
}
