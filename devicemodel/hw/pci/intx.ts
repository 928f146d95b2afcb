/**
 * Legacy interrupts of PCI: which pin a function drives and what its level means to the interrupt controllers. PCI 3.0
 * §2.2.6: INTx# is level sensitive, active low, shareable.
 */
import type { Bdf, Gsi } from '../../core/address.ts';
import type { InterruptLine } from '../../core/device.ts';
import type { PirqLinks } from './driver.ts';

/**
 * The platform's side of routing: input pins of the IOAPIC and, for guests without one, the PIRQ links of the LPC
 * bridge. Answers depend on the order of the calls.
 */
export interface IntxRouter extends PirqLinks {
  /** The next free IOAPIC pin. @throws ConfigError when all are taken. */
  allocateGsi(): Gsi;
  /** A PIRQ link for one more pin, 1..8; a link that had none gets an ISA irq. */
  allocateLink(): number;
  /** PIRQ links back to where they pointed when all pins had been routed. */
  reset(): void;
}

/** One of the four pins of a slot, wired-or of the functions that drive it. */
export interface SlotPin {
  /** 1..4, INTA# first: the value of the Interrupt Pin register. */
  readonly pin: number;
  functions: number;
  gsi: Gsi | undefined;
  link: number | undefined;
  asserting: number;
}

/** The line a function holds. Deasserts by itself while the function may not use INTx, and comes back afterwards. */
export class IntxLine implements InterruptLine {
  readonly slotPin: SlotPin;
  readonly #drive: (pin: SlotPin) => void;
  readonly #isPermitted: () => boolean;
  #wanted = false;
  #driven = false;

  /** @param drive puts the pin's level on the wire; called when it changes. */
  constructor(slotPin: SlotPin, isPermitted: () => boolean, drive: (pin: SlotPin) => void) {
    this.slotPin = slotPin;
    this.#isPermitted = isPermitted;
    this.#drive = drive;
  }

  /** 0 until interrupts are routed. */
  get gsi(): Gsi {
    return this.slotPin.gsi ?? 0;
  }

  set(asserted: boolean): void {
    if (asserted === this.#wanted) return;
    this.#wanted = asserted;
    this.update();
  }

  /** The command register or the MSI state changed. */
  update(): void {
    const level = this.#wanted && this.#isPermitted();
    if (level === this.#driven) return;
    this.#driven = level;
    this.slotPin.asserting += level ? 1 : -1;
    if (this.slotPin.asserting === (level ? 1 : 0)) this.#drive(this.slotPin);
  }

  /** Power-on: not asserted, nothing on the wire is changed. */
  reset(): void {
    this.#wanted = false;
    if (this.#driven) this.slotPin.asserting--;
    this.#driven = false;
  }
}

/** One row of the ACPI interrupt routing table. */
export interface InterruptRoute {
  readonly bus: number;
  readonly device: number;
  /** 1..4, INTA# first. */
  readonly pin: number;
  readonly gsi: number;
  /** PIRQ link 1..8, PIRQA first. */
  readonly link: number;
}

const PINS_PER_SLOT = 4;

/** The pins of every slot that has functions with a legacy interrupt. */
export class SlotPins {
  /** By bus and device number. */
  readonly #pins = new Map<number, SlotPin[]>();

  /** The least loaded pin of the slot, INTA# first; it counts one function more. */
  take(bdf: Bdf): SlotPin {
    const key = (bdf.bus << 5) | bdf.device;
    let pins = this.#pins.get(key);
    if (pins === undefined) {
      pins = Array.from({ length: PINS_PER_SLOT }, (_, i) => ({
        pin: i + 1,
        functions: 0,
        gsi: undefined,
        link: undefined,
        asserting: 0,
      }));
      this.#pins.set(key, pins);
    }
    const best = pins.reduce((least, pin) => (pin.functions < least.functions ? pin : least));
    best.functions++;
    return best;
  }

  /** Of all pins that are routed: by bus, device and pin. */
  routes(): InterruptRoute[] {
    const routes: InterruptRoute[] = [];
    for (const key of [...this.#pins.keys()].sort((a, b) => a - b)) {
      for (const pin of this.#pins.get(key) as SlotPin[]) {
        if (pin.gsi === undefined) continue;
        routes.push({ bus: key >>> 5, device: key & 0x1f, pin: pin.pin, gsi: pin.gsi, link: pin.link as number });
      }
    }
    return routes;
  }
}
