/**
 * The xHCI host controller as a machine: registers in front, rings, slots and ports behind. Spec: xHCI 1.0. What one
 * operation may cost is bounded in each part; what is left over is done from a timer.
 */
import type { Clock, Timer } from '../../../core/clock.ts';
import type { IoPatience } from '../../../core/io-patience.ts';
import type { Log } from '../../../core/log.ts';
import type { GuestMemory } from '../../../core/memory.ts';
import { CommandRing } from './command-ring.ts';
import { SLICE_BLOCKS } from './endpoint.ts';
import type { ExtendedCapabilities } from './extended-capabilities.ts';
import { Interrupter } from './interrupter.ts';
import { Lent } from './lent.ts';
import { RootPorts } from './ports.ts';
import {
  joinAddress,
  Layout,
  Op,
  readCapability,
  USB_COMMAND_MASK,
  USB_STATUS_CLEARED_BY_ONE,
  UsbCommand,
  UsbStatus,
} from './registers.ts';
import { Slots } from './slots.ts';
import type { EventTrb } from './trb.ts';

const PAGE_SIZE_4K = 1;
/** A microframe; the register has 14 bits (§5.5.1). */
const MICROFRAME_NS = 125_000;
const MFINDEX_MASK = 0x3fff;
/** Compat: of endpoints there are 31; any target up to this one rings the command ring. */
const MAX_DOORBELL_TARGET = 32;
/** Between two slices of the work of a ring that has no end: the guest and other devices have their turn. */
const PAUSE_NS = 50_000;
/** What was asked for is back at once, unless its device or the host's controller hangs. */
const RECALL_MS = 1000;

export interface ControllerWires {
  readonly memory: GuestMemory;
  readonly clock: Clock;
  readonly log: Log;
  /** With devices that do not give back what they have; it is short, but shorter still when the VM is ended by force. */
  readonly patience: IoPatience;
  /** Log every command. */
  readonly isTraced?: boolean;
  setLine(isAsserted: boolean): void;
  sendMessage(): void;
}

export class XhciController {
  readonly #wires: ControllerWires;
  readonly #extended: ExtendedCapabilities;
  readonly #interrupter: Interrupter;
  readonly #commands: CommandRing;
  readonly #slots: Slots;
  readonly #ports: RootPorts;
  readonly #startNs: number;
  readonly #workTimer: Timer;
  /** What is to be gone on with, the one that waits longest first. */
  readonly #work = new Set<() => number>();
  /** Rings that wait until less is in flight. */
  readonly #starved = new Set<() => number>();
  readonly #lent = new Lent(() => this.#feed());
  #isPumping = false;
  /** Nothing new is begun: between `recall` and a reset or `resume`. */
  #isHeld = false;
  #command = 0;
  #status: number = UsbStatus.Halted;
  #notification = 0;
  #contextsLow = 0;
  #contextsHigh = 0;
  #contexts = 0;
  #configure = 0;

