/** One object per driver: its name on the command line, its options, and how a function is made from them. */
import type * as v from 'valibot';
import type { Bdf } from '../../core/address.ts';
import type { CharBackend } from '../../core/char-backend.ts';
import type { Clock } from '../../core/clock.ts';
import type { PciSlotConfig } from '../../core/config.ts';
import type { CounterKind, Counters } from '../../core/counters.ts';
import type { InterruptLine, MsiSink, PowerControl } from '../../core/device.ts';
import type { ConfigError } from '../../core/errors.ts';
import type { Aml } from '../../core/firmware/aml.ts';
import type { HostClaim } from '../../core/host-claims.ts';
import type { Hsm, HypervisorOffers } from '../../core/hsm/hsm.ts';
import type { IoBus } from '../../core/io-bus.ts';
import type { Log } from '../../core/log.ts';
import type { GuestMemory } from '../../core/memory.ts';
import type { OptionSchema } from '../../core/options.ts';
import type { EndSignals } from '../../core/power.ts';
import type { Waits } from '../../core/waits.ts';
import type { Display } from '../display/display.ts';
import type { InputHub } from '../input/input-hub.ts';
import type { CharBackendSpec } from '../uart/backends/spec.ts';
import type { SecondaryBus } from './buses.ts';
import type { PciFunction } from './function.ts';
import type { ManagedFunctions } from './passthru/managed.ts';

/** POSIX shared memory of the host, mapped into this process. */
export interface SharedMemory {
  readonly bytes: Uint8Array;
  readonly hostAddress: bigint;
  /** Bring back now what another process cut off, before the hypervisor takes the pages. */
  mend(): void;
  /** Be told, in words for the log, that another process cut it. @returns how to stop. */
  onCut(listener: (line: string) => void): () => void;
  /** Unmap and close; the object itself stays for its other users. */
  dispose(): void;
}

/** What was found on the host for the functions of one driver, before a VM is asked for. */
export interface HostFindings {
  /** Reasons why the VM cannot start. */
  readonly problems: readonly ConfigError[];
  /** What is likely to cause trouble, one line each. */
  readonly warnings: readonly string[];
}

/** A host whose devices are looked at. */
export interface HostTree {
  /** Where `sys` is: empty for this machine, a directory for a saved tree. */
  readonly root: string;
  /** Only looked at: a device that is not there is no obstacle. */
  readonly isPlan: boolean;
}

export interface SharedMemoryProvider {
  /**
   * Open `/dev/shm/NAME` (owner only), creating it with this size if it is not there.
   * @throws HostError if it cannot be opened or has another size.
   */
  openSharedMemory(name: string, sizeBytes: number): SharedMemory;
}

/** The PIRQ link registers behind the LPC bridge's configuration space. */
export interface PirqLinks {
  /** @param link 1..8, PIRQA first. @returns 0x80 if disabled, else the ISA irq. */
  readLink(link: number): number;
  writeLink(link: number, value: number): void;
}

/** The wires of one PCI function. */
export interface PciEnv {
  readonly bdf: Bdf;
  readonly hsm: Hsm;
  readonly memory: GuestMemory;
  readonly clock: Clock;
  readonly log: Log;
  readonly msi: MsiSink;
  readonly power: PowerControl;
  readonly waits: Waits;
  /**
   * Legacy interrupt: takes a pin (INTA# first) and a line on first call; the same line on later calls. Level, active
   * low at the IOAPIC.
   */
  intx(): InterruptLine;
  /**
   * The bus below this function, which has to be on bus 0: takes a number on the first call, the same on later calls
   * until it is released. @throws ConfigError when all numbers are taken.
   */
  secondaryBus(): SecondaryBus;
  /**
   * Open a character back end by its option text (`stdio`, `pty`, `tcp:PORT`, a path…), or as parsed from one.
   * @param part which one, for a device with several: `port 1`. Kept across a full reset by device and part.
   */
  charBackend(spec: string | CharBackendSpec, part?: string): CharBackend;
  /**
   * Counters of this function, which go on over a full reset.
   * @param part which one, for a device with several: the number of a port.
   */
  counters<K extends CounterKind>(kind: K, part?: number): Counters<K>;
  /** For a function with registers that move ports of its own; absent in tests. */
  readonly pio?: IoBus;
  /** Which host functions are passed through from; default: this machine, in earnest. */
  readonly hostTree?: HostTree;
  /** For what takes long. */
  readonly end?: EndSignals;
  /** Functions of the host that were taken from their drivers, for all lives of the VM; absent in a plan. */
  readonly managed?: ManagedFunctions;
  /** The key of the guest's replay protected memory, which its firmware is given, too; the same for one life. */
  readonly rpmbKey?: () => Uint8Array;
  /** What a display controller shows its pictures on; absent where the VM has no display: nobody looks then. */
  readonly display?: Display;
  /** Where a keyboard or pointer of the guest registers to be told what a person does at a display. */
  readonly input?: InputHub;
  /** Absent where the host has none. */
  readonly sharedMemory?: SharedMemoryProvider;
  /** Absent where nothing routes legacy interrupts. */
  readonly pirqLinks?: PirqLinks;
  /** AML of what sits behind the ISA bridge; absent where nothing collects it. */
  readonly isaDevices?: () => readonly Aml[];
  /** Machine-wide choices that some drivers follow. */
  readonly machine: {
    readonly vmName: string;
    readonly windows: boolean;
    readonly virtioMsi: boolean;
    readonly virtioPollNs: number | undefined;
    readonly hasOvmf: boolean;
    readonly isRtvm: boolean;
    /** The hypervisor's number of the VM, where known. */
    readonly vmid?: number;
    /** Virtual CPUs, where known: devices make no more queues than that. */
    readonly vcpuCount?: number;
  };
}

