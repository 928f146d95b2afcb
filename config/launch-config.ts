/**
 * A VM as a program describes it (library/launch.ts) → VmConfig. Members, words and meaning are those of the options of
 * the command line, from one table, and go through the same functions. Nothing on the host is looked at.
 */
import * as v from 'valibot';
import { type ComConfig, EVENTS_BACKEND, type VmConfig } from '../devicemodel/core/config.ts';
import { ConfigError } from '../devicemodel/core/errors.ts';
import { type PlatformOptionName, pciDrivers, platformDrivers } from '../devicemodel/hw/registry.ts';
import { type BoardKey, optionTable, type ShapeValue, type VmOption } from './option-table.ts';
import { type Notice, parseVmName } from './option-values.ts';
import { located, parseLpc, parseSlotText } from './slot.ts';
import { applyOption, emptyDraft, finishDraft } from './vm-draft.ts';

/**
 * What {@link launch} takes: `name`, and every option that says something about a VM. Give one of `kernel`, `elf`,
 * `ovmf` and `bios`.
 */
export type LaunchConfig = VmMembers & BoardMembers;

/** Devices of the board, in the words of their options: `{ mmiodevPt: ['0xfed40000,0x5000'] }`; a flag is `true`. */
type BoardMembers = { readonly [K in BoardKey]?: string | readonly string[] | boolean };

interface VmMembers {
  /** Its name in the hypervisor scenario, at most 15 bytes. */
  readonly name: string;
  /** `auto`: ACRN where there is one, else /dev/kvm, else a software CPU, which needs the package v86. Default `auto`. */
  readonly hypervisor?: VmConfig['hypervisor'];
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
  /** Firmware of the BIOS kind, as SeaBIOS. */
  readonly bios?: string;
  /**
   * `[BUS:]SLOT[:FUNCTION],DRIVER[,OPTIONS]` each, as in `3,virtio-blk,disk.img`. A host bridge in slot 0 and the LPC
   * bridge of the serial ports in slot 1 are added where none is named.
   */
  readonly pci?: readonly string[];
  /** `comN,BACKEND` each; the back end `events` makes `console` events. Default: `com1,events`. */
  readonly com?: readonly string[];
  /** virtio devices use Oracle's PCI ids. */
  readonly windows?: boolean;
  /** virtio devices use MSI with one vector instead of MSI-X. */
  readonly virtioMsi?: boolean;
  /** Poll virtio queues at this interval instead of waiting for the guest: 1 to 10,000,000 ns. */
  readonly virtioPollNs?: number;
  /** A debug exit port at 0xf4. */
  readonly debugExit?: boolean;
  /** Local APIC ids of the CPUs this VM gets, a vCPU for each. ACRN needs them; on KVM the default is one vCPU on any CPU. */
  readonly cpuAffinity?: readonly number[];
  /** A real-time VM with its local APIC passed through (ACRN). */
  readonly rtvm?: boolean;
  /** Part of `rtvm`, ignored without it. */
  readonly lapicPt?: boolean;
  /**
   * Slow down a passed-through device that storms interrupts: interrupts per second, probe period in s, delay in ms,
   * duration in ms.
   */
  readonly intrMonitor?: readonly number[];
  /** Secure world for the guest (ACRN). */
  readonly trusty?: boolean;
  /** Scenario file of the embedded hypervisor. */
  readonly scenario?: string;
  /** Path of a socket that libvirt and other managers speak to. */
  readonly cmdMonitor?: string;
  /** Where the screens of virtio-gpu are seen: `vnc=unix:PATH`, `vnc=HOST:PORT,password-file=FILE`, `sdl`. Default: `none`. */
  readonly display?: string;
  /** A group that may use this VM's sockets, by name or number. Default: nobody else. */
  readonly socketGroup?: string;
  /** Storage that does not answer for this long is a hang, which ends the VM. Default 60 s. */
  readonly ioTimeoutS?: number;
  /** A guest that was asked to shut down is powered off after this long. Default 20 s. */
  readonly shutdownTimeoutS?: number;
  /** Of the program acrn-dm: `off`, `PATH` or `fd=N`, where its API listens. */
  readonly apiSocket?: string;
  /** Of the program: `path=PATH` or `fd=N`, where it writes what happens. */
  readonly eventMonitor?: string;
  /** Of the program: whether it exits once the guest powered off. */
  readonly onPoweroff?: 'exit' | 'stay';
  /** Whether a guest that resets itself starts anew; otherwise the VM ends. */
  readonly onReboot?: 'restart' | 'exit' | 'stay';
  /** Of the program: whether it exits after a triple fault. */
  readonly onCrash?: 'exit' | 'stay';
  /** Of the program: a file for what is known of a guest after a triple fault or a watchdog, as JSON. */
  readonly crashDump?: string;
  /** `console`, `kmsg` and `disk`, each as in `kmsg,level=3`; levels 1 (errors) to 5. Default: none. */
  readonly logger?: readonly string[];
  /** Of the program: whether lines of its log are text or JSON. */
  readonly logFormat?: 'text' | 'json';
  /** How the guest is told to power off: `uart` by `pmByVuart`, otherwise by its power button. */
  readonly pmNotifyChannel?: 'ioc' | 'power_button' | 'uart' | 'uart,allow_trigger_s5';
  /** `pty,LINK` or `tty,PATH`: the serial line of the guest's life manager. */
  readonly pmByVuart?: string;
}

