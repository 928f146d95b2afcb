/**
 * Wires from devices to the hypervisor's interrupt controllers. An interrupt that cannot be delivered is the host's
 * trouble and must not end the VM: it is logged at a bounded rate, and the guest goes on.
 */
import type { Gsi } from '../core/address.ts';
import type { InterruptLine, MsiMessage, MsiSink } from '../core/device.ts';
import type { Hsm, IrqLineOp } from '../core/hsm/hsm.ts';
import type { Log } from '../core/log.ts';

export class InterruptWiring implements MsiSink {
  readonly #hsm: Hsm;
  readonly #log: Log;

  constructor(hsm: Hsm, log: Log) {
    this.#hsm = hsm;
    this.#log = log;
  }

  /** ISA style: every assertion is one edge, deasserting is nothing. */
  edge(gsi: Gsi): InterruptLine {
    return {
      gsi,
      set: (asserted) => {
        if (asserted) this.drive(gsi, 'rising-pulse');
      },
    };
  }

  /** Active high level. */
  level(gsi: Gsi): InterruptLine {
    return { gsi, set: (asserted) => this.drive(gsi, asserted ? 'high' : 'low') };
  }

  drive(gsi: Gsi, op: IrqLineOp): void {
    try {
      this.#hsm.setIrqLine(gsi, op);
    } catch (error) {
      this.#log.guest(() => (error as Error).message);
    }
  }

  signal(message: MsiMessage): void {
    try {
      this.#hsm.injectMsi(message);
    } catch (error) {
      this.#log.guest(() => (error as Error).message);
    }
  }
}
