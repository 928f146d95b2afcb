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
import { monotonicMs, monotonicNs } from '../../devicemodel/core/monotonic.ts';
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
  readonly #linger = new Linger();
  /** The other thread's wait, while it is under way: also across a system reset, which keeps the client. */
  #attached: Promise<WaitResult> | undefined;
  #interrupt: (() => void) | undefined;

  constructor(parts: PolledAttachParts) {
    this.#parts = parts;
  }

  wait(): WaitResult | Promise<WaitResult> {
    // A thread that waits still, though nobody waits for it any more: two of them would take each other's requests.
    if (this.#attached === undefined && this.#linger.look(this.#hasPending)) return 'pending';
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
}

/** How this thread looks at the request page. */
const Look = {
  /** For how long at most, and at first. */
  maxNs: 200_000,
  startNs: 20_000,
  /**
   * After so many, whoever plays the guest has its turn, should it be on this CPU. That may take as long as the scheduler
   * likes: then comes a look at the clock, which is time and a number on the heap.
   */
  looksPerYield: 8,
} as const;

/**
 * After a request was served, the next one is often only microseconds away. How long to look for it is learnt as KVM
 * learns it for halted vCPUs (halt polling): longer when the guest came back soon, less when it did not and then not at
 * all, and never on a single CPU, where looking would keep the guest from running.
 */
class Linger {
  readonly #maxNs = availableParallelism() > 1 ? Look.maxNs : 0;
  #budgetNs = 0;
  #waitingSinceNs = 0;

  /** Look until something is pending or the time is up. @returns whether something is. */
  look(hasPending: () => boolean): boolean {
    if (this.#budgetNs === 0) return false;
    for (let untilMs = 0; ; yieldCpu()) {
      for (let n = 0; n < Look.looksPerYield; n++) if (hasPending()) return true;
      // Mostly it has come by now, without a look at the clock.
      const nowMs = monotonicMs();
      if (untilMs === 0) untilMs = nowMs + this.#budgetNs / 1e6;
      else if (nowMs >= untilMs) return false;
    }
  }

  /** The thread goes to sleep. */
  sleeping(): void {
    this.#waitingSinceNs = monotonicNs();
  }

  /** It woke, and there was something to serve: was it worth the sleep? */
  woken(): void {
    const sleptNs = monotonicNs() - this.#waitingSinceNs;
    // One late request, of a guest that was not run for a moment, is not the end of a busy time.
    const half = this.#budgetNs / 2 < Look.startNs ? 0 : this.#budgetNs / 2;
    this.#budgetNs = sleptNs > this.#maxNs ? half : Math.min(this.#maxNs, Math.max(Look.startNs, this.#budgetNs * 2));
  }
}