/** What a look at the host goes by. */
export interface CheckContext {
  readonly isRtvm: boolean;
  readonly hostTree: HostTree;
  /** As it was asked for. */
  readonly hypervisor?: string;
}

/** What the command line, help and the option reference need of a driver: a small module for a driver that is not. */
export interface PciDriverInfo<S extends OptionSchema = OptionSchema> {
  readonly name: string;
  /** Other names it is known by. */
  readonly aliases?: readonly string[];
  readonly summary: string;
  readonly options: S;
  /** At most one in a machine. */
  readonly isSingle?: boolean;
  /** Text that begins with none of its options is ignored, as that of drivers without options: C reads none of it. */
  readonly ignoresOddText?: boolean;
  /** It has a bus below it, for slots `BUS:0:FUNCTION` of other drivers. */
  readonly isBridge?: boolean;
  /** Its functions need I/O ports of the host: they are placed before all others of their bus. */
  readonly claimsHostPorts?: boolean;
  /**
   * For grammars the comma rule does not cover.
   * @param text everything after `driver,`
   * @param isGiven there was the comma; default: the text is not empty
   */
  parseText?(text: string, isGiven?: boolean): Record<string, unknown>;
  /** Between two options; default: a comma. */
  readonly itemSeparator?: RegExp;
  /** What of the options means nothing, or something else than is written: C does not say so. Lines for people. */
  passedOver?(options: v.InferOutput<S>): readonly string[];
  /** @throws ConfigError for a device that the hypervisor would have to offer and does not. */
  checkHypervisor?(offers: HypervisorOffers): void;
  /**
   * What has to be there on the host, by path. Not for parsing, which works on any machine: looked at when a VM is about
   * to be started, before the hypervisor is asked for one.
   */
  hostPaths?(options: v.InferOutput<S>): readonly string[];
  /** Calls into the host, beside those on `hostPaths`, that may block for long at one time; default: none. */
  hangingCalls?(options: v.InferOutput<S>): number;
  /** What the `hostPaths` have to be. Reads only. @throws ConfigError */
  inspectHost?(options: v.InferOutput<S>): void;
  /** The same for all functions of the driver in one VM together. @throws ConfigError */
  inspectAll?(all: readonly v.InferOutput<S>[]): void;
  /** What of the host two functions of one VM cannot both have. Looks at files by their names only. */
  claims?(options: v.InferOutput<S>): readonly HostClaim[];
  /** As `hostPaths`, for all functions of the driver in one VM, and for what is more than a path. Reads only. */
  checkHost?(slots: readonly PciSlotConfig[], context: CheckContext): Promise<HostFindings>;
}

export interface PciDriver<S extends OptionSchema = OptionSchema> extends PciDriverInfo<S> {
  /** Other functions that its function needs beside it, where their slots are free. Looks at the host at most. */
  companions?(options: v.InferOutput<S>, hostTree: HostTree): readonly PciSlotConfig[];
  /** Nothing on the host is touched here: files and taps open in `start`. */
  create(options: v.InferOutput<S>, env: PciEnv): PciFunction;
}

/** Keeps the options' type between schema and `create`. */
export function definePciDriver<S extends OptionSchema>(driver: PciDriver<S>): PciDriver<S> {
  return driver;
}

/** The same for the part that stands with the options. */
export function describePciDriver<S extends OptionSchema>(info: PciDriverInfo<S>): PciDriverInfo<S> {
  return info;
}
