/**
 * Watchdog of the Intel 6300ESB I/O controller: two stages, the first interrupts, the second resets the VM.
 * Spec: Intel 6300ESB I/O Controller Hub datasheet (300641), chapter 16 "Watchdog Timer"; Linux drivers/watchdog/i6300esb.c.
 */
import * as v from 'valibot';
import type { BarIndex, BarSpec, ConfigSpace } from '../../chips/pci-config-space.ts';
import type { AccessSize } from '../../core/address.ts';
import type { Clock, Timer } from '../../core/clock.ts';
import type { InterruptLine, PowerControl } from '../../core/device.ts';
import { definePciDriver, type PciEnv } from './driver.ts';
import type { EmulatedPciFunction, PciIdentity } from './function.ts';
import { Msi } from './msi.ts';

/** Base system peripheral, other. */
const Id: PciIdentity = { vendorId: 0x8086, deviceId: 0x25ab, classCode: 0x088000 };

/** Configuration registers: WDT Configuration (16 bits) and WDT Lock (8 bits). */
const ConfigReg = { Configuration: 0x60, Lock: 0x68 } as const;
const Configuration = { InterruptMask: 3 << 0, NoReboot: 1 << 5 } as const;
/** Interrupt type field: 0 is an interrupt, 3 none. Compat: SMI and SCI do not exist here. */
const INTERRUPT_TYPE_IRQ = 0;
const Lock = { Locked: 1 << 0, Enable: 1 << 1 } as const;

/** Memory-mapped registers. */
const Reg = { Timer1: 0x00, Timer2: 0x04, InterruptStatus: 0x08, Reload: 0x0c } as const;
const BAR_BYTES = 0x10;
const InterruptStatus = { Active: 1 << 0 } as const;
const Reload = { Ping: 1 << 8, TimedOut: 1 << 9 } as const;

/** Two writes to the reload register that let one protected write through. */
const UNLOCK = [0x80, 0x86] as const;

/** Preload values have 20 bits and count at about 1 kHz, the PCI clock divided by 2^15: 1024 make a second. */
const MAX_PRELOAD = 0xfffff;
const PRELOAD_PER_S = 1024;
const NS_PER_S = 1e9;
/** After S3: long enough for the guest's driver to come back. */
const RESUME_PRELOAD = 60 * PRELOAD_PER_S;

class Watchdog implements EmulatedPciFunction {
  readonly backing = 'device-model';
  readonly identity = Id;
  readonly bars: readonly BarSpec[] = [{ index: 0, kind: 'mem32', sizeBytes: BAR_BYTES }];
  readonly #clock: Clock;
  readonly #power: PowerControl;
  readonly #line: InterruptLine;
  readonly #msi: Msi;
  readonly #timer: Timer;
  #isRebootEnabled = true;
  #isInterruptEnabled = false;
  #isInterruptActive = false;
  #isLocked = false;
  #isEnabled = false;
  #preload1 = MAX_PRELOAD;
  #preload2 = MAX_PRELOAD;
  #stage: 1 | 2 = 1;
  /** How much of the unlock sequence was written. */
  #unlocked: 0 | 1 | 2 = 0;
  /** The watchdog reset the VM. Outlives the reset, for the guest to find. */
  #hasTimedOut = false;

  constructor(env: PciEnv) {
    this.#clock = env.clock;
    this.#power = env.power;
    this.#line = env.intx();
    this.#msi = new Msi({ vectors: 1 }, env.msi);
    this.#timer = env.clock.createTimer(() => this.#expired());
  }

