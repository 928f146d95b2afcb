/** Both layouts do the same for a device and for a driver: the same steps give the same requests, answers and interrupts. */
import * as fc from 'fast-check';
import { expect, test } from 'vitest';
import { GuestRam } from '../../../../../devicemodel/core/guest-buffers.ts';
import type { Chain } from '../../../../../devicemodel/hw/pci/virtio/ring/chain.ts';
import { Virtqueue } from '../../../../../devicemodel/hw/pci/virtio/ring/virtqueue.ts';
import { PackedDriverRing } from '../../../../support/packed-driver-ring.ts';
import { SplitDriverRing } from '../../../../support/split-driver-ring.ts';
import { VirtioMachine } from '../../../../support/virtio-driver.ts';

const SIZE = 8;
const [DESC, AVAIL, USED, TABLES, BUFFERS] = [0x1000, 0x2000, 0x3000, 0x4000, 0x8000] as const;

type Step =
  | { readonly kind: 'add'; readonly readable: number; readonly writable: number; readonly indirect: boolean }
  | { readonly kind: 'push'; readonly which: number; readonly written: number }
  | { readonly kind: 'interrupts'; readonly mode: 'all' | 'none' }
  | { readonly kind: 'pop' | 'unpop' | 'publish' | 'suppress' | 'allow' | 'take' | 'hand over' };

const step: fc.Arbitrary<Step> = fc.oneof(
  {
    weight: 4,
    arbitrary: fc.record({
      kind: fc.constant('add' as const),
      readable: fc.nat(2),
      writable: fc.nat(2),
      indirect: fc.boolean(),
    }),
  },
  {
    weight: 3,
    arbitrary: fc.record({ kind: fc.constant('push' as const), which: fc.nat(SIZE), written: fc.nat(9) }),
  },
  {
    weight: 1,
    arbitrary: fc.record({
      kind: fc.constant('interrupts' as const),
      mode: fc.constantFrom('all' as const, 'none' as const),
    }),
  },
  {
    weight: 9,
    arbitrary: fc.record({
      kind: fc.constantFrom(
        'pop' as const,
        'pop' as const,
        'unpop' as const,
        'publish' as const,
        'suppress' as const,
        'allow' as const,
        'take' as const,
        'hand over' as const,
      ),
    }),
  },
);

/** A driver and a device on one queue. What either of them notices goes to `seen`. */
class World {
  readonly seen: unknown[] = [];
  readonly machine = new VirtioMachine();
  readonly driver: SplitDriverRing | PackedDriverRing;
  readonly #ram = new GuestRam(this.machine.memory.chunks);
  readonly #features;
  #queue: Virtqueue;
  readonly #held: Chain[] = [];
  /** The chain popped last is still with the device. */
  #canUnpop = false;
  #unpublished = 0;
  #interrupts = 0;
  /** Which request an id stands for at present. */
  readonly #requests = new Map<number, number>();
  #requestCount = 0;
  /** The device asked for a kick and found nothing: the next chain has to give one. */
  #owesKick = false;

  constructor(packed: boolean, eventIdx: boolean) {
    const { memory } = this.machine;
    this.#features = { packed, indirect: true, eventIdx, notifyOnEmpty: false };
    this.driver = packed
      ? new PackedDriverRing(memory, SIZE, { desc: DESC, driverEvents: AVAIL, deviceEvents: USED })
      : new SplitDriverRing(memory, SIZE, { desc: DESC, avail: AVAIL, used: USED }, eventIdx);
    this.#queue = this.#makeQueue();
  }