/** The same, as the option table has it. */
type TableConfig = { readonly name: string } & BoardMembers & {
    readonly [O in Exclude<VmOption, { readonly id: PlatformOptionName }> as O['key']]?: ShapeValue<O['shape']>;
  };

const vmOptions = optionTable.filter((option): option is VmOption => 'key' in option);

/** Of a member, as data. */
function memberSchema({ id, shape }: VmOption): v.GenericSchema {
  const isBoard = platformDrivers.some((driver) => driver.name === id);
  if (isBoard && shape !== 'flag') return v.union([v.string(), v.array(v.string())]);
  switch (shape) {
    case 'text':
      return v.string();
    case 'flag':
      return v.boolean();
    case 'number':
      return v.number();
    case 'numbers':
      return v.array(v.pipe(v.number(), v.integer(), v.minValue(0)));
    case 'texts':
      return v.array(v.string());
    default:
      return v.picklist(shape);
  }
}

/** The schema of a {@link LaunchConfig}: one member for each option of a VM, with the text that help has. */
export const launchSchema = v.strictObject({
  name: v.string(),
  ...Object.fromEntries(
    vmOptions.map((option) => [option.key, v.optional(v.pipe(memberSchema(option), v.description(option.help)))]),
  ),
});

/** @throws ConfigError whose message begins with the member: `memory: "512" has no unit`. */
export function vmConfigOf(input: LaunchConfig): { readonly config: VmConfig; readonly notices: readonly Notice[] } {
  const parsed = v.safeParse(launchSchema, input);
  if (!parsed.success) {
    const [issue] = parsed.issues;
    const where = v.getDotPath(issue);
    throw new ConfigError(`${where === null ? '' : `${where}: `}${issue.message}`);
  }
  const given: TableConfig & LaunchConfig = {
    com: [`com1,${EVENTS_BACKEND}`],
    ...input,
    pci: at('pci', () => withBridges(input.pci ?? [])),
  };
  checkImages(given);
  const draft = emptyDraft({ spell: keyOf, parseCom: comOf, slotPrefix: 'pci' });
  for (const option of vmOptions) {
    for (const word of wordsOf(given[option.key])) {
      at(option.id === 'lpc' ? `${option.key}: ${word}` : option.key, () =>
        applyOption(draft, option.id, word, option.key),
      );
    }
  }
  const name = at('name', () => parseVmName(given.name));
  return finishDraft(draft, name, pciDrivers);
}

function keyOf(id: VmOption['id']): string {
  return vmOptions.find((option) => option.id === id)?.key ?? id;
}

/** What the command line would have as values of the option. */
function wordsOf(value: LaunchConfig[keyof LaunchConfig]): readonly string[] {
  if (value === undefined || value === false) return [];
  if (value === true) return [''];
  if (typeof value === 'string') return [value];
  if (typeof value === 'number') return [String(value)];
  if (value.length === 0) return [];
  return typeof value[0] === 'number' ? [value.join(',')] : value.map(String);
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

function checkImages({ kernel, elf, ovmf, bios }: LaunchConfig): void {
  const images = Object.entries({ kernel, elf, ovmf, bios }).filter(([, image]) => image !== undefined);
  if (images.length === 1) return;
  const given = images.length === 0 ? 'none' : images.map(([name]) => name).join(' and ');
  throw new ConfigError(`one of kernel, elf, ovmf and bios is needed, ${given} is given`);
}

function at<T>(where: string, parse: () => T): T {
  try {
    return parse();
  } catch (error) {
    throw located(where, error);
  }
}
