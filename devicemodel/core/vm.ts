/**
 * One User VM from its configuration to its end. A *life* is what one HSM descriptor stands for: a full reset ends a
 * life and begins another in the same process, a system reset and a suspend stay within one.
 *
 *   created → running ⇄ (paused: reset | suspended) → ended
 *
 * Everything acquired is pushed to one undo stack at once, and undone in reverse on every way out.
 */
import { EventEmitter } from 'eventemitter3';
import type { Board, BoardFactory } from './board.ts';
import type { GuestSoftware } from './boot/loader.ts';
import type { VmConfig } from './config.ts';
import type { PowerControl, PowerEvent } from './device.ts';
import { Disposer } from './disposer.ts';
import { DmError, ExitCode, HostError, StoppedError, StorageHangError } from './errors.ts';
import { allocateGuestRam, type GuestRam, type RamRequest } from './guest-ram.ts';
import { type Mapping, map } from './host/mapping.ts';
import { GuestFlag, type Hsm, type HsmOpener, type VcpuRegs, type WaitResult } from './hsm/hsm.ts';
import { initSharedBuffer } from './hsm/shared-buffer.ts';
import { IntrMonitor } from './intr-monitor.ts';
import { MmioBus, PioBus } from './io-bus.ts';
import { IOREQ_SLOTS } from './ioreq-page.ts';
import { IoreqServer } from './ioreq-server.ts';
import { Layout } from './layout.ts';
import type { Log } from './log.ts';
import { GuestMemory } from './memory.ts';
import type { TimerQueue } from './timer-queue.ts';
import { VmEventSource } from './vm-event-source.ts';
import type { VmEvent } from './vm-events.ts';
import { newWaits, type Waits } from './waits.ts';

/** How the event loop gets its share of the thread; see host/wakeups.ts. */
export interface HostTurns {
  readonly pending: boolean;
  turn(): Promise<void>;
  /** From here to `endRest` the event loop runs by itself, and need not be brought to a turn. */
  rest?(): void;
  endRest?(): void;
}

/** Looks at the request page a little longer before the thread sleeps. */
export interface RequestLook {
  look(hasPending: () => boolean): boolean;
  sleeping(): void;
  woken(): void;
}

export interface VmParts {
  readonly openHsm: HsmOpener;
  readonly makeBoard: BoardFactory;
  readonly software: Pick<GuestSoftware, 'regions' | 'load' | 'save'>;
  readonly cpuAffinity: bigint;
  /** Where guest RAM comes from unless the engine has its own; default: the host's huge pages. */
  readonly allocateRam?: (regions: readonly RamRequest[]) => GuestRam;
  readonly clock: TimerQueue;
  readonly turns: HostTurns;
  /** Looks for requests before sleeping; absent where sleeping costs nothing. */
  readonly linger?: RequestLook;
  /** What the hypervisor tells about the guest; devices have events of their own. */
  readonly onVmEvent?: (event: VmEvent) => void;
  readonly log: Log;
}

export type VmState = 'created' | 'running' | 'paused' | 'suspended' | 'ended';

interface VmEvents {
  state: [VmState];
  /** A new life begins to run: the guest was started for the first time, or anew after a full reset. */
  started: [];
}

const PAGE_BYTES = 4096;
const NS_PER_MS = 1e6;
/** During S3, the longest time until a timer is noticed that something else in the event loop has armed meanwhile. */
const SLEEP_TURN_MS = 500;
/** Real-mode start at the ACPI waking vector (ACPI 6.4 §16.3.1.1): CS:IP = vector>>4 : 0, flat descriptor tables. */
const REAL_MODE = { csAttributes: 0x9f, limit: 0xffff, cr0: 0x30n } as const;

export class Vm extends EventEmitter<VmEvents> {
  readonly config: VmConfig;
  readonly #parts: VmParts;
  readonly #log: Log;
  #life: Life | undefined;
  #state: VmState = 'created';

  constructor(config: VmConfig, parts: VmParts) {
    super();
    this.config = config;
    this.#parts = parts;
    this.#log = parts.log.child('vm');
  }

  get state(): VmState {
    return this.#state;
  }

  /** The board of the running life, for control commands. */
  get board(): Board | undefined {
    return this.#life?.board;
  }