  #makeQueue(): Virtqueue {
    const queue = new Virtqueue(0, SIZE, this.#ram, {
      interrupt: () => {
        this.#interrupts++;
      },
      broken: (_queue, reason) => {
        throw new Error(reason);
      },
    });
    queue.setFeatures(this.#features);
    expect(queue.enable(DESC, AVAIL, USED)).toBe(true);
    return queue;
  }

  run(step: Step): void {
    switch (step.kind) {
      case 'add':
        this.#add(step.readable, step.writable, step.indirect);
        break;
      case 'pop': {
        const chain = this.#queue.pop();
        this.seen.push(['popped', chain && this.#requests.get(chain.id), chain?.readableBytes, chain?.writableBytes]);
        if (chain !== undefined) this.#held.push(chain);
        this.#canUnpop = chain !== undefined;
        break;
      }
      case 'unpop': {
        const chain = this.#canUnpop ? this.#held.pop() : undefined;
        if (chain !== undefined) this.#queue.unpop(chain);
        this.#canUnpop = false;
        break;
      }
      case 'push': {
        const [chain] = this.#held.splice(step.which % Math.max(this.#held.length, 1), 1);
        if (chain === undefined) break;
        this.#queue.push(chain, Math.min(step.written, chain.writableBytes));
        this.#unpublished++;
        this.#canUnpop = false;
        break;
      }
      case 'publish':
        this.#queue.publish();
        this.#unpublished = 0;
        this.seen.push(['interrupts', this.#interrupts]);
        break;
      case 'suppress':
        this.#queue.suppressNotify();
        this.#owesKick = false;
        break;
      case 'allow': {
        const hasMore = this.#queue.allowNotify();
        this.seen.push(['more', hasMore]);
        this.#owesKick = !hasMore;
        // What was added up to here the device has seen.
        this.driver.wantsKick();
        break;
      }
      case 'take':
        for (const { head, length } of this.driver.takeUsed()) {
          this.seen.push(['answered', this.#requests.get(head), length]);
        }
        // As Linux does. A wrap counter is one bit: a place that is never moved comes round again every other time.
        if (this.#features.eventIdx) this.driver.setInterrupts({ after: 0 });
        break;
      case 'interrupts':
        // With the event index a split ring has no flag: the driver asks for the next one as it takes what there is.
        if (!this.#features.eventIdx) this.driver.setInterrupts(step.mode);
        break;
      case 'hand over':
        this.#handOver();
        break;
      default:
        step satisfies never;
    }
  }

  #add(readable: number, writable: number, indirect: boolean): void {
    const count = readable + writable;
    if (count === 0 || this.driver.free < (indirect ? 1 : count)) {
      this.seen.push('full');
      return;
    }
    const number = this.#requestCount++;
    const at = BUFFERS + 256 * (number % 256);
    const buffers = Array.from({ length: count }, (_, i) => ({
      at: at + 32 * i,
      length: 1 + ((number + i) % 16),
      isWritable: i >= readable,
    }));
    this.#requests.set(this.driver.add(buffers, indirect ? TABLES + 64 * (number % 128) : undefined), number);
    if (this.#owesKick) expect(this.driver.wantsKick()).toBe(true);
    this.#owesKick = false;
  }

  /** Another queue goes on, as when a data thread takes over or gives back. */
  #handOver(): void {
    if (this.#held.length > 0 || this.#unpublished > 0) return;
    const { position } = this.#queue;
    this.#queue = this.#makeQueue();
    this.#queue.resumeAt(position);
    this.#canUnpop = false;
  }
}

test.each([false, true])('any steps of driver and device (event index: %s)', (eventIdx) => {
  fc.assert(
    fc.property(fc.array(step, { maxLength: 150, size: 'max' }), (steps) => {
      const worlds = [new World(false, eventIdx), new World(true, eventIdx)] as const;
      try {
        if (eventIdx) for (const world of worlds) world.driver.setInterrupts({ after: 0 });
        for (const each of steps) for (const world of worlds) world.run(each);
        expect(worlds[1].seen).toEqual(worlds[0].seen);
      } finally {
        for (const world of worlds) world.machine.dispose();
      }
    }),
    { numRuns: 300 },
  );
});
