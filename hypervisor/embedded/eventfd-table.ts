/**
 * Eventfds of a VM: guest writes that ring one (ioeventfd), and those that send a message when somebody else rings
 * (irqfd). Rules of Linux drivers/virt/acrn/ioeventfd.c and irqfd.c.
 */
import { constants } from 'node:os';
import { hex } from '../../devicemodel/core/address.ts';
import type { MsiMessage, MsiSink } from '../../devicemodel/core/device.ts';
import { HsmError } from '../../devicemodel/core/hsm/errors.ts';
import type { IoeventfdSpec } from '../../devicemodel/core/hsm/hsm.ts';
import type { IoreqPage } from '../../devicemodel/core/ioreq-page.ts';
import type { EngineEventfds } from './cpu-engine.ts';
import type { EventfdHost } from './eventfd-host.ts';

const E = constants.errno;

export class EventfdTable {
  readonly #eventfds: EventfdHost;
  readonly #msi: MsiSink;
  readonly #engine: EngineEventfds | undefined;
  #ioeventfds: IoeventfdSpec[] = [];
  readonly #irqfds = new Map<number, { dispose(): void }>();

  /** @param engine serves what it can by itself; the rules are kept here. */
  constructor(eventfds: EventfdHost, msi: MsiSink, engine?: EngineEventfds) {
    this.#eventfds = eventfds;
    this.#msi = msi;
    this.#engine = engine;
  }

  /** @throws HsmError as the driver. */
  ioeventfd(spec: IoeventfdSpec, assign: boolean): void {
    const what = `${spec.space} ${hex(spec.address)}+${spec.sizeBytes}`;
    const bad = this.#eventfds.check(spec.fd);
    if (bad !== 0) throw new HsmError('IOEVENTFD', bad, { what });
    if (!assign) {
      // By descriptor alone, the first one; an unknown one is no error.
      const at = this.#ioeventfds.findIndex((e) => e.fd === spec.fd);
      for (const removed of at >= 0 ? this.#ioeventfds.splice(at, 1) : []) this.#engine?.ioeventfd(removed, false);
      return;
    }
    if (![1, 2, 4, 8].includes(spec.sizeBytes) || !Number.isSafeInteger(spec.address + spec.sizeBytes)) {
      throw new HsmError('IOEVENTFD', E.EINVAL, { what });
    }
    const same = (e: IoeventfdSpec) =>
      e.fd === spec.fd &&
      e.space === spec.space &&
      e.address === spec.address &&
      (e.dataMatch === undefined || spec.dataMatch === undefined || e.dataMatch === spec.dataMatch);
    if (this.#ioeventfds.some(same)) throw new HsmError('IOEVENTFD', E.EEXIST, { what });
    this.#ioeventfds.push(spec);
    // Where it refuses, the access comes to `serve`.
    this.#engine?.ioeventfd(spec, true);
  }

  /** @throws HsmError as the driver. */
  irqfd(fd: number, message: MsiMessage, assign: boolean): void {
    const bad = this.#eventfds.check(fd);
    if (bad !== 0) throw new HsmError('IRQFD', bad, { what: `fd ${fd}` });
    const present = this.#irqfds.get(fd);
    if (!assign) {
      present?.dispose();
      this.#irqfds.delete(fd);
      return;
    }
    if (present !== undefined) throw new HsmError('IRQFD', E.EBUSY, { what: `fd ${fd}` });
    const [byEngine] = this.#engine?.irqfds([{ fd, message }]) ?? [];
    if (typeof byEngine === 'number') throw new HsmError('IRQFD', byEngine, { what: `fd ${fd}` });
    this.#irqfds.set(fd, byEngine ?? this.#eventfds.watch(fd, () => this.#msi.signal(message)));
  }

  /**
   * A write that matches rings its eventfd; a read of the range answers 0.
   * @returns false when no ioeventfd is there.
   */
  serve(page: IoreqPage, vcpu: number, space: IoeventfdSpec['space']): boolean {
    if (this.#ioeventfds.length === 0) return false;
    const address = page.address(vcpu);
    for (const entry of this.#ioeventfds) {
      if (entry.space !== space || entry.address !== address || page.size(vcpu) < entry.sizeBytes) continue;
      if (!page.isWrite(vcpu)) {
        if (space === 'mmio') page.setValueU64(vcpu, 0n);
        else page.setValue(vcpu, 0);
        return true;
      }
      if (entry.dataMatch !== undefined) {
        const value = space === 'mmio' ? page.valueU64(vcpu) : BigInt(page.value(vcpu));
        const bits = 8 * entry.sizeBytes;
        if (BigInt.asUintN(bits, value) !== BigInt.asUintN(bits, entry.dataMatch)) continue;
      }
      this.#eventfds.signal(entry.fd);
      return true;
    }
    return false;
  }

  /** With the VM. */
  clear(): void {
    for (const watch of this.#irqfds.values()) watch.dispose();
    this.#irqfds.clear();
    for (const spec of this.#ioeventfds) this.#engine?.ioeventfd(spec, false);
    this.#ioeventfds = [];
  }
}
