/**
 * The process of a VM, as signals and the API see it: it runs one VM after the other, or none yet, and ends when it was
 * told to or when nothing is left to wait for.
 */
import type { GenericSchema } from 'valibot';
import { defaultDeviceId } from '../control/api/device-ids.ts';
import type { ChConfig, DiskWords, LogControl, RunningGuest, Vmm } from '../control/api/vmm.ts';
import { openApiDoor } from '../control/api-door.ts';
import { type CrashReport, crashReport, writeCrashReport } from '../control/crash-report.ts';
import { openEventMonitor } from '../control/event-monitor.ts';
import { EventStream } from '../control/event-stream.ts';
import type { FrontDoor } from '../control/front-doors.ts';
import type { ServiceManager } from '../control/service-manager.ts';
import { connectSignals } from '../control/signals.ts';
import type { VmCommandArgs, VmCommandName, VmCommandResult, VmCommands } from '../control/vm-commands.ts';
import { claimName } from '../control/vm-folder.ts';
import { defaultApiSocket } from '../control/vm-paths.ts';
import type { AfterEnd, ApiSocket, EventMonitorTarget, VmConfig } from '../devicemodel/core/config.ts';
import type { PowerEvent } from '../devicemodel/core/device.ts';
import { ExitCode, RefusedError } from '../devicemodel/core/errors.ts';
import { isObserved, leaveThreadBehind } from '../devicemodel/core/host/exit-hooks.ts';
import { ignoreOtherSignals } from '../devicemodel/core/host/signals.ts';
import { type Log, LogLevel } from '../devicemodel/core/log.ts';
import { LogTail } from '../devicemodel/core/log-tail.ts';
import { monotonicMs } from '../devicemodel/core/monotonic.ts';
import { DEFAULT_SHUTDOWN_TIMEOUT_MS } from '../devicemodel/core/vm.ts';
import type { GuestCrash } from '../devicemodel/core/vm-events.ts';
import { Launch } from '../library/launcher.ts';
import { version } from './version.ts';

export interface VmmOptions {
  readonly log: Log;
  readonly apiSocket?: ApiSocket | undefined;
  readonly eventMonitor?: EventMonitorTarget | undefined;
  readonly socketGroup?: string | undefined;
  readonly afterEnd?: AfterEnd | undefined;
  /** What the body of vm.create may be. */
  readonly createSchema: () => Promise<GenericSchema>;
  readonly disks: () => Promise<DiskWords>;
  /** The body of vm.create as a VM that was checked. @throws ConfigError, RefusedError. */
  readonly checkedVm: (body: unknown) => Promise<{ readonly vm: VmConfig; readonly ch: ChConfig }>;
}

