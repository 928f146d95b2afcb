/** What a read or write request moves, in one object. */
import type { ImageIo } from '../../../storage/image-io.ts';
import type { Chain } from '../ring/chain.ts';
import type { Virtqueue } from '../ring/virtqueue.ts';

/** `count` bytes from byte `offset` of the disk on. */
export interface Transfer {
  queue: Virtqueue;
  chain: Chain;
  backend: ImageIo;
  offset: number;
  count: number;
  isWrite: boolean;
}

/** One object for all requests, one after the other: one for each would be garbage for each. */
export class ReusedTransfer {
  #transfer: Transfer | undefined;

  /** Holds until the next call; whoever needs it for longer copies it. */
  of(
    queue: Virtqueue,
    chain: Chain,
    backend: ImageIo,
    offset: number,
    count: number,
    isWrite: boolean,
  ): Readonly<Transfer> {
    const transfer = this.#transfer;
    if (transfer === undefined) {
      this.#transfer = { queue, chain, backend, offset, count, isWrite };
      return this.#transfer;
    }
    transfer.queue = queue;
    transfer.chain = chain;
    transfer.backend = backend;
    transfer.offset = offset;
    transfer.count = count;
    transfer.isWrite = isWrite;
    return transfer;
  }
}
