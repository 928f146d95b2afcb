/**
 * Where interrupts go: lines to the pins of KVM's interrupt controllers, and one number (GSI) for each message that an
 * irqfd sends.
 */
import { hex } from '../../devicemodel/core/address.ts';
import type { MsiMessage } from '../../devicemodel/core/device.ts';
import { HostError } from '../../devicemodel/core/errors.ts';
import type { KvmVm } from '../../devicemodel/core/host/kvm.ts';
import type { GsiRoute } from '../../devicemodel/core/host/kvm-abi.ts';
import type { Log } from '../../devicemodel/core/log.ts';
import { isMsiAddress } from '../embedded/msi-address.ts';

/** Of KVM's IOAPIC; ACRN's has 48. */
export const IOAPIC_PINS = 24;
const PIC_PINS = 8;
/** They have the first pins. */
export const ISA_LINES = 16;
/** ACRN (hcall_set_irqline): the 8254's line is at pin 2 of the IOAPIC and pin 0 of the PIC. */
const TIMER_GSI = 2;

/** The lines' routes. */
export function lineRoutes(): GsiRoute[] {
  const routes: GsiRoute[] = [];
  for (let gsi = 0; gsi < IOAPIC_PINS; gsi++) {
    routes.push({ gsi, chip: 'ioapic', pin: gsi });
    if (gsi >= ISA_LINES) continue;
    const pin = gsi === TIMER_GSI ? 0 : gsi;
    routes.push({ gsi, chip: pin < PIC_PINS ? 'pic' : 'pic-slave', pin: pin % PIC_PINS });
  }
  return routes;
}

export class GsiRoutes {
  readonly #vm: Pick<KvmVm, 'setRoutes' | 'irqfd'>;
  readonly #log: Log;
  readonly #lines = lineRoutes();
  /** By descriptor. */
  readonly #messages = new Map<number, GsiRoute>();

  constructor(vm: Pick<KvmVm, 'setRoutes' | 'irqfd'>, log: Log) {
    this.#vm = vm;
    this.#log = log;
    this.#apply();
  }

  /** The message is sent whenever the eventfd is signalled, by the kernel alone. @returns 0 or an errno. */
  attach(fd: number, { address, data }: MsiMessage): number {
    if (!isMsiAddress(address)) {
      // KVM would interrupt by the other bits of it.
      this.#log.guest(() => `MSI to ${hex(address)}, which is no interrupt address: dropped`);
      return 0;
    }
    const used = new Set([...this.#messages.values()].map((route) => route.gsi));
    let gsi = IOAPIC_PINS;
    while (used.has(gsi)) gsi++;
    this.#messages.set(fd, { gsi, address, data });
    let result: number;
    try {
      this.#apply();
      result = this.#vm.irqfd(fd, gsi, true);
    } catch (error) {
      // Guests decide how many there are; KVM takes 4096.
      if (!(error instanceof HostError)) throw error;
      result = -error.errno;
    }
    if (result < 0) {
      this.#messages.delete(fd);
      this.#apply();
    }
    return Math.max(0, -result);
  }

  /** As {@link attach}, for a line: the guest's end of interrupt takes it back and rings `resampleFd`. */
  attachLine(fd: number, gsi: number, resampleFd: number): number {
    return Math.max(0, -this.#vm.irqfd(fd, gsi, true, resampleFd));
  }

  detachLine(fd: number, gsi: number): void {
    this.#vm.irqfd(fd, gsi, false);
  }

  detach(fd: number): void {
    const route = this.#messages.get(fd);
    if (route === undefined) return;
    this.#vm.irqfd(fd, route.gsi, false);
    this.#messages.delete(fd);
    this.#apply();
  }

  #apply(): void {
    this.#vm.setRoutes([...this.#lines, ...this.#messages.values()]);
  }
}
