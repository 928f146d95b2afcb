/**
 * Bus numbers of a machine. Bus 0 is the root bus; every bridge has a bus of its own below it, numbered from 1 in the
 * order in which they are asked for. Spec: PCI-to-PCI Bridge 1.2 §3.2.5.3 to 5 (bus numbers) and §9.1 (interrupts).
 */
import { type Bdf, bdfToNumber, formatBdf } from '../../core/address.ts';
import { BugError, ConfigError } from '../../core/errors.ts';
import { device, name } from '../../core/firmware/aml.ts';
import { type PciFunctionAml, pciAddress } from '../../core/firmware/contribution.ts';

const MAX_BUS = 255;

/** The bus below one bridge. */
export interface SecondaryBus {
  /** 1..255. */
  readonly number: number;
  readonly bridge: Bdf;
  /** The number may go to another bridge. Safe twice. */
  release(): void;
}

export class PciBuses {
  readonly #bridges = new Map<number, Bdf>();

  /** Give the lowest free number to the bus below `bridge`. @throws ConfigError when all are taken. */
  open(bridge: Bdf): SecondaryBus {
    // The hypervisor's ports know no other place, and a root port has none by its nature.
    if (bridge.bus !== 0) throw new BugError(`the bridge ${formatBdf(bridge)} is not on bus 0`);
    let number = 1;
    while (this.#bridges.has(number)) number++;
    if (number > MAX_BUS) throw new ConfigError(`there is no bus number left, all ${MAX_BUS} are below bridges`);
    this.#bridges.set(number, bridge);
    return this.#bus(number, bridge);
  }

  /** The bus that was opened below `bridge`, if any. */
  busBelow(bridge: Bdf): SecondaryBus | undefined {
    for (const [number, owner] of this.#bridges) {
      if (bdfToNumber(owner) === bdfToNumber(bridge)) return this.#bus(number, owner);
    }
    return undefined;
  }

  #bus(number: number, bridge: Bdf): SecondaryBus {
    const release = () => {
      if (this.#bridges.get(number) === bridge) this.#bridges.delete(number);
    };
    return { number, bridge, release };
  }

  /** Every bus above 0 with the bridge it is below. */
  get bridges(): ReadonlyMap<number, Bdf> {
    return this.#bridges;
  }

  /**
   * Where on bus 0 the interrupt pins of a function come out: a bridge turns them by the device number, which is 0 on
   * the link below a port, so that they stay what they are.
   */
  rootPlace(bdf: Bdf): Bdf {
    return this.#bridges.get(bdf.bus) ?? bdf;
  }

  /** Objects for the bridges whose functions below have AML, with that AML inside (ACPI 6.4 §6.1.1). */
  amlOfBridges(parts: readonly PciFunctionAml[]): PciFunctionAml[] {
    return [...this.#bridges].flatMap(([bus, bdf]) => {
      const below = parts.filter((part) => part.bdf.bus === bus);
      if (below.length === 0) return [];
      const body = () => [name('_ADR', pciAddress(bdf)), ...below.map((part) => part.aml())];
      return [{ bdf, aml: () => device(`BR${bus.toString(16).toUpperCase().padStart(2, '0')}`, body()) }];
    });
  }
}

/** A function as far as its bus is concerned. */
export interface BusMember {
  readonly bdf: Bdf;
  /** It has a bus below it from power-on. */
  readonly isBridge: boolean;
}

/** The buses below the bridges of a machine, by number: in the order of the bridges' addresses. */
export function numberBuses(members: readonly BusMember[]): PciBuses {
  const buses = new PciBuses();
  const bridges = members.filter((m) => m.isBridge && m.bdf.bus === 0);
  for (const { bdf } of bridges.sort((a, b) => bdfToNumber(a.bdf) - bdfToNumber(b.bdf))) {
    buses.open(bdf);
  }
  return buses;
}

/** @throws ConfigError why no function can be at the address of `member`. */
export function checkBus(member: BusMember, bridges: ReadonlyMap<number, Bdf>): void {
  const { bus, device } = member.bdf;
  if (bus === 0) return;
  if (bridges.size === 0) {
    throw new ConfigError(`bus ${bus} does not exist, devices are on bus 0`, {
      hint: 'the embedded hypervisor has a bus 1 below -s SLOT,root-port',
    });
  }
  if (!bridges.has(bus)) {
    const there = [...bridges].map(([number, bridge]) => `${number} (below ${bridge.device}:${bridge.function})`);
    throw new ConfigError(`bus ${bus} does not exist, there is bus 0 and ${there.join(', ')}`);
  }
  if (member.isBridge) throw new ConfigError(`a bridge is on bus 0, not on bus ${bus}`);
  if (device !== 0) {
    throw new ConfigError(`slot ${device} of bus ${bus} does not exist: a port has one device below it, slot 0`);
  }
}
