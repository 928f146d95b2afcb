/**
 * ACPI fixed hardware: PM1a event and control blocks, the SMI command port and the SCI.
 * Spec: ACPI 6.4 §4.8.3 (PM1 event and control grouping), §4.8.2.2.1 (power button), §5.2.9 (SMI_CMD). There is no PM
 * timer: the FADT says so.
 */
import { type AccessSize, allOnes } from '../../core/address.ts';
import type { InterruptLine, IoRegion, PowerControl } from '../../core/device.ts';
import { type FixedHardware, Inti } from '../../core/firmware/acpi-tables.ts';
import { type Aml, name, pkg } from '../../core/firmware/aml.ts';
import { io } from '../../core/firmware/aml-resources.ts';
import type { DeviceAml, InterruptOverride } from '../../core/firmware/contribution.ts';
import type { IoBus, Registration } from '../../core/io-bus.ts';
import type { PlatformDevice } from './platform-device.ts';

/** What the FADT says of these registers. */
export const PmPort = { Event: 0x400, Control: 0x404, SmiCommand: 0xb2 } as const;
export const SCI_GSI = 9;
/** Values for the SMI command port. */
export const SmiCommand = { AcpiEnable: 0xa0, AcpiDisable: 0xa1 } as const;
/** SLP_TYP values (§7.4.2). */
export const SleepType = { S3: 3, S5: 5 } as const;

/** The FADT's view of all this. */
export const pmFixedHardware = {
  sciGsi: SCI_GSI,
  smiCommandPort: PmPort.SmiCommand,
  acpiEnable: SmiCommand.AcpiEnable,
  acpiDisable: SmiCommand.AcpiDisable,
  pm1aEventPort: PmPort.Event,
  pm1aControlPort: PmPort.Control,
} as const satisfies Partial<FixedHardware>;
/** Both PM1 blocks and what lies between and behind them. */
const PM1_BLOCK_BYTES = 8;

/** Offsets from the event block. */
const Reg = { Status: 0, Enable: 2 } as const;
/** PM1 status (§4.8.3.1.1). */
const Sts = {
  Timer: 1 << 0,
  BusMaster: 1 << 4,
  GlobalLock: 1 << 5,
  PowerButton: 1 << 8,
  SleepButton: 1 << 9,
  Rtc: 1 << 10,
  Wake: 1 << 15,
} as const;
/** Cleared by writing 1. */
const STS_CLEARABLE = Sts.Wake | Sts.Rtc | Sts.SleepButton | Sts.PowerButton | Sts.BusMaster;
/** PM1 enable (§4.8.3.1.2): the events a guest may ask for. ACPICA insists on being able to set GBL_EN. */
const EN_WRITABLE = Sts.Rtc | Sts.PowerButton | Sts.GlobalLock;
/** PM1 control (§4.8.3.2.1). */
const Cnt = { SciEnable: 1 << 0, SleepTypeShift: 10, SleepTypeMask: 7 << 10, SleepEnable: 1 << 13 } as const;
/** Reserved or write-only. */
const CNT_ALWAYS_ZERO = 0xc003;

export type WakeSource = 'power-button' | 'rtc-alarm';

export interface AcpiPmOptions {
  /** {@link SCI_GSI} as a level. */
  readonly sci: InterruptLine;
  readonly power: PowerControl;
  /** The guest enters S5: a VM event. Called before the power-off is requested. */
  readonly onSoftOff?: () => void;
  /** While the VM is suspended, something that may wake it happened. */
  readonly onWake?: (source: WakeSource) => void;
}

export class AcpiPm implements PlatformDevice {
  readonly #sci: InterruptLine;
  readonly #power: PowerControl;
  readonly #onSoftOff: () => void;
  readonly #onWake: (source: WakeSource) => void;
  #status = 0;
  #enable = 0;
  #control = 0;
  #isSciAsserted = false;
  #isSuspended = false;

  constructor(options: AcpiPmOptions) {
    this.#sci = options.sci;
    this.#power = options.power;
    this.#onSoftOff = options.onSoftOff ?? (() => {});
    this.#onWake = options.onWake ?? (() => {});
  }

  aml(): DeviceAml[] {
    const sleepState = (object: string, type: number): DeviceAml => ({
      place: 'root',
      aml: name(object, pkg([type, 0])),
    });
    return [sleepState('_S3', SleepType.S3), sleepState('_S5', SleepType.S5)];
  }

  motherboardResources(): Aml[] {
    return [io(PmPort.SmiCommand, 1), io(PmPort.Event, PM1_BLOCK_BYTES)];
  }

  interruptOverrides(): InterruptOverride[] {
    return [{ irq: SCI_GSI, gsi: SCI_GSI, flags: Inti.ActiveHighLevel }];
  }

