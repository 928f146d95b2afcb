/**
 * Queues that are served outside of this thread: by the kernel (vhost) or by a data thread. What is lent - descriptors,
 * rings, buffers, the position in each queue - belongs to the owner until it has answered that it gives it back, however
 * long that takes: only then are descriptors closed, and a queue goes on here from where the owner left it.
 *
 * Also here: kicks that come to this thread by ioeventfd, since they are registered and moved in the same way.
 */
import type { MsiMessage } from '../../../../core/device.ts';
import { Eventfd } from '../../../../core/host/eventfd.ts';
import { watchFd } from '../../../../core/host/fd-watch.ts';
import type { Hsm, IoeventfdSpec } from '../../../../core/hsm/hsm.ts';
import type { Log } from '../../../../core/log.ts';
import type { Virtqueue } from '../ring/virtqueue.ts';
import type { QueueOwner } from './device.ts';

/** What the transport gives. */
export interface LendingHost {
  /** For messages. */
  readonly name: string;
  readonly log: Log;
  readonly hsm: Pick<Hsm, 'ioeventfd' | 'irqfd'>;
  readonly queues: readonly Virtqueue[];
  /** How a kick of the queue looks on its way to the hypervisor; undefined while the register is nowhere. */
  kickSpec(queue: Virtqueue, fd: number, asyncio: boolean): IoeventfdSpec | undefined;
  /** The message that interrupts for the queue; undefined: interrupts need the device thread. */
  messageOf(queue: Virtqueue): MsiMessage | undefined;
  interrupt(queue: Virtqueue): void;
  service(queue: Virtqueue): void;
}

/** A queue's kicks as a descriptor. */
class Kick {
  readonly eventfd: Eventfd;
  readonly queue: Virtqueue;
  readonly #host: LendingHost;
  readonly #asyncio: boolean;
  #spec: IoeventfdSpec | undefined;

  /** @throws HostError when there is no descriptor left. */
  constructor(host: LendingHost, queue: Virtqueue, asyncio: boolean) {
    this.#host = host;
    this.queue = queue;
    this.#asyncio = asyncio;
    this.eventfd = new Eventfd();
    this.#assign();
  }

  /** The hypervisor writes the descriptor. Otherwise kicks come through the request page, only slower. */
  get isAssigned(): boolean {
    return this.#spec !== undefined;
  }

  #assign(): void {
    const { name, log, hsm } = this.#host;
    const spec = this.#host.kickSpec(this.queue, this.eventfd.fd, this.#asyncio);
    if (spec === undefined) return;
    try {
      hsm.ioeventfd(spec, true);
      this.#spec = spec;
    } catch (error) {
      log.rationed('warn', () => `${name}: queue ${this.queue.index}: no ioeventfd: ${(error as Error).message}`);
    }
  }

  #remove(): void {
    const { name, log, hsm } = this.#host;
    if (this.#spec === undefined) return;
    try {
      hsm.ioeventfd(this.#spec, false);
    } catch (error) {
      log.rationed('warn', () => `${name}: ioeventfd not removed: ${(error as Error).message}`);
    }
    this.#spec = undefined;
  }

  /** The register is somewhere else now; who has the descriptor sees nothing of that. */
  move(): void {
    this.#remove();
    this.#assign();
  }

  dispose(): void {
    this.#remove();
    this.eventfd.dispose();
  }
}

/** A queue's interrupts as a descriptor: straight to the guest by irqfd, or through this thread. */
class Call {
  readonly eventfd: Eventfd;
  readonly queue: Virtqueue;
  readonly #host: LendingHost;
  /** The message the descriptor sends; undefined: it is watched here. */
  #irqfd: MsiMessage | undefined;
  #unwatch: (() => void) | undefined;

  /** @throws HostError when there is no descriptor left. */
  constructor(host: LendingHost, queue: Virtqueue) {
    this.#host = host;
    this.queue = queue;
    this.eventfd = new Eventfd();
    try {
      this.wire();
    } catch (error) {
      this.eventfd.dispose();
      throw error;
    }
  }

  /** The vector may have another message now, or be masked. */
  wire(): void {
    const { name, log, hsm } = this.#host;
    const message = this.#host.messageOf(this.queue);
    const isSame = message?.address === this.#irqfd?.address && message?.data === this.#irqfd?.data;
    if (isSame && (message !== undefined || this.#unwatch !== undefined)) return;
    this.#unwire();
    if (message !== undefined) {
      try {
        hsm.irqfd(this.eventfd.fd, message, true);
        this.#irqfd = message;
        return;
      } catch (error) {
        log.rationed('warn', () => `${name}: queue ${this.queue.index}: no irqfd: ${(error as Error).message}`);
      }
    }
    this.#unwatch = watchFd(this.eventfd.fd, () => {
      if (this.eventfd.take() > 0) this.#host.interrupt(this.queue);
    });
  }

  #unwire(): void {
    const { name, log, hsm } = this.#host;
    this.#unwatch?.();
    this.#unwatch = undefined;
    if (this.#irqfd === undefined) return;
    try {
      hsm.irqfd(this.eventfd.fd, this.#irqfd, false);
    } catch (error) {
      log.rationed('warn', () => `${name}: irqfd not removed: ${(error as Error).message}`);
    }
    this.#irqfd = undefined;
  }

  dispose(): void {
    this.#unwire();
    // What was signalled and not delivered yet.
    if (this.eventfd.take() > 0) this.#host.interrupt(this.queue);
    this.eventfd.dispose();
  }
}

interface LentQueue {
  readonly queue: Virtqueue;
  readonly kick: Kick;
  readonly call: Call;
}

export class QueueLending {
  readonly #host: LendingHost;
  #owner: QueueOwner | undefined;
  /** By queue index; a queue that the driver left unset is not lent. */
  #lent: Array<LentQueue | undefined> = [];
  /** Kicks that come to this thread. */
  readonly #kicks: Array<{ readonly kick: Kick; readonly unwatch: () => void }> = [];
  /** There were no descriptors to lend the queues with: said once, and not tried again for the same driver. */
  #isShort = false;
  /** The owner was told to give everything back and has not answered. */
  #returning: Promise<void> | undefined;

