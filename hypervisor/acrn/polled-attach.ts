/**
 * ATTACH where no signal ends it. The kernel driver's wait is interruptible, but something else behind the device node (a
 * supervisor that plays the HSM) may hold the thread until the guest asks for something. Then another thread waits, so
 * that signals and timers are heard, and this one saves the two changes of thread where it can: it looks at the request
 * page itself for as long as the next request should take. Everything only that case needs is here.
 */
import { availableParallelism } from 'node:os';
import { ioctlAsync } from '../../devicemodel/core/host/ioctl.ts';
import { yieldCpu } from '../../devicemodel/core/host/scheduling.ts';
import type { WaitResult } from '../../devicemodel/core/hsm/hsm.ts';
import type { IoreqPage } from '../../devicemodel/core/ioreq-page.ts';
import { Ioctl } from './abi.ts';

export interface PolledAttachParts {
  readonly fd: number;
  readonly page: IoreqPage;
  readonly vcpuCount: number;
  /** What the result of ATTACH means: 0 or a negative errno. @throws HsmError */
  readonly resultOf: (result: number) => WaitResult;
}

export class PolledAttach {
  readonly #parts: PolledAttachParts;
  readonly #busy = new BusyGuest();
  readonly #linger = new Linger();
  /** The other thread's wait, while it is under way: also across a system reset, which keeps the client. */
  #attached: Promise<WaitResult> | undefined;
  #interrupt: (() => void) | undefined;
  /** Only after a sleep: a request that was there at once gives nothing to gain by looking. */
  #hasSlept = false;

  constructor(parts: PolledAttachParts) {
    this.#parts = parts;
  }

  wait(): WaitResult | Promise<WaitResult> {
    // A thread that waits still, though nobody waits for it any more: two of them would take each other's requests.
    if (this.#attached === undefined) {
      if (this.#hasSlept && this.#linger.look(this.#hasPending)) return 'pending';
      this.#hasSlept = false;
      if (this.#busy.isBusy() && this.#look()) return 'pending';
    }
    this.#hasSlept = true;
    this.#linger.sleeping();
    const attached = (this.#attached ??= this.#start());
    return new Promise((resolve, reject) => {
      this.#interrupt = () => resolve('idle');
      attached.then(resolve, reject);
    });
  }

  /** The wait under way ends; the other thread waits on, and what it finds is for the next wait. */
  interrupt(): void {
    this.#interrupt?.();
  }

  /** A request was answered. */
  served(): void {
    this.#busy.served();
  }

  #start(): Promise<WaitResult> {
    return ioctlAsync(this.#parts.fd, Ioctl.ATTACH_IOREQ_CLIENT, 0).then((result) => {
      this.#attached = undefined;
      if (result === 0) this.#linger.woken();
      return this.#parts.resultOf(result);
    });
  }

  readonly #hasPending = (): boolean => {
    const { page, vcpuCount } = this.#parts;
    for (let vcpu = 0; vcpu < vcpuCount; vcpu++) if (page.isPending(vcpu)) return true;
    return false;
  };

  /** @returns whether a request came within the time. */
  #look(): boolean {
    for (let untilMs = 0; untilMs === 0 || performance.now() < untilMs; ) {
      for (let n = 0; n < Busy.looksPerClock; n++) {
        if (this.#hasPending()) return true;
        if (n % Busy.looksPerYield === 0) yieldCpu();
      }
      // Mostly it has come by now, without a look at the clock.
      if (untilMs === 0) untilMs = performance.now() + Busy.lookMs;
    }
    return false;
  }
}

/** A guest is busy that asked for this much in every such time, for that long. */
const Busy = {
  gapMs: 1,
  requestsPerMs: 4,
  forMs: 30,
  /** And for that many requests: a burst of a guest that is set up or probes its devices is none. */
  streakRequests: 1000,
  /** Once it is, so many are served without a look at the clock. */
  unseenRequests: 64,
  /** How long this thread looks for the next request of such a guest, and how often between two looks at the clock. */
  lookMs: 1,
  looksPerClock: 256,
  /** After so many looks whoever plays the guest has its turn, should it be on this CPU. */
  looksPerYield: 16,
} as const;

/** Whether requests have come without a pause for so long that the next one will, too. */
class BusyGuest {
  #waitedMs = 0;
  #sinceMs = 0;
  /** Requests since then. */
  #streak = 0;
  #served = 0;
  #isBusy = false;

  served(): void {
    this.#served++;
  }

  isBusy(): boolean {
    // Each look at the clock is time and a number on the heap.
    if (this.#isBusy && this.#served < Busy.unseenRequests) return true;
    const now = performance.now();
    const elapsedMs = now - this.#waitedMs;
    // A short time says nothing: requests that were served without waiting count, too.
    if (elapsedMs > Busy.gapMs) {
      this.#streak += this.#served;
      if (this.#served < elapsedMs * Busy.requestsPerMs) {
        this.#sinceMs = now;
        this.#streak = 0;
      }
      this.#waitedMs = now;
      this.#served = 0;
    }
    this.#isBusy = now - this.#sinceMs > Busy.forMs && this.#streak >= Busy.streakRequests;
    return this.#isBusy;
  }
}

const LINGER_MAX_NS = 200_000;
const LINGER_START_NS = 10_000;

/**
 * After a request was served, the next one is often only microseconds away. How long to look for it is learnt as KVM
 * learns it for halted vCPUs (halt polling): longer when the guest came back soon, not at all when it did not, and never
 * on a single CPU, where looking would keep the guest from running.
 */
class Linger {
  readonly #maxNs = availableParallelism() > 1 ? LINGER_MAX_NS : 0;
  #budgetNs = 0;
  #waitingSinceNs = 0;

  /** Look until something is pending or the time is up. @returns whether something is. */
  look(hasPending: () => boolean): boolean {
    if (this.#budgetNs === 0) return false;
    const untilMs = performance.now() + this.#budgetNs / 1e6;
    do {
      if (hasPending()) return true;
    } while (performance.now() < untilMs);
    return false;
  }

  /** The thread goes to sleep. */
  sleeping(): void {
    this.#waitingSinceNs = performance.now() * 1e6;
  }

  /** It woke, and there was something to serve: was it worth the sleep? */
  woken(): void {
    const sleptNs = performance.now() * 1e6 - this.#waitingSinceNs;
    this.#budgetNs = sleptNs > this.#maxNs ? 0 : Math.min(this.#maxNs, Math.max(LINGER_START_NS, this.#budgetNs * 2));
  }
}
