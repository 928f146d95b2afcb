/**
 * High precision event timer. Spec: IA-PC HPET Specification 1.0a (October 2004).
 *
 * 8 timers of 32 bits on a 32-bit main counter of 2^24 Hz, as the C device model has them. The counter is computed from
 * the clock when it is read; a timer of the host is armed only while a comparator match would be seen by the guest.
 */
import type { AccessSize, Gsi } from '../../core/address.ts';
import type { Clock, Timer } from '../../core/clock.ts';
import type { IoRegion, MsiSink } from '../../core/device.ts';
import { name, scope } from '../../core/firmware/aml.ts';
import { memory32Fixed } from '../../core/firmware/aml-resources.ts';
import { type DeviceAml, type DeviceTable, plainDevice } from '../../core/firmware/contribution.ts';
import { hpetTable } from '../../core/firmware/tables.ts';
import type { IoBus, Registration } from '../../core/io-bus.ts';
import { Layout } from '../../core/layout.ts';
import { type Log, silentLog } from '../../core/log.ts';
import type { PlatformDevice } from './platform-device.ts';
import { TickRate } from './tick-rate.ts';

export const HPET_HZ = 1 << 24;
export const HPET_TIMER_COUNT = 8;

const FEMTOSECONDS_PER_S = 1e15;
/** COUNTER_CLK_PERIOD, §2.3.4. */
const PERIOD_FS = Math.floor(FEMTOSECONDS_PER_S / HPET_HZ);
const VENDOR_ID = 0x8086;
const REVISION_ID = 1;

/** Register offsets (§2.3.2); timer n's block is at Timer + n * TimerStride. */
const Reg = {
  Capabilities: 0x000,
  Config: 0x010,
  InterruptStatus: 0x020,
  MainCounter: 0x0f0,
  Timer: 0x100,
  TimerStride: 0x20,
} as const;
/** Offsets in a timer's block. */
const TimerReg = { Config: 0x00, Comparator: 0x08, FsbRoute: 0x10 } as const;

/** General capabilities, low half (§2.3.4). */
const Cap = { TimerCountShift: 8, LegacyRoute: 1 << 15, VendorShift: 16 } as const;
/** General configuration (§2.3.5). */
const Cfg = { Enable: 1 << 0, LegacyRoute: 1 << 1 } as const;
/** Timer n configuration, low half (§2.3.8). */
const Tn = {
  LevelTriggered: 1 << 1,
  InterruptEnable: 1 << 2,
  Periodic: 1 << 3,
  PeriodicCapable: 1 << 4,
  Is64Bit: 1 << 5,
  ValueSet: 1 << 6,
  Force32Bit: 1 << 8,
  RouteShift: 9,
  RouteMask: 0x1f << 9,
  FsbEnable: 1 << 14,
  FsbCapable: 1 << 15,
} as const;
const TN_READ_ONLY = Tn.PeriodicCapable | Tn.Is64Bit | Tn.FsbCapable;
const TN_AT_RESET = Tn.PeriodicCapable | Tn.FsbCapable;
/** Tn_INT_ROUTE_CAP: IOAPIC pins 24-31. */
const ROUTE_CAPABILITY = 0xff000000;
/** §2.3.5: with legacy replacement timer 0 takes the place of the PIT, timer 1 that of the RTC. */
const LEGACY_PINS: readonly Gsi[] = [2, 8];

const COUNTER_MODULUS = 2 ** 32;
/** A guest may ask for a period of one tick; matches closer than this are merged. */
const MIN_INTERRUPT_GAP_NS = 50_000;
const rate = new TickRate(HPET_HZ);

/** Any pin of the IOAPIC: which one, and how it is triggered, is the guest's choice. */
export interface IoapicInput {
  /** One rising edge. */
  pulse(gsi: Gsi): void;
  /** A level. */
  set(gsi: Gsi, asserted: boolean): void;
}

export interface HpetOptions {
  readonly clock: Clock;
  readonly ioapic: IoapicInput;
  /** FSB interrupts. */
  readonly msi: MsiSink;
  readonly log?: Log;
  /** Offer LEG_RT. Off by default. Compat: the C device model has no legacy replacement route. */
  readonly legacyReplacement?: boolean;
  /** The guest switched legacy replacement on or off: PIT and RTC interrupts must be held back meanwhile. */
  readonly onLegacyRoute?: (active: boolean) => void;
}

