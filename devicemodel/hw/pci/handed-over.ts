/**
 * The PCI functions that the hypervisor has of us, from `attach` to `release`: those it emulates itself (CREATE_VDEV) and
 * those of the host (ASSIGN_PCIDEV and its interrupts). Whatever the hypervisor was given is noted here at once, and taken
 * back from here alone.
 */
import { type Bdf, formatBdf } from '../../core/address.ts';
import type { Hsm } from '../../core/hsm/hsm.ts';
import type { HvVdev } from '../../core/hsm/vdev.ts';
import type { Log } from '../../core/log.ts';
import { byAddress, functionOf, type Slot } from './slot.ts';

/** Something the hypervisor has to be told to forget. */
interface Given {
  readonly bdf: Bdf;
  undo(isOrderly: boolean): void;
}

export class HandedOver {
  readonly #hsm: Pick<Hsm, 'createVdev' | 'destroyVdev'>;
  readonly #log: Log;
  /** In the order the hypervisor got it. */
  #given: Given[] = [];

  constructor(hsm: Pick<Hsm, 'createVdev' | 'destroyVdev'>, log: Log) {
    this.#hsm = hsm;
    this.#log = log;
  }

  /** CREATE_VDEV, ASSIGN_PCIDEV, or what a device of ours asks of the hypervisor. @throws HsmError, HostError */
  attach(slot: Slot): void {
    const { bdf } = slot;
    const fn = functionOf(slot);
    if (fn.backing === 'device-model') {
      fn.attach?.();
    } else if (fn.backing === 'passthrough') {
      this.#given.push({ bdf, undo: (isOrderly) => fn.detach(isOrderly) });
      fn.attach();
    } else {
      const vdev = fn.describe(slot);
      this.#hsm.createVdev(vdev);
      this.#given.push({ bdf, undo: () => this.#destroyVdev(vdev) });
    }
  }

  /** The interrupts of a function of the host, once every pin has its level. @throws HsmError, HostError */
  connectInterrupt({ bdf, function: fn }: Slot): void {
    if (fn?.backing !== 'passthrough') return;
    this.#given.push({ bdf, undo: () => fn.disconnectInterrupt?.() });
    fn.connectInterrupt?.();
  }

  /**
   * DESTROY_VDEV and DEASSIGN_PCIDEV for what is there. Never throws; safe twice.
   * @param isOrderly the VM had its life: by address, as the C device model does; otherwise in reverse of what was done.
   */
  release(isOrderly: boolean): void {
    const given = this.#given.splice(0).reverse();
    if (isOrderly) given.sort(byAddress);
    for (const { undo } of given) undo(isOrderly);
  }

  #destroyVdev(vdev: HvVdev): void {
    try {
      this.#hsm.destroyVdev(vdev);
    } catch (error) {
      // The hypervisor drops it with the VM; the teardown goes on.
      const why = error instanceof Error ? error.message : String(error);
      this.#log.warn(`${vdev.type} at ${formatBdf(vdev.bdf)} is not destroyed: ${why}`);
    }
  }
}