  constructor(host: LendingHost) {
    this.#host = host;
  }

  get isLent(): boolean {
    return this.#owner !== undefined;
  }

  // Kicks that come to this thread.

  /** Let kicks come by ioeventfd; they are served here. */
  listen(): void {
    const host = this.#host;
    if (this.#isShort) return;
    for (const queue of host.queues) {
      try {
        // Asyncio is used where the hypervisor has it and ignored elsewhere.
        const kick = new Kick(host, queue, true);
        if (!kick.isAssigned) {
          kick.dispose();
          continue;
        }
        this.#kicks.push({ kick, unwatch: watchKick(host, queue, kick) });
      } catch (error) {
        host.log.rationed('warn', () => `${host.name}: ${(error as Error).message}: kicks come by the request page`);
        return;
      }
    }
  }

  #stopListening(): void {
    for (const { kick, unwatch } of this.#kicks.splice(0)) {
      unwatch();
      kick.dispose();
    }
  }

  // Queues in other hands.

  /**
   * Give the queues that are set up to an owner. From here on they are its. The device has settled: the owner goes on at
   * the position of each queue.
   * @returns false when the device has to serve them itself, after a line in the log.
   */
  lend(owner: QueueOwner): boolean {
    const host = this.#host;
    this.#isShort = false;
    const { queueCount, usesAsyncio, needsAllQueues } = owner;
    const given = host.queues.slice(0, queueCount);
    const ready = given.filter((queue) => queue.isReady);
    if (ready.length === 0 || (needsAllQueues === true && ready.length < given.length)) {
      host.log.guest(() => `${host.name}: queue ${given.find((q) => !q.isReady)?.index} is not set up`);
      return false;
    }
    this.#owner = owner;
    try {
      for (const queue of ready) this.#lent[queue.index] = makeLent(host, queue, usesAsyncio === true);
    } catch (error) {
      this.#isShort = true;
      host.log.rationed('warn', () => `${host.name}: ${(error as Error).message}: it is served by the request page`);
      this.#release();
      return false;
    }
    const wires = this.#wires.map(({ queue, kick, call }) => ({
      queue,
      kickFd: kick.eventfd.fd,
      callFd: call.eventfd.fd,
    }));
    if (!owner.takeOver(wires)) {
      this.#release();
      return false;
    }
    // Kicks from before, and those that still come through the request page, are passed on.
    for (const { kick } of this.#wires) kick.eventfd.signal();
    return true;
  }

  get #wires(): LentQueue[] {
    return this.#lent.filter((lent) => lent !== undefined);
  }

  /** A kick that came through the request page. @returns false for a queue that is not lent. */
  passOn(queue: Virtqueue): boolean {
    const lent = this.#lent[queue.index];
    if (lent === undefined) return false;
    lent.kick.eventfd.signal();
    return true;
  }

  /** The kick register has another address, or none. */
  moveKicks(): void {
    for (const { kick } of this.#kicks) kick.move();
    for (const { kick } of this.#wires) kick.move();
  }

  /** An MSI-X vector has another message, or is masked or not any more. */
  vectorChanged(vector: number): void {
    for (const { queue, call } of this.#wires) if (queue.vector === vector) call.wire();
  }

  /**
   * The owner stands still until `resume`, and keeps its descriptors.
   * @returns when it does; undefined: it does already, or it never takes long.
   */
  settle(): Promise<void> | undefined {
    return this.#returning ?? this.#owner?.suspend?.();
  }

  resume(): void {
    this.#owner?.resume?.();
  }

  /**
   * Everything is served here again, and nothing by descriptor.
   * @returns when it is; undefined: it is. @throws StorageHangError, asynchronously: then nothing was taken back.
   */
  end(): Promise<void> | undefined {
    this.#stopListening();
    if (this.#returning !== undefined || this.#owner === undefined) return this.#returning;
    const wait = this.#owner.giveBack();
    if (wait === undefined) {
      this.#release();
      return undefined;
    }
    this.#returning = wait.then(() => {
      this.#returning = undefined;
      this.#release();
    });
    return this.#returning;
  }

  /** The owner has answered, or never had anything. */
  #release(): void {
    this.#owner = undefined;
    const wires = this.#wires;
    this.#lent = [];
    for (const { kick, call } of wires) {
      kick.dispose();
      call.dispose();
    }
  }
}

/** @throws HostError; kicks then come by the request page again. */
function watchKick(host: LendingHost, queue: Virtqueue, kick: Kick): () => void {
  try {
    return watchFd(kick.eventfd.fd, () => {
      if (kick.eventfd.take() > 0) host.service(queue);
    });
  } catch (error) {
    kick.dispose();
    throw error;
  }
}

/** @throws HostError, with nothing left over. */
function makeLent(host: LendingHost, queue: Virtqueue, asyncio: boolean): LentQueue {
  const kick = new Kick(host, queue, asyncio);
  try {
    return { queue, kick, call: new Call(host, queue) };
  } catch (error) {
    kick.dispose();
    throw error;
  }
}