  configure(config: ConfigSpace): void {
    this.#msi.attach(config);
    config.hook(ConfigReg.Configuration, 4, {
      write: (offset, size, value) => {
        if (offset !== ConfigReg.Configuration || size !== 2) return false;
        this.#isRebootEnabled = (value & Configuration.NoReboot) === 0;
        this.#isInterruptEnabled = (value & Configuration.InterruptMask) === INTERRUPT_TYPE_IRQ;
        // Compat: the register reads as zero whatever was written, as in the C device model.
        return true;
      },
    });
    config.hook(ConfigReg.Lock, 4, {
      read: (offset, size) => {
        if (offset !== ConfigReg.Lock || size !== 1) return undefined;
        return (this.#isLocked ? Lock.Locked : 0) | (this.#isEnabled ? Lock.Enable : 0);
      },
      write: (offset, size, value) => {
        if (offset !== ConfigReg.Lock || size !== 1) return false;
        this.#writeLock(value);
        return true;
      },
    });
  }

  readBar(_index: BarIndex, offset: number, size: AccessSize): number {
    switch (offset) {
      case Reg.InterruptStatus:
        return this.#isInterruptEnabled && this.#isInterruptActive ? InterruptStatus.Active : 0;
      case Reg.Reload:
        if (size !== 2) return 0;
        return (this.#hasTimedOut ? Reload.TimedOut : 0) | (this.#stage === 1 ? Reload.Ping : 0);
      default:
        // Preload values are write-only.
        return 0;
    }
  }

  writeBar(_index: BarIndex, offset: number, size: AccessSize, value: number): void {
    if (offset === Reg.InterruptStatus) {
      if ((value & InterruptStatus.Active) === 0) return;
      this.#isInterruptActive = false;
      this.#line.set(false);
      return;
    }
    if (offset === Reg.Reload) {
      if (size === 2) this.#writeReload(value);
      return;
    }
    if (this.#unlocked !== 2) return;
    this.#unlocked = 0;
    if (offset === Reg.Timer1) this.#preload1 = value & MAX_PRELOAD;
    else if (offset === Reg.Timer2) this.#preload2 = value & MAX_PRELOAD;
  }

  reset(): void {
    this.#timer.cancel();
    this.#line.set(false);
    this.#isRebootEnabled = true;
    this.#isInterruptEnabled = false;
    this.#isInterruptActive = false;
    this.#isLocked = false;
    this.#isEnabled = false;
    this.#preload1 = MAX_PRELOAD;
    this.#preload2 = MAX_PRELOAD;
    this.#stage = 1;
    this.#unlocked = 0;
  }

  stop(): void {
    this.#timer.cancel();
  }

  /** A guest that sleeps cannot feed its watchdog. */
  suspend(): void {
    this.#timer.cancel();
  }

  resume(): void {
    this.#stage = 1;
    this.#preload1 = RESUME_PRELOAD;
    this.#preload2 = RESUME_PRELOAD;
    this.#unlocked = 0;
    this.#startStage();
  }

  #writeLock(value: number): void {
    if (this.#isLocked) return;
    const wasEnabled = this.#isEnabled;
    this.#isLocked = (value & Lock.Locked) !== 0;
    this.#isEnabled = (value & Lock.Enable) !== 0;
    if (!this.#isEnabled) {
      this.#timer.cancel();
    } else if (!wasEnabled) {
      this.#stage = 1;
      this.#startStage();
    }
  }

  #writeReload(value: number): void {
    if (value === UNLOCK[0]) {
      this.#unlocked = 1;
    } else if (value === UNLOCK[1] && this.#unlocked === 1) {
      this.#unlocked = 2;
    } else if (this.#unlocked === 2) {
      this.#unlocked = 0;
      if ((value & Reload.Ping) !== 0) {
        this.#stage = 1;
        this.#startStage();
      }
      if ((value & Reload.TimedOut) !== 0) this.#hasTimedOut = false;
    }
  }

  /**
   * Compat: counts to the 1/1024 s. The C device model cuts to whole seconds, so that a preload below 1024 never
   * expires.
   */
  #startStage(): void {
    if (!this.#isEnabled) return;
    const preload = Math.max(1, this.#stage === 1 ? this.#preload1 : this.#preload2);
    this.#timer.arm(this.#clock.nowNs() + Math.round((preload * NS_PER_S) / PRELOAD_PER_S));
  }

  #expired(): void {
    if (this.#stage === 1) {
      if (this.#isInterruptEnabled) {
        this.#isInterruptActive = true;
        if (this.#msi.isEnabled) this.#msi.signal(0);
        else this.#line.set(true);
      }
      this.#stage = 2;
      this.#startStage();
      return;
    }
    this.#stage = 1;
    if (this.#isRebootEnabled) {
      this.#hasTimedOut = true;
      this.#power.request({ kind: 'system-reset', reason: 'watchdog timeout', by: 'watchdog' });
    } else {
      this.#startStage();
    }
  }
}

export const wdtI6300esb = definePciDriver({
  name: 'wdt-i6300esb',
  summary: 'watchdog timer that resets the VM when the guest stops feeding it',
  options: v.strictObject({}),
  isSingle: true,
  create: (_options, env) => new Watchdog(env),
});