  /** Ends, resets or suspends the VM from outside; takes effect after the request being served. */
  readonly power: PowerControl = { request: (event) => this.#life?.power.request(event) };

  /** Ends S3. No effect in any other state. */
  wake(): void {
    this.#life?.wake();
  }

  /**
   * Run until the guest powers off or someone asks for it. Full resets begin new lives inside.
   * @throws DmError after everything was released.
   */
  async run(): Promise<PowerEvent> {
    for (;;) {
      const life = new Life(this.config, this.#parts, (state) => this.#enter(state));
      this.#life = life;
      let event: PowerEvent;
      try {
        await life.configure();
        life.start();
        this.emit('started');
        event = await life.run();
      } catch (error) {
        if (error instanceof StoppedError && life.requested !== undefined) {
          this.#log.notice(`${life.requested.kind}: ${life.requested.reason}: ${error.message}`);
          await this.#end(life, false);
          return life.requested;
        }
        if (error instanceof DmError && life.hasAskedForVm) error.exitCode = ExitCode.VmFailed;
        if (error instanceof StorageHangError) return this.#endHung(life, error);
        await this.#end(life, false).catch((hang: Error) => this.#log.error(hang.message));
        throw error;
      }
      // A guest can reset itself as often as it likes; the end of the VM is always said.
      const line = `${event.kind}: ${event.reason}`;
      if (event.kind === 'poweroff') this.#log.notice(line);
      else this.#log.rationed('notice', () => line);
      event = (await this.#end(life, event.kind === 'full-reset')) ?? event;
      if (event.kind !== 'full-reset') return event;
    }
  }

  /**
   * Last resort when the process is about to go: pause and destroy the VM, now, without waiting for anything. A VM that
   * outlives its device model unpaused damages the driver's list of VMs.
   */
  abandon(): void {
    this.#life?.abandon();
    this.#life = undefined;
  }

  /** @returns the event that took the place of the one that ended this life. @throws StorageHangError */
  async #end(life: Life, isReset: boolean): Promise<PowerEvent | undefined> {
    try {
      await life.end(isReset);
    } catch (error) {
      if (error instanceof StorageHangError) return this.#endHung(life, error);
      // The guest is gone whatever failed here; what could not be released is said, and nothing is left out.
      const failures = error instanceof AggregateError ? error.errors : [error];
      for (const failure of failures) this.#log.error((failure as Error).message);
    } finally {
      this.#life = undefined;
      if (!isReset) this.#enter('ended');
    }
    return undefined;
  }

  /**
   * Storage does not give back what it has of the guest's memory: the VM is paused and destroyed, and nothing else is
   * released. @returns the event, if it was asked not to wait. @throws StorageHangError
   */
  #endHung(life: Life, error: StorageHangError): PowerEvent {
    life.abandon();
    this.#life = undefined;
    this.#enter('ended');
    if (life.forcedEnd === undefined) throw error;
    this.#log.warn(`${error.message}: not waited for`);
    return life.forcedEnd;
  }

  #enter(state: VmState): void {
    if (state === this.#state) return;
    this.#log.debug(`${this.#state} -> ${state}`);
    this.#state = state;
    this.emit('state', state);
  }
}

/** One life: one HSM descriptor, from CREATE_VM to DESTROY_VM. */
class Life {
  readonly #config: VmConfig;
  readonly #parts: VmParts;
  readonly #enter: (state: VmState) => void;
  readonly #undo = new Disposer();
  #hsm: Hsm | undefined;
  #memory: GuestMemory | undefined;
  #server: IoreqServer | undefined;
  #board: Board | undefined;
  #startRegs: VcpuRegs | undefined;
  #event: PowerEvent | undefined;
  #wakeUp: (() => void) | undefined;
  readonly #waits: Waits;
  #failure: Error | undefined;
  /** The end that was asked for by force. */
  forcedEnd: PowerEvent | undefined;
  /** Whether the hypervisor knows of this VM, or refused it. */
  hasAskedForVm = false;
  /** PAUSE_VM was done and the VM did not run since. */
  #isPaused = false;
  #isReset = false;
  readonly #stopListeners = new Set<() => void>();

