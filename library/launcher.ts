/**
 * Puts the parts of a User VM together and runs it to its end: the program and the library launch VMs this way. Whatever
 * belongs to the process (signals, standard input, a window) is claimed by a launch and given back, so that several VMs can run.
 */
import { checkHypervisor } from '../config/preflight.ts';
import { FrontDoors } from '../control/front-doors.ts';
import { openFrontDoors } from '../control/open-front-doors.ts';
import { type CommandTarget, commandsOf, type VmCommands } from '../control/vm-commands.ts';
import { openSoftware, splitRam } from '../devicemodel/core/boot/loader.ts';
import type { CharBackend, TappableLine } from '../devicemodel/core/char-backend.ts';
import type { VmConfig } from '../devicemodel/core/config.ts';
import { CounterBook } from '../devicemodel/core/counters.ts';
import type { PowerEvent } from '../devicemodel/core/device.ts';
import { Disposer } from '../devicemodel/core/disposer.ts';
import { BugError } from '../devicemodel/core/errors.ts';
import type { GuestLoop } from '../devicemodel/core/guest-loop.ts';
import { onProcessExit } from '../devicemodel/core/host/exit-hooks.ts';
import { KeptOverLives } from '../devicemodel/core/kept-over-lives.ts';
import type { Log } from '../devicemodel/core/log.ts';
import { Vm } from '../devicemodel/core/vm.ts';
import { pcBoard } from '../devicemodel/hw/board.ts';
import { WindowClaim } from '../devicemodel/hw/display/sdl/window-claim.ts';
import { ManagedFunctions } from '../devicemodel/hw/pci/passthru/managed.ts';
import { CharBackendPool } from '../devicemodel/hw/uart/backends/pool.ts';
import { StdioClaim } from '../devicemodel/hw/uart/backends/stdio.ts';
import { chooseHypervisor } from '../hypervisor/choose.ts';
import { makeDisplay } from './open-display.ts';

export interface LaunchOptions {
  readonly log: Log;
  /** See hypervisor/choose.ts. */
  readonly ownsThread?: boolean;
  /** Called with the commands before anything can be asked of the VM. */
  readonly onCommands?: (commands: VmCommands) => void;
  /** A back end that only this launch knows. @returns undefined for all others. */
  readonly ownBackend?: (user: string, text: string) => CharBackend | undefined;
}

/** This process has one standard input. */
const stdioOfProcess = new StdioClaim();
/** And one window. */
const windowOfProcess = new WindowClaim();

export class Launch {
  readonly vm: Vm;
  readonly commands: VmCommands;
  readonly hypervisor: string;
  /** What its devices count. */
  readonly counters: CounterBook;
  readonly #consoles: CharBackendPool;
  readonly #loop: GuestLoop;
  readonly #openDoors: () => Promise<void>;
  readonly #managed: ManagedFunctions;
  readonly #undo: Disposer;

  private constructor({ vm, commands, hypervisor, counters, consoles, loop, openDoors, managed, undo }: Parts) {
    this.vm = vm;
    this.commands = commands;
    this.hypervisor = hypervisor;
    this.counters = counters;
    this.#consoles = consoles;
    this.#loop = loop;
    this.#openDoors = openDoors;
    this.#managed = managed;
    this.#undo = undo;
  }

  /** Everything that can be done before the hypervisor is asked for a VM. @throws DmError; nothing is left then. */
  static async prepare(config: VmConfig, options: LaunchOptions): Promise<Launch> {
    const undo = new Disposer();
    try {
      return await assemble(config, options, undo, (parts) => new Launch(parts));
    } catch (error) {
      await undo.run();
      throw error;
    }
  }

  /** Its serial ports and consoles. */
  get lines(): readonly TappableLine[] {
    return this.#consoles.lines;
  }

  /** Once. @returns how the VM ended. @throws DmError after everything was released. */
  async run(): Promise<PowerEvent> {
    try {
      await this.#openDoors();
      return await this.vm.run();
    } finally {
      await this.#undo.run();
    }
  }

  /** Something unforeseen happened: pause and destroy the VM at once, without waiting for anything. Safe at any time. */
  abandon(): void {
    this.vm.abandon();
    // The VM had them until now.
    this.#managed.giveBackNow();
    this.#loop.stopNow();
  }
}

interface Parts {
  readonly vm: Vm;
  readonly commands: VmCommands;
  readonly hypervisor: string;
  readonly counters: CounterBook;
  readonly consoles: CharBackendPool;
  readonly loop: GuestLoop;
  readonly openDoors: () => Promise<void>;
  readonly managed: ManagedFunctions;
  readonly undo: Disposer;
}

async function assemble(
  config: VmConfig,
  { log, ownsThread = false, onCommands, ownBackend }: LaunchOptions,
  undo: Disposer,
  make: (parts: Parts) => Launch,
): Promise<Launch> {
  if (config.boot === undefined) throw new BugError('a VM without a boot image was let through');
  const hypervisor = await chooseHypervisor(config, log, { ownsThread });
  checkHypervisor(config, hypervisor);
  const [problem] = await hypervisor.problems(config);
  if (problem !== undefined) throw problem;
  const cpus = hypervisor.cpus(config, log);
  const software = openSoftware(config.boot, splitRam(config.memoryBytes), log);
  undo.defer(() => software.close());
  const loop = await hypervisor.loop(log);
  undo.defer(() => loop.stop());
  const counters = new CounterBook();
  const consoles = new CharBackendPool({
    log,
    counters,
    socketGroup: config.socketGroup,
    requestTurn: () => loop.requestTurn(),
    onQuit: () => commands.run('power-off', { reason: 'Ctrl-a x' }),
    stdioClaim: stdioOfProcess,
    ...(ownBackend === undefined ? {} : { ownBackend }),
  });
  undo.defer(() => consoles.dispose());
  const managed = new ManagedFunctions(log);
  const shown = await makeDisplay(config, log, windowOfProcess);
  const kept = new KeptOverLives();
  undo.defer(() => kept.close());
  const vm = new Vm(config, {
    openHsm: () => hypervisor.open(config, log),
    makeBoard: pcBoard({
      consoles,
      lapicIds: cpus.lapicIds,
      managed,
      kept,
      counters,
      ...(shown === undefined ? {} : { display: shown.display }),
    }),
    software,
    cpuAffinity: cpus.affinity,
    loop,
    counters,
    log,
  });
  const target: CommandTarget = { vm };
  const commands = commandsOf(target);
  onCommands?.(commands);
  const doors = new FrontDoors(vm.ending);
  undo.defer(() => doors.close());
  const parts = { vm, target, commands, clock: loop.clock, consoles, log };
  const openDoors = async () => {
    if (shown !== undefined) await doors.add(() => shown.open());
    await openFrontDoors(doors, parts);
  };
  const launch = make({
    vm,
    commands,
    hypervisor: hypervisor.kind,
    counters,
    consoles,
    loop,
    openDoors,
    managed,
    undo,
  });
  // A VM that outlives its device model unpaused damages the driver's list of VMs.
  undo.defer(onProcessExit(() => launch.abandon()));
  undo.defer(() => managed.giveBack(vm.forcing));
  return launch;
}
