/** Slices of a ring: what one call does, and what it leaves for the next. */
import { describe, expect, test } from 'vitest';
import { GuestRam } from '../../../../../devicemodel/core/guest-buffers.ts';
import type { Chain } from '../../../../../devicemodel/hw/pci/virtio/ring/chain.ts';
import {
  type ChainServer,
  SLICE_NS,
  type SliceBudget,
  serveChains,
} from '../../../../../devicemodel/hw/pci/virtio/ring/serve-chains.ts';
import { Virtqueue } from '../../../../../devicemodel/hw/pci/virtio/ring/virtqueue.ts';

const SIZE = 16;
const [DESC, AVAIL, USED] = [0x1000, 0x2000, 0x3000] as const;
const WIDE: SliceBudget = { chains: 100, cost: 1000 };

/** A split queue with `count` chains of ten bytes each. */
function makeQueue(count: number) {
  const bytes = new Uint8Array(0x10000);
  const view = new DataView(bytes.buffer);
  const queue = new Virtqueue(0, SIZE, new GuestRam([{ base: 0, bytes, hostAddress: undefined }]), {
    interrupt: () => {},
    broken: () => {},
  });
  queue.enable(DESC, AVAIL, USED);
  for (let i = 0; i < SIZE; i++) {
    view.setUint32(DESC + 16 * i, 0x8000 + 16 * i, true);
    view.setUint32(DESC + 16 * i + 8, 10, true);
    view.setUint16(AVAIL + 4 + 2 * i, i, true);
  }
  view.setUint16(AVAIL + 2, count, true);
  return { queue, used: () => view.getUint16(USED + 2, true) };
}

/** Serves what it is given at the given price, `partsOf` a chain in that many calls. */
class Server implements ChainServer {
  readonly log: string[] = [];
  readonly #cost: number;
  readonly #partsOf: (id: number) => number;
  constructor(cost: number, partsOf: (id: number) => number = () => 1) {
    this.#cost = cost;
    this.#partsOf = partsOf;
  }
  serveChain(queue: Virtqueue, chain: Chain): number {
    this.log.push(`${chain.id}.${chain.progress}`);
    chain.progress++;
    if (chain.progress < this.#partsOf(chain.id)) queue.park(chain);
    else queue.push(chain, 0);
    return this.#cost;
  }
}
const standing = { nowNs: () => 0 };

describe('a slice', () => {
  // Mutation: take `cost <= 0` out of serveChains.
  test('ends with the chain that uses the cost up', () => {
    const { queue, used } = makeQueue(8);
    const server = new Server(400);
    expect(serveChains(queue, WIDE, server, standing)).toBe(false);
    expect(used()).toBe(3);
    expect(serveChains(queue, WIDE, server, standing)).toBe(false);
    expect(serveChains(queue, WIDE, server, standing)).toBe(true);
    expect(used()).toBe(8);
  });

  // Mutation: take `--chains` out.
  test('ends after so many chains, however little they cost', () => {
    const { queue, used } = makeQueue(8);
    expect(serveChains(queue, { chains: 5, cost: 1000 }, new Server(0), standing)).toBe(false);
    expect(used()).toBe(5);
  });

  // Mutation: take the look at the clock out.
  test('ends after a millisecond, however few chains it served', () => {
    const { queue, used } = makeQueue(8);
    let nowNs = 0;
    const slow = { nowNs: () => (nowNs += SLICE_NS / 3) };
    const server = new Server(0);
    expect(serveChains(queue, WIDE, server, slow)).toBe(false);
    // The time of the first is not counted; the fifth was taken when the time was up, and comes first.
    expect(used()).toBe(4);
    expect(serveChains(queue, WIDE, server, standing)).toBe(true);
    expect(server.log).toEqual(Array.from({ length: 8 }, (_, id) => `${id}.0`));
  });

  test('looks at the clock as often as asked for', () => {
    const { queue } = makeQueue(8);
    let looks = 0;
    const counting = { nowNs: () => looks++ };
    serveChains(queue, { ...WIDE, chainsPerLook: 4 }, new Server(0), counting);
    // Before the fifth: a look before the first, or after the last, would tell nothing.
    expect(looks).toBe(1);
  });

  test('serves everything that is there, and what comes meanwhile', () => {
    const { queue, used } = makeQueue(8);
    expect(serveChains(queue, WIDE, new Server(1), standing)).toBe(true);
    expect(used()).toBe(8);
  });
});

describe('a chain that is served in parts', () => {
  // Mutation: let `pop` ask the ring first.
  test('is gone on with before any other, a part a slice', () => {
    const { queue, used } = makeQueue(3);
    const server = new Server(1, (id) => (id === 1 ? 3 : 1));
    const results = Array.from({ length: 3 }, () => serveChains(queue, WIDE, server, standing));
    expect(results).toEqual([false, false, true]);
    expect(server.log).toEqual(['0.0', '1.0', '1.1', '1.2', '2.0']);
    expect(used()).toBe(3);
  });

  // Mutation: leave `#parked` alone in `disable`.
  test('is forgotten when the queue is set up anew', () => {
    const { queue } = makeQueue(3);
    const server = new Server(1, (id) => (id === 1 ? 3 : 1));
    serveChains(queue, WIDE, server, standing);
    queue.disable();
    expect(queue.pop()).toBeUndefined();
    queue.enable(DESC, AVAIL, USED);
    server.log.length = 0;
    serveChains(queue, WIDE, server, standing);
    // From the beginning: rings that are set up again are new.
    expect(server.log).toEqual(['0.0', '1.0']);
  });

  // Mutation: make `putBackParked` forget the chain without `unpop`.
  test('can be put back for another server, which begins it again', () => {
    const { queue } = makeQueue(3);
    serveChains(queue, WIDE, new Server(1, (id) => (id === 1 ? 3 : 1)), standing);
    expect(queue.position).toBe(2);
    queue.putBackParked();
    expect(queue.position).toBe(1);
    const next = new Server(1);
    expect(serveChains(queue, WIDE, next, standing)).toBe(true);
    expect(next.log).toEqual(['1.0', '2.0']);
  });
});
