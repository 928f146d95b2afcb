/**
 * An open device of the host, one call after the other. The kernel keeps a lock of the device for the time of each, also
 * while it waits for a device that hangs; it takes the same lock to have a transfer submitted, which is done on the thread
 * that serves the guest. So a transfer waits here until no call is under way, and a device keeps one thread of Node's
 * pool at most. What ends during a call is heard of after it, as the kernel tells of it under that lock as well.
 */
import type { UsbHandle, UsbOutcome, UsbRequest } from '../../core/host/libusb.ts';
import { InTurn } from '../../core/in-turn.ts';

/** What is called; other than the real one in tests. */
export type RawUsbHandle = Pick<UsbHandle, keyof UsbHandle>;

export class SerialHandle {
  readonly #handle: RawUsbHandle;
  readonly #turns = new InTurn();
  /** Calls that are under way, or wait for those. */
  #calls = 0;
  #ids = 0;
  readonly #waiting = new Map<number, UsbRequest>();
  /** What the host has, by what cancels it there. */
  readonly #submitted = new Map<number, { readonly transfer: bigint; isAskedFor: boolean }>();

  constructor(handle: RawUsbHandle) {
    this.#handle = handle;
  }

  /** @returns what `cancel` takes; undefined: it was refused, and `done` is not called. */
  submit(request: UsbRequest): number | undefined {
    const id = ++this.#ids;
    if (this.#calls === 0 && this.#waiting.size === 0) return this.#pass(id, request) ? id : undefined;
    this.#waiting.set(id, request);
    return id;
  }

  #pass(id: number, request: UsbRequest): boolean {
    const done = (outcome: UsbOutcome, actualBytes: number) => {
      this.#submitted.delete(id);
      request.done(outcome, actualBytes);
    };
    const transfer = this.#handle.submit({ ...request, done });
    if (transfer === undefined) return false;
    this.#submitted.set(id, { transfer, isAskedFor: false });
    return true;
  }

  /** Ask for a transfer; `done` is the answer, at once for one that waits. Nothing happens when it is done already. */
  cancel(id: number): void {
    const waiting = this.#waiting.get(id);
    if (waiting !== undefined) {
      this.#waiting.delete(id);
      waiting.done('cancelled', 0);
      return;
    }
    const submitted = this.#submitted.get(id);
    if (submitted === undefined || submitted.isAskedFor) return;
    submitted.isAskedFor = true;
    // What is wrong with the call is seen by the transfer, which does not come back.
    this.#call(async () => {
      if (this.#submitted.has(id)) await this.#handle.cancel(submitted.transfer);
    }).catch(() => {});
  }

  attachDriver(number: number): Promise<number> {
    return this.#call(() => this.#handle.attachDriver(number));
  }
  claim(number: number): Promise<number> {
    return this.#call(() => this.#handle.claim(number));
  }
  release(number: number): Promise<number> {
    return this.#call(() => this.#handle.release(number));
  }
  setConfiguration(value: number): Promise<number> {
    return this.#call(() => this.#handle.setConfiguration(value));
  }
  setAlternate(number: number, alternate: number): Promise<number> {
    return this.#call(() => this.#handle.setAlternate(number, alternate));
  }
  clearHalt(endpoint: number): Promise<number> {
    return this.#call(() => this.#handle.clearHalt(endpoint));
  }
  reset(): Promise<number> {
    return this.#call(() => this.#handle.reset());
  }
  /** After all transfers are done. Once. */
  close(): Promise<void> {
    return this.#call(() => this.#handle.close());
  }

  async #call<T>(work: () => Promise<T>): Promise<T> {
    this.#calls++;
    try {
      return await this.#turns.run(work);
    } finally {
      this.#calls--;
      if (this.#calls === 0) this.#submitWaiting();
    }
  }

  #submitWaiting(): void {
    for (const [id, request] of [...this.#waiting]) {
      if (!this.#waiting.has(id)) continue;
      // One that failed may have made its driver ask for something.
      if (this.#calls > 0) return;
      this.#waiting.delete(id);
      if (!this.#pass(id, request)) request.done('error', 0);
    }
    // What was asked for meanwhile: others have their turn.
    if (this.#waiting.size > 0) setImmediate(() => this.#calls === 0 && this.#submitWaiting());
  }
}