export class ProcessVmm implements Vmm {
  readonly version = version();
  readonly events = new EventStream();
  readonly log: LogControl;
  readonly #options: VmmOptions;
  readonly #doors: FrontDoor[] = [];
  /** Whether somebody can give orders to a process without a guest. */
  #hasApi = false;
  #service: ServiceManager | undefined;
  #signals: FrontDoor | undefined;
  #launch: Launch | undefined;
  #launchedMs = 0;
  readonly #addedIds = new Map<string, string>();
  #vm: VmConfig | undefined;
  #config: ChConfig | undefined;
  /** The name is taken as long as the API, which is in its folder, is there. */
  #releaseName: () => void = () => {};
  hasRun = false;
  crash: CrashReport | undefined;
  /** The API in the folder of the name, until it is there. */
  #opening: Promise<void> = Promise.resolve();
  /** Reports that are being written. */
  #writing: Promise<void> = Promise.resolve();
  #ended: Promise<PowerEvent> | undefined;
  #isQuitting = false;
  /** It was started without a VM, or stayed after its own: it goes on after each that the API brings. */
  #isServing = false;
  /** Whose folder has the API; one process does not answer under two names. */
  #nameOfDoor: string | undefined;
  /** Ends the process. */
  #finish: (code: ExitCode) => void = () => {};
  readonly #finished = new Promise<ExitCode>((resolve) => {
    this.#finish = resolve;
  });

  constructor(options: VmmOptions) {
    this.#options = options;
    this.log = controlOf(options.log);
  }

  // ---- for the program

  /** The VM of a command line, to its end and what `afterEnd` says. @throws DmError if it cannot start or has to be given up. */
  async runVm(vm: VmConfig): Promise<ExitCode> {
    // Before there is anything that a stray signal would leave behind.
    ignoreOtherSignals();
    this.#vm = vm;
    this.#config = chConfigOf(vm);
    this.events.emit('vmm', 'starting');
    try {
      await this.#openAskedFor();
      const ended = this.#run(vm);
      this.#ended = ended;
      const event = await ended;
      if (this.#stays(event)) {
        this.#isServing = true;
        return await this.#finished;
      }
      return exitCodeOf(event);
    } finally {
      await this.#close();
    }
  }

  /** No VM yet: vm.create and vm.boot bring one. */
  async serve(): Promise<ExitCode> {
    this.events.emit('vmm', 'starting');
    this.#isServing = true;
    this.#connectSignals();
    try {
      await this.#openAskedFor();
      this.#service?.ready();
      return await this.#finished;
    } finally {
      await this.#close();
    }
  }

  /** Something unforeseen was thrown: pause and destroy the VM at once, without waiting for anything. Safe at any time. */
  abandon(): void {
    this.#launch?.abandon();
    this.#launch = undefined;
  }

  // ---- Vmm

  get config(): ChConfig | undefined {
    return this.#config;
  }

  get guest(): RunningGuest | undefined {
    const launch = this.#launch;
    if (launch === undefined) return undefined;
    const { vm, commands, hypervisor, lines, counters } = launch;
    const { state, config } = vm;
    const launchedMs = this.#launchedMs;
    return { config, hypervisor, state, commands, lines, counters, launchedMs, addedIds: this.#addedIds };
  }

  createSchema(): Promise<GenericSchema> {
    return this.#options.createSchema();
  }

  disks(): Promise<DiskWords> {
    return this.#options.disks();
  }

  async create(body: unknown): Promise<void> {
    if (this.#config !== undefined) {
      throw new RefusedError('wrong-state', 'there is a VM already', { hint: 'vm.delete takes it away' });
    }
    const { vm, ch } = await this.#options.checkedVm(body);
    if (this.#nameOfDoor !== undefined && vm.name !== this.#nameOfDoor) {
      throw new RefusedError('impossible', `the API of this process is the one of "${this.#nameOfDoor}"`, {
        hint: `give the VM that name, or start a process of its own: acrn-dm --api-socket PATH`,
      });
    }
    this.#vm = vm;
    this.#config = ch;
    this.hasRun = false;
    this.events.emit('vm', 'created', { name: vm.name });
  }

  async boot(): Promise<void> {
    const vm = this.#vm;
    if (vm === undefined || this.#launch !== undefined || this.#isQuitting) {
      throw new RefusedError('wrong-state', vm === undefined ? 'there is no VM to boot' : 'the VM runs already');
    }
    const ended = this.#run(vm);
    this.#ended = ended;
    // The end of a VM that was booted by the API is told by its events; whether it began, by the answer.
    ended.then(
      (event) => this.#isQuitting && this.#finish(exitCodeOf(event)),
      (error: Error) =>
        this.#isQuitting && this.#finish((error as { exitCode?: ExitCode }).exitCode ?? ExitCode.VmFailed),
    );
    await new Promise<void>((resolve, reject) => {
      const stop = this.events.listen(({ source, event }) => {
        if (source === 'vm' && event === 'booted') resolve();
      });
      ended.then(() => resolve(), reject).finally(stop);
    });
  }

  async remove(): Promise<void> {
    this.#launch?.commands.run('power-off', { reason: 'vm.delete' });
    await this.#ended?.catch(() => {});
    this.#vm = undefined;
    this.#config = undefined;
    this.hasRun = false;
    this.events.emit('vm', 'deleted');
  }

  quit(): void {
    this.#isQuitting = true;
    if (this.#launch === undefined) this.#finish(ExitCode.Ok);
    else this.#launch.commands.run('power-off', { reason: 'vmm.shutdown' });
  }

  // ---- one VM

  async #run(vm: VmConfig): Promise<PowerEvent> {
    const { log, apiSocket } = this.#options;
    this.#freeName();
    this.#releaseName = claimName(vm.name, log, apiSocket?.kind === 'path' ? apiSocket.path : undefined);
    let stopFollowing: (() => void) | undefined;
    try {
      this.#launchedMs = monotonicMs();
      this.#addedIds.clear();
      const launch = await Launch.prepare(vm, { log, ownsThread: true, onCommands: () => this.#connectSignals() });
      this.#launch = launch;
      // Its guest's code is compiled aside, for seconds on a busy machine, and is of no use once the VM is gone.
      if (launch.hypervisor === 'soft' && !isObserved()) leaveThreadBehind();
      stopFollowing = this.events.follow(launch.vm);
      launch.vm.on('crash', (crash) => this.#report(crash));
      launch.vm.once('started', () => this.#openDefaultDoor(vm));
      const event = await launch.run();
      this.events.emit('vmm', 'stopped', { kind: event.kind, reason: event.reason });
      this.#service?.ended(this.#stays(event));
      return event;
    } catch (error) {
      this.events.emit('vmm', 'error', { message: (error as Error).message });
      throw error;
    } finally {
      this.#launch = undefined;
      this.hasRun = true;
      stopFollowing?.();
      // The default API is in the folder of the name: then both go at the end.
      if (this.#options.apiSocket !== undefined) this.#freeName();
    }
  }

  /** Kept for whoever asks, and written where `--crash-dump` says. */
  #report(crash: GuestCrash): void {
    const { guest } = this;
    if (guest === undefined) return;
    this.events.emit('vm', 'crashed', { cause: crash.cause });
    const report = crashReport(crash, guest, this.log.tail.lines);
    this.crash = report;
    const { crashDumpPath } = guest.config;
    if (crashDumpPath === undefined) return;
    this.#writing = this.#writing.then(() => writeCrashReport(report, crashDumpPath, this.#options.log));
  }

  /** Whether the process waits for orders once this VM is gone. */
  #stays(event: PowerEvent): boolean {
    const { onPoweroff = 'exit', onReboot = 'restart', onCrash = 'exit' } = this.#options.afterEnd ?? {};
    if (this.#isQuitting || !this.#hasApi) return false;
    if (this.#isServing) return true;
    if (event.kind !== 'poweroff') return false;
    if (event.by === 'triple-fault' || event.by === 'watchdog') return onCrash === 'stay';
    return (event.instead === 'reset' ? onReboot : onPoweroff) === 'stay';
  }

  // ---- doors

  #connectSignals(): void {
    this.#signals ??= connectSignals(this.#signalCommands);
  }

  /** For signals, which are for the process: it ends with the VM there is, or at once where there is none. */
  readonly #signalCommands: VmCommands = {
    run: <N extends VmCommandName>(name: N, args: VmCommandArgs<N>) => {
      if (name === 'shutdown') this.#service?.stopping(this.#vm?.shutdownTimeoutMs ?? DEFAULT_SHUTDOWN_TIMEOUT_MS);
      if (name === 'shutdown' || name === 'power-off') this.#isQuitting = true;
      const commands = this.#launch?.commands ?? this.#commandsOfNobody;
      return commands.run(name, args);
    },
  };
  readonly #commandsOfNobody: VmCommands = {
    run: <N extends VmCommandName>() => this.quit() as VmCommandResult<N>,
  };

  async #openAskedFor(): Promise<void> {
    const { apiSocket, eventMonitor } = this.#options;
    if (eventMonitor !== undefined) this.#doors.push(openEventMonitor(eventMonitor, this.events, this.#options.log));
    await this.#openServiceManager();
    if (apiSocket !== undefined && apiSocket.kind !== 'off') await this.#openApi(apiSocket);
  }

  /** Where systemd started us and waits to hear of the guest. */
  async #openServiceManager(): Promise<void> {
    if ((process.env['NOTIFY_SOCKET'] ?? '') === '') return;
    const { ServiceManager } = await import('../control/service-manager.ts');
    this.#service = new ServiceManager({
      events: this.events,
      vmName: this.#vm?.name ?? 'no VM',
      threads: () => this.#launch?.vm.threads,
    });
    this.#doors.push(this.#service);
  }

  /** Nobody can know of it before the guest runs, so nothing waits for it. */
  #openDefaultDoor(vm: VmConfig): void {
    if (this.#options.apiSocket !== undefined) return;
    const opened = this.#openApi({ kind: 'path', path: defaultApiSocket(vm.name) });
    this.#nameOfDoor = vm.name;
    this.#opening = opened.catch((error: Error) => {
      this.#options.log.debug(`the API of this VM is not there: ${error.message}`);
    });
  }

  async #openApi(at: Exclude<ApiSocket, { readonly kind: 'off' }>): Promise<void> {
    const { log, socketGroup } = this.#options;
    const door = await openApiDoor({ at, socketGroup, vmm: this, log: log.child('api') });
    this.#doors.push(door);
    this.#hasApi = true;
  }

  #freeName(): void {
    this.#releaseName();
    this.#releaseName = () => {};
  }

  async #close(): Promise<void> {
    this.#signals?.close();
    await this.#writing;
    // The guest may be through before its process comes to hear that it listens.
    await this.#opening;
    for (const door of this.#doors.splice(0).reverse()) await door.close();
    this.#freeName();
  }
}

