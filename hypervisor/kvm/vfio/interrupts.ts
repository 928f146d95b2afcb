/**
 * How a function interrupts its guest: by its line, by MSI or by MSI-X, one at a time, as the guest has its capabilities.
 * All three stay in the kernel; here is only which one it is. PCI Local Bus 3.0 §6.8.
 */
import type { Gsi } from '../../../devicemodel/core/address.ts';
import { HostError } from '../../../devicemodel/core/errors.ts';
import { describeErrno } from '../../../devicemodel/core/host/errno.ts';
import { Eventfd } from '../../../devicemodel/core/host/eventfd.ts';
import type { VfioDevice } from '../../../devicemodel/core/host/vfio.ts';
import type { Log } from '../../../devicemodel/core/log.ts';
import type { HostFunctionHost } from '../../embedded/host-functions.ts';
import type { FunctionEventfds } from '../../embedded/virtual-function.ts';
import { MsixTable } from './msix-table.ts';
import { Vectors } from './vectors.ts';

/** Vectors that a function is given at once if it has so many. */
const STORE_VECTORS = 8;

/** What the capability registers say. */
export interface InterruptRegisters {
  readonly msi: {
    readonly isEnabled: boolean;
    readonly count: number;
    readonly address: number;
    readonly data: number;
  };
  readonly msix: { readonly isEnabled: boolean; readonly isMasked: boolean };
}

export interface FunctionInterruptsParts {
  readonly device: VfioDevice;
  readonly host: HostFunctionHost;
  readonly eventfds: FunctionEventfds;
  /** Size of its MSI-X table; 0: it has none. */
  readonly tableVectors: number;
  readonly registers: () => InterruptRegisters;
  readonly log: Log;
}

/** The line while it is the way: signals assert it, the guest's end of interrupt unmasks it at the device. */
interface ConnectedLine {
  readonly trigger: Eventfd;
  readonly unmask: Eventfd;
  readonly way: { dispose(): void };
}

export class FunctionInterrupts {
  readonly table: MsixTable;
  readonly #parts: FunctionInterruptsParts;
  readonly #msi: Vectors;
  readonly #msix: Vectors;
  #gsi: Gsi | undefined;
  #line: ConnectedLine | undefined;

  constructor(parts: FunctionInterruptsParts) {
    this.#parts = parts;
    this.table = new MsixTable(parts.tableVectors);
    const { device, eventfds, log, registers } = parts;
    const messageOf = (vector: number) => {
      const { address, data, count } = registers().msi;
      // §6.8.1.3: the low bits of the data are the vector.
      return { address, data: (data & ~(count - 1)) | vector };
    };
    this.#msi = new Vectors({ device, eventfds, log, kind: 'msi', message: messageOf });
    const ofTable = (vector: number) => (registers().msix.isMasked ? undefined : this.table.message(vector));
    this.#msix = new Vectors({ device, eventfds, log, kind: 'msix', message: ofTable });
  }

  /** @returns 0 or an errno. */
  connectLine(gsi: Gsi): number {
    this.#gsi = gsi;
    const { msi, msix } = this.#parts.registers();
    return msi.isEnabled || msix.isEnabled ? 0 : this.#lineOn();
  }

  disconnectLine(): void {
    this.#gsi = undefined;
    this.#lineOff();
  }

  /** As the guest's end of interrupt would: a device that interrupts still does so again. */
  rearmLine(): void {
    this.#line?.unmask.signal();
  }

  /** The capability registers changed. */
  update(): void {
    const { msi, msix } = this.#parts.registers();
    // Compat: MSI wins where a guest enables both, as with devices of the device model.
    const vectorsOfMsix = msix.isEnabled && !msi.isEnabled ? Math.max(1, this.#usedVectors()) : 0;
    // First what ends: a function has one way at a time.
    if (msi.isEnabled || vectorsOfMsix > 0) this.#lineOff();
    if (!msi.isEnabled) this.#msi.resize(0);
    if (vectorsOfMsix === 0) this.#msix.resize(0);
    if (msi.isEnabled) {
      this.#msi.resize(msi.count);
      this.#msi.updateAll();
    } else if (vectorsOfMsix > 0) {
      this.#growMsix(vectorsOfMsix);
      this.#msix.updateAll();
    } else {
      this.#lineBack();
    }
  }

  /** An entry of the MSI-X table changed. */
  vectorChanged(vector: number): void {
    const { msi, msix } = this.#parts.registers();
    if (!msix.isEnabled || msi.isEnabled) return;
    if (!this.table.isMasked(vector)) this.#growMsix(vector + 1);
    this.#msix.update(vector);
  }

  isPending(vector: number): boolean {
    return this.#msix.isPending(vector);
  }

  dispose(): void {
    this.disconnectLine();
    this.#msi.resize(0);
    this.#msix.resize(0);
    this.#msi.dispose();
    this.#msix.dispose();
  }

  /** Up to the last one that the guest lets through. */
  #usedVectors(): number {
    for (let vector = this.table.vectors - 1; vector >= 0; vector--)
      if (!this.table.isMasked(vector)) return vector + 1;
    return 0;
  }

  /**
   * More of them, and some in store: they are had by taking all of them anew, when a signal of the device may be lost.
   * A table may have 2048, which no host has interrupts for.
   */
  #growMsix(count: number): void {
    if (count <= this.#msix.asked) return;
    const inStore = Math.max(STORE_VECTORS, 2 ** Math.ceil(Math.log2(count)));
    this.#msix.resize(Math.min(this.table.vectors, inStore));
  }

  #lineBack(): void {
    let why: string | undefined;
    try {
      const errno = this.#lineOn();
      if (errno !== 0) why = describeErrno(errno);
    } catch (error) {
      if (!(error instanceof HostError)) throw error;
      why = error.message;
    }
    if (why !== undefined) this.#parts.log.guest(() => `its line cannot be had back: ${why}`);
  }

  /** @returns 0 or an errno. @throws HostError */
  #lineOn(): number {
    if (this.#gsi === undefined || this.#line !== undefined) return 0;
    const { device, host } = this.#parts;
    const { trigger, unmask } = openEventfds();
    const way = host.line(trigger.fd, this.#gsi, unmask.fd);
    const failed =
      typeof way === 'number' ? way : -(device.setInterrupts('intx', [trigger.fd]) || device.setUnmask(unmask.fd));
    if (typeof way !== 'number' && failed === 0) {
      this.#line = { trigger, unmask, way };
      return 0;
    }
    device.disableInterrupts('intx');
    if (typeof way !== 'number') way.dispose();
    trigger.dispose();
    unmask.dispose();
    return failed;
  }

  #lineOff(): void {
    const line = this.#line;
    if (line === undefined) return;
    this.#line = undefined;
    this.#parts.device.disableInterrupts('intx');
    line.way.dispose();
    line.trigger.dispose();
    line.unmask.dispose();
  }
}

/** @throws HostError; nothing is open then. */
function openEventfds(): Pick<ConnectedLine, 'trigger' | 'unmask'> {
  const trigger = new Eventfd();
  try {
    return { trigger, unmask: new Eventfd() };
  } catch (error) {
    trigger.dispose();
    throw error;
  }
}
