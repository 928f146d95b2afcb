/**
 * MC146818A real-time clock with 128 bytes of CMOS memory, ports 0x70 and 0x71.
 * Spec: Motorola MC146818A datasheet; ICH10 datasheet §13.6; ACPI 6.4 §4.8.2.4 (RTC alarm), century register 0x32.
 *
 * Time is kept in UTC from the host's clock. Seconds are counted when the guest looks; timers run only for an
 * interrupt the guest has enabled and has not been given yet.
 */
import { type AccessSize, allOnes } from '../../core/address.ts';
import type { Clock, Timer } from '../../core/clock.ts';
import type { InterruptLine, IoRegion } from '../../core/device.ts';
import { io, irqNoFlags } from '../../core/firmware/aml-resources.ts';
import { type DeviceAml, isaDevice } from '../../core/firmware/contribution.ts';
import type { IoBus, Registration } from '../../core/io-bus.ts';
import { KiB, MiB } from '../../core/units.ts';
import type { PlatformDevice } from './platform-device.ts';

const RTC_PORT = 0x70;
/** ISA interrupt. */
export const RTC_IRQ = 8;
/** Offsets from port 0x70. */
const Port = { Index: 0, Data: 1 } as const;

/** CMOS addresses. */
const Reg = {
  Seconds: 0x00,
  SecondsAlarm: 0x01,
  Minutes: 0x02,
  MinutesAlarm: 0x03,
  Hours: 0x04,
  HoursAlarm: 0x05,
  DayOfWeek: 0x06,
  DayOfMonth: 0x07,
  Month: 0x08,
  Year: 0x09,
  A: 0x0a,
  B: 0x0b,
  C: 0x0c,
  D: 0x0d,
  /** Reset code: what the firmware does after a reset. */
  ShutdownStatus: 0x0f,
  Century: 0x32,
  /** 64 KiB blocks above 16 MiB and below 4 GiB, 16 bits; read by OVMF. */
  LowMemory: 0x34,
  /** 64 KiB blocks above 4 GiB, 24 bits; read by OVMF. */
  HighMemory: 0x5b,
} as const;
const CMOS_BYTES = 128;

/** Register A. */
const RegA = { UpdateInProgress: 1 << 7, DividerMask: 0x70, DividerOn: 0x20, RateMask: 0x0f } as const;
/** Register B. */
const RegB = {
  Is24Hour: 1 << 1,
  IsBinary: 1 << 2,
  UpdateInterrupt: 1 << 4,
  AlarmInterrupt: 1 << 5,
  PeriodicInterrupt: 1 << 6,
  Set: 1 << 7,
} as const;
/** Register C: bits 6:4 match the enables of register B. */
const RegC = { Update: 1 << 4, Alarm: 1 << 5, Periodic: 1 << 6, Sources: 0x70, Request: 1 << 7 } as const;
/** Register D: the battery is good. */
const REG_D = 0x80;

/** Values from here on in an alarm byte match every value ("don't care"). */
const ALARM_ANY = 0xc0;
const PM = 0x80;
/** OVMF's resume path, for the shutdown status byte. */
const SHUTDOWN_S3_RESUME = 0xfe;

const NS_PER_S = 1_000_000_000;
/** tBUC: the update flag rises this long before the update. */
const UPDATE_WARNING_NS = 244_000;
/** The first update after the divider is released comes half a second later (datasheet, "Divider control"). */
const DIVIDER_RELEASE_NS = 500_000_000;
/** Host clock steps below this are left to the guest's own clock discipline. */
const HOST_JUMP_MS = 1000;
const SECONDS_PER_DAY = 86_400;

/** Periodic rates by register A bits 3:0 (datasheet, Table 5, 32.768 kHz), interrupts a second; 0 = none. */
const PERIODIC_HZ: readonly number[] = [0, 256, 128, 8192, 4096, 2048, 1024, 512, 256, 128, 64, 32, 16, 8, 4, 2];

/** The guest's time of day is no longer what it would have been: `lastS + deltaS` instead of `lastS` (UTC seconds). */
export interface RtcChange {
  readonly lastS: number;
  readonly deltaS: number;
}

export interface RtcOptions {
  readonly clock: Clock;
  /** ISA interrupt 8 as a level: asserted until register C is read. */
  readonly irq: InterruptLine;
  /** RAM below 4 GiB and above, for the firmware. */
  readonly lowMemoryBytes: number;
  readonly highMemoryBytes: number;
  /** The guest set its clock, or the host's was set: a VM event. */
  readonly onTimeChanged?: (change: RtcChange) => void;
  /** An enabled alarm went off: the RTC_STS event of ACPI, and what wakes a guest from S3. */
  readonly onAlarm?: () => void;
}

