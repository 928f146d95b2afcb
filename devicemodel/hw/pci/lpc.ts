/**
 * LPC bridge (PIIX3 ISA bridge ids) with the PIRQ routing registers, and the serial ports behind it. Spec: Intel
 * 82371SB (PIIX3) §2.3; the registers 68h-6Bh of links E to H as in ICH10 §13.1.
 */
import * as v from 'valibot';
import { Ns16550, UART_REGISTER_COUNT } from '../../chips/ns16550.ts';
import type { ConfigSpace } from '../../chips/pci-config-space.ts';
import { type AccessSize, allOnes, type Bdf, type Gsi, hex, type Port } from '../../core/address.ts';
import type { CharBackend } from '../../core/char-backend.ts';
import type { ComConfig } from '../../core/config.ts';
import type { InterruptLine, IoRegion } from '../../core/device.ts';
import { ConfigError } from '../../core/errors.ts';
import { type Aml, device, field, name, operationRegion, RegionSpace } from '../../core/firmware/aml.ts';
import { io, irqNoFlags } from '../../core/firmware/aml-resources.ts';
import { isaDevice, type PciFunctionAml, pciAddress, type TableContributor } from '../../core/firmware/contribution.ts';
import type { IoBus, Registration } from '../../core/io-bus.ts';
import { pirqFieldName } from '../platform/ioapic.ts';
import { definePciDriver, type PirqLinks } from './driver.ts';
import type { EmulatedPciFunction, PciPlacement } from './function.ts';

/** Bridge, ISA. */
const Id = { vendorId: 0x8086, deviceId: 0x7000, classCode: 0x060100 };
/** PIRQRC[A:D] and PIRQRC[E:H]. */
const PIRQ_A_TO_D = 0x60;
const PIRQ_E_TO_H = 0x68;
const LINKS_PER_GROUP = 4;
const CONFIG_BYTES = 0x100;

/**
 * The bridge with its routing registers, which the link devices use, and everything behind it.
 * @param isaDevices AML of that.
 */
export function isaBridgeAml(bdf: Bdf, isaDevices: () => readonly Aml[]): PciFunctionAml {
  const links = (first: number) =>
    Array.from({ length: LINKS_PER_GROUP }, (_, i) => ({ name: pirqFieldName(first + i), bits: 8 }));
  const registers = [{ offset: PIRQ_A_TO_D }, ...links(1), { offset: PIRQ_E_TO_H }, ...links(1 + LINKS_PER_GROUP)];
  return {
    bdf,
    aml: () =>
      device('ISA', [
        name('_ADR', pciAddress(bdf)),
        operationRegion('LPCR', RegionSpace.PciConfig, 0, CONFIG_BYTES),
        field('LPCR', {}, registers),
        ...isaDevices(),
      ]),
  };
}

class Lpc implements EmulatedPciFunction {
  readonly backing = 'device-model';
  readonly identity = Id;
  readonly bars = [];
  readonly #links: PirqLinks | undefined;
  readonly #isaDevices: () => readonly Aml[];
  #config: ConfigSpace | undefined;

  /** @param isaDevices AML of what sits behind the bridge. */
  constructor(links: PirqLinks | undefined, isaDevices: () => readonly Aml[]) {
    this.#links = links;
    this.#isaDevices = isaDevices;
  }

  aml({ bdf }: PciPlacement): PciFunctionAml {
    return isaBridgeAml(bdf, this.#isaDevices);
  }

  configure(config: ConfigSpace): void {
    this.#config = config;
    // Compat: only byte writes reach the links, as in the C device model; wider ones are kept and mean nothing.
    const write = (offset: number, size: AccessSize, value: number): boolean => {
      if (size !== 1) return false;
      this.#links?.writeLink(linkAt(offset), value);
      this.#show(offset);
      return true;
    };
    for (const group of [PIRQ_A_TO_D, PIRQ_E_TO_H]) config.hook(group, LINKS_PER_GROUP, { write });
  }

  interruptsRouted(): void {
    for (const group of [PIRQ_A_TO_D, PIRQ_E_TO_H]) {
      for (let i = 0; i < LINKS_PER_GROUP; i++) this.#show(group + i);
    }
  }

  /** Copy a link's register into the configuration space. */
  #show(offset: number): void {
    this.#config?.set8(offset, this.#links?.readLink(linkAt(offset)) ?? 0);
  }

  readBar(_index: number, _offset: number, size: AccessSize): number {
    return allOnes(size);
  }
  writeBar(): void {}
  reset(): void {}
}

