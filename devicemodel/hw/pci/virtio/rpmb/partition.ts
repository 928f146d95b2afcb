/**
 * The rules of a replay protected memory as its guest sees it: a key of its own, a counter that each write has to name,
 * blocks that it may only read. Who has the blocks is a {@link RpmbStore}.
 */
import { type Frames, Request, Result } from './frame.ts';
import type { RpmbStore } from './store.ts';

/** At the start, for all guests of a host, who do not write there: what its firmware attests with. [32 KiB] */
const COMMON_BLOCKS = 128;
const LAST_COUNTER = 0xffff_ffff;

/** What one order of the driver consists of, by the flags of `struct rpmb_ioc_cmd`. */
export interface RpmbOrder {
  readonly read?: Frames;
  readonly write?: Frames;
  readonly reliableWrite?: Frames;
}

export class RpmbPartition {
  readonly #key: Uint8Array;
  readonly #store: RpmbStore;
  #blockCount = 0;
  #counter = 0;

  /** @param key 32 bytes that the guest's firmware has, too. */
  constructor(key: Uint8Array, store: RpmbStore) {
    this.#key = key;
    this.#store = store;
  }

  /** @throws HostError */
  async open(): Promise<void> {
    const { blockCount, counter } = await this.#store.open();
    this.#blockCount = blockCount;
    this.#counter = counter;
  }

  /** @returns whether there is an answer in the frames to be read. Rejected if the store does not answer. */
  async handle({ read, write, reliableWrite }: RpmbOrder): Promise<boolean> {
    if (reliableWrite !== undefined) {
      // A key is not programmed by a guest: it has one. Nobody writes without looking at the result.
      if (reliableWrite.kind !== Request.Write || write?.kind !== Request.Result || read === undefined) return false;
      await this.#write(reliableWrite, read);
      return true;
    }
    if (write === undefined || read === undefined) return false;
    if (write.kind === Request.Read) await this.#read(write, read);
    else if (write.kind === Request.GetCounter) this.#getCounter(write, read);
    else return false;
    return true;
  }

  #getCounter(request: Frames, response: Frames): void {
    response.bytes.fill(0);
    this.#answer(response, { request: Request.GetCounter, nonce: request.nonce, counter: this.#counter });
  }

  async #read(request: Frames, response: Frames): Promise<void> {
    const { address, nonce } = request;
    response.bytes.fill(0);
    const count = response.count;
    const fields = { request: Request.Read, nonce, address, blockCount: count };
    const refusal = this.#outside(address, count);
    const blocks = refusal === Result.Ok ? await this.#store.read(address, count) : refusal;
    if (typeof blocks !== 'number') response.setData(blocks);
    this.#answer(response, typeof blocks === 'number' ? { ...fields, result: blocks } : fields);
  }

  async #write(request: Frames, response: Frames): Promise<void> {
    const { address, count, nonce } = request;
    response.bytes.fill(0);
    const refusal = this.#refusal(request);
    if (refusal !== Result.Ok) {
      const fields = { request: Request.Write, nonce, counter: this.#counter, address, blockCount: count };
      this.#answer(response, { ...fields, result: refusal });
      return;
    }
    const result = await this.#store.write(address, request.data(), this.#counter + 1);
    if (result === Result.Ok) this.#counter++;
    this.#answer(response, { request: Request.Write, counter: this.#counter, address, result });
  }

  /** Why a write is none; the first of these that holds. */
  #refusal(request: Frames): number {
    if (this.#counter === LAST_COUNTER) return Result.General;
    if (!request.hasCounter(this.#counter)) return Result.Counter;
    const outside = this.#outside(request.address, request.count);
    if (outside !== Result.Ok) return outside;
    if (request.blockCount !== request.count) return Result.General;
    if (request.address < COMMON_BLOCKS) return Result.Write;
    return request.isSignedBy(this.#key) ? Result.Ok : Result.Authentication;
  }

  #outside(address: number, count: number): number {
    if (address >= this.#blockCount) return Result.Address;
    return address + count > this.#blockCount ? Result.General : Result.Ok;
  }

  /** JESD84-B51 §6.6.22: every result says whether the counter has come to its end. Compat: with C only a write's does. */
  #answer(response: Frames, fields: Parameters<Frames['fill']>[0]): void {
    const expired = this.#counter === LAST_COUNTER ? Result.Expired : 0;
    response.fill({ ...fields, result: (fields.result ?? Result.Ok) | expired });
    response.sign(this.#key);
  }
}