class HpetTimer {
  readonly hostTimer: Timer;
  config = TN_AT_RESET;
  comparator = COUNTER_MODULUS - 1;
  /** What is added to the comparator at a match; 0 in one-shot mode. */
  period = 0;
  fsbValue = 0;
  fsbAddress = 0;
  /** Next match in ticks since the counter was last set, undefined while the timer stands still. */
  matchTick: number | undefined;
  lastInterruptNs = -Infinity;

  constructor(hostTimer: Timer) {
    this.hostTimer = hostTimer;
  }

  reset(): void {
    this.hostTimer.cancel();
    this.config = TN_AT_RESET;
    this.comparator = COUNTER_MODULUS - 1;
    this.period = 0;
    this.fsbValue = 0;
    this.fsbAddress = 0;
    this.matchTick = undefined;
    this.lastInterruptNs = -Infinity;
  }

  get isPeriodic(): boolean {
    return (this.config & Tn.Periodic) !== 0;
  }
  get isInterruptEnabled(): boolean {
    return (this.config & Tn.InterruptEnable) !== 0;
  }
  /** Follows the counter. Compat: a periodic timer moves its comparator even without its interrupt. */
  get isEnabled(): boolean {
    return (this.config & (Tn.InterruptEnable | Tn.Periodic)) !== 0;
  }
  get isFsb(): boolean {
    return (this.config & Tn.FsbEnable) !== 0;
  }
  get isLevel(): boolean {
    return (this.config & Tn.LevelTriggered) !== 0;
  }
}

/** MMIO 0xfed00000, 1 KiB. */
export class Hpet implements PlatformDevice, IoRegion {
  readonly #clock: Clock;
  readonly #ioapic: IoapicInput;
  readonly #msi: MsiSink;
  readonly #log: Log;
  readonly #hasLegacyRoute: boolean;
  readonly #onLegacyRoute: (active: boolean) => void;
  readonly #timers: readonly HpetTimer[];
  #config = 0;
  /** Level-triggered interrupts that are asserted, one bit a timer (§2.3.6). */
  #status = 0;
  /** Main counter value at `#baseNs`; while the counter is off, its value. */
  #base = 0;
  #baseNs = 0;
  #isSuspended = false;