/** Link 1..8 behind a configuration offset of one of the two groups. */
function linkAt(offset: number): number {
  return offset < PIRQ_E_TO_H ? offset - PIRQ_A_TO_D + 1 : offset - PIRQ_E_TO_H + 1 + LINKS_PER_GROUP;
}

export const lpc = definePciDriver({
  name: 'lpc',
  summary: 'ISA bridge: interrupt links, serial ports (-l) and the other devices of a PC; on bus 0, once',
  options: v.strictObject({}),
  isSingle: true,
  create(_options, env) {
    if (env.bdf.bus !== 0) throw new ConfigError('the LPC bridge can be on bus 0 only', { hint: 'use -s 1:0,lpc' });
    return new Lpc(env.pirqLinks, env.isaDevices ?? (() => []));
  },
});

// Serial ports.

/** Where PCs have them; COM5 is the S5 vUART, which may be moved. */
const COM_PORTS = {
  1: { port: 0x3f8, irq: 4 },
  2: { port: 0x2f8, irq: 3 },
  3: { port: 0x3e8, irq: 6 },
  4: { port: 0x2e8, irq: 7 },
  5: { port: 0x9000, irq: 10 },
} as const;

/** Port and irq of a COM port. @throws ConfigError if the ones given do not exist. */
export function comResources(com: ComConfig): { readonly name: string; readonly port: Port; readonly irq: Gsi } {
  const standard = COM_PORTS[com.index];
  const { port = standard.port, irq = standard.irq } = com;
  const name = `com${com.index}`;
  if (!Number.isInteger(port) || port < 1 || port > 0xffff - (UART_REGISTER_COUNT - 1)) {
    throw new ConfigError(`-l ${name}: port ${hex(port)} is not 0x1 to 0xfff8`);
  }
  if (!Number.isInteger(irq) || irq < 1 || irq > 15) throw new ConfigError(`-l ${name}: irq ${irq} is not 1 to 15`);
  return { name, port, irq };
}

export interface ComPortWires {
  readonly pio: IoBus;
  /** Edge triggered: every assertion is a pulse. */
  readonly irq: InterruptLine;
  readonly backend: CharBackend | undefined;
}

/** What the guest is told of a serial port. */
export function comPortTables(com: ComConfig): TableContributor {
  const { port, irq } = comResources(com);
  const resources = [io(port, UART_REGISTER_COUNT), irqNoFlags(irq)];
  return { aml: () => [isaDevice(`COM${com.index}`, 'PNP0501', resources, name('_UID', com.index))] };
}

/** A serial port on the I/O bus; the caller starts, resets and stops it with the other devices. */
export interface ComPort {
  readonly uart: Ns16550;
  readonly registration: Registration;
}

/**
 * Put a 16550 at a COM port's place. Its irq has to be reserved at the INTx router before PCI is configured.
 * @throws ConfigError if another device has the ports: those of COM5 are the user's to choose.
 */
export function attachComPort(com: ComConfig, wires: ComPortWires): ComPort {
  const { name, port } = comResources(com);
  const uart = new Ns16550({ irq: wires.irq, backend: wires.backend });
  const range = { base: port, size: UART_REGISTER_COUNT, name };
  const holder = wires.pio.findOverlap(range.base, range.size);
  if (holder !== undefined) {
    throw new ConfigError(
      `-l ${name}: of its ports, ${hex(port)} to ${hex(port + UART_REGISTER_COUNT - 1)}, ${holder.name} has ${hex(holder.base)}`,
      {
        hint: `give it others, as in -l ${name},BACKEND,${hex(COM_PORTS[5].port)},IRQ`,
      },
    );
  }
  return { uart, registration: wires.pio.register(range, new IsaUartPorts(uart)) };
}

/** Byte registers on a 16-bit bus: a word access is two byte accesses, a dword access is refused. */
class IsaUartPorts implements IoRegion {
  readonly #uart: Ns16550;

  constructor(uart: Ns16550) {
    this.#uart = uart;
  }

  read(offset: number, size: AccessSize): number {
    if (size === 1) return this.#uart.read(offset);
    if (size === 4) return allOnes(size);
    const low = this.#uart.read(offset);
    return low | (this.#uart.read(offset + 1) << 8);
  }

  write(offset: number, size: AccessSize, value: number): void {
    if (size === 4) return;
    this.#uart.write(offset, 1, value & 0xff);
    if (size === 2) this.#uart.write(offset + 1, 1, value >>> 8);
  }
}
