/**
 * The command ring. Spec: xHCI 1.0 §4.6.1 (operation), §4.6.1.2 (stop and abort), §5.4.5 (CRCR), §6.4.3 (TRBs).
 *
 * Commands are done one after the other. One that has to wait (for a device that is opened, for transfers that come back)
 * keeps those behind it waiting, and so does an event ring without room; the ring is "running" meanwhile.
 */
import type { GuestMemory } from '../../../core/memory.ts';
import { SLICE_BLOCKS } from './endpoint.ts';
import { CommandRingControl, joinAddress } from './registers.ts';
import type { CommandResult } from './slots.ts';
import {
  addressOf,
  CompletionCode,
  type EventTrb,
  eventTrb,
  hasCycle,
  newTrb,
  readTrb,
  TRB_BYTES,
  TrbControl,
  TrbType,
  typeOf,
} from './trb.ts';

/** Links one after the other: more are a circle. */
const MAX_LINKS = 16;
/** Commands done before others get their turn. */
const SLICE_COMMANDS = 64;

export interface CommandWires {
  readonly memory: GuestMemory;
  /** R/S: of a controller that is halted no command is looked at. */
  isRunning(): boolean;
  canTell(): boolean;
  tell(event: EventTrb, isQuiet: boolean): void;
  execute(trb: ReturnType<typeof newTrb>): CommandResult | Promise<CommandResult>;
  later(work: () => number): void;
  log(line: () => string): void;
  /** Every command and how it ended; absent unless it was asked for. */
  readonly trace?: ((line: string) => void) | undefined;
}

export class CommandRing {
  readonly #wires: CommandWires;
  readonly #trb = newTrb();
  #registerLow = 0;
  #registerHigh = 0;
  /** undefined until there is a ring. */
  #address: number | undefined;
  #cycle = 0;
  #isRunning = false;
  /** The command that was begun and is not done; counted, so that one that was given up is not taken for a later one. */
  #pending: number | undefined;
  #begun = 0;
  #isStopping = false;
  /** One function, so that it waits in one place only. */
  readonly #goOn = () => {
    this.pump();
    return SLICE_BLOCKS;
  };
  /** Of a command that was done, or aborted, while there was no room for its event. */
  #result: CommandResult | undefined;

  constructor(wires: CommandWires) {
    this.#wires = wires;
  }

  /** Power-on. */
  reset(): void {
    this.#registerLow = 0;
    this.#registerHigh = 0;
    this.#address = undefined;
    this.#cycle = 0;
    this.giveUp();
  }

  /** Reset of the controller, or its end: what is under way is nobody's any more. */
  giveUp(): void {
    this.#isRunning = false;
    this.#pending = undefined;
    this.#result = undefined;
    this.#isStopping = false;
  }

  /** §5.4.5: everything but this bit reads as 0. */
  read(): number {
    return this.#isRunning ? CommandRingControl.Running : 0;
  }

  writeLow(value: number): void {
    if (!this.#isRunning) {
      this.#registerLow = (value & (~0x3f | CommandRingControl.CycleState)) >>> 0;
    } else if ((value & (CommandRingControl.Stop | CommandRingControl.Abort)) !== 0) {
      this.#stop((value & CommandRingControl.Abort) !== 0);
    }
  }

  /** The pointer is taken with the high dword. */
  writeHigh(value: number): void {
    if (this.#isRunning) return;
    this.#registerHigh = value;
    this.#address = joinAddress((this.#registerLow & ~0x3f) >>> 0, this.#registerHigh);
    this.#cycle = this.#registerLow & CommandRingControl.CycleState;
  }

  /** The doorbell. */
  ring(): void {
    this.#isRunning = true;
    this.#run();
  }

  /** Events may be told again. */
  pump(): void {
    if (this.#result !== undefined && this.#wires.canTell()) this.#complete(this.#result);
    if (this.#isRunning) this.#run();
  }

  /** §4.6.1.2. A command that waits can be aborted; it may still have its effect. */
  #stop(isAbort: boolean): void {
    if (this.#pending !== undefined) {
      this.#isStopping = true;
      if (isAbort) {
        // As any other result it waits for room; one that is there already is what became of the command.
        this.#result ??= { code: CompletionCode.CommandAborted, slot: 0 };
        this.pump();
      }
      return;
    }
    this.#isStopping = true;
    this.#run();
  }

  #run(): void {
    if (!this.#wires.isRunning()) return;
    for (let count = 0; this.#isRunning && this.#pending === undefined; count++) {
      if (!this.#isStopping && !this.#readNext()) {
        this.#isRunning = false;
        return;
      }
      if (!this.#wires.canTell()) return;
      if (this.#isStopping) {
        this.#isStopping = false;
        this.#isRunning = false;
        this.#tell(CompletionCode.CommandRingStopped, 0);
      } else if (count === SLICE_COMMANDS) {
        this.#wires.later(this.#goOn);
        return;
      } else {
        this.#begin();
      }
    }
  }

  #tell(code: number, slot: number): void {
    this.#wires.tell(eventTrb(TrbType.CommandCompletionEvent, code, this.#address ?? 0, { slot }), false);
  }

  /** @returns false if there is no command. */
  #readNext(): boolean {
    for (let links = 0; links <= MAX_LINKS; links++) {
      if (this.#address === undefined) return false;
      if (!readTrb(this.#wires.memory, this.#address, this.#trb)) {
        this.#wires.log(() => 'the command ring is not in RAM');
        return false;
      }
      if (!hasCycle(this.#trb, this.#cycle)) return false;
      if (typeOf(this.#trb) !== TrbType.Link) return true;
      if ((this.#trb.control & TrbControl.ToggleCycle) !== 0) this.#cycle ^= 1;
      this.#address = addressOf(this.#trb);
    }
    this.#wires.log(() => 'the command ring is a circle of links');
    return false;
  }

  #begin(): void {
    const number = ++this.#begun;
    this.#pending = number;
    const result = this.#wires.execute(this.#trb);
    if (!('then' in result)) {
      this.#complete(result);
      return;
    }
    void result.then((later) => this.#finishLater(number, later));
  }

  #finishLater(number: number, result: CommandResult): void {
    if (this.#pending !== number) return;
    this.#result = result;
    this.pump();
  }

  #complete({ code, slot }: CommandResult): void {
    this.#pending = undefined;
    this.#result = undefined;
    this.#wires.trace?.(`command ${typeOf(this.#trb)} for slot ${slot}: code ${code}`);
    this.#tell(code, slot);
    if (this.#address !== undefined) this.#address += TRB_BYTES;
  }
}
