/**
 * The replay protected memory of this host's storage, by a driver that has its key and signs for us. Others use it, too:
 * its counter is not the guest's, which begins at 0 with each start.
 */
import { type RpmbCommand, RpmbFlag, rpmbSequence } from '../../../../core/host/rpmb-mux.ts';
import type { Log } from '../../../../core/log.ts';
import { BLOCK_BYTES, FRAME_BYTES, Frames, KEY_BYTES, Request, Result } from './frame.ts';
import type { RpmbStore } from './store.ts';

/** Addresses have 16 bits. */
const MAX_BLOCKS = 0x1_0000;
/** The driver knows the real one. */
const NO_KEY = new Uint8Array(KEY_BYTES);

export type RpmbSequence = (commands: readonly RpmbCommand[]) => Promise<void>;

export class RpmbMuxStore implements RpmbStore {
  readonly #log: Log;
  readonly #sequence: RpmbSequence;
  #hostCounter: number | undefined;

  constructor(log: Log, sequence: RpmbSequence = rpmbSequence) {
    this.#log = log;
    this.#sequence = sequence;
  }

  /** Compat: as with C, a host without one is a memory without blocks. */
  async open(): Promise<{ blockCount: number; counter: number }> {
    try {
      return { blockCount: await this.#findSize(), counter: 0 };
    } catch (error) {
      this.#log.warn(`${(error as Error).message}: the guest finds no blocks`);
      return { blockCount: 0, counter: 0 };
    }
  }

  /** The driver does not tell: the first address that is refused. */
  async #findSize(): Promise<number> {
    let low = 0;
    let high = MAX_BLOCKS;
    while (low < high) {
      const middle = Math.floor((low + high) / 2);
      if (typeof (await this.read(middle, 1)) === 'number') high = middle;
      else low = middle + 1;
    }
    return low;
  }

  async read(address: number, count: number): Promise<Uint8Array | number> {
    const request = oneFrame(Request.Read);
    request.fill({ address });
    const response = new Frames(new Uint8Array(count * FRAME_BYTES));
    await this.#sequence([
      { flags: RpmbFlag.Write, frames: request.bytes },
      { flags: RpmbFlag.Read, frames: response.bytes },
    ]);
    return response.result === Result.Ok ? response.data() : response.result;
  }

  async write(address: number, blocks: Uint8Array): Promise<number> {
    let counter = this.#hostCounter ?? (await this.#readCounter());
    let result = await this.#tryWrite(address, blocks, counter);
    if (result === Result.Counter) {
      // Somebody else wrote.
      counter = await this.#readCounter();
      result = await this.#tryWrite(address, blocks, counter);
    }
    this.#hostCounter = result === Result.Ok ? counter + 1 : undefined;
    return result;
  }

  async #tryWrite(address: number, blocks: Uint8Array, counter: number): Promise<number> {
    const count = blocks.length / BLOCK_BYTES;
    const request = new Frames(new Uint8Array(count * FRAME_BYTES));
    request.setData(blocks);
    request.fill({ counter, address, blockCount: count });
    for (let i = 0; i < count; i++) {
      new Frames(request.bytes.subarray(i * FRAME_BYTES, (i + 1) * FRAME_BYTES)).ask(Request.Write);
    }
    request.sign(NO_KEY);
    const response = oneFrame(0);
    await this.#sequence([
      { flags: RpmbFlag.ReliableWrite, frames: request.bytes },
      { flags: RpmbFlag.Write, frames: oneFrame(Request.Result).bytes },
      { flags: RpmbFlag.Read, frames: response.bytes },
    ]);
    return response.result;
  }

  async #readCounter(): Promise<number> {
    const response = oneFrame(0);
    await this.#sequence([
      { flags: RpmbFlag.Write, frames: oneFrame(Request.GetCounter).bytes },
      { flags: RpmbFlag.Read, frames: response.bytes },
    ]);
    return response.counter;
  }

  async close(): Promise<void> {}
}

function oneFrame(request: number): Frames {
  const frames = new Frames(new Uint8Array(FRAME_BYTES));
  frames.ask(request);
  return frames;
}