  constructor(wires: ControllerWires, extended: ExtendedCapabilities) {
    this.#wires = wires;
    this.#extended = extended;
    this.#startNs = wires.clock.nowNs();
    this.#workTimer = wires.clock.createTimer(() => this.#doWork());
    this.#interrupter = new Interrupter(wires.memory, {
      isEnabled: () => (this.#command & UsbCommand.InterruptEnable) !== 0,
      posted: () => {
        this.#status |= UsbStatus.EventInterrupt;
      },
      setLine: (isAsserted) => wires.setLine(isAsserted),
      sendMessage: () => wires.sendMessage(),
    });
    const telling = {
      memory: wires.memory,
      isRunning: () => this.#isRunning,
      canTell: () => this.#isRunning && this.#interrupter.hasRoom(),
      tell: (event: EventTrb, isQuiet: boolean) => this.#interrupter.push(event, isQuiet),
      later: (work: () => number) => this.#later(work),
      forget: (work: () => number) => this.#forget(work),
    };
    this.#slots = new Slots({
      ...telling,
      takeBytes: (count, again) => this.#takeBytes(count, again),
      clock: wires.clock,
      deviceAt: (port) => this.#ports.deviceAt(port),
      contextArray: () => this.#contexts,
    });
    this.#commands = new CommandRing({
      ...telling,
      execute: (trb) => this.#slots.execute(trb),
      log: (line) => wires.log.guest(line),
      trace: wires.isTraced === true ? (line) => wires.log.debug(line) : undefined,
    });
    this.#ports = new RootPorts({
      clock: wires.clock,
      isRunning: () => this.#isRunning,
      changed: () => this.#tellPorts(),
      resetDevice: (device) => device.reset(),
    });
  }

  get ports(): Pick<RootPorts, 'connect' | 'disconnect' | 'devices'> {
    return this.#ports;
  }

  get #isRunning(): boolean {
    return (this.#status & UsbStatus.Halted) === 0;
  }

  // Life.

  /** Power-on; what is plugged in stays so. */
  reset(): void {
    // First: a pending interrupt is none of the next guest's, neither as a level nor as a message.
    this.#command = 0;
    this.#status = UsbStatus.Halted;
    this.#interrupter.reset();
    this.#restart();
    this.#lent.endLife();
    this.#isHeld = false;
    this.#commands.reset();
    this.#ports.reset();
    this.#extended.reset();
    this.#notification = 0;
    this.#contextsLow = 0;
    this.#contextsHigh = 0;
    this.#contexts = 0;
    this.#configure = 0;
  }

  /** HCRST. Compat: registers keep what is in them. */
  #restart(): void {
    this.#workTimer.cancel();
    this.#work.clear();
    this.#starved.clear();
    this.#commands.giveUp();
    this.#slots.reset();
    this.#ports.restart();
    this.#interrupter.restartRing();
  }

  /**
   * Ask for everything that devices have. @returns when it came back, or is waited for no longer, which is soon: it reaches
   * no guest memory any more, whenever it comes, and is not waited for again. undefined: it has come back.
   */
  recall(): Promise<void> | undefined {
    this.#isHeld = true;
    this.#slots.recall();
    const back = this.#lent.back();
    return back === undefined ? undefined : this.#waitFor(back);
  }

  async #waitFor(back: Promise<void>): Promise<void> {
    if (await this.#wires.patience.within(back, RECALL_MS)) return;
    const count = this.#lent.endLife();
    this.#wires.log.warn(`USB: transfers are not given back by their device (${count}): nobody waits for them`);
  }

  /** The guest runs again after `recall`. */
  resume(): void {
    this.#isHeld = false;
    if (this.#isRunning) this.#pump();
  }

  // Registers.

  read(offset: number): number {
    const { Operational, Ports, Doorbells, Runtime, RuntimeEnd } = Layout;
    if (offset < Operational) return this.#extended.read(offset) ?? readCapability(offset, this.#extended.start);
    if (offset < Ports) return this.#readOperational(offset - Operational);
    if (offset < Doorbells) return this.#ports.read(offset - Ports);
    if (offset < Runtime) return 0;
    if (offset < RuntimeEnd) return this.#readRuntime(offset);
    return offset < this.#extended.end ? (this.#extended.read(offset) ?? 0) : 0;
  }

  write(offset: number, value: number): void {
    const { Operational, Ports, Doorbells, Runtime, Interrupter: interrupter, RuntimeEnd } = Layout;
    if (offset < Operational) return;
    if (offset < Ports) this.#writeOperational(offset - Operational, value);
    else if (offset < Doorbells) this.#ports.write(offset - Ports, value);
    else if (offset < Runtime) this.#ringDoorbell((offset - Doorbells) >>> 2, value);
    else if (offset < interrupter) return;
    else if (offset < RuntimeEnd) {
      if (this.#interrupter.write(offset - interrupter, value)) this.#pump();
    } else if (offset < this.#extended.end) this.#extended.write(offset, value);
  }

  #readOperational(register: number): number {
    switch (register) {
      case Op.Command:
        return this.#command;
      case Op.Status:
        return this.#status;
      case Op.PageSize:
        return PAGE_SIZE_4K;
      case Op.DeviceNotification:
        return this.#notification;
      case Op.CommandRingLow:
        return this.#commands.read();
      case Op.ContextsLow:
        return this.#contextsLow;
      case Op.ContextsHigh:
        return this.#contextsHigh;
      case Op.Configure:
        return this.#configure;
      default:
        return 0;
    }
  }

  #writeOperational(register: number, value: number): void {
    switch (register) {
      case Op.Command:
        this.#writeCommand(value);
        return;
      case Op.Status:
        this.#status &= ~(value & USB_STATUS_CLEARED_BY_ONE);
        return;
      case Op.DeviceNotification:
        this.#notification = value & 0xffff;
        return;
      case Op.CommandRingLow:
        this.#commands.writeLow(value);
        return;
      case Op.CommandRingHigh:
        this.#commands.writeHigh(value);
        return;
      case Op.ContextsLow:
        this.#contextsLow = (value & ~0x3f) >>> 0;
        return;
      case Op.ContextsHigh:
        this.#contextsHigh = value;
        this.#contexts = joinAddress(this.#contextsLow, value);
        return;
      case Op.Configure:
        this.#configure = value & 0x3ff;
        return;
      default:
    }
  }

  /** §5.4.1. Saving and restoring are done at once: nothing is lost when the guest sleeps. */
  #writeCommand(value: number): void {
    const wasRunning = this.#isRunning;
    const isRun = (value & UsbCommand.Run) !== 0;
    if (isRun) this.#status = (this.#status & ~UsbStatus.Halted) | UsbStatus.PortChange;
    else this.#status = (this.#status & ~UsbStatus.PortChange) | UsbStatus.Halted;
    if ((value & UsbCommand.Reset) !== 0) this.#restart();
    const selfClearing = UsbCommand.Reset | UsbCommand.SaveState | UsbCommand.RestoreState;
    this.#command = value & USB_COMMAND_MASK & ~selfClearing;
    this.#interrupter.update();
    if (isRun && !wasRunning) this.#pump();
  }

  #readRuntime(offset: number): number {
    if (offset >= Layout.Interrupter) return this.#interrupter.read((offset - Layout.Interrupter) % 0x20);
    if (offset !== Layout.Runtime) return 0;
    const elapsedNs = this.#wires.clock.nowNs() - this.#startNs;
    return Math.floor(elapsedNs / MICROFRAME_NS) & MFINDEX_MASK;
  }

  /** §5.6: target in bits 7:0, stream in bits 31:16. */
  #ringDoorbell(slot: number, value: number): void {
    if (!this.#isRunning) return;
    const target = value & 0xff;
    if (target > MAX_DOORBELL_TARGET) return;
    if (slot === 0) this.#commands.ring();
    else this.#slots.ringDoorbell(slot, target, value >>> 16);
  }

  // What waits.

  /** There may be room for events: whoever has something to tell does so. */
  #pump(): void {
    if (this.#isPumping) return;
    this.#isPumping = true;
    this.#tellPorts();
    this.#slots.pump();
    this.#commands.pump();
    this.#isPumping = false;
  }

  #tellPorts(): void {
    while (this.#isRunning && this.#interrupter.hasRoom()) {
      const event = this.#ports.nextEvent();
      if (event === undefined) return;
      this.#status |= UsbStatus.PortChange;
      this.#interrupter.push(event);
    }
  }

  #later(work: () => number): void {
    this.#work.add(work);
    this.#workTimer.arm(this.#wires.clock.nowNs() + PAUSE_NS);
  }

  #forget(work: () => number): void {
    this.#work.delete(work);
    this.#starved.delete(work);
  }

  /** One slice, however many rings a guest has: each may have work without an end. */
  #doWork(): void {
    let blocks = 0;
    for (const work of this.#work) {
      if (blocks >= SLICE_BLOCKS) break;
      this.#work.delete(work);
      blocks += work();
    }
    if (this.#work.size > 0) this.#workTimer.arm(this.#wires.clock.nowNs() + PAUSE_NS);
  }

  #takeBytes(count: number, again: () => number): (() => void) | undefined {
    const giveBack = this.#isHeld ? undefined : this.#lent.take(count);
    if (giveBack === undefined) this.#starved.add(again);
    return giveBack;
  }

  /** Less is in flight. */
  #feed(): void {
    if (this.#isHeld) return;
    for (const again of this.#starved) this.#later(again);
    this.#starved.clear();
  }

  /** Rings that wait for their turn, or until less is in flight. */
  get waiting(): number {
    return this.#work.size + this.#starved.size;
  }

  /** For people and tests: also what nobody waits for any more. */
  get inFlight(): number {
    return this.#lent.transfers;
  }
}