  attach(pio: IoBus): Registration[] {
    const event: IoRegion = {
      read: (offset, size) => this.#readEvent(offset, size),
      write: (offset, size, value) => this.#writeEvent(offset, size, value),
    };
    const control: IoRegion = {
      read: (offset, size) => (size === 2 && offset === 0 ? this.#control : allOnes(size)),
      write: (offset, size, value) => {
        if (size === 2 && offset === 0) this.#writeControl(value);
      },
    };
    const smi: IoRegion = {
      read: (_offset, size) => allOnes(size),
      write: (_offset, size, value) => {
        if (size === 1) this.#smiCommand(value);
      },
    };
    return [
      pio.register({ base: PmPort.Event, size: 4, name: 'pm1a event' }, event),
      pio.register({ base: PmPort.Control, size: 2, name: 'pm1a control' }, control),
      pio.register({ base: PmPort.SmiCommand, size: 1, name: 'smi command' }, smi),
    ];
  }

  /** Compat: the C device model keeps all of this through every reset. */
  reset(): void {
    this.#setSci(false);
    this.#status = 0;
    this.#enable = 0;
    this.#control = 0;
    this.#isSuspended = false;
  }

  stop(): void {}

  /** An event that came after the guest had looked for the last time wakes it at once, as hardware would. */
  suspend(): void {
    this.#isSuspended = true;
    const woken = this.#status & this.#enable;
    if ((woken & Sts.PowerButton) !== 0) this.#onWake('power-button');
    else if ((woken & Sts.Rtc) !== 0) this.#onWake('rtc-alarm');
  }

  /** §4.8.3.1.1: WAK_STS is set when the system returns to the working state. */
  resume(): void {
    this.#isSuspended = false;
    this.#status |= Sts.Wake;
    this.#updateSci();
  }

  /** Whether the guest has ACPI switched on, so that a power button press reaches it. */
  get isAcpiEnabled(): boolean {
    return (this.#control & Cnt.SciEnable) !== 0;
  }

  /** Whether the guest would be told of a power button press. */
  get isPowerButtonEnabled(): boolean {
    return this.isAcpiEnabled && (this.#enable & Sts.PowerButton) !== 0;
  }

  pressPowerButton(): void {
    this.#status |= Sts.PowerButton;
    this.#updateSci();
    if (this.#isSuspended) this.#onWake('power-button');
  }

  /**
   * The RTC's alarm went off. It is an ACPI event only if the guest asked for it (§4.8.2.4); a guest that uses the
   * alarm as a plain interrupt sees nothing here.
   */
  rtcAlarm(): void {
    if ((this.#enable & Sts.Rtc) === 0) return;
    this.#status |= Sts.Rtc;
    this.#updateSci();
    if (this.#isSuspended) this.#onWake('rtc-alarm');
  }

  /** Registers of the event block answer to 16-bit accesses only. */
  #readEvent(offset: number, size: AccessSize): number {
    if (size !== 2) return allOnes(size);
    if (offset === Reg.Status) return this.#status;
    return offset === Reg.Enable ? this.#enable : allOnes(size);
  }

  #writeEvent(offset: number, size: AccessSize, value: number): void {
    if (size !== 2) return;
    if (offset === Reg.Status) this.#status &= ~(value & STS_CLEARABLE);
    else if (offset === Reg.Enable) this.#enable = value & EN_WRITABLE;
    else return;
    this.#updateSci();
  }

  #writeControl(value: number): void {
    // SCI_EN follows the SMI commands; the guest cannot change it here (§4.8.3.2.1).
    this.#control = (this.#control & Cnt.SciEnable) | (value & ~(Cnt.SleepEnable | CNT_ALWAYS_ZERO));
    if ((value & Cnt.SleepEnable) === 0) return;
    const type = (value & Cnt.SleepTypeMask) >>> Cnt.SleepTypeShift;
    if (type === SleepType.S5) {
      this.#onSoftOff();
      this.#power.request({ kind: 'poweroff', reason: 'guest entered ACPI S5', by: 'guest' });
    } else if (type === SleepType.S3) {
      this.#power.request({ kind: 'suspend', reason: 'guest entered ACPI S3' });
    }
  }

  #smiCommand(command: number): void {
    if (command === SmiCommand.AcpiEnable) {
      this.#control |= Cnt.SciEnable;
      this.#updateSci();
    } else if (command === SmiCommand.AcpiDisable) {
      this.#control &= ~Cnt.SciEnable;
    }
  }

  /** Without SCI_EN events would be SMIs, which nobody here takes: the SCI stays as it is. */
  #updateSci(): void {
    if (this.isAcpiEnabled) this.#setSci((this.#status & this.#enable) !== 0);
  }

  #setSci(asserted: boolean): void {
    if (asserted === this.#isSciAsserted) return;
    this.#isSciAsserted = asserted;
    this.#sci.set(asserted);
  }
}
