/**
 * Where interrupts go: lines to the pins of KVM's interrupt controllers, and one number (GSI) for each message that an
 * irqfd sends.
 */
import { hex } from '../../devicemodel/core/address.ts';
import { HostError } from '../../devicemodel/core/errors.ts';
import { Errno } from '../../devicemodel/core/host/errno.ts';
import type { KvmVm } from '../../devicemodel/core/host/kvm.ts';
import type { GsiRoute } from '../../devicemodel/core/host/kvm-abi.ts';
import type { Log } from '../../devicemodel/core/log.ts';
import type { Irqfd } from '../embedded/cpu-engine.ts';
import { isMsiAddress } from '../embedded/msi-address.ts';
import type { MessageRoutes } from './vm-eventfds.ts';

/** Of KVM's IOAPIC; ACRN's has 48. */
export const IOAPIC_PINS = 24;
const PIC_PINS = 8;
/** KVM_MAX_IRQ_ROUTES. */
const MAX_ROUTES = 4096;
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

export class GsiRoutes implements MessageRoutes {
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

  /**
   * The messages are sent whenever the eventfds are signalled, by the kernel alone. KVM takes its table as a whole: it is
   * set once for all of them, since a guest has 2048 of them connected by one write. @returns for each 0 or an errno.
   */
  attach(wanted: readonly Irqfd[]): number[] {
    const used = new Set([...this.#messages.values()].map((route) => route.gsi));
    let gsi = IOAPIC_PINS;
    const results = wanted.map(({ fd, message: { address, data } }): number => {
      if (!isMsiAddress(address)) {
        // KVM would interrupt by the other bits of it.
        this.#log.guest(() => `MSI to ${hex(address)}, which is no interrupt address: dropped`);
        return 0;
      }
      if (this.#lines.length + this.#messages.size >= MAX_ROUTES) return Errno.ENOSPC;
      while (used.has(gsi)) gsi++;
      this.#messages.set(fd, { gsi: gsi++, address, data });
      return 0;
    });
    const failed = this.#tryApply();
    return wanted.map(({ fd }, i) => {
      const route = this.#messages.get(fd);
      if (route === undefined) return results[i] ?? 0;
      const errno = failed || Math.max(0, -this.#vm.irqfd(fd, route.gsi, true));
      if (errno !== 0) this.#messages.delete(fd);
      return errno;
    });
  }

  /** By which number a message of {@link attach} goes; undefined: it was dropped. */
  gsiOf(fd: number): number | undefined {
    return this.#messages.get(fd)?.gsi;
  }

  /** Its irqfd is gone already. */
  forget(fd: number): void {
    this.#messages.delete(fd);
  }

  detach(fd: number): void {
    const route = this.#messages.get(fd);
    if (route === undefined) return;
    // Its route stays until the next ones are set: without an irqfd nothing is sent by it.
    this.#vm.irqfd(fd, route.gsi, false);
    this.forget(fd);
  }

  /** Guests decide how many there are. @returns 0 or an errno. */
  #tryApply(): number {
    try {
      this.#apply();
      return 0;
    } catch (error) {
      if (!(error instanceof HostError)) throw error;
      return error.errno;
    }
  }

  #apply(): void {
    this.#vm.setRoutes([...this.#lines, ...this.#messages.values()]);
  }
}