/** From now on its newest lines are kept. */
function controlOf(log: Log): LogControl {
  const tail = new LogTail();
  log.addSink(tail);
  return {
    tail,
    get levels() {
      return log.levels;
    },
    setLevel: (level, sink) => {
      tail.maxLevel = Math.max(level, LogLevel.info);
      return log.setLevel(level, sink);
    },
  };
}

/** 0 after a power-off, 3 after a triple fault; or what the guest says to a test device. */
function exitCodeOf(event: PowerEvent): ExitCode {
  if (event.kind !== 'poweroff') return ExitCode.Ok;
  if (event.status !== undefined) return (event.status & 0xff) as ExitCode;
  return event.by === 'triple-fault' ? ExitCode.TripleFault : ExitCode.Ok;
}

/** What a client of Cloud Hypervisor's dialect may read of a VM that a command line described. */
function chConfigOf({ memoryBytes, boot, pci }: VmConfig): ChConfig {
  const payload =
    boot?.kind === 'bzimage'
      ? { kernel: boot.kernelPath, cmdline: boot.bootargs ?? '', initramfs: boot.ramdiskPath }
      : { kernel: boot?.kind === 'elf' ? boot.imagePath : undefined };
  const disks = pci.flatMap(({ driver, options, bdf }) => {
    if (driver !== 'virtio-blk') return [];
    const { path, ro } = options as { path: string; ro?: boolean };
    return path === '' ? [] : [{ path, readonly: ro === true, id: defaultDeviceId(driver, bdf) }];
  });
  const net = pci.flatMap(({ driver, options, bdf }) => {
    const { tap } = options as { tap?: string };
    return driver === 'virtio-net' && tap !== undefined ? [{ tap, id: defaultDeviceId(driver, bdf) }] : [];
  });
  return { cpus: { boot_vcpus: 1, max_vcpus: 1 }, memory: { size: memoryBytes }, payload, disks, net };
}
