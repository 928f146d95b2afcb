/**
 * One life of a VM: what one HSM descriptor stands for, from CREATE_VM to DESTROY_VM. A system reset and a suspend stay
 * within a life; a full reset needs another one.
 */
import type { Board, BoardFactory } from './board.ts';
import { type GuestSoftware, isFirmware } from './boot/loader.ts';
import type { VmConfig } from './config.ts';
import type { CounterBook } from './counters.ts';
import type { PowerEvent } from './device.ts';
import { Disposer } from './disposer.ts';
import { ExitCode, HostError, RefusedError } from './errors.ts';
import type { GuestLoop, RequestServer } from './guest-loop.ts';
import { allocateGuestRam, type RamAllocation, type RamRequest } from './guest-ram.ts';
import { type Mapping, map } from './host/mapping.ts';
import { GuestFlag, type Hsm, type HsmOpener, type VcpuRegs } from './hsm/hsm.ts';
import { initSharedBuffer } from './hsm/shared-buffer.ts';
import { IntrMonitor } from './intr-monitor.ts';
import { MmioBus, PioBus } from './io-bus.ts';
import { IOREQ_SLOTS } from './ioreq-page.ts';
import { IoreqServer } from './ioreq-server.ts';
import { Layout } from './layout.ts';
import type { Log } from './log.ts';
import { GuestMemory } from './memory.ts';
import type { PowerState } from './power.ts';
import type { ThreadPulses } from './thread-pulses.ts';
import { VmEventSource } from './vm-event-source.ts';
import type { GuestCrash, VmEvent, VmEventSink, VmEvents, VmState } from './vm-events.ts';
import { newWaits, type Waits } from './waits.ts';

export interface VmParts {
  readonly openHsm: HsmOpener;
  readonly makeBoard: BoardFactory;
  readonly software: Pick<GuestSoftware, 'regions' | 'load' | 'save'>;
  readonly cpuAffinity: bigint;
  /** Where guest RAM comes from unless the engine has its own; default: the host's huge pages. */
  readonly allocateRam?: (regions: readonly RamRequest[]) => RamAllocation;
  /** Of the hypervisor that `openHsm` opens; the VM does not stop it. */
  readonly loop: GuestLoop;
  /** Where the guest's accesses are counted; its devices count in the same. */
  readonly counters?: CounterBook;
  readonly log: Log;
}

const PAGE_BYTES = 4096;
/** Real-mode start at the ACPI waking vector (ACPI 6.4 §16.3.1.1): CS:IP = vector>>4 : 0, flat descriptor tables. */
const REAL_MODE = { csAttributes: 0x9f, limit: 0xffff, cr0: 0x30n } as const;

export class Life {
  readonly #config: VmConfig;
  readonly #parts: VmParts;
  readonly #events: VmEvents & VmEventSink;
  readonly #enter: (state: VmState) => void;
  readonly #undo = new Disposer();
  readonly #hypervisorEvents: VmEventSource;
  readonly #waits: Waits;
  #failure: Error | undefined;
  #hsm: Hsm | undefined;
  #memory: GuestMemory | undefined;
  #server: IoreqServer | undefined;
  #board: Board | undefined;
  #vcpuCount = 0;
  #vmid = 0;
  #startRegs: VcpuRegs | undefined;
  readonly #power: PowerState;
  /** Ends S3. */
  #wakeUp: (() => void) | undefined;
  /** Whether the hypervisor knows of this VM, or refused it. */
  hasAskedForVm = false;
  /** PAUSE_VM was done and the VM did not run since. */
  #isPaused = false;
  #isReset = false;
  #hasTripleFault = false;

