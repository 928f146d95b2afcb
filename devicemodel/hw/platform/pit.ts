/**
 * 8254 programmable interval timer and the NMI status and control port.
 * Spec: Intel 8254 datasheet (231164); port 0x61: Intel ICH10 datasheet §13.7.1 "NMI_SC".
 *
 * Counters are computed from the clock when they are read. Only counter 0 has an interrupt, so only it ever arms a
 * timer, and only while its output has a rising edge ahead.
 */
import { type AccessSize, allOnes } from '../../core/address.ts';
import type { Clock, Timer } from '../../core/clock.ts';
import type { InterruptLine, IoRegion } from '../../core/device.ts';
import { Inti } from '../../core/firmware/acpi-tables.ts';
import type { Aml } from '../../core/firmware/aml.ts';
import { io, irqNoFlags } from '../../core/firmware/aml-resources.ts';
import { type DeviceAml, type InterruptOverride, isaDevice } from '../../core/firmware/contribution.ts';
import type { IoBus, Registration } from '../../core/io-bus.ts';
import type { PlatformDevice } from './platform-device.ts';
import { TickRate } from './tick-rate.ts';

export const PIT_HZ = 1_193_182;
/** The IOAPIC pin ISA interrupt 0 is wired to (ACPI MADT interrupt source override). */
export const PIT_GSI = 2;
const PIT_IRQ = 0;

const PIT_PORT = 0x40;
const NMI_SC_PORT = 0x61;

/** Offsets from port 0x40. */
const Reg = { Counter0: 0, Counter1: 1, Counter2: 2, Control: 3 } as const;

/** Control word (datasheet, "Control Word Format"). */
const Control = { SelectShift: 6, AccessShift: 4, ModeShift: 1, Bcd: 1 << 0 } as const;
const SELECT_READ_BACK = 3;
/** Read-back command; the two latch bits are active low. */
const ReadBack = { NoCount: 1 << 5, NoStatus: 1 << 4, Counter0: 1 << 1 } as const;
/** Status byte. */
const Status = { Out: 1 << 7, NullCount: 1 << 6 } as const;
/** Access field: which bytes of a count are read and written. */
const Access = { Latch: 0, Low: 1, High: 2, LowHigh: 3 } as const;

const Mode = {
  TerminalCount: 0,
  OneShot: 1,
  RateGenerator: 2,
  SquareWave: 3,
  SoftwareStrobe: 4,
  HardwareStrobe: 5,
} as const;

/** Port 0x61. */
const NmiSc = { Gate2: 1 << 0, Speaker: 1 << 1, Writable: 0x0f, RefreshToggle: 1 << 4, Out2: 1 << 5 } as const;
/** The refresh request toggles every 15.085 us: 18 ticks of counter 1 as every PC programs it. */
const REFRESH_TICKS = 18;

/** A counter nobody has programmed reads as one of 100 Hz. Compat: as the C device model. */
const UNPROGRAMMED_COUNT = Math.round(PIT_HZ / 100);

/** A guest may ask for a period of two ticks; edges closer than this are merged. */
const MIN_EDGE_GAP_NS = 50_000;

const rate = new TickRate(PIT_HZ);

/** One of the three counters, without its interrupt. */
class Counter {
  readonly #clock: Clock;
  #mode = 0;
  #access: number = Access.LowHigh;
  #isBcd = false;
  #gate: boolean;
  readonly #gateAtReset: boolean;

  /** The count in use (the datasheet's CE reload value), 0 while none was ever loaded. */
  #count = 0;
  /** Written, not in use yet: taken over at the end of the period (modes 2, 3) or at the trigger (modes 1, 5). */
  #nextCount = 0;
  #hasNextCount = false;
  /** Where the period ends that was running when `#nextCount` was written. */
  #switchTick = 0;
  /** No count since the control word, or none in use: the datasheet's NULL COUNT. */
  #isAwaitingCount = false;
  /** Counting since `#startNs`, which was `#ticksBefore` ticks into the count. */
  #isCounting = false;
  #startNs = 0;
  #ticksBefore = 0;

