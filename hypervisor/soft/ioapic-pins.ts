/**
 * Input pins of the module's IOAPIC that its own entry point cannot reach without touching the PIC, or without regard to
 * polarity: the module takes a pin's level for its assertion, while PCI's INTx is active low. 82093AA §2.4, 3.2.4.
 */
import { Ioapic } from './v86-module.ts';

/** IOAPIC redirection entry, low word (82093AA §3.2.4). */
export const Rte = {
  vector: 0xff,
  deliveryMode: 7 << 8,
  activeLow: 1 << 13,
  remoteIrr: 1 << 14,
  level: 1 << 15,
  masked: 1 << 16,
} as const;
/** What an input means. */
const MEANING = Rte.activeLow | Rte.level;

export class IoapicPins {
  /** The module's struct. */
  readonly #words: Int32Array;
  readonly #send: (redirection: number) => void;
  /** Level of the wires, one bit a pin. They are not the IOAPIC's: a reset leaves them as they are. */
  #wires = 0;
  /** Pins with a wire; the others are not asserted, whatever the guest makes of them. */
  #connected = 0;
  /** Meaning of each pin when its wire was last looked at. */
  readonly #meanings = new Int32Array(Ioapic.pins);

  /** @param send delivers what a redirection entry says */
  constructor(words: Int32Array, send: (redirection: number) => void) {
    this.#words = words;
    this.#send = send;
  }

  /** Put a level on a wire. */
  set(pin: number, isHigh: boolean): void {
    const mask = 1 << pin;
    this.#connected |= mask;
    this.#wires = isHigh ? this.#wires | mask : this.#wires & ~mask;
    this.#update(pin);
  }

  /** The guest may have changed what levels mean. */
  look(): void {
    for (let left = this.#connected; left !== 0; left &= left - 1) {
      const pin = 31 - Math.clz32(left & -left);
      if ((this.#config(pin) & MEANING) !== this.#meanings[pin]) this.#update(pin);
    }
  }

  #update(pin: number): void {
    const mask = 1 << pin;
    const config = this.#config(pin);
    if ((config & MEANING) !== this.#meanings[pin]) {
      // Anew, as the pin would be with its new meaning from the start.
      this.#meanings[pin] = config & MEANING;
      this.#words[Ioapic.irqValue] = this.#word(Ioapic.irqValue) & ~mask;
      this.#words[Ioapic.irr] = this.#word(Ioapic.irr) & ~mask;
    }
    const isLevel = (config & Rte.level) !== 0;
    const isAsserted = ((this.#wires & mask) !== 0) !== ((config & Rte.activeLow) !== 0);
    const asserted = this.#word(Ioapic.irqValue);
    if (!isAsserted) {
      this.#words[Ioapic.irqValue] = asserted & ~mask;
      if (isLevel) this.#words[Ioapic.irr] = this.#word(Ioapic.irr) & ~mask;
      return;
    }
    if ((asserted & mask) !== 0) return;
    this.#words[Ioapic.irqValue] = asserted | mask;
    const isMasked = (config & Rte.masked) !== 0;
    if (isMasked && !isLevel) return; // an edge into a masked pin is lost
    this.#words[Ioapic.irr] = this.#word(Ioapic.irr) | mask;
    if (isMasked) return;
    if (isLevel) {
      this.#words[Ioapic.config + pin] = config | Rte.remoteIrr;
      if ((config & Rte.remoteIrr) !== 0) return; // still in service; the EOI looks again
    } else {
      this.#words[Ioapic.irr] = this.#word(Ioapic.irr) & ~mask;
    }
    this.#send(config);
  }

  #config(pin: number): number {
    return this.#word(Ioapic.config + pin);
  }

  #word(at: number): number {
    return this.#words[at] as number;
  }
}