  constructor(config: VmConfig, parts: VmParts, enter: (state: VmState) => void) {
    this.#config = config;
    this.#parts = parts;
    this.#enter = enter;
    this.#waits = newWaits((error) => {
      this.#failure ??= error;
      this.#wakeUp?.();
    }, config.ioTimeoutMs);
  }

  get board(): Board | undefined {
    return this.#board;
  }

  /** What was asked of it and not done yet. */
  get requested(): PowerEvent | undefined {
    return this.#event;
  }

  readonly power: PowerControl = {
    request: (event) => {
      if (event.kind === 'poweroff' && event.isForced === true) {
        this.forcedEnd = event;
        this.#waits.patience.force();
      }
      if (event.kind === 'poweroff') for (const listener of this.#stopListeners) listener();
      // The first one counts, but power-off from outside overrides a reset that is not under way yet.
      if (this.#event !== undefined && event.kind !== 'poweroff') return;
      this.#event = event;
      // The vCPU that asked must not run on: its request is dropped by CLEAR_VM_IOREQ instead of completed.
      if (this.#server !== undefined)
        this.#server.holdCompletions = event.kind === 'system-reset' || event.kind === 'suspend';
      this.#wakeUp?.();
    },
  };

  wake(): void {
    this.#wakeUp?.();
  }

  /** From nothing to a VM that could be started: the order is the C device model's. */
  async configure(): Promise<void> {
    const { log, clock } = this.#parts;
    const regions = this.#ramRegions();
    const hsm = await this.#parts.openHsm();
    this.#hsm = hsm;
    this.#undo.defer(() => hsm.close());
    const events = new VmEventSource({ log, onEvent: (event) => this.#parts.onVmEvent?.(event) });
    // Stopped after DESTROY_VM: until then the hypervisor may write to its page.
    this.#undo.defer(() => events.stop());
    const allocate = this.#parts.allocateRam ?? ((wanted) => allocateGuestRam(wanted, !this.#config.rtvm, log));
    const ram = hsm.engineRam === undefined ? allocate(regions) : undefined;
    if (ram !== undefined) this.#undo.add(ram);

    this.hasAskedForVm = true;
    const { vcpuCount } = await hsm.createVm({
      name: this.#config.name,
      flags: vmFlags(this.#config),
      cpuAffinity: this.#parts.cpuAffinity,
    });
    this.#undo.defer(() => this.#destroy(hsm));
    if (vcpuCount < 1 || vcpuCount > IOREQ_SLOTS) {
      throw new HostError(`the hypervisor gave this VM ${vcpuCount} vCPUs, 1 to ${IOREQ_SLOTS} can run`, 0, {
        exitCode: ExitCode.Unavailable,
        hint: 'check --cpu_affinity (local APIC ids of this machine) and the cpu_affinity of the scenario',
      });
    }
    if (hsm.asyncio !== undefined) {
      const page = this.#sharedPage('asyncio page', 8);
      if (!hsm.asyncio.setup(page.address)) log.info('asyncio is not offered by this kernel or hypervisor');
    }

    const chunks =
      ram?.chunks ?? hsm.engineRam?.allocate(regions.map((r) => ({ base: r.base, size: r.sizeBytes }))) ?? [];
    for (const segment of ram?.segments ?? []) hsm.mapRam(segment);
    const memory = new GuestMemory(chunks);
    this.#memory = memory;
    this.#undo.defer(() => this.#parts.software.save(memory));

    if (this.#config.intrMonitor !== undefined && hsm.intrMonitor !== undefined) {
      const monitor = new IntrMonitor({ config: this.#config.intrMonitor, ability: hsm.intrMonitor, clock, log });
      monitor.start();
      // Stopped when the VM is paused already: it ends a delay that is under way.
      this.#undo.defer(() => monitor.stop());
    }
    const pio = new PioBus();
    const mmio = new MmioBus();
    const board = await this.#parts.makeBoard({
      config: this.#config,
      hsm,
      memory,
      pio,
      mmio,
      clock,
      vcpuCount,
      log,
      power: this.power,
      waits: this.#waits,
      onStopRequest: (listener) => {
        this.#stopListeners.add(listener);
        return () => this.#stopListeners.delete(listener);
      },
      undo: this.#undo,
    });
    this.#board = board;
    await board.start();
    if (hsm.vmEvents !== undefined && !events.start(hsm.vmEvents)) {
      log.info('vm events are not offered by this kernel or hypervisor');
    }
    board.writeTables();
    this.#startRegs = this.#parts.software.load(memory);
    hsm.setVcpuRegs(0, this.#startRegs);
    this.#server = new IoreqServer({
      hsm,
      pio,
      mmio,
      pci: board.pciConfig,
      vcpuCount,
      holds: this.#waits.holds,
      log: log.child('ioreq'),
    });
  }

  start(): void {
    const hsm = this.#hsm as Hsm;
    hsm.createIoreqClient();
    this.#undo.defer(() => hsm.destroyIoreqClient());
    this.#undo.defer(() => this.#pause(hsm));
    this.#run(hsm);
    this.#board?.guestStarted?.();
  }

  /** Serve the guest until an event ends this life. */
  async run(): Promise<PowerEvent> {
    const hsm = this.#hsm as Hsm;
    const server = this.#server as IoreqServer;
    const board = this.#board as Board;
    const { clock, turns, linger } = this.#parts;
    const serve = () => void server.serve();
    const hasPending = () => server.hasPending;
    const { holds } = this.#waits;
    let mayLinger = false;
    for (;;) {
      while (this.#event === undefined) {
        if (this.#failure !== undefined) throw this.#failure;
        if (holds.isHolding) {
          await holds.rest();
          await turns.turn();
        } else if (!mayLinger || linger?.look(hasPending) !== true) {
          const waited = hsm.waitForIoreqs(serve);
          // Awaiting a plain value would cost a turn of the microtask queue for every request; and a wait that keeps
          // this thread is over as soon as the next request is there: nothing to gain by looking.
          mayLinger = waited instanceof Promise;
          if (mayLinger) linger?.sleeping();
          const result = waited instanceof Promise ? await this.#orEvent(waited) : waited;
          if (result === 'closed') throw new HostError('the hypervisor closed the request client while the VM ran', 0);
          if (mayLinger && result === 'pending') linger?.woken();
        }
        server.serve();
        clock.runDue();
        board.flush();
        if (turns.pending) await turns.turn();
      }
      const event: PowerEvent = this.#event;
      this.#event = undefined;
      if (event.kind === 'system-reset') await this.#systemReset(event.reason);
      else if (event.kind === 'suspend') await this.#suspend();
      else return event;
    }
  }

  /** A wait that leaves this thread free also ends when something else wants the VM to stop. */
  #orEvent(waited: Promise<WaitResult>): Promise<WaitResult> {
    return new Promise((resolve, reject) => {
      this.#wakeUp = () => resolve('idle');
      waited.then(resolve, reject);
    });
  }

  /** Release everything. @throws AggregateError with what could not be. */
  async end(isReset: boolean): Promise<void> {
    this.#isReset = isReset;
    await this.#settle();
    await this.#undo.run();
  }

  /** Synchronous, for a process that dies; failures do not matter any more. */
  abandon(): void {
    const hsm = this.#hsm;
    this.#hsm = undefined;
    for (const step of [() => hsm?.pauseVm(), () => hsm?.destroyVm(), () => hsm?.close()]) {
      try {
        step();
      } catch {
        // there is nobody left to tell
      }
    }
  }

  /** @throws StorageHangError */
  async #settle(): Promise<void> {
    const settled = this.#board?.settle();
    if (settled === undefined) return;
    const { turns } = this.#parts;
    // The thread is the event loop's meanwhile.
    turns.rest?.();
    try {
      await settled;
    } finally {
      turns.endRest?.();
    }
  }

  /** CF9 = 6 and the like: same VM, same memory contents, devices and CPU from the start. */
  async #systemReset(reason: string): Promise<void> {
    this.#parts.log.rationed('notice', () => `system reset: ${reason}`);
    const hsm = this.#hsm as Hsm;
    const board = this.#board as Board;
    const memory = this.#memory as GuestMemory;
    this.#pause(hsm);
    hsm.clearIoreqs();
    await this.#settle();
    this.#parts.software.save(memory);
    await board.reset();
    // Compat: C re-creates its hypervisor devices while the VM is paused, which the hypervisor refuses: they are lost.
    // RESET_VM first brings the VM back to the state in which devices may be created.
    hsm.resetVm();
    board.restore();
    board.writeTables();
    this.#startRegs = this.#parts.software.load(memory);
    hsm.setVcpuRegs(0, this.#startRegs);
    (this.#server as IoreqServer).holdCompletions = false;
    this.#run(hsm);
  }

  /** S3: pause until someone wakes the VM, then start it at the waking vector the guest left in the FACS. */
  async #suspend(): Promise<void> {
    const hsm = this.#hsm as Hsm;
    const board = this.#board as Board;
    const { clock, turns } = this.#parts;
    this.#pause(hsm);
    let isAwake = false;
    let stir = () => {};
    this.#wakeUp = () => {
      isAwake = true;
      stir();
    };
    // From here on an event wakes the VM, one that came in the moment before included.
    await this.#settle();
    board.suspend();
    hsm.clearIoreqs();
    this.#enter('suspended');
    // The thread is the event loop's now.
    turns.rest?.();
    while (!isAwake) {
      clock.runDue();
      if (isAwake) break;
      const dueMs = Math.ceil((clock.nextDueNs - clock.nowNs()) / NS_PER_MS);
      await new Promise<void>((resolve) => {
        const timeout = setTimeout(resolve, Math.min(Math.max(dueMs, 1), SLEEP_TURN_MS));
        stir = () => {
          clearTimeout(timeout);
          resolve();
        };
      });
    }
    this.#wakeUp = undefined;
    turns.endRest?.();
    // Asked to power off while asleep: nothing to resume.
    if (this.#event !== undefined) return;
    board.resume();
    hsm.resetVm();
    hsm.setVcpuRegs(0, this.#wakeRegs());
    (this.#server as IoreqServer).holdCompletions = false;
    this.#run(hsm);
  }

  /** Firmware starts at its reset vector again and finds its own way; a kernel is entered where it asked. */
  #wakeRegs(): VcpuRegs {
    const start = this.#startRegs as VcpuRegs;
    if (this.#config.boot?.kind === 'ovmf') return start;
    const vector = (this.#memory as GuestMemory).readU32(Layout.acpiWakingVector);
    const selector = (vector >>> 4) & 0xffff;
    return {
      ...start,
      rip: 0n,
      cr0: REAL_MODE.cr0,
      cs: { selector, base: BigInt(selector) << 4n, limit: REAL_MODE.limit, attributes: REAL_MODE.csAttributes },
      gdt: { base: 0n, limit: REAL_MODE.limit },
      idt: { base: 0n, limit: REAL_MODE.limit },
    };
  }

  #run(hsm: Hsm): void {
    hsm.startVm();
    this.#isPaused = false;
    this.#enter('running');
  }

  #pause(hsm: Hsm): void {
    if (this.#isPaused) return;
    hsm.pauseVm();
    this.#isPaused = true;
    this.#enter('paused');
  }

  /**
   * The hypervisor destroys only what is paused; after a failed start it is not yet. Like C, pause once more unless the
   * VM is about to be created again.
   */
  #destroy(hsm: Hsm): void {
    try {
      if (!this.#isReset) hsm.pauseVm();
    } finally {
      this.#hsm = undefined;
      hsm.destroyVm();
    }
  }

  #ramRegions(): RamRequest[] {
    const { memoryBytes } = this.#config;
    const low = Math.min(memoryBytes, Layout.lowRamLimit);
    const regions: RamRequest[] = [{ base: 0, sizeBytes: low }, ...this.#parts.software.regions];
    if (memoryBytes > low) regions.push({ base: Layout.highRamBase, sizeBytes: memoryBytes - low });
    return regions;
  }

  #sharedPage(what: string, elementBytes: number): Mapping {
    const page = this.#undo.add(map(PAGE_BYTES, what));
    initSharedBuffer(page.bytes, elementBytes);
    return page;
  }
}

function vmFlags(config: VmConfig): bigint {
  let flags = 0n;
  if (config.trusty) flags |= GuestFlag.SecureWorldEnabled;
  // --rtvm implies local APIC passthrough in C as well; a "soft" RTVM cannot be asked for.
  if (config.lapicPt) flags |= GuestFlag.LapicPassthrough | GuestFlag.PmuPassthrough;
  if (config.lapicPt || config.rtvm) flags |= GuestFlag.Rt | GuestFlag.IoCompletionPolling;
  return flags;
}