  #writeLow = 0;
  #isHighNext = false;
  #isReadHighNext = false;
  /** Latched count, low byte first; how many bytes are left. */
  #latch = 0;
  #latchedBytes = 0;
  #status = 0;
  #isStatusLatched = false;

  constructor(clock: Clock, gateAtReset: boolean) {
    this.#clock = clock;
    this.#gateAtReset = gateAtReset;
    this.#gate = gateAtReset;
  }

  reset(): void {
    this.#mode = 0;
    this.#access = Access.LowHigh;
    this.#isBcd = false;
    this.#gate = this.#gateAtReset;
    this.#count = 0;
    this.#nextCount = 0;
    this.#hasNextCount = false;
    this.#switchTick = 0;
    this.#isAwaitingCount = false;
    this.#isCounting = false;
    this.#startNs = 0;
    this.#ticksBefore = 0;
    this.#writeLow = 0;
    this.#isHighNext = false;
    this.#isReadHighNext = false;
    this.#latch = 0;
    this.#latchedBytes = 0;
    this.#status = 0;
    this.#isStatusLatched = false;
  }

  #isPeriodic(): boolean {
    return this.#mode === Mode.RateGenerator || this.#mode === Mode.SquareWave;
  }
  #isTriggered(): boolean {
    return this.#mode === Mode.OneShot || this.#mode === Mode.HardwareStrobe;
  }

  /** A control word for this counter, other than a latch command. */
  setMode(control: number): void {
    const mode = (control >>> Control.ModeShift) & 7;
    this.#mode = mode > Mode.HardwareStrobe ? mode & 3 : mode; // 6 and 7 are 2 and 3: the top bit is "don't care"
    this.#access = (control >>> Control.AccessShift) & 3;
    this.#isBcd = (control & Control.Bcd) !== 0;
    this.#isAwaitingCount = true;
    this.#hasNextCount = false;
    this.#isCounting = false;
    this.#ticksBefore = 0;
    this.#isHighNext = false;
    this.#isReadHighNext = false;
    this.#latchedBytes = 0;
    this.#isStatusLatched = false;
  }

  /** One byte of a count. */
  writeByte(value: number): void {
    let raw: number;
    if (this.#access === Access.LowHigh) {
      if (!this.#isHighNext) {
        this.#writeLow = value;
        this.#isHighNext = true;
        // Datasheet, mode 0: "Writing the first byte disables counting. OUT is set low immediately."
        if (this.#mode === Mode.TerminalCount) this.#stopCounting();
        return;
      }
      raw = this.#writeLow | (value << 8);
      this.#isHighNext = false;
    } else {
      raw = this.#access === Access.High ? value << 8 : value;
    }
    this.#isReadHighNext = false;
    const count = this.#isBcd ? fromBcd(raw) || 10_000 : raw || 0x1_0000;
    // A period of 1 is illegal in modes 2 and 3; such a write is dropped.
    if (this.#isPeriodic() && count === 1) return;
    this.#load(count);
  }

  #load(count: number): void {
    if (this.#isTriggered()) {
      if (this.#isAwaitingCount) this.#count = count;
      this.#nextCount = count;
      this.#hasNextCount = true;
      this.#isAwaitingCount = false;
    } else if (this.#isPeriodic() && this.#isCounting && !this.#isAwaitingCount) {
      const ticks = this.#elapsed();
      this.#switchTick = (Math.floor(ticks / this.#count) + 1) * this.#count;
      this.#nextCount = count;
      this.#hasNextCount = true;
    } else {
      this.#start(count);
    }
  }

  #start(count: number): void {
    this.#count = count;
    this.#hasNextCount = false;
    this.#isAwaitingCount = false;
    this.#ticksBefore = 0;
    this.#startNs = this.#clock.nowNs();
    this.#isCounting = this.#gate;
  }

  #stopCounting(): void {
    this.#isAwaitingCount = true;
    this.#isCounting = false;
    this.#ticksBefore = 0;
  }

  /** Datasheet, "Gate Pin Operations Summary". */
  setGate(gate: boolean): void {
    if (gate === this.#gate) return;
    const ticks = this.#elapsed();
    this.#gate = gate;
    if (this.#isTriggered()) {
      if (gate && !this.#isAwaitingCount) this.#trigger();
      return;
    }
    if (this.#isAwaitingCount || this.#count === 0) return;
    if (gate) {
      if (this.#isPeriodic()) this.#start(this.#hasNextCount ? this.#nextCount : this.#count);
      else {
        this.#startNs = this.#clock.nowNs();
        this.#isCounting = true;
      }
    } else {
      this.#ticksBefore = this.#isPeriodic() ? 0 : ticks;
      this.#isCounting = false;
    }
  }

  #trigger(): void {
    if (this.#hasNextCount) this.#count = this.#nextCount;
    this.#hasNextCount = false;
    this.#ticksBefore = 0;
    this.#startNs = this.#clock.nowNs();
    this.#isCounting = true;
  }

  /** Ticks since the count was loaded. Takes over a count that was waiting for the end of its period. */
  #elapsed(): number {
    if (!this.#isCounting) return this.#ticksBefore;
    const now = this.#clock.nowNs();
    const ticks = this.#ticksBefore + rate.ticksIn(now - this.#startNs);
    if (!this.#hasNextCount || !this.#isPeriodic() || ticks < this.#switchTick) return ticks;
    this.#startNs += rate.nsFor(this.#switchTick - this.#ticksBefore);
    this.#ticksBefore = 0;
    this.#count = this.#nextCount;
    this.#hasNextCount = false;
    return rate.ticksIn(now - this.#startNs);
  }

  get out(): boolean {
    if (this.#isAwaitingCount) return this.#mode !== Mode.TerminalCount;
    if (!this.#isCounting && (this.#isPeriodic() || this.#isTriggered())) return true;
    const ticks = this.#elapsed();
    const count = this.#count;
    switch (this.#mode) {
      case Mode.TerminalCount:
      case Mode.OneShot:
        return ticks >= count;
      case Mode.RateGenerator:
        return ticks % count !== count - 1;
      case Mode.SquareWave:
        return ticks % count < (count + 1) >>> 1;
      default:
        return ticks !== count;
    }
  }

  /** The counting element, as a guest would read it. */
  #value(): number {
    if (this.#count === 0) this.#start(UNPROGRAMMED_COUNT);
    const ticks = this.#elapsed();
    const count = this.#count;
    const modulus = this.#isBcd ? 10_000 : 0x1_0000;
    let value: number;
    if (this.#mode === Mode.RateGenerator) {
      value = count - (ticks % count);
    } else if (this.#mode === Mode.SquareWave) {
      // Counts down by two, twice in a period; an odd count starts one lower (datasheet, mode 3).
      const half = (count + 1) >>> 1;
      const t = ticks % count;
      value = (count & ~1) - 2 * (t >= half ? t - half : t);
    } else {
      value = count - (ticks % modulus);
    }
    value = ((value % modulus) + modulus) % modulus;
    return this.#isBcd ? toBcd(value) : value;
  }

  latchCount(): void {
    // A second latch is ignored until the first one was read.
    if (this.#latchedBytes !== 0) return;
    this.#latch = this.#value();
    this.#latchedBytes = this.#access === Access.LowHigh ? 2 : 1;
    if (this.#access === Access.High) this.#latch >>>= 8;
  }

  latchStatus(): void {
    if (this.#isStatusLatched) return;
    this.#isStatusLatched = true;
    const isOut = this.out; // may take over a waiting count, so before NULL COUNT is looked at
    this.#status =
      (isOut ? Status.Out : 0) |
      (this.#isAwaitingCount || this.#hasNextCount ? Status.NullCount : 0) |
      (this.#access << Control.AccessShift) |
      (this.#mode << Control.ModeShift) |
      (this.#isBcd ? Control.Bcd : 0);
  }

  readByte(): number {
    if (this.#isStatusLatched) {
      this.#isStatusLatched = false;
      return this.#status;
    }
    if (this.#latchedBytes > 0) {
      this.#latchedBytes--;
      const byte = this.#latch & 0xff;
      this.#latch >>>= 8;
      return byte;
    }
    const value = this.#value();
    if (this.#access === Access.Low) return value & 0xff;
    if (this.#access === Access.High) return value >>> 8;
    // Linux reads low and high without latching while it calibrates the TSC: each byte is of its own moment.
    this.#isReadHighNext = !this.#isReadHighNext;
    return this.#isReadHighNext ? value & 0xff : value >>> 8;
  }

  /** When OUT rises next, strictly after now; undefined if it does not. */
  nextRiseNs(): number | undefined {
    if (this.#isAwaitingCount || !this.#isCounting || this.#count === 0) return undefined;
    const ticks = this.#elapsed();
    let rise: number;
    if (this.#isPeriodic()) {
      rise = this.#hasNextCount ? this.#switchTick : (Math.floor(ticks / this.#count) + 1) * this.#count;
    } else {
      const isStrobe = this.#mode === Mode.SoftwareStrobe || this.#mode === Mode.HardwareStrobe;
      rise = isStrobe ? this.#count + 1 : this.#count;
      if (ticks >= rise) return undefined;
    }
    return this.#startNs + rate.nsFor(rise - this.#ticksBefore);
  }
}

function fromBcd(raw: number): number {
  return (raw >>> 12) * 1000 + ((raw >>> 8) & 15) * 100 + ((raw >>> 4) & 15) * 10 + (raw & 15);
}

function toBcd(value: number): number {
  const digit = (unit: number) => Math.floor(value / unit) % 10;
  return (digit(1000) << 12) | (digit(100) << 8) | (digit(10) << 4) | digit(1);
}

export interface PitOptions {
  readonly clock: Clock;
  /** Counter 0's output ({@link PIT_GSI}), edge triggered: asserted and deasserted again for each rising edge. */
  readonly irq: InterruptLine;
}

/** Ports 0x40-0x43 and 0x61. */
export class Pit implements PlatformDevice {
  readonly #clock: Clock;
  readonly #irq: InterruptLine;
  readonly #timer: Timer;
  readonly #counters: readonly [Counter, Counter, Counter];
  /** Bits 3:0 of port 0x61. */
  #nmiSc = 0;
  #lastEdgeNs = -Infinity;
  #isSuspended = false;

  constructor(options: PitOptions) {
    const { clock } = options;
    this.#clock = clock;
    this.#irq = options.irq;
    this.#timer = clock.createTimer(() => this.#onRise());
    // Gates of counters 0 and 1 are tied high, that of counter 2 is bit 0 of port 0x61.
    this.#counters = [new Counter(clock, true), new Counter(clock, true), new Counter(clock, false)];
  }

  aml(): DeviceAml[] {
    return [isaDevice('TIMR', 'PNP0100', [io(PIT_PORT, 4), irqNoFlags(PIT_IRQ)])];
  }

  motherboardResources(): Aml[] {
    return [io(NMI_SC_PORT, 1)];
  }

  interruptOverrides(): InterruptOverride[] {
    return [{ irq: PIT_IRQ, gsi: PIT_GSI, flags: Inti.ActiveHighEdge }];
  }

  attach(pio: IoBus): Registration[] {
    const timer: IoRegion = {
      read: (offset, size) => this.readTimer(offset, size),
      write: (offset, size, value) => this.writeTimer(offset, size, value),
    };
    const nmiSc: IoRegion = {
      read: () => this.readNmiSc(),
      write: (_offset, size, value) => this.writeNmiSc(size, value),
    };
    return [
      pio.register({ base: PIT_PORT, size: 4, name: 'pit' }, timer),
      pio.register({ base: NMI_SC_PORT, size: 1, name: 'nmi-sc' }, nmiSc),
    ];
  }

  reset(): void {
    this.#timer.cancel();
    for (const counter of this.#counters) counter.reset();
    this.#nmiSc = 0;
    this.#lastEdgeNs = -Infinity;
    this.#isSuspended = false;
  }

  stop(): void {
    this.#timer.cancel();
  }

  suspend(): void {
    this.#isSuspended = true;
    this.#timer.cancel();
  }

  resume(): void {
    this.#isSuspended = false;
    this.#schedule();
  }

  readTimer(offset: number, size: AccessSize): number {
    if (size !== 1 || offset === Reg.Control) return allOnes(size);
    const counter = this.#counters[offset];
    return counter === undefined ? allOnes(size) : counter.readByte();
  }

  writeTimer(offset: number, size: AccessSize, value: number): void {
    if (size !== 1) return;
    if (offset === Reg.Control) {
      this.#writeControl(value);
      return;
    }
    const counter = this.#counters[offset];
    if (counter === undefined) return;
    if (offset === Reg.Counter0) this.#deliverOverdue();
    counter.writeByte(value);
    if (offset === Reg.Counter0) this.#schedule();
  }

  /** Compat: a wider read gives the byte and zeros, as in the C device model. */
  readNmiSc(): number {
    const refresh = Math.floor(rate.ticksIn(this.#clock.nowNs()) / REFRESH_TICKS) % 2;
    return (
      this.#nmiSc | (refresh === 1 ? NmiSc.RefreshToggle : 0) | (this.#counters[Reg.Counter2].out ? NmiSc.Out2 : 0)
    );
  }

  writeNmiSc(size: AccessSize, value: number): void {
    if (size !== 1) return;
    this.#nmiSc = value & NmiSc.Writable;
    this.#counters[Reg.Counter2].setGate((value & NmiSc.Gate2) !== 0);
  }

  /** Whether the speaker would sound: its data bit and counter 2's gate are both set. */
  get isSpeakerOn(): boolean {
    return (this.#nmiSc & (NmiSc.Speaker | NmiSc.Gate2)) === (NmiSc.Speaker | NmiSc.Gate2);
  }

  #writeControl(control: number): void {
    const select = control >>> Control.SelectShift;
    if (select === SELECT_READ_BACK) {
      for (let i = 0; i < this.#counters.length; i++) {
        if ((control & (ReadBack.Counter0 << i)) === 0) continue;
        const counter = this.#counters[i] as Counter;
        if ((control & ReadBack.NoCount) === 0) counter.latchCount();
        if ((control & ReadBack.NoStatus) === 0) counter.latchStatus();
      }
      return;
    }
    const counter = this.#counters[select] as Counter;
    if (((control >>> Control.AccessShift) & 3) === Access.Latch) {
      counter.latchCount();
      return;
    }
    if (select === Reg.Counter0) this.#deliverOverdue();
    counter.setMode(control);
    if (select === Reg.Counter0) this.#timer.cancel();
  }

  /** The guest reprograms counter 0 between an edge and the late timer for it: the edge has happened. */
  #deliverOverdue(): void {
    const due = this.#timer.dueNs;
    if (due !== undefined && due <= this.#clock.nowNs()) this.#pulse();
  }

  #onRise(): void {
    this.#pulse();
    this.#schedule();
  }

  #pulse(): void {
    this.#lastEdgeNs = this.#clock.nowNs();
    this.#irq.set(true);
    this.#irq.set(false);
  }

  #schedule(): void {
    const due = this.#isSuspended ? undefined : this.#counters[Reg.Counter0].nextRiseNs();
    if (due === undefined) this.#timer.cancel();
    else this.#timer.arm(Math.max(due, this.#lastEdgeNs + MIN_EDGE_GAP_NS));
  }
}
