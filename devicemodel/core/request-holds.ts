/**
 * How a device makes one vCPU wait without making anybody else wait. An access that cannot be finished now, since what
 * the device needs for it is still in other hands, closes the device's gate: the I/O request of the vCPU stays open, and
 * whoever comes to the same device meanwhile waits behind it, so that nobody sees it half done. The others and the host
 * are served. When the gate opens, the held request is completed and those behind it are carried out.
 */
import { IOREQ_SLOTS } from './ioreq-page.ts';

/** No request is being served: what happens comes from the host. */
const NOBODY = -1;
/** Turns of the event loop before a look at the request page is put off: most waits are over by then. */
const QUICK_TURNS = 50;
/** After them, other vCPUs are looked at this often. */
const LOOK_EVERY_MS = 1;

/** What a request waits for, in `RequestHolds.states`. */
const Hold = { None: 0, /** Carried out, not completed. */ Complete: 1, /** Not carried out yet. */ Again: 2 } as const;

/** One device's. Closed while an access to it is not finished. */
export class AccessGate {
  isClosed = false;
  readonly #holds: RequestHolds;

  constructor(holds: RequestHolds) {
    this.#holds = holds;
  }

  /** The access being served cannot be finished: its vCPU waits. Outside of an access nobody does. */
  close(): void {
    this.isClosed = true;
    this.#holds.hold(this, Hold.Complete);
  }

  /** The access being served came to a closed gate and was not carried out. @returns for a read; nobody sees it. */
  postpone(): number {
    this.#holds.hold(this, Hold.Again);
    return 0;
  }

  open(): void {
    this.isClosed = false;
    this.#holds.release(this);
  }
}

export class RequestHolds {
  /** By slot of the request page: 0 unless it is held. Read for every request. */
  readonly states = new Uint8Array(IOREQ_SLOTS);
  readonly #gates: Array<AccessGate | undefined> = new Array(IOREQ_SLOTS).fill(undefined);
  /** Slot of the request being served. */
  serving = NOBODY;
  #count = 0;
  #turns = 0;
  #stir: (() => void) | undefined;
  /** A request that was carried out may be completed. Set by who serves the requests. */
  onComplete: (vcpu: number) => void = () => {};

  gate(): AccessGate {
    return new AccessGate(this);
  }

  /** The request is served: what happens from here on is no part of it. @returns whether it is held. */
  served(vcpu: number): boolean {
    this.serving = NOBODY;
    return this.states[vcpu] !== Hold.None;
  }

  /** @internal for AccessGate */
  hold(gate: AccessGate, state: number): void {
    const vcpu = this.serving;
    // An access in two halves may close the gate with the first: the second does not open it, and is lost.
    if (vcpu === NOBODY || this.states[vcpu] !== Hold.None) return;
    this.states[vcpu] = state;
    this.#gates[vcpu] = gate;
    if (this.#count++ === 0) this.#turns = 0;
  }

  /** @internal for AccessGate */
  release(gate: AccessGate): void {
    for (let vcpu = 0; vcpu < IOREQ_SLOTS; vcpu++) {
      if (this.#gates[vcpu] !== gate) continue;
      const isDone = this.states[vcpu] === Hold.Complete;
      this.states[vcpu] = Hold.None;
      this.#gates[vcpu] = undefined;
      this.#count--;
      if (isDone) this.onComplete(vcpu);
    }
    this.#stir?.();
  }

  /** The requests are no more: the VM was reset, or sleeps. */
  forget(): void {
    this.states.fill(Hold.None);
    this.#gates.fill(undefined);
    this.#count = 0;
  }

  /**
   * Whether a vCPU waits. The hypervisor counts its request as one that is to be served, and so does not wait for
   * others: who serves must rest here instead.
   */
  get isHolding(): boolean {
    return this.#count > 0;
  }

  /** Leave the thread to the event loop until a gate opens or the request page is to be looked at. */
  async rest(): Promise<void> {
    if (++this.#turns <= QUICK_TURNS) {
      await new Promise<void>((resolve) => setImmediate(resolve));
      return;
    }
    await new Promise<void>((resolve) => {
      const timeout = setTimeout(resolve, LOOK_EVERY_MS);
      this.#stir = () => {
        clearTimeout(timeout);
        resolve();
      };
    });
    this.#stir = undefined;
  }
}
