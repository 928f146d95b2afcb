/**
 * Messages of a function: each vector of it rings an eventfd, and the kernel turns that into the message the guest wrote
 * for it. A vector that the guest masks is cut off there; what rings meanwhile stays in the eventfd, which is the pending
 * bit, and interrupts at once when it is connected again.
 */
import type { MsiMessage } from '../../../devicemodel/core/device.ts';
import { HostError } from '../../../devicemodel/core/errors.ts';
import { describeErrno } from '../../../devicemodel/core/host/errno.ts';
import { Eventfd } from '../../../devicemodel/core/host/eventfd.ts';
import { PollSet } from '../../../devicemodel/core/host/poll.ts';
import type { VfioDevice } from '../../../devicemodel/core/host/vfio.ts';
import type { Log } from '../../../devicemodel/core/log.ts';
import type { FunctionEventfds } from '../../embedded/virtual-function.ts';

interface Vector {
  readonly eventfd: Eventfd;
  /** What it sends; undefined: it is masked. */
  message: MsiMessage | undefined;
  way: { dispose(): void } | undefined;
}

export interface VectorsParts {
  readonly device: VfioDevice;
  readonly kind: 'msi' | 'msix';
  readonly eventfds: FunctionEventfds;
  /** What a vector sends now; undefined while it is masked. */
  readonly message: (vector: number) => MsiMessage | undefined;
  readonly log: Log;
}

export class Vectors {
  readonly #parts: VectorsParts;
  readonly #vectors: Vector[] = [];
  readonly #poll = new PollSet(1);
  /** Those that the device may signal: fewer than were asked for where the host has no more. */
  #count = 0;
  #asked = 0;

  constructor(parts: VectorsParts) {
    this.#parts = parts;
  }

  /** So many were asked for, and some are on; asked again, the host would give no others. */
  get asked(): number {
    return this.#asked;
  }

  /** The device signals so many vectors from now on; 0: none. What was pending is gone where none was before. */
  resize(count: number): void {
    const { device, kind, log } = this.#parts;
    // Turned off and on again, signals between are lost.
    if (count === this.#asked) return;
    // VFIO takes no further vectors while some are on.
    if (this.#count > 0) device.disableInterrupts(kind);
    const isFirst = this.#count === 0;
    this.#count = 0;
    this.#asked = 0;
    if (count === 0) {
      this.dispose();
      return;
    }
    if (!this.#makeEventfds(count)) return;
    if (isFirst) for (const { eventfd } of this.#vectors) eventfd.take();
    const fds = this.#vectors.slice(0, count).map(({ eventfd }) => eventfd.fd);
    let result = device.setInterrupts(kind, fds);
    // The host has fewer to give: those.
    const given = result > 0 ? result : count;
    if (result > 0) result = device.setInterrupts(kind, fds.slice(0, given));
    if (result !== 0) {
      log.guest(() => `${count} interrupts cannot be had: ${describeErrno(-result)}`);
      this.dispose();
      return;
    }
    this.#count = given;
    this.#asked = count;
    this.updateAll();
  }

  /** A guest that asks for more than this process may open has none, and goes on. */
  #makeEventfds(count: number): boolean {
    try {
      while (this.#vectors.length < count) {
        this.#vectors.push({ eventfd: new Eventfd(), message: undefined, way: undefined });
      }
      return true;
    } catch (error) {
      if (!(error instanceof HostError)) throw error;
      this.#parts.log.guest(() => `${count} interrupts cannot be had: ${error.message}`);
      this.dispose();
      return false;
    }
  }

  /** Messages or masks of all of them may have changed. */
  updateAll(): void {
    this.#connect(this.#vectors.slice(0, this.#count).map((vector, index) => ({ vector, index })));
  }

  /** The vector's message or mask changed. */
  update(index: number): void {
    const vector = this.#vectors[index];
    if (vector !== undefined && index < this.#count) this.#connect([{ vector, index }]);
  }

  #connect(indexed: readonly { readonly vector: Vector; readonly index: number }[]): void {
    const changed = indexed.flatMap(({ vector, index }) => {
      const message = this.#parts.message(index);
      const { message: before } = vector;
      if (message?.address === before?.address && message?.data === before?.data) return [];
      vector.way?.dispose();
      vector.way = undefined;
      vector.message = undefined;
      return message === undefined ? [] : [{ vector, index, message }];
    });
    if (changed.length === 0) return;
    const ways = this.#parts.eventfds.interrupts(
      changed.map(({ vector, message }) => ({ fd: vector.eventfd.fd, message })),
    );
    for (const [i, { vector, index, message }] of changed.entries()) {
      vector.way = ways[i];
      if (vector.way !== undefined) vector.message = message;
      else this.#parts.log.guest(() => `interrupt ${index} cannot be had: KVM takes no further message`);
    }
  }

  /** Whether a masked vector was signalled. */
  isPending(index: number): boolean {
    const vector = this.#vectors[index];
    if (vector === undefined || vector.way !== undefined || index >= this.#count) return false;
    this.#poll.watch(0, vector.eventfd.fd);
    return this.#poll.wait(1, 0) > 0 && this.#poll.isReadable(0);
  }

  /** The device signals nothing by now. Safe twice. */
  dispose(): void {
    for (const { way, eventfd } of this.#vectors.splice(0)) {
      way?.dispose();
      eventfd.dispose();
    }
  }
}