  constructor(options: HpetOptions) {
    this.#clock = options.clock;
    this.#ioapic = options.ioapic;
    this.#msi = options.msi;
    this.#log = options.log ?? silentLog;
    this.#hasLegacyRoute = options.legacyReplacement ?? false;
    this.#onLegacyRoute = options.onLegacyRoute ?? (() => {});
    this.#timers = Array.from(
      { length: HPET_TIMER_COUNT },
      (_, n) => new HpetTimer(options.clock.createTimer(() => this.#onHostTimer(n))),
    );
  }

  aml(): DeviceAml[] {
    const { base, size } = Layout.hpet;
    const hpet = plainDevice('HPET', 'PNP0103', [memory32Fixed(base, size)], name('_UID', 0));
    return [{ place: 'system', aml: scope('_SB.PCI0', [hpet]) }];
  }

  tables(): DeviceTable[] {
    return [hpetTable(this.capabilitiesLow, Layout.hpet.base)];
  }

  attach(_pio: IoBus, mmio: IoBus): Registration[] {
    return [mmio.register({ ...Layout.hpet, name: 'hpet' }, this)];
  }

  reset(): void {
    for (let n = 0; n < this.#timers.length; n++) {
      this.#lowerLine(n);
      (this.#timers[n] as HpetTimer).reset();
    }
    if ((this.#config & Cfg.LegacyRoute) !== 0) this.#onLegacyRoute(false);
    this.#config = 0;
    this.#status = 0;
    this.#base = 0;
    this.#baseNs = 0;
    this.#isSuspended = false;
  }

  stop(): void {
    for (const timer of this.#timers) timer.hostTimer.cancel();
  }

  suspend(): void {
    this.#isSuspended = true;
    this.stop();
  }

  resume(): void {
    this.#isSuspended = false;
    for (let n = 0; n < this.#timers.length; n++) this.#schedule(n);
  }

  /** General capabilities and ID register (§2.3.4). The ACPI HPET table repeats the low half. */
  get capabilitiesLow(): number {
    return (
      ((VENDOR_ID << Cap.VendorShift) |
        ((HPET_TIMER_COUNT - 1) << Cap.TimerCountShift) |
        (this.#hasLegacyRoute ? Cap.LegacyRoute : 0) |
        REVISION_ID) >>>
      0
    );
  }

  /** §2.2.1: 32- or 64-bit accesses on their natural boundary; others read 0 and write nothing, as in the C device model. */
  read(offset: number, size: AccessSize): number {
    return size === 4 && (offset & 3) === 0 ? this.#readRegister(offset) : 0;
  }

  write(offset: number, size: AccessSize, value: number): void {
    if (size === 4 && (offset & 3) === 0) this.#writeRegister(offset, value);
  }

  /** One moment for both halves: nothing tears. */
  readU64(offset: number): bigint {
    if ((offset & 7) !== 0) return 0n;
    const low = this.#readRegister(offset);
    return BigInt(low) | (BigInt(this.#readRegister(offset + 4)) << 32n);
  }

  writeU64(offset: number, value: bigint): void {
    if ((offset & 7) !== 0) return;
    const low = Number(value & 0xffffffffn);
    const high = Number((value >> 32n) & 0xffffffffn);
    this.#writeRegister(offset, low);
    this.#writeRegister(offset + 4, high);
  }

  #readRegister(offset: number): number {
    if (offset >= Reg.Timer) return this.#readTimerRegister(offset - Reg.Timer);
    switch (offset) {
      case Reg.Capabilities:
        return this.capabilitiesLow;
      case Reg.Capabilities + 4:
        return PERIOD_FS;
      case Reg.Config:
        return this.#config;
      case Reg.InterruptStatus:
        return this.#status;
      case Reg.MainCounter:
        return this.#counter();
      default:
        // Upper halves (the counter has 32 bits) and reserved registers.
        return 0;
    }
  }

  #readTimerRegister(offset: number): number {
    const n = Math.floor(offset / Reg.TimerStride);
    const timer = this.#timers[n];
    if (timer === undefined) return 0;
    switch (offset % Reg.TimerStride) {
      case TimerReg.Config:
        return timer.config;
      case TimerReg.Config + 4:
        return ROUTE_CAPABILITY;
      case TimerReg.Comparator:
        this.#catchUp(n);
        return timer.comparator;
      case TimerReg.FsbRoute:
        return timer.fsbValue;
      case TimerReg.FsbRoute + 4:
        return timer.fsbAddress;
      default:
        return 0;
    }
  }

  #writeRegister(offset: number, value: number): void {
    if (offset >= Reg.Timer) {
      this.#writeTimerRegister(offset - Reg.Timer, value);
      return;
    }
    switch (offset) {
      case Reg.Config:
        this.#writeConfig(value);
        break;
      case Reg.InterruptStatus:
        // Write 1 to clear (§2.3.6).
        for (let n = 0; n < this.#timers.length; n++) {
          if ((value & (1 << n)) === 0) continue;
          this.#lowerLine(n);
          this.#schedule(n);
        }
        break;
      case Reg.MainCounter:
        this.#catchUpAll();
        this.#base = value;
        if (this.#isCounting()) this.#startCounting();
        break;
      default:
        break;
    }
  }

  #writeTimerRegister(offset: number, value: number): void {
    const n = Math.floor(offset / Reg.TimerStride);
    const timer = this.#timers[n];
    if (timer === undefined) return;
    switch (offset % Reg.TimerStride) {
      case TimerReg.Config:
        this.#writeTimerConfig(n, timer, value);
        break;
      case TimerReg.Comparator:
        this.#writeComparator(n, timer, value);
        break;
      case TimerReg.FsbRoute:
        timer.fsbValue = value;
        break;
      case TimerReg.FsbRoute + 4:
        timer.fsbAddress = value;
        break;
      default:
        // The comparator's upper half does not exist on a 32-bit timer. Compat: the C device model lets a write there
        // use up VALUE_SET, so that a 64-bit write split high half first loses the period.
        break;
    }
  }

  #isCounting(): boolean {
    return (this.#config & Cfg.Enable) !== 0;
  }

  /** Ticks since the counter was last set or switched on. */
  #ticks(): number {
    return this.#isCounting() ? rate.ticksIn(this.#clock.nowNs() - this.#baseNs) : 0;
  }

  #counter(): number {
    return (this.#base + this.#ticks()) % COUNTER_MODULUS;
  }

  #writeConfig(value: number): void {
    const writable = this.#hasLegacyRoute ? Cfg.Enable | Cfg.LegacyRoute : Cfg.Enable;
    const before = this.#config;
    const after = value & writable;
    const changed = before ^ after;
    if (changed === 0) return;
    this.#catchUpAll();
    if ((changed & Cfg.LegacyRoute) !== 0) {
      for (let n = 0; n < LEGACY_PINS.length; n++) this.#lowerLine(n);
    }
    if ((changed & Cfg.Enable) !== 0 && (after & Cfg.Enable) === 0) {
      this.#base = this.#counter();
      for (let n = 0; n < this.#timers.length; n++) this.#stopTimer(n);
    }
    this.#config = after;
    if ((changed & Cfg.Enable) !== 0 && (after & Cfg.Enable) !== 0) this.#startCounting();
    if ((changed & Cfg.LegacyRoute) !== 0) {
      for (let n = 0; n < LEGACY_PINS.length; n++) this.#schedule(n);
      this.#onLegacyRoute((after & Cfg.LegacyRoute) !== 0);
    }
  }

  #startCounting(): void {
    this.#baseNs = this.#clock.nowNs();
    for (let n = 0; n < this.#timers.length; n++) {
      if ((this.#timers[n] as HpetTimer).isEnabled) this.#startTimer(n);
    }
  }

  #writeTimerConfig(n: number, timer: HpetTimer, value: number): void {
    const before = timer.config;
    let after = value & ~(TN_READ_ONLY | Tn.Force32Bit);
    after = (after | (before & TN_READ_ONLY)) >>> 0;
    if (after === before) return;
    this.#catchUp(n);
    const oldPin = this.#pinOf(n);
    timer.config = after;
    if (!timer.isPeriodic) timer.period = 0;
    const pin = (after & Tn.RouteMask) >>> Tn.RouteShift;
    if (pin !== 0 && !timer.isFsb && (ROUTE_CAPABILITY & (1 << pin)) === 0) {
      this.#log.guest(() => `hpet: timer ${n} cannot be routed to IOAPIC pin ${pin}`);
      timer.config = (timer.config & ~Tn.RouteMask) >>> 0;
    }
    // A level interrupt must not stay asserted when nothing can clear it any more.
    if ((this.#status & (1 << n)) !== 0) {
      if (!timer.isInterruptEnabled || timer.isFsb || !timer.isLevel || this.#pinOf(n) !== oldPin) {
        this.#ioapic.set(oldPin, false);
        this.#status &= ~(1 << n);
      }
    }
    if (!this.#isCounting()) return;
    if (!timer.isEnabled) {
      this.#stopTimer(n);
      return;
    }
    const wasEnabled = (before & (Tn.InterruptEnable | Tn.Periodic)) !== 0;
    if (!wasEnabled || ((before ^ after) & Tn.Periodic) !== 0) this.#startTimer(n);
    else this.#schedule(n);
  }

  #writeComparator(n: number, timer: HpetTimer, value: number): void {
    this.#catchUp(n);
    const { comparator, period } = timer;
    if (timer.isPeriodic) {
      // §2.3.9.2.2: in periodic mode a write sets the period, and the comparator only if VALUE_SET says so.
      timer.period = value;
      if ((timer.config & Tn.ValueSet) !== 0) timer.comparator = value;
    } else {
      timer.comparator = value;
    }
    timer.config = (timer.config & ~Tn.ValueSet) >>> 0;
    const hasChanged = timer.comparator !== comparator || timer.period !== period;
    if (hasChanged && this.#isCounting() && timer.isEnabled) this.#startTimer(n);
  }

  /** The next match is where the counter, going up from now, meets the comparator. */
  #startTimer(n: number): void {
    const timer = this.#timers[n] as HpetTimer;
    const ticks = this.#ticks();
    const counter = (this.#base + ticks) % COUNTER_MODULUS;
    timer.matchTick = ticks + ((timer.comparator - counter + COUNTER_MODULUS) % COUNTER_MODULUS);
    this.#schedule(n);
  }

  #stopTimer(n: number): void {
    const timer = this.#timers[n] as HpetTimer;
    timer.matchTick = undefined;
    timer.hostTimer.cancel();
  }

  #schedule(n: number): void {
    const timer = this.#timers[n] as HpetTimer;
    if (timer.matchTick === undefined || this.#isSuspended || !this.#wouldInterrupt(n, timer)) {
      timer.hostTimer.cancel();
      return;
    }
    const matchNs = this.#baseNs + rate.nsFor(timer.matchTick);
    timer.hostTimer.arm(Math.max(matchNs, timer.lastInterruptNs + MIN_INTERRUPT_GAP_NS));
  }

  /** Whether a match would be seen outside. */
  #wouldInterrupt(n: number, timer: HpetTimer): boolean {
    if (!timer.isInterruptEnabled) return false;
    if (this.#isFsbRouted(n)) return true;
    return this.#pinOf(n) !== 0 && (this.#status & (1 << n)) === 0;
  }

  #onHostTimer(n: number): void {
    this.#catchUp(n);
    this.#schedule(n);
  }

  #catchUpAll(): void {
    for (let n = 0; n < this.#timers.length; n++) this.#catchUp(n);
  }

  /**
   * Account for matches up to now: periods that passed move the comparator (§2.3.9.2.2) and make one interrupt, even if
   * the host was too late for some of them.
   */
  #catchUp(n: number): void {
    const timer = this.#timers[n] as HpetTimer;
    if (timer.matchTick === undefined || !this.#isCounting()) return;
    const ticks = this.#ticks();
    if (ticks < timer.matchTick) return;
    // A one-shot timer matches again when the 32-bit counter comes round (§2.3.9.2.1).
    const step = timer.period === 0 ? COUNTER_MODULUS : timer.period;
    const passed = Math.floor((ticks - timer.matchTick) / step) + 1;
    timer.matchTick += passed * step;
    timer.comparator = (timer.comparator + ((passed * timer.period) % COUNTER_MODULUS)) % COUNTER_MODULUS;
    if (!this.#isSuspended && timer.isInterruptEnabled) this.#interrupt(n, timer);
    this.#schedule(n);
  }

  #isFsbRouted(n: number): boolean {
    if ((this.#config & Cfg.LegacyRoute) !== 0 && n < LEGACY_PINS.length) return false;
    return (this.#timers[n] as HpetTimer).isFsb;
  }

  /** The IOAPIC pin, 0 for none. */
  #pinOf(n: number): Gsi {
    if ((this.#config & Cfg.LegacyRoute) !== 0 && n < LEGACY_PINS.length) return LEGACY_PINS[n] as Gsi;
    const timer = this.#timers[n] as HpetTimer;
    return timer.isFsb ? 0 : (timer.config & Tn.RouteMask) >>> Tn.RouteShift;
  }

  #interrupt(n: number, timer: HpetTimer): void {
    timer.lastInterruptNs = this.#clock.nowNs();
    if (this.#isFsbRouted(n)) {
      this.#msi.signal({ address: timer.fsbAddress, data: timer.fsbValue });
      return;
    }
    const pin = this.#pinOf(n);
    if (pin === 0) return;
    if (!timer.isLevel) {
      this.#ioapic.pulse(pin);
    } else if ((this.#status & (1 << n)) === 0) {
      this.#status |= 1 << n;
      this.#ioapic.set(pin, true);
    }
  }

  #lowerLine(n: number): void {
    if ((this.#status & (1 << n)) === 0) return;
    this.#status &= ~(1 << n);
    this.#ioapic.set(this.#pinOf(n), false);
  }
}