export class Rtc implements PlatformDevice, IoRegion {
  readonly #clock: Clock;
  readonly #irq: InterruptLine;
  readonly #options: RtcOptions;
  /** For alarm and update interrupts. */
  readonly #secondsTimer: Timer;
  readonly #periodicTimer: Timer;
  /** Registers as the guest last saw or wrote them. */
  readonly #cmos = new Uint8Array(CMOS_BYTES);
  #index: number = Reg.D;
  /** UTC seconds since 1970 at `#secondNs`; undefined while the guest holds the clock or has set nonsense. */
  #seconds: number | undefined;
  /** When the current second began. */
  #secondNs = 0;
  /** Time of day when the guest set the SET bit. */
  #heldSeconds: number | undefined;
  /** Host wall clock minus monotonic clock when they were last looked at. */
  #wallOffsetMs = 0;
  /** Start of the periodic grid. */
  #periodicNs = 0;
  #isSuspended = false;

  constructor(options: RtcOptions) {
    this.#options = options;
    this.#clock = options.clock;
    this.#irq = options.irq;
    this.#secondsTimer = options.clock.createTimer(() => this.#onSecond());
    this.#periodicTimer = options.clock.createTimer(() => this.#onPeriod());
    this.#powerOn();
  }

  aml(): DeviceAml[] {
    return [isaDevice('RTC', 'PNP0B00', [io(RTC_PORT, 2), irqNoFlags(RTC_IRQ)])];
  }

  attach(pio: IoBus): Registration[] {
    return [pio.register({ base: RTC_PORT, size: 2, name: 'rtc' }, this)];
  }

  /** Compat: as with the C device model the time of day comes from the host again, and CMOS memory is cleared. */
  reset(): void {
    if ((this.#regC() & RegC.Request) !== 0) this.#irq.set(false);
    this.stop();
    this.#powerOn();
  }

  stop(): void {
    this.#secondsTimer.cancel();
    this.#periodicTimer.cancel();
  }

  /** S3: only an alarm still has a meaning. */
  suspend(): void {
    this.#isSuspended = true;
    this.#schedulePeriodic();
    this.#scheduleSeconds();
  }

  resume(): void {
    this.#isSuspended = false;
    this.#settle();
    this.#schedulePeriodic();
    this.#scheduleSeconds();
  }

  /** Tell the firmware that the next start is the end of S3. */
  markS3Resume(): void {
    this.#cmos[Reg.ShutdownStatus] = SHUTDOWN_S3_RESUME;
  }

  read(offset: number, size: AccessSize): number {
    if (size !== 1 || offset !== Port.Data) return allOnes(size);
    const index = this.#index;
    this.#settle();
    if (index < Reg.A || index === Reg.Century) this.#showTime(false);
    if (index === Reg.A) return this.#regA() | (this.#isUpdateNear() ? RegA.UpdateInProgress : 0);
    if (index !== Reg.C) return this.#cmos[index] as number;
    const flags = this.#regC();
    if (flags !== 0) {
      this.#setFlags(0);
      this.#schedulePeriodic();
      this.#scheduleSeconds();
    }
    return flags;
  }

  write(offset: number, size: AccessSize, value: number): void {
    if (size !== 1) return;
    if (offset === Port.Index) {
      this.#index = value & 0x7f; // bit 7 masks NMI
      return;
    }
    const index = this.#index;
    this.#settle();
    if (index < Reg.A || index === Reg.Century) this.#showTime(false);
    switch (index) {
      case Reg.A:
        this.#writeA(value);
        break;
      case Reg.B:
        this.#writeB(value);
        break;
      case Reg.C:
      case Reg.D:
        break;
      case Reg.Seconds:
        this.#cmos[index] = value & 0x7f; // the top bit is read-only
        this.#timeWritten();
        break;
      case Reg.Minutes:
      case Reg.Hours:
      case Reg.DayOfMonth:
      case Reg.Month:
      case Reg.Year:
      case Reg.Century:
        this.#cmos[index] = value;
        this.#timeWritten();
        break;
      case Reg.SecondsAlarm:
      case Reg.MinutesAlarm:
      case Reg.HoursAlarm:
        this.#cmos[index] = value;
        this.#scheduleSeconds();
        break;
      default:
        this.#cmos[index] = value;
    }
  }

  #powerOn(): void {
    const { lowMemoryBytes, highMemoryBytes } = this.#options;
    const now = this.#clock.nowNs();
    const wallMs = this.#clock.wallMs();
    this.#cmos.fill(0);
    this.#cmos[Reg.A] = RegA.DividerOn;
    this.#cmos[Reg.B] = RegB.Is24Hour;
    this.#cmos[Reg.D] = REG_D;
    this.#storeBlocks(Reg.LowMemory, 2, Math.max(0, lowMemoryBytes - 16 * MiB));
    this.#storeBlocks(Reg.HighMemory, 3, highMemoryBytes);
    this.#index = Reg.D;
    this.#heldSeconds = undefined;
    this.#seconds = Math.floor(wallMs / 1000);
    this.#secondNs = now - Math.round((wallMs - this.#seconds * 1000) * 1e6);
    this.#wallOffsetMs = wallMs - now / 1e6;
    this.#periodicNs = now;
    this.#isSuspended = false;
    this.#showTime(false);
  }

  #storeBlocks(index: number, bytes: number, sizeBytes: number): void {
    let blocks = Math.floor(sizeBytes / (64 * KiB));
    for (let i = 0; i < bytes; i++) {
      this.#cmos[index + i] = blocks & 0xff;
      blocks = Math.floor(blocks / 256);
    }
  }

