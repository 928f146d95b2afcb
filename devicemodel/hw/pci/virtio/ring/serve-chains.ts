/**
 * Serving a ring in slices: whatever a driver queues, and however large one request is, other work has its turn after
 * about a mebibyte or a millisecond. Every ring that a driver fills with requests is served by `serveChains`.
 */
import { MiB } from '../../../../core/units.ts';
import type { Chain } from './chain.ts';
import type { Virtqueue } from './virtqueue.ts';

/** What one slice moves, and how long it keeps the thread, at most: its last request may go over by one step. */
export const SLICE_BYTES = 1 * MiB;
export const SLICE_NS = 1_000_000;

/** What one call may do before other work has its turn. */
export interface SliceBudget {
  /** Chains, whatever they cost. */
  readonly chains: number;
  /** Sum of what `serveChain` returns: bytes moved. */
  readonly cost: number;
  /** Chains served between two looks at the clock, for those that cost less than a look. Default 1. */
  readonly chainsPerLook?: number;
  /** Keep the driver from notifying while its ring is being looked at. */
  readonly suppressesNotify?: boolean;
}

/** Where slices read the time. Monotonic nanoseconds. */
export interface SliceClock {
  nowNs(): number;
}

/** For threads without a device clock. */
export const monotonicClock: SliceClock = { nowNs: () => performance.now() * 1e6 };

/** Serves one chain, or the next part of one. */
export interface ChainServer {
  /**
   * Serve the chain and give it back, now or later; or serve a part, note it in `chain.progress` and `queue.park` the
   * chain: the next slice begins with it.
   * @returns what that cost, in bytes.
   */
  serveChain(queue: Virtqueue, chain: Chain): number;
  /** The chains of this pass are served; what is done is shown to the driver next. @param hasMore another slice follows. */
  endPass?(queue: Virtqueue, hasMore: boolean): void;
}

/**
 * Serve the chains that the driver made available, in order, and show it what is done.
 * @returns false if there may be more: call again once other work had its turn.
 */
export function serveChains(queue: Virtqueue, budget: SliceBudget, server: ChainServer, clock: SliceClock): boolean {
  const { chainsPerLook = 1 } = budget;
  let { chains, cost } = budget;
  let untilLook = chainsPerLook;
  // Set at the first look: a chain that is alone costs none.
  let endNs = 0;
  let isSpent = false;
  do {
    if (budget.suppressesNotify === true) queue.suppressNotify();
    for (let chain = queue.pop(); chain !== undefined; ) {
      cost -= server.serveChain(queue, chain);
      isSpent = --chains <= 0 || cost <= 0 || queue.hasParked;
      if (isSpent) break;
      chain = queue.pop();
      if (chain === undefined || --untilLook > 0) continue;
      untilLook = chainsPerLook;
      const nowNs = clock.nowNs();
      if (endNs === 0) endNs = nowNs + SLICE_NS;
      isSpent = nowNs >= endNs;
      if (!isSpent) continue;
      queue.park(chain);
      break;
    }
    const hasMore = isSpent && queue.hasAvailable();
    server.endPass?.(queue, hasMore);
    queue.publish();
    if (hasMore) return false;
    if (!queue.allowNotify()) return true;
  } while (!isSpent);
  return false;
}
