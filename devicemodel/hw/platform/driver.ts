/**
 * One object per device that an option of its own puts on the board (`--vtpm2 …`), as PCI drivers are for `-s`: its
 * option, its schema, and how it is made. Parsing, help and the option reference follow from it.
 */
import type * as v from 'valibot';
import type { Gpa, Port } from '../../core/address.ts';
import type { PlatformDeviceConfig } from '../../core/config.ts';
import type { PowerControl } from '../../core/device.ts';
import type { HostClaim } from '../../core/host-claims.ts';
import type { Hsm, HypervisorOffers } from '../../core/hsm/hsm.ts';
import type { KeptOverLives } from '../../core/kept-over-lives.ts';
import type { Log } from '../../core/log.ts';
import type { GuestMemory } from '../../core/memory.ts';
import type { OptionSchema } from '../../core/options.ts';
import type { PlatformDevice } from './platform-device.ts';

/** The wires of a device that an option put on the board. */
export interface PlatformEnv {
  readonly hsm: Hsm;
  readonly log: Log;
  readonly power: PowerControl;
  /** The guest's memory, and what there is of RAM and vCPUs. */
  readonly machine: {
    readonly memory: GuestMemory;
    readonly lowRamBytes: number;
    readonly highRamBytes: number;
    readonly vcpuCount: number;
    /** Port of the serial line that firmware shows its text on; absent where it has others. */
    readonly firmwareConsole?: Port | undefined;
  };
  /** Where the host's files are, for a host other than this one. */
  readonly hostRoot?: string;
  /** A device has this input of the IOAPIC: PCI's interrupts keep off it. */
  reserveIrq(irq: number): void;
  /** Guest addresses for device memory, see {@link MmioWindow}. */
  readonly window: { allocate(sizeBytes: number, what: string): Gpa };
  /** Where the VM's processors run, by number; absent in a plan. */
  vcpus?(): ReadonlyArray<{ readonly lapicId: number; readonly pcpu: number }>;
  /** Where memory that is no RAM begins, if functions of the host bring some. */
  reservedBelow?(): Gpa | undefined;
  /** What the device has outside over all lives of the VM, by a name. */
  readonly keep: KeptOverLives['keep'];
}

export interface PlatformDriver<Name extends string = string, S extends OptionSchema = OptionSchema> {
  /** Of the option, without dashes. */
  readonly name: Name;
  /** Where --help lists it. */
  readonly group: 'Devices' | 'Real time';
  /** The value as help shows it; a flag has none. */
  readonly arg?: string;
  readonly summary: string;
  readonly options: S;
  /** The option has a value only if the next word looks like one: for old scripts that give it none. */
  readonly argPattern?: RegExp;
  /** Given several times it means several devices; otherwise the last counts. */
  readonly isList?: boolean;
  /** @param text empty for a flag. @throws ConfigError; its message goes on after `--name: `. */
  parseText(text: string): Record<string, unknown>;
  /** Why these options mean no device at all, if they do. */
  ignored?(options: v.InferOutput<S>): string | undefined;
  /** What of the text means nothing, lines for people: C does not say so. */
  passedOver?(text: string): readonly string[];
  /** For a list: the device of an earlier option with what this one adds to it, or undefined if it is another device. */
  merge?(earlier: v.InferOutput<S>, added: v.InferOutput<S>): v.InferOutput<S> | undefined;
  /** What cannot be together in one machine. Asked once for every device of this driver. @throws ConfigError */
  check?(all: readonly PlatformDeviceConfig[]): void;
  /**
   * Look at what the host must have, before the hypervisor is asked for a VM.
   * @throws ConfigError; its message goes on after `--name: `.
   */
  inspectHost?(options: v.InferOutput<S>): void;
  /** Whether the hypervisor can do that at all, before it is asked for a VM. @throws ConfigError */
  checkHypervisor?(offers: HypervisorOffers): void;
  /** What of the host two devices of one VM cannot both have. Looks at files by their names only. */
  claims?(options: v.InferOutput<S>): readonly HostClaim[];
  /** Nothing on the host is touched here: that is for `start`. */
  create(options: v.InferOutput<S>, env: PlatformEnv): PlatformDevice | Promise<PlatformDevice>;
}

/** Keeps the options' type between schema and `create`. */
export function definePlatformDriver<const Name extends string, S extends OptionSchema>(
  driver: PlatformDriver<Name, S>,
): PlatformDriver<Name, S> {
  return driver;
}