  #regA(): number {
    return this.#cmos[Reg.A] as number;
  }
  #regB(): number {
    return this.#cmos[Reg.B] as number;
  }
  #regC(): number {
    return this.#cmos[Reg.C] as number;
  }
  #isDividerOn(): boolean {
    return (this.#regA() & RegA.DividerMask) === RegA.DividerOn;
  }
  #isHeld(): boolean {
    return (this.#regB() & RegB.Set) !== 0;
  }
  /** Whether seconds go by. */
  #isRunning(): boolean {
    return this.#isDividerOn() && !this.#isHeld() && this.#seconds !== undefined;
  }

  #isUpdateNear(): boolean {
    return this.#isRunning() && this.#secondNs + NS_PER_S - this.#clock.nowNs() <= UPDATE_WARNING_NS;
  }

  /** Count the seconds that went by and set their flags. */
  #settle(): void {
    const now = this.#clock.nowNs();
    this.#followHostClock(now);
    if (!this.#isRunning() || now - this.#secondNs < NS_PER_S) return;
    const passed = Math.floor((now - this.#secondNs) / NS_PER_S);
    this.#secondNs += passed * NS_PER_S;
    this.#moveTo((this.#seconds as number) + passed);
  }

  /**
   * It is `seconds` now, by the clock or by the guest. A step forward goes over every second in between, and so over an
   * alarm; a step back, or one from no time at all, comes to its end only.
   */
  #moveTo(seconds: number): void {
    const from = this.#seconds ?? seconds;
    this.#seconds = seconds;
    let flags = 0;
    if ((this.#regB() & RegB.UpdateInterrupt) !== 0) flags |= RegC.Update;
    if ((this.#regB() & RegB.AlarmInterrupt) !== 0) {
      const alarm = this.#nextAlarm(Math.min(from, seconds - 1));
      if (alarm !== undefined && alarm <= seconds) flags |= RegC.Alarm;
    }
    if (flags === 0) return;
    const isNewAlarm = (flags & RegC.Alarm) !== 0 && (this.#regC() & RegC.Alarm) === 0;
    this.#setFlags(this.#regC() | flags);
    if (isNewAlarm) this.#options.onAlarm?.();
  }

  /** A step of the host's clock carries over to the guest's, as a set clock does on a real machine it shares. */
  #followHostClock(now: number): void {
    const stepMs = this.#clock.wallMs() - now / 1e6 - this.#wallOffsetMs;
    if (Math.abs(stepMs) < HOST_JUMP_MS) return;
    const deltaS = Math.trunc(stepMs / 1000);
    this.#wallOffsetMs += deltaS * 1000;
    if (!this.#isRunning()) return;
    const lastS = (this.#seconds as number) + Math.floor((now - this.#secondNs) / NS_PER_S);
    this.#secondNs += Math.floor((now - this.#secondNs) / NS_PER_S) * NS_PER_S;
    if (deltaS > 0) this.#moveTo(lastS + deltaS);
    else this.#seconds = lastS + deltaS;
    this.#scheduleSeconds();
    this.#options.onTimeChanged?.({ lastS, deltaS });
  }

  #writeA(value: number): void {
    const wasOn = this.#isDividerOn();
    const before = this.#periodicHz();
    this.#cmos[Reg.A] = value & ~RegA.UpdateInProgress;
    if (!wasOn && this.#isDividerOn()) this.#secondNs = this.#clock.nowNs() - DIVIDER_RELEASE_NS;
    this.#periodicChanged(before);
    this.#scheduleSeconds();
  }

  #writeB(value: number): void {
    const wasHeld = this.#isHeld();
    const before = this.#periodicHz();
    const now = this.#clock.nowNs();
    this.#cmos[Reg.B] = value;
    if (wasHeld && !this.#isHeld()) {
      const seconds = this.#secondsFromRegisters();
      // SET stops updates, not the divider: the phase of the second stays.
      if (seconds !== undefined) {
        // Compat: a time that is set counts as an update at once, as in the C device model.
        this.#moveTo(seconds);
        this.#secondNs = now - phase(now - this.#secondNs);
        if (this.#heldSeconds !== undefined && seconds !== this.#heldSeconds) {
          this.#options.onTimeChanged?.({ lastS: this.#heldSeconds, deltaS: seconds - this.#heldSeconds });
        }
        this.#heldSeconds = undefined;
      }
    } else if (!wasHeld && this.#isHeld()) {
      this.#heldSeconds = this.#seconds;
      this.#showTime(true);
      this.#seconds = undefined;
      // Datasheet: SET clears UIE.
      this.#cmos[Reg.B] = value & ~RegB.UpdateInterrupt;
    }
    this.#setFlags(this.#regC() & RegC.Sources);
    this.#periodicChanged(before);
    this.#scheduleSeconds();
  }

  /** Some guests set the time without the SET bit, one register after the other: each write counts at once. */
  #timeWritten(): void {
    if (this.#isHeld()) return;
    const lastS = this.#seconds;
    const seconds = this.#secondsFromRegisters();
    if (seconds === undefined) this.#seconds = undefined;
    else if (seconds !== lastS) this.#moveTo(seconds);
    const now = this.#clock.nowNs();
    this.#secondNs = now - phase(now - this.#secondNs);
    this.#scheduleSeconds();
    if (seconds !== undefined && lastS !== undefined && seconds !== lastS) {
      this.#options.onTimeChanged?.({ lastS, deltaS: seconds - lastS });
    }
  }

  #encode(value: number): number {
    return (this.#regB() & RegB.IsBinary) !== 0 ? value : (Math.floor(value / 10) << 4) | (value % 10);
  }

  /** @returns NaN for a byte that is not BCD while it should be. */
  #decode(byte: number): number {
    if ((this.#regB() & RegB.IsBinary) !== 0) return byte;
    const high = byte >>> 4;
    const low = byte & 15;
    return high > 9 || low > 9 ? Number.NaN : high * 10 + low;
  }

  #encodeHour(hour: number): number {
    if ((this.#regB() & RegB.Is24Hour) !== 0) return this.#encode(hour);
    return this.#encode(hour % 12 === 0 ? 12 : hour % 12) | (hour >= 12 ? PM : 0);
  }

  /** Put the time of day into its registers, in the format of the moment. Held registers are the guest's. */
  #showTime(force: boolean): void {
    if (this.#seconds === undefined || (this.#isHeld() && !force)) return;
    const date = new Date(this.#seconds * 1000);
    const year = date.getUTCFullYear();
    // Date covers 275,000 years; two BCD or binary digits each for century and year do not.
    if (!(year >= 1970 && year <= 9999)) return;
    const cmos = this.#cmos;
    cmos[Reg.Seconds] = this.#encode(date.getUTCSeconds());
    cmos[Reg.Minutes] = this.#encode(date.getUTCMinutes());
    cmos[Reg.Hours] = this.#encodeHour(date.getUTCHours());
    cmos[Reg.DayOfWeek] = this.#encode(date.getUTCDay() + 1); // Sunday is 1
    cmos[Reg.DayOfMonth] = this.#encode(date.getUTCDate());
    cmos[Reg.Month] = this.#encode(date.getUTCMonth() + 1);
    cmos[Reg.Year] = this.#encode(year % 100);
    cmos[Reg.Century] = this.#encode(Math.floor(year / 100));
  }

  /** @returns undefined if the registers hold no date from 1970 on: the clock then stands still. */
  #secondsFromRegisters(): number | undefined {
    const cmos = this.#cmos;
    const field = (index: number) => this.#decode(cmos[index] as number);
    const hourByte = cmos[Reg.Hours] as number;
    let hour: number;
    if ((this.#regB() & RegB.Is24Hour) !== 0) {
      hour = this.#decode(hourByte);
    } else {
      const hour12 = this.#decode(hourByte & ~PM);
      hour = hour12 >= 1 && hour12 <= 12 ? (hour12 % 12) + ((hourByte & PM) !== 0 ? 12 : 0) : Number.NaN;
    }
    const second = field(Reg.Seconds);
    const minute = field(Reg.Minutes);
    const day = field(Reg.DayOfMonth);
    const month = field(Reg.Month);
    const yearOfCentury = field(Reg.Year);
    const year = field(Reg.Century) * 100 + yearOfCentury;
    const isValid =
      second <= 59 &&
      minute <= 59 &&
      hour <= 23 &&
      day >= 1 &&
      month >= 1 &&
      month <= 12 &&
      yearOfCentury <= 99 &&
      year >= 1970 &&
      year <= 9999;
    if (!isValid) return undefined;
    const date = new Date(Date.UTC(year, month - 1, day, hour, minute, second));
    // The day of week is not looked at: Linux leaves it alone, others set it wrong.
    return date.getUTCDate() === day ? date.getTime() / 1000 : undefined;
  }

  /** The first second after `from` that the alarm registers match; undefined if they match none. */
  #nextAlarm(from: number): number | undefined {
    const matches = (index: number, encoded: number) => {
      const wanted = this.#cmos[index] as number;
      return wanted >= ALARM_ANY || wanted === encoded;
    };
    const last = from + SECONDS_PER_DAY;
    let at = from + 1;
    while (at <= last) {
      const inDay = ((at % SECONDS_PER_DAY) + SECONDS_PER_DAY) % SECONDS_PER_DAY;
      if (!matches(Reg.HoursAlarm, this.#encodeHour(Math.floor(inDay / 3600)))) at += 3600 - (inDay % 3600);
      else if (!matches(Reg.MinutesAlarm, this.#encode(Math.floor(inDay / 60) % 60))) at += 60 - (inDay % 60);
      else if (!matches(Reg.SecondsAlarm, this.#encode(inDay % 60))) at++;
      else return at;
    }
    return undefined;
  }

  /**
   * Compat: a source's flag is set only while its interrupt is enabled, as in the C device model; a real clock sets
   * them always.
   */
  #setFlags(flags: number): void {
    const sources = flags & RegC.Sources;
    const isRequested = (sources & this.#regB()) !== 0;
    const wasRequested = (this.#regC() & RegC.Request) !== 0;
    this.#cmos[Reg.C] = sources | (isRequested ? RegC.Request : 0);
    if (isRequested !== wasRequested) this.#irq.set(isRequested);
  }

  /** 0 while no periodic interrupt is asked for. */
  #periodicHz(): number {
    if ((this.#regB() & RegB.PeriodicInterrupt) === 0 || !this.#isDividerOn()) return 0;
    return PERIODIC_HZ[this.#regA() & RegA.RateMask] as number;
  }

  #periodicChanged(beforeHz: number): void {
    if (this.#periodicHz() !== beforeHz) this.#periodicNs = this.#clock.nowNs();
    this.#schedulePeriodic();
  }

  /** Nothing is armed while the flag is still set: another period would change nothing. */
  #schedulePeriodic(): void {
    const hz = this.#periodicHz();
    if (hz === 0 || this.#isSuspended || (this.#regC() & RegC.Periodic) !== 0) {
      this.#periodicTimer.cancel();
      return;
    }
    const periodNs = NS_PER_S / hz; // a power of two divides: exact
    const periods = Math.floor((this.#clock.nowNs() - this.#periodicNs) / periodNs) + 1;
    this.#periodicTimer.arm(this.#periodicNs + Math.ceil(periods * periodNs));
  }

  #onPeriod(): void {
    if (this.#periodicHz() !== 0) this.#setFlags(this.#regC() | RegC.Periodic);
    this.#schedulePeriodic();
  }

  #scheduleSeconds(): void {
    let at: number | undefined;
    if (this.#isRunning()) {
      const seconds = this.#seconds as number;
      const pending = this.#regC();
      if ((this.#regB() & RegB.UpdateInterrupt) !== 0 && (pending & RegC.Update) === 0 && !this.#isSuspended) {
        at = seconds + 1;
      } else if ((this.#regB() & RegB.AlarmInterrupt) !== 0 && (pending & RegC.Alarm) === 0) {
        at = this.#nextAlarm(seconds);
      }
      if (at !== undefined) {
        this.#secondsTimer.arm(this.#secondNs + (at - seconds) * NS_PER_S);
        return;
      }
    }
    this.#secondsTimer.cancel();
  }

  #onSecond(): void {
    this.#settle();
    this.#scheduleSeconds();
  }
}

/** How far into its second a time is. */
function phase(elapsedNs: number): number {
  return ((elapsedNs % NS_PER_S) + NS_PER_S) % NS_PER_S;
}
