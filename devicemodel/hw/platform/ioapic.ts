/**
 * Where PCI's legacy interrupts go: an IOAPIC pin for guests with an APIC, and an ISA interrupt through one of eight
 * PIRQ links for guests without. Pure bookkeeping; the IOAPIC itself is the hypervisor's.
 * Spec: ICH10 datasheet §13.1.17 and §13.1.22 (PIRQ[n]_ROUT); PCI 3.0 §2.2.6.
 */
import type { Gsi } from '../../core/address.ts';
import { ConfigError } from '../../core/errors.ts';
import {
  type Aml,
  and,
  arg,
  call,
  createWordField,
  decrement,
  device,
  eisaId,
  equal,
  findSetRightBit,
  ifElse,
  less,
  local,
  method,
  name,
  ret,
  shiftLeft,
  store,
} from '../../core/firmware/aml.ts';
import { irq, resourceTemplate } from '../../core/firmware/aml-resources.ts';
import type { DeviceAml, TableContributor } from '../../core/firmware/contribution.ts';
import type { IntxRouter } from '../pci/intx.ts';

/** Pins of the virtual IOAPIC (hypervisor, VIOAPIC_RTE_NUM). */
export const IOAPIC_PINS = 48;
/** Pins below are for ISA interrupts. */
const ISA_IRQS = 16;

/** Links A to H; PIRQ numbers count from 1. */
export const PIRQ_LINKS = 8;
const PirqReg = { Disabled: 0x80, IrqMask: 0x0f } as const;
const PIRQ_WRITABLE = PirqReg.Disabled | PirqReg.IrqMask;

/** ISA interrupts a link may be routed to: 3-7, 9-12, 14, 15. */
export const PIRQ_IRQS: readonly number[] = [3, 4, 5, 6, 7, 9, 10, 11, 12, 14, 15];

/** The IOAPIC side: pins from 16 up, one each. */
export class IoapicPins {
  readonly #reserved = new Set<Gsi>();
  #next = ISA_IRQS;

  /** A device that is not PCI's has this pin; before the first `allocate`. */
  reserve(gsi: Gsi): void {
    this.#reserved.add(gsi);
  }