  constructor(
    config: VmConfig,
    parts: VmParts,
    power: PowerState,
    events: VmEvents & VmEventSink,
    enter: (state: VmState) => void,
  ) {
    this.#config = config;
    this.#parts = parts;
    this.#power = power;
    this.#events = events;
    this.#enter = enter;
    this.#hypervisorEvents = new VmEventSource({ log: parts.log, events });
    power.onRequest = () => this.#onPowerRequest();
    power.onForce = () => this.#waits.patience.force();
    this.#waits = newWaits((error) => {
      this.#failure ??= error;
      this.#stir();
    }, config.ioTimeoutMs);
  }

  /** Threads that serve its devices. */
  get threads(): ThreadPulses {
    return this.#waits.threads;
  }

  get board(): Board | undefined {
    return this.#board;
  }

  /**
   * From nothing to a VM that could be started: the order is the C device model's.
   * @throws PowerOffRequested if it is not wanted any more; what was done so far is undone by {@link end}.
   */
  async configure(): Promise<void> {
    const hsm = await this.#createVm();
    await this.#plugIn(hsm);
  }

  async #createVm(): Promise<Hsm> {
    const { log } = this.#parts;
    const wakeUp = () => this.#wakeUp?.();
    const onEvent = (event: VmEvent) => {
      if (event.type === 'triple-fault') this.#hasTripleFault = true;
    };
    this.#events.on('wake', wakeUp).on('event', onEvent);
    this.#undo.defer(() => void this.#events.off('wake', wakeUp).off('event', onEvent));
    const regions = this.#ramRegions();
    const hsm = await this.#parts.openHsm();
    this.#hsm = hsm;
    this.#undo.defer(() => hsm.close());
    this.#power.checkWanted();
    // Stopped after DESTROY_VM: until then the hypervisor may write to its page.
    this.#undo.defer(() => this.#hypervisorEvents.stop());
    const allocate = this.#parts.allocateRam ?? ((wanted) => allocateGuestRam(wanted, !this.#config.rtvm, log));
    const ram = hsm.engineRam === undefined ? allocate(regions) : undefined;
    if (ram !== undefined) this.#undo.add(ram);

    this.hasAskedForVm = true;
    const spec = { name: this.#config.name, flags: vmFlags(this.#config), cpuAffinity: this.#parts.cpuAffinity };
    const { vcpuCount, vmid } = await hsm.createVm(spec, this.#power.ending);
    this.#undo.defer(() => this.#destroy(hsm));
    if (hsm.thread !== undefined) this.#undo.defer(this.#waits.threads.add(hsm.thread));
    this.#power.checkWanted();
    this.#vcpuCount = vcpuCount;
    this.#vmid = vmid;
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
    return hsm;
  }

  async #plugIn(hsm: Hsm): Promise<void> {
    const { log, loop, software } = this.#parts;
    const { clock } = loop;
    const vcpuCount = this.#vcpuCount;
    const memory = this.#memory as GuestMemory;
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
      vmid: this.#vmid,
      log,
      power: this.#power,
      events: this.#events,
      waits: this.#waits,
      end: this.#power,
      undo: this.#undo,
    });
    this.#board = board;
    this.#power.checkWanted();
    await board.start();
    this.#power.checkWanted();
    if (hsm.vmEvents !== undefined && !this.#hypervisorEvents.start(hsm.vmEvents)) {
      log.info('vm events are not offered by this kernel or hypervisor');
    }
    board.writeTables();
    this.#startRegs = software.load(memory, board.reservedMemory);
    hsm.setVcpuRegs(0, this.#startRegs);
    const { holds } = this.#waits;
    const pci = board.pciConfig;
    const counts = this.#parts.counters?.of('accesses', 'vm').own;
    this.#server = new IoreqServer({
      hsm,
      pio,
      mmio,
      pci,
      vcpuCount,
      holds,
      log: log.child('ioreq'),
      ...(counts === undefined ? {} : { counts }),
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

  /** Serve the guest until an event ends this life. @throws PowerOffRequested in the middle of a reset. */
  async run(): Promise<PowerEvent> {
    const hsm = this.#hsm as Hsm;
    const server = this.#server as IoreqServer;
    const board = this.#board as Board;
    const power = this.#power;
    const { loop } = this.#parts;
    const { holds } = this.#waits;
    const requests: RequestServer = { serve: server.serve, flush: () => board.flush() };
    for (;;) {
      while (power.event === undefined) {
        this.#checkFailure();
        const turn = holds.isHolding ? this.#serveOthers(server) : loop.next(hsm, requests);
        // Awaiting a plain value would cost a turn of the microtask queue for every request.
        if (turn !== undefined) await turn;
        board.flush();
      }
      const { event } = power;
      power.begin();
      if (event.kind === 'system-reset') await this.#systemReset(event.reason, event.by === 'watchdog');
      else if (event.kind === 'suspend') await this.#suspend();
      else return this.#withCause(event);
    }
  }

  /** A guest that shut down by a triple fault is powered off by the hypervisor, in its name; the event says so. */
  #withCause(event: PowerEvent): PowerEvent {
    if (event.kind === 'poweroff' && event.by === 'watchdog') this.#tellCrash('watchdog');
    if (event.kind !== 'poweroff' || event.by !== 'guest') return event;
    this.#hypervisorEvents.poll();
    if (!this.#hasTripleFault) return event;
    this.#tellCrash('triple-fault');
    return { ...event, by: 'triple-fault', reason: 'triple fault' };
  }

  /** Registers are read from vCPUs that stand still. */
  #tellCrash(cause: GuestCrash['cause']): void {
    const hsm = this.#hsm as Hsm;
    if (hsm.describeVcpus !== undefined) this.#pause(hsm);
    this.#events.emit('crash', { cause, vcpus: hsm.describeVcpus?.() ?? [] });
  }

  /** The guest stands still; devices and their timers go on. @throws RefusedError where the hypervisor cannot do it. */
  freeze(): void {
    const freezing = this.#hsm?.freezing;
    if (freezing === undefined) {
      throw new RefusedError('impossible', 'this hypervisor cannot let a VM that it stopped go on', {
        hint: 'ACRN starts a paused VM only after a reset; suspend the guest instead, where it supports S3',
      });
    }
    freezing.freeze();
    this.#hsm?.interruptWait();
    this.#enter('paused');
  }

  thaw(): void {
    this.#hsm?.freezing?.thaw();
    this.#enter('running');
  }

  #onPowerRequest(): void {
    // The vCPU that asked must not run on: its request is dropped by CLEAR_VM_IOREQ or with the client, not completed.
    if (this.#server !== undefined) this.#server.holdCompletions = true;
    this.#stir();
  }

  /** @throws what a device gave up with: the guest does not run on, nor comes up again. */
  #checkFailure(): void {
    if (this.#failure !== undefined) throw this.#failure;
  }

  /** Whatever is waited for: there is something to look at. */
  #stir(): void {
    this.#hsm?.interruptWait();
    this.#wakeUp?.();
  }

  /** While a device makes a vCPU wait, nobody can wait in the hypervisor: see request-holds.ts. */
  async #serveOthers(server: IoreqServer): Promise<void> {
    await this.#parts.loop.rest(this.#waits.holds.rest());
    this.#hsm?.pollIoreqs?.();
    server.serve();
  }

  /** What devices lent to others comes back. The thread is the event loop's meanwhile. @throws StorageHangError */
  async #settle(isFlushed: boolean): Promise<void> {
    const settled = this.#board?.settle(isFlushed);
    if (settled !== undefined) await this.#parts.loop.rest(settled);
  }

  /** Release everything. @throws StorageHangError; AggregateError with what could not be. */
  async end(isReset: boolean): Promise<void> {
    this.#isReset = isReset;
    await this.#settle(true);
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

  /** CF9 = 6 and the like: same VM, same memory contents, devices and CPU from the start. */
  async #systemReset(reason: string, isByWatchdog: boolean): Promise<void> {
    this.#parts.log.rationed('notice', () => `system reset: ${reason}`);
    this.#events.emit('reset', { kind: 'system-reset', reason });
    const hsm = this.#hsm as Hsm;
    const board = this.#board as Board;
    const memory = this.#memory as GuestMemory;
    this.#pause(hsm);
    if (isByWatchdog) this.#tellCrash('watchdog');
    hsm.clearIoreqs();
    this.#hasTripleFault = false;
    await this.#settle(false);
    this.#parts.software.save(memory);
    await this.#parts.loop.rest(board.reset());
    this.#checkFailure();
    this.#power.checkWanted();
    board.writeTables();
    // Compat: C re-creates its hypervisor devices while the VM is paused, which the hypervisor refuses: they are lost.
    // RESET_VM first brings the VM back to the state in which devices may be created.
    hsm.resetVm();
    board.restore();
    this.#startRegs = this.#parts.software.load(memory, board.reservedMemory);
    hsm.setVcpuRegs(0, this.#startRegs);
    (this.#server as IoreqServer).holdCompletions = false;
    this.#run(hsm);
  }

  /** S3: pause until someone wakes the VM, then start it at the waking vector the guest left in the FACS. */
  async #suspend(): Promise<void> {
    const hsm = this.#hsm as Hsm;
    const board = this.#board as Board;
    // Before anything else: from here on an event wakes the VM, and so does the wish to end it.
    const awake = new Promise<void>((resolve) => {
      this.#wakeUp = resolve;
    });
    this.#pause(hsm);
    await this.#settle(true);
    this.#checkFailure();
    board.suspend();
    hsm.clearIoreqs();
    this.#enter('suspended');
    await this.#parts.loop.rest(awake);
    this.#wakeUp = undefined;
    this.#checkFailure();
    // Asked to power off while asleep: nothing to resume.
    if (this.#power.event !== undefined) return;
    board.resume();
    hsm.resetVm();
    hsm.setVcpuRegs(0, this.#wakeRegs());
    (this.#server as IoreqServer).holdCompletions = false;
    this.#run(hsm);
  }

  /** Firmware starts at its reset vector again and finds its own way; a kernel is entered where it asked. */
  #wakeRegs(): VcpuRegs {
    const start = this.#startRegs as VcpuRegs;
    if (isFirmware(this.#config.boot)) return start;
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
    this.#power.isGuestRunning = true;
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
