/** What the API asks of the process it is in: the VM that runs or will, and the process's own life. */
import type { GenericSchema } from 'valibot';
import type { TappableLine } from '../../devicemodel/core/char-backend.ts';
import type { VmConfig } from '../../devicemodel/core/config.ts';
import type { CounterBook } from '../../devicemodel/core/counters.ts';
import type { Log } from '../../devicemodel/core/log.ts';
import type { LogTail } from '../../devicemodel/core/log-tail.ts';
import type { VmState } from '../../devicemodel/core/vm-events.ts';
import type { CrashReport } from '../crash-report.ts';
import type { EventStream } from '../event-stream.ts';
import type { VmCommands } from '../vm-commands.ts';

export interface RunningGuest {
  readonly config: VmConfig;
  readonly hypervisor: string;
  readonly state: VmState;
  readonly commands: VmCommands;
  readonly lines: readonly TappableLine[];
  /** What its devices count. */
  readonly counters: Pick<CounterBook, 'all'>;
  /** `monotonicMs()` when it was launched. */
  readonly launchedMs: number;
  /** What vm.add-disk called the devices that got a medium, by the slot `bb:dd.f`. */
  readonly addedIds: Map<string, string>;
}

/** The log of the process. */
export interface LogControl {
  readonly tail: Pick<LogTail, 'lines' | 'listen'>;
  readonly levels: Log['levels'];
  /** @param sink undefined: all there are. @returns whether there is one. */
  setLevel(level: number, sink?: string): boolean;
}

/** As Cloud Hypervisor writes a VM; whatever members its client gave. */
export type ChConfig = Readonly<Record<string, unknown>>;

/** The disk of vm.create and vm.add-disk, in the dialect's words. */
export interface DiskWords {
  readonly schema: GenericSchema<unknown, AddedDisk>;
  /** @returns `PATH[,ro][,nocache]`. @throws ConfigError, RefusedError for what there is not. */
  mediumOf(disk: AddedDisk): string;
}

export interface AddedDisk {
  readonly path: string;
  readonly id?: string | null | undefined;
}

export interface Vmm {
  readonly version: string;
  readonly events: EventStream;
  readonly log: LogControl;
  /** The VM that there is: being built, running or ending. */
  readonly guest: RunningGuest | undefined;
  /** Of the VM that there is, or that {@link boot} would make; undefined: none was created. */
  readonly config: ChConfig | undefined;
  /** Whether a guest of this configuration ran, and is gone. */
  readonly hasRun: boolean;
  /** Of the guest that was given up last. */
  readonly crash: CrashReport | undefined;
  /** What {@link create} takes, for the API's document. */
  createSchema(): Promise<GenericSchema>;
  /** What a disk is that comes while the guest runs. */
  disks(): Promise<DiskWords>;
  /** @throws ConfigError for a configuration that cannot be, RefusedError when there is a VM. */
  create(config: unknown): Promise<void>;
  /** @returns once the guest runs. @throws RefusedError, ConfigError, HostError. */
  boot(): Promise<void>;
  /** End the guest at once if there is one, and forget the configuration. */
  remove(): Promise<void>;
  /** End the process, and the guest with it. */
  quit(): void;
}

/** Of the VM, whether there is a guest or not; `none`: there is not even a configuration. */
export function stateOf({ guest, config, hasRun }: Pick<Vmm, 'guest' | 'config' | 'hasRun'>): VmState | 'none' {
  return guest?.state ?? (config === undefined ? 'none' : hasRun ? 'ended' : 'created');
}
