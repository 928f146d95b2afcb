/**
 * An ivshmem function's doorbells in the kernel: writes of its register that name a vector of another VM ring that one's
 * eventfd, and this VM's eventfds interrupt its guest by the message in the MSI-X table. What the kernel cannot take (a
 * vector that is masked, a VM without eventfds) goes on in the function itself.
 */
import type { Msix } from '../../../devicemodel/chips/msix.ts';
import type { Gpa } from '../../../devicemodel/core/address.ts';
import type { MsiMessage } from '../../../devicemodel/core/device.ts';
import type { RegionBells } from '../doorbells.ts';
import type { FunctionEventfds } from '../virtual-function.ts';

interface Disposable {
  dispose(): void;
}

interface Vector {
  readonly fd: number;
  /** What its irqfd sends; undefined: this process takes its signals. */
  message: MsiMessage | undefined;
  way: Disposable;
}

export interface KernelBellsParts {
  readonly vmid: number;
  /** Of the region, and let go of with it. */
  readonly bells: RegionBells;
  readonly eventfds: FunctionEventfds;
  readonly msix: Msix;
  /** A doorbell that the kernel did not turn into an interrupt. */
  readonly onRing: (vector: number) => void;
}

export class KernelBells {
  readonly #parts: KernelBellsParts;
  readonly #vectors: Vector[] = [];
  /** By VM: its vectors. */
  readonly #peers = new Map<number, readonly number[]>();
  /** By VM: the writes that ring them. */
  readonly #writes = new Map<number, readonly Disposable[]>();
  /** Address of the doorbell register, while it is on the bus. */
  #doorbellAt: Gpa | undefined;

  /** @throws HostError */
  constructor(parts: KernelBellsParts) {
    this.#parts = parts;
    try {
      for (const [vector, fd] of parts.bells.own.entries()) {
        this.#vectors.push({ fd, message: undefined, way: this.#watch(fd, vector) });
      }
    } catch (error) {
      this.dispose();
      throw error;
    }
    parts.msix.onVectorChanged = (vector) => this.#route(vector);
    // A VM may ring itself.
    this.#setPeer(parts.vmid, parts.bells.own);
    parts.bells.onPeers((vmid, fds) => this.#setPeer(vmid, fds));
  }

  /** The register is at another address, or nowhere. */
  place(doorbellAt: Gpa | undefined): void {
    this.#doorbellAt = doorbellAt;
    for (const [vmid, fds] of this.#peers) this.#connect(vmid, fds);
  }

  dispose(): void {
    this.#parts.msix.onVectorChanged = undefined;
    this.place(undefined);
    for (const { way } of this.#vectors) way.dispose();
  }

  #setPeer(vmid: number, fds: readonly number[] | undefined): void {
    if (fds === undefined) this.#peers.delete(vmid);
    else this.#peers.set(vmid, fds);
    this.#connect(vmid, fds ?? []);
  }

  #connect(vmid: number, fds: readonly number[]): void {
    for (const write of this.#writes.get(vmid) ?? []) write.dispose();
    this.#writes.delete(vmid);
    const at = this.#doorbellAt;
    if (at === undefined || fds.length === 0) return;
    const writes = fds.map((fd, vector) => this.#parts.eventfds.ring(at, ((vmid << 16) | vector) >>> 0, fd));
    this.#writes.set(
      vmid,
      writes.filter((write) => write !== undefined),
    );
  }

  #watch(fd: number, vector: number): Disposable {
    return this.#parts.eventfds.watch(fd, () => this.#parts.onRing(vector));
  }

  /** The vector's message is another one, or it is masked: a signal that came meanwhile is found by whoever takes over. */
  #route(index: number): void {
    const vector = this.#vectors[index];
    if (vector === undefined) return;
    const message = this.#parts.msix.message(index);
    const { message: before } = vector;
    if (message?.address === before?.address && message?.data === before?.data) return;
    vector.way.dispose();
    const [irqfd] = message === undefined ? [] : this.#parts.eventfds.interrupts([{ fd: vector.fd, message }]);
    vector.message = irqfd === undefined ? undefined : message;
    vector.way = irqfd ?? this.#watch(vector.fd, index);
  }
}