  /** @throws ConfigError when all 32 are taken. */
  allocate(): Gsi {
    while (this.#reserved.has(this.#next)) this.#next++;
    if (this.#next >= IOAPIC_PINS) {
      throw new ConfigError(`more than ${IOAPIC_PINS - ISA_IRQS} PCI slots need a legacy interrupt of their own`, {
        hint: 'put fewer devices into the VM, or several functions into one slot',
      });
    }
    return this.#next++;
  }
}

interface Link {
  value: number;
  /** As it was when all functions had been routed: what a reset gives back. */
  initial: number;
  users: number;
}

/** The PIRQ router in the LPC bridge. Order of calls decides the routing: reserve and use first, then allocate. */
export class PirqRouter implements TableContributor {
  readonly #links: readonly Link[] = Array.from({ length: PIRQ_LINKS }, () => ({
    value: PirqReg.Disabled,
    initial: PirqReg.Disabled,
    users: 0,
  }));
  /** Users of each ISA interrupt that may be given to a link; absent ones may not. */
  readonly #irqUsers = new Map<number, number>(PIRQ_IRQS.map((irq) => [irq, 0]));
  #hasAllocated = false;

  /** An ISA device owns this interrupt: keep links off it. No effect once a link was allocated, or if it is shared already. */
  reserve(irq: number): void {
    if (!this.#hasAllocated && this.#irqUsers.get(irq) === 0) this.#irqUsers.delete(irq);
  }

  /** Something shareable uses this interrupt (the SCI): prefer others. */
  use(irq: number): void {
    const users = this.#irqUsers.get(irq);
    if (!this.#hasAllocated && users !== undefined) this.#irqUsers.set(irq, users + 1);
  }

  /**
   * The least used link, routed to the least used interrupt if it has none yet; the first of several equals.
   * @returns the link, 1 to 8. @throws ConfigError if every ISA interrupt is reserved.
   */
  allocate(): number {
    this.#hasAllocated = true;
    let best = 0;
    for (let i = 1; i < PIRQ_LINKS; i++) {
      if (this.#link(i + 1).users < this.#link(best + 1).users) best = i;
    }
    const link = this.#link(best + 1);
    link.users++;
    if (link.value === PirqReg.Disabled) {
      link.value = this.#takeIrq();
      link.initial = link.value;
    }
    return best + 1;
  }

  /** The link's register, PIRQ[n]_ROUT. @param link 1 to 8, else it reads as disabled. */
  read(link: number): number {
    return this.#links[link - 1]?.value ?? PirqReg.Disabled;
  }

  /** No interrupt moves: the functions' interrupts go to the IOAPIC. */
  write(link: number, value: number): void {
    const target = this.#links[link - 1];
    if (target !== undefined) target.value = value & PIRQ_WRITABLE;
  }

  /** The ISA interrupt a link is routed to. */
  irqOf(link: number): number {
    return this.read(link) & PirqReg.IrqMask;
  }

  reset(): void {
    for (const link of this.#links) link.value = link.initial;
  }

  /** The link devices of the ISA bridge. */
  aml(): DeviceAml[] {
    const links = Array.from({ length: PIRQ_LINKS }, (_, i) => linkDevice(i + 1));
    return [linkIsValid(), ...links].map((aml) => ({ place: 'isa', aml }));
  }

  #link(number: number): Link {
    return this.#links[number - 1] as Link;
  }

  #takeIrq(): number {
    let best: number | undefined;
    let bestUsers = 0;
    for (const irq of PIRQ_IRQS) {
      const users = this.#irqUsers.get(irq);
      if (users === undefined) continue;
      if (best === undefined || users < bestUsers) {
        best = irq;
        bestUsers = users;
      }
    }
    if (best === undefined) {
      throw new ConfigError('no ISA interrupt is left for PCI', { hint: 'use fewer COM ports' });
    }
    this.#irqUsers.set(best, bestUsers + 1);
    return best;
  }
}

const letter = (link: number) => String.fromCharCode(0x40 + link);

/** ACPI name of a link device. @param link 1 to 8 */
export function pirqLinkName(link: number): string {
  return `LNK${letter(link)}`;
}

/** ACPI name of a link's routing register, a field of the ISA bridge. */
export function pirqFieldName(link: number): string {
  return `PIR${letter(link)}`;
}

/** PIRV(reg): whether a routing register names an IRQ it may use. */
function linkIsValid(): Aml {
  return method('PIRV', 1, [
    ifElse(and(arg(0), PirqReg.Disabled), [ret(0)]),
    and(arg(0), PirqReg.IrqMask, local(0)),
    ifElse(less(local(0), 3), [ret(0)]),
    ifElse(equal(local(0), 8), [ret(0)]),
    ifElse(equal(local(0), 13), [ret(0)]),
    ret(1),
  ]);
}

/** One interrupt link device (ACPI 6.4 §6.2.12, `PNP0C0F`). */
function linkDevice(number: number): Aml {
  const which = letter(number);
  const routing = pirqFieldName(number);
  const current = `CB${number.toString(16).toUpperCase().padStart(2, '0')}`;
  const currentMask = `CIR${which}`;
  const wantedMask = `SIR${which}`;
  const shared = { level: true, activeLow: true, shared: true };
  // The IRQ mask is the second byte of an IRQ descriptor.
  const maskAt = 1;
  return device(pirqLinkName(number), [
    name('_HID', eisaId('PNP0C0F')),
    name('_UID', number),
    method('_STA', 0, [ifElse(call('PIRV', routing), [ret(0x0b)], [ret(0x09)])]),
    name('_PRS', resourceTemplate([irq(shared, PIRQ_IRQS)])),
    name(current, resourceTemplate([irq(shared, [])])),
    createWordField(current, maskAt, currentMask),
    method('_CRS', 0, [
      and(routing, PIRQ_WRITABLE, local(0)),
      ifElse(call('PIRV', local(0)), [shiftLeft(1, local(0), currentMask)], [store(0, currentMask)]),
      ret(current),
    ]),
    method('_DIS', 0, [store(PirqReg.Disabled, routing)]),
    method('_SRS', 1, [
      createWordField(arg(0), maskAt, wantedMask),
      findSetRightBit(wantedMask, local(0)),
      // FindSetRightBit counts from one.
      store(decrement(local(0)), routing),
    ]),
  ]);
}

/** What the PCI host needs of both, for one machine. */
export function intxRouter(pins: IoapicPins, pirq: PirqRouter): IntxRouter {
  return {
    allocateGsi: () => pins.allocate(),
    allocateLink: () => pirq.allocate(),
    readLink: (link) => pirq.read(link),
    writeLink: (link, value) => pirq.write(link, value),
    reset: () => pirq.reset(),
  };
}
