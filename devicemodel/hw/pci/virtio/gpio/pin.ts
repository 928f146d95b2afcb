/** One line as a guest uses it: level, direction, drive, and an interrupt of either kind made of the host's edges. */
import { CHIP_GONE, type Drive, Edge, type GpioLine } from '../../../../core/host/gpio.ts';
import type { Log } from '../../../../core/log.ts';

/** Interrupt types, numbered alike by Linux (IRQ_TYPE_…) and by both virtio protocols. */
export const IrqType = { None: 0, EdgeRising: 1, EdgeFalling: 2, LevelHigh: 4, LevelLow: 8 } as const;
const EDGES = IrqType.EdgeRising | IrqType.EdgeFalling;
const LEVELS = IrqType.LevelHigh | IrqType.LevelLow;
/** A rising edge also begins "level high", a falling one "level low". */
const LEVEL_SHIFT = 2;
/** Edges taken before other work has its turn: more than the kernel keeps for a line. */
const EDGE_BUDGET = 64;

export class GpioPin {
  readonly line: GpioLine;
  readonly #raise: () => void;
  readonly #log: Log;
  #irqType: number = IrqType.None;
  #drive: Drive = 'push-pull';
  /** Level the guest asked for last: what an open output shows may be somebody else's doing. */
  #output: 0 | 1 | undefined;
  #isConfigured = false;
  #unwatch: (() => void) | undefined;

  /** @param raise the interrupt's condition came about, edge or level. */
  constructor(line: GpioLine, raise: () => void, log: Log) {
    this.line = line;
    this.#raise = raise;
    this.#log = log;
  }

  get irqType(): number {
    return this.#irqType;
  }

  get drive(): Drive {
    return this.#drive;
  }

  /** The guest has chosen the direction; before, it is what the host had it at. */
  get isConfigured(): boolean {
    return this.#isConfigured;
  }

  // Level and direction. Not while the line interrupts: it is an input then, and has to stay one.

  write(value: 0 | 1): boolean {
    if (this.#irqType !== IrqType.None || !this.line.write(value)) return false;
    this.#output = value;
    return true;
  }

  makeInput(): boolean {
    if (this.#irqType !== IrqType.None || !this.line.makeInput(0)) return false;
    this.#isConfigured = true;
    return true;
  }

  makeOutput(value: 0 | 1): boolean {
    if (this.#irqType !== IrqType.None || !this.line.makeOutput(value, this.#drive)) return false;
    this.#isConfigured = true;
    this.#output = value;
    return true;
  }

  /** How the line is driven as an output: now if it is one, else from when it becomes one. */
  setDrive(drive: Drive): boolean {
    this.#drive = drive;
    return !this.line.isOutput || this.makeOutput(this.#output ?? this.line.read() ?? 0);
  }

  // Interrupt.

  /** @returns false, with everything as it was, for a type that does not exist or a line that cannot. */
  enableInterrupt(type: number): boolean {
    const isLevel = (type & LEVELS) !== 0;
    // A level is followed by both of its edges.
    const edges = isLevel ? Edge.Rising | Edge.Falling : type & EDGES;
    if (edges === 0 || (type & ~(EDGES | LEVELS)) !== 0 || !this.line.makeInput(edges)) return false;
    this.#irqType = type;
    this.#unwatch ??= this.line.watch(() => this.#takeEdges());
    return true;
  }

  disableInterrupt(): void {
    if (this.#irqType === IrqType.None) return;
    this.#irqType = IrqType.None;
    this.#unwatch?.();
    this.#unwatch = undefined;
    this.line.makeInput(0);
    // What was seen and not taken is not the next interrupt's.
    for (let budget = EDGE_BUDGET; budget > 0 && this.line.nextEdge() > 0; budget--);
  }

  get isEdge(): boolean {
    return (this.#irqType & EDGES) !== 0;
  }

  /** A level interrupt whose level is there. */
  get isLevelActive(): boolean {
    if ((this.#irqType & LEVELS) === 0) return false;
    const active = this.line.read() === 1 ? IrqType.LevelHigh : IrqType.LevelLow;
    return (this.#irqType & active) !== 0;
  }

  #takeEdges(): void {
    for (let budget = EDGE_BUDGET; budget > 0; budget--) {
      const edge = this.line.nextEdge();
      if (edge === 0) return;
      if (edge === CHIP_GONE) {
        this.#log.warn(`line ${this.line.name}: the chip is gone`);
        this.#unwatch?.();
        this.#unwatch = undefined;
        return;
      }
      if ((this.#irqType & (edge | (edge << LEVEL_SHIFT))) !== 0) this.#raise();
    }
  }

  close(): void {
    this.#unwatch?.();
    this.#unwatch = undefined;
    this.line.close();
  }
}
