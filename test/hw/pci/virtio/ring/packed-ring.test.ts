/** Packed rings, descriptor by descriptor, and what hostile drivers do to them. */
import * as fc from 'fast-check';
import { afterEach, describe, expect, test } from 'vitest';
import { GuestRam } from '../../../../../devicemodel/core/guest-buffers.ts';
import type { Chain } from '../../../../../devicemodel/hw/pci/virtio/ring/chain.ts';
import { Virtqueue } from '../../../../../devicemodel/hw/pci/virtio/ring/virtqueue.ts';
import { PackedDriverRing } from '../../../../support/packed-driver-ring.ts';
import { HIGH_RAM, RAM_SEAM, VirtioMachine } from '../../../../support/virtio-driver.ts';

const SIZE = 5;
const Flag = { Next: 1, Write: 2, Indirect: 4, Avail: 1 << 7, Used: 1 << 15 } as const;
/** Available in the first round. */
const FRESH = Flag.Avail;
const Event = { Enable: 0, Disable: 1, Desc: 2 } as const;
const DESC = 0x1000;
const DRIVER = 0x2000;
const DEVICE = 0x3000;

const machines: VirtioMachine[] = [];
afterEach(() => {
  for (const machine of machines.splice(0)) machine.dispose();
});

interface Options {
  readonly size?: number;
  readonly desc?: number;
  readonly indirect?: boolean;
  readonly eventIdx?: boolean;
}

function makeQueue(options: Options = {}) {
  const { size = SIZE, desc = DESC, indirect = true, eventIdx = false } = options;
  const machine = new VirtioMachine();
  machines.push(machine);
  const { memory } = machine;
  const broken: string[] = [];
  let interrupts = 0;
  const ram = new GuestRam(memory.chunks);
  const queue = new Virtqueue(0, 32768, ram, {
    interrupt: () => {
      interrupts++;
    },
    broken: (_queue, reason) => broken.push(reason),
  });
  queue.setFeatures({ packed: true, indirect, eventIdx, notifyOnEmpty: false });
  queue.size = size;
  expect(queue.enable(desc, DRIVER, DEVICE)).toBe(true);
  const put = (index: number, address: number | bigint, length: number, flags: number, id = 0, table = desc) => {
    const at = table + index * 16;
    memory.writeU64(at, BigInt.asUintN(64, BigInt(address)));
    memory.writeU32(at + 8, length);
    memory.writeU16(at + 12, id);
    memory.writeU16(at + 14, flags);
  };
  /** Element as the device left it. */
  const used = (index: number) => ({
    id: memory.readU16(desc + index * 16 + 12),
    length: memory.readU32(desc + index * 16 + 8),
    flags: memory.readU16(desc + index * 16 + 14),
  });
  const driver = new PackedDriverRing(memory, size, { desc, driverEvents: DRIVER, deviceEvents: DEVICE });
  return { machine, memory, ram, queue, broken, put, used, driver, interrupts: () => interrupts };
}

const buffer = (at: number, length: number, isWritable = true) => ({ at, length, isWritable });

describe('chains', () => {
  test('NEXT goes on with the next place, the last one has the id, one used element answers all', () => {
    const w = makeQueue();
    w.put(1, 0x9000, 512, Flag.Next | Flag.Write | FRESH);
    w.put(2, 0xa000, 1, Flag.Write | FRESH, 7);
    w.put(0, 0x8000, 16, Flag.Next | FRESH, 99);
    const chain = w.queue.pop() as Chain;
    expect([chain.id, chain.readableBytes, chain.writableBytes, chain.ringEntries]).toEqual([7, 16, 513, 3]);
    expect(w.queue.pop()).toBeUndefined();
    w.queue.push(chain, 513);
    w.queue.publish();
    expect(w.used(0)).toEqual({ id: 7, length: 513, flags: Flag.Write | Flag.Avail | Flag.Used });
    // The next element goes behind the whole chain.
    w.put(3, 0x8000, 1, Flag.Write | FRESH, 8);
    w.queue.push(w.queue.pop() as Chain, 0);
    w.queue.publish();
    // Nothing was written: no WRITE.
    expect(w.used(3)).toEqual({ id: 8, length: 0, flags: Flag.Avail | Flag.Used });
  });

  test('a chain over the end of the ring, and the wrap counters of both sides', () => {
    const w = makeQueue();
    for (let round = 0; round < 40; round++) {
      const id = w.driver.add([buffer(0x8000, 4, false), buffer(0x9000, 4), buffer(0xa000, round + 1)]);
      const chain = w.queue.pop() as Chain;
      expect([chain.id, chain.writableBytes]).toEqual([id, round + 5]);
      w.queue.push(chain, round);
      w.queue.publish();
      expect(w.driver.takeUsed()).toEqual([{ head: id, length: round }]);
    }
    expect(w.broken).toEqual([]);
  });

  test('completions in another order carry their ids, and the places stay right', () => {
    const w = makeQueue();
    for (let round = 0; round < 20; round++) {
      const ids = [
        w.driver.add([buffer(0x8000, 1), buffer(0x8100, 1), buffer(0x8200, 1)]),
        w.driver.add([buffer(0x9000, 1)]),
      ];
      const [first, second] = [w.queue.pop() as Chain, w.queue.pop() as Chain];
      w.queue.push(second, 1);
      w.queue.push(first, 3);
      w.queue.publish();
      expect(w.driver.takeUsed()).toEqual([
        { head: ids[1], length: 1 },
        { head: ids[0], length: 3 },
      ]);
    }
  });

  test('what is pushed is seen only after publish, the first of it last', () => {
    const w = makeQueue();
    const ids = [w.driver.add([buffer(0x8000, 1)]), w.driver.add([buffer(0x9000, 1)])];
    w.queue.push(w.queue.pop() as Chain, 1);
    w.queue.push(w.queue.pop() as Chain, 1);
    expect(w.driver.takeUsed()).toEqual([]);
    expect(w.used(0).flags & Flag.Used).toBe(0);
    w.queue.publish();
    expect(w.driver.takeUsed().map((u) => u.head)).toEqual(ids);
    expect(w.interrupts()).toBe(1);
  });

  test('an indirect table is read from end to end, and only WRITE counts in it', () => {
    const w = makeQueue();
    const table = HIGH_RAM + 0x100;
    w.put(0, 0x8000, 1, Flag.Next, 0, table);
    w.put(1, 0x8100, 2, Flag.Indirect, 5, table);
    w.put(2, 0x8200, 3, Flag.Write | Flag.Avail | Flag.Used, 6, table);
    // WRITE of the descriptor itself means nothing.
    w.put(0, table, 48, Flag.Indirect | Flag.Write | FRESH, 3);
    const chain = w.queue.pop() as Chain;
    expect([chain.id, chain.readableBytes, chain.writableBytes, chain.ringEntries]).toEqual([3, 3, 3, 1]);
  });

  test.each([1, 3, 64, 1000, 32768])('a ring of %i', (size) => {
    const w = makeQueue({ size, desc: 0x10000 });
    for (let i = 0; i < Math.min(3 * size, 5000); i++) {
      const id = w.driver.add([buffer(0x8000, 4)]);
      w.queue.push(w.queue.pop() as Chain, 4);
      w.queue.publish();
      expect(w.driver.takeUsed()).toEqual([{ head: id, length: 4 }]);
    }
    expect(w.queue.pop()).toBeUndefined();
  });

  test('a ring over the seam of two chunks works as any other', () => {
    const w = makeQueue({ desc: RAM_SEAM - 32 });
    for (let i = 0; i < 12; i++) {
      const id = w.driver.add([buffer(0x8000, 4, false), buffer(RAM_SEAM - 2, 4)]);
      const chain = w.queue.pop() as Chain;
      expect(chain.writableBytes).toBe(4);
      w.queue.push(chain, 4);
      w.queue.publish();
      expect(w.driver.takeUsed()).toEqual([{ head: id, length: 4 }]);
    }
  });

  test('unpop: the same chains come again, over the end of the ring too', () => {
    const w = makeQueue();
    for (let round = 0; round < 15; round++) {
      const id = w.driver.add([buffer(0x8000, 1), buffer(0x9000, 1)]);
      w.queue.unpop(w.queue.pop() as Chain);
      const chain = w.queue.pop() as Chain;
      expect(chain.id).toBe(id);
      w.queue.push(chain, 2);
      w.queue.publish();
      expect(w.driver.takeUsed()).toHaveLength(1);
    }
  });

  test('a position taken over: another queue over the same rings goes on where this one was', () => {
    const w = makeQueue();
    let current = w.queue;
    for (let round = 0; round < 15; round++) {
      const ids = [w.driver.add([buffer(0x8000, 1), buffer(0x9000, 1)]), w.driver.add([buffer(0xa000, 1)])];
      current.push(current.pop() as Chain, 2);
      current.publish();
      const next = new Virtqueue(0, 32768, w.ram, { interrupt: () => {}, broken: () => expect.unreachable() });
      next.setFeatures(current.features);
      next.size = SIZE;
      next.enable(DESC, DRIVER, DEVICE);
      next.resumeAt(current.position);
      current = next;
      current.push(current.pop() as Chain, 1);
      current.publish();
      expect(w.driver.takeUsed().map((u) => u.head)).toEqual(ids);
    }
  });

  test('a chain taken before a reset does not reach the ring set up after it', () => {
    const w = makeQueue();
    w.driver.add([buffer(0x8000, 4)]);
    const chain = w.queue.pop() as Chain;
    w.queue.enable(DESC, DRIVER, DEVICE);
    w.queue.push(chain, 4);
    w.queue.publish();
    expect(w.used(0).flags).toBe(Flag.Write | FRESH);
  });
});

describe('notifications', () => {
  test('the driver disables and enables interrupts', () => {
    const w = makeQueue();
    const counts = (['none', 'all', 'none'] as const).map((mode) => {
      w.driver.setInterrupts(mode);
      w.driver.add([buffer(0x8000, 1)]);
      w.queue.push(w.queue.pop() as Chain, 1);
      w.queue.publish();
      w.driver.takeUsed();
      return w.interrupts();
    });
    expect(counts).toEqual([0, 1, 1]);
  });

  test('an interrupt for one descriptor comes when it is passed, in every round', () => {
    const w = makeQueue({ eventIdx: true });
    for (let round = 0; round < 20; round++) {
      w.driver.setInterrupts({ after: 2 });
      const before = w.interrupts();
      const counts = [0, 1, 2].map(() => {
        w.driver.add([buffer(0x8000, 1)]);
        w.queue.push(w.queue.pop() as Chain, 1);
        w.queue.publish();
        return w.interrupts() - before;
      });
      expect(counts).toEqual([0, 0, 1]);
      expect(w.driver.takeUsed()).toHaveLength(3);
    }
  });

  test('a descriptor within a chain is passed with the chain', () => {
    const w = makeQueue({ eventIdx: true });
    w.driver.setInterrupts({ after: 2 });
    w.driver.add([buffer(0x8000, 1), buffer(0x8100, 1), buffer(0x8200, 1)]);
    w.queue.push(w.queue.pop() as Chain, 1);
    w.queue.publish();
    expect(w.interrupts()).toBe(1);
  });

  test.each([
    ['the reserved value', 3, true],
    ['one descriptor, not negotiated', Event.Desc, false],
  ])('%s: rather an interrupt too many', (_name, flags, eventIdx) => {
    const w = makeQueue({ eventIdx });
    w.memory.writeU16(DRIVER, 0x7fff);
    w.memory.writeU16(DRIVER + 2, flags);
    w.driver.add([buffer(0x8000, 1)]);
    w.queue.push(w.queue.pop() as Chain, 1);
    w.queue.publish();
    expect(w.interrupts()).toBe(1);
  });

  test.each([true, false])('the device keeps the driver from kicking while it looks (event index: %s)', (eventIdx) => {
    const w = makeQueue({ eventIdx });
    for (let round = 0; round < 12; round++) {
      w.queue.suppressNotify();
      expect(w.memory.readU16(DEVICE + 2)).toBe(Event.Disable);
      w.driver.add([buffer(0x8000, 1), buffer(0x9000, 1)]);
      expect(w.driver.wantsKick()).toBe(false);
      expect(w.queue.allowNotify()).toBe(true);
      w.queue.push(w.queue.pop() as Chain, 1);
      w.queue.publish();
      w.driver.takeUsed();
      expect(w.queue.allowNotify()).toBe(false);
      expect(w.memory.readU16(DEVICE + 2)).toBe(eventIdx ? Event.Desc : Event.Enable);
      w.driver.add([buffer(0x8000, 1)]);
      expect(w.driver.wantsKick()).toBe(true);
      w.queue.push(w.queue.pop() as Chain, 1);
      w.queue.publish();
      w.driver.takeUsed();
    }
  });
});

describe('hostile rings stop the queue, once, and nothing else', () => {
  type World = ReturnType<typeof makeQueue>;
  const cases: ReadonlyArray<[string, (w: World) => void]> = [
    [
      'a chain longer than the ring',
      (w) => {
        for (let i = 0; i < SIZE; i++) w.put(i, 0x8000, 4, Flag.Next | FRESH);
      },
    ],
    ['INDIRECT with NEXT', (w) => w.put(0, 0x8000, 16, Flag.Indirect | Flag.Next | FRESH)],
    [
      'INDIRECT within a chain',
      (w) => {
        w.put(0, 0x8000, 16, Flag.Next | FRESH);
        w.put(1, 0x9000, 16, Flag.Indirect | FRESH);
      },
    ],
    ['an empty table', (w) => w.put(0, 0x8000, 0, Flag.Indirect | FRESH)],
    ['half a descriptor in a table', (w) => w.put(0, 0x8000, 24, Flag.Indirect | FRESH)],
    ['a table outside of RAM', (w) => w.put(0, 0x8000_0000, 16, Flag.Indirect | FRESH)],
    ['a table over the end of RAM', (w) => w.put(0, HIGH_RAM + 0x20000 - 16, 32, Flag.Indirect | FRESH)],
    ['a table of 4 GiB', (w) => w.put(0, 0, 0xfffffff0, Flag.Indirect | FRESH)],
    ['a table of 513', (w) => w.put(0, 0x8000, 513 * 16, Flag.Indirect | FRESH)],
    [
      'a table with a readable buffer after a writable one',
      (w) => {
        w.put(0, 0x9000, 1, Flag.Write, 0, 0x8000);
        w.put(1, 0x9000, 1, 0, 0, 0x8000);
        w.put(0, 0x8000, 32, Flag.Indirect | FRESH);
      },
    ],
    [
      'a readable descriptor after a writable one',
      (w) => {
        w.put(0, 0x8000, 4, Flag.Next | Flag.Write | FRESH);
        w.put(1, 0x9000, 4, FRESH);
      },
    ],
    ['a buffer in the PCI hole', (w) => w.put(0, 0xc000_0000, 64, Flag.Write | FRESH)],
    ['a buffer over the end of RAM', (w) => w.put(0, HIGH_RAM + 0x20000 - 1, 2, Flag.Write | FRESH)],
    ['a buffer at 2^64 - 1', (w) => w.put(0, 0xffff_ffff_ffff_ffffn, 1, Flag.Write | FRESH)],
    ['a buffer of 4 GiB', (w) => w.put(0, 0, 0xffffffff, Flag.Write | FRESH)],
  ];
  test.each(cases)('%s', (_name, arrange) => {
    const w = makeQueue();
    arrange(w);
    const before = Buffer.from(w.memory.read(DESC, SIZE * 16));
    expect(w.queue.pop()).toBeUndefined();
    expect(w.broken).toHaveLength(1);
    expect(w.queue.pop()).toBeUndefined();
    expect([w.queue.hasAvailable(), w.queue.allowNotify()]).toEqual([false, false]);
    w.queue.publish();
    expect(w.broken).toHaveLength(1);
    expect(before.equals(w.memory.read(DESC, SIZE * 16))).toBe(true);
  });

  test('an indirect descriptor that was not negotiated', () => {
    const w = makeQueue({ indirect: false });
    w.put(0, 0x8000, 16, Flag.Indirect | FRESH);
    expect(w.queue.pop()).toBeUndefined();
    expect(w.broken).toHaveLength(1);
  });

  test('more descriptors in flight than the ring has', () => {
    const w = makeQueue();
    for (let i = 0; i < SIZE; i++) {
      w.put(i, 0x8000, 4, FRESH);
      expect(w.queue.pop()).toBeDefined();
    }
    // The second round, with nothing given back.
    w.put(0, 0x8000, 4, Flag.Used);
    expect(w.queue.pop()).toBeUndefined();
    expect(w.broken).toHaveLength(1);
  });

  test.each([
    ['ring unaligned', DESC + 8, DRIVER, DEVICE],
    ['driver events unaligned', DESC, DRIVER + 2, DEVICE],
    ['device events unaligned', DESC, DRIVER, DEVICE + 2],
    ['ring in the PCI hole', 0xc000_0000, DRIVER, DEVICE],
    ['ring over the end of RAM', HIGH_RAM + 0x20000 - 16, DRIVER, DEVICE],
    ['driver events beyond RAM', DESC, HIGH_RAM + 0x20000, DEVICE],
    ['device events beyond RAM', DESC, DRIVER, 2 ** 64],
  ])('%s: not taken', (_name, desc, driver, device) => {
    const w = makeQueue();
    expect(w.queue.enable(desc, driver, device)).toBe(false);
    expect(w.queue.isReady).toBe(false);
    expect(w.queue.pop()).toBeUndefined();
  });

  test('a driver that changes its mind about the layout has no queue', () => {
    const w = makeQueue();
    w.put(0, 0x8000, 4, FRESH);
    w.queue.setFeatures({ ...w.queue.features, packed: false });
    expect([w.queue.isReady, w.queue.pop()]).toEqual([false, undefined]);
    // Five entries are no split queue.
    expect(w.queue.enable(DESC, DRIVER, DEVICE)).toBe(false);
  });

  test('whatever is in memory: no throw, an end, chains inside RAM', () => {
    const word = fc.oneof(fc.nat(0xffffffff), fc.nat(16), fc.constantFrom(0x8000, DESC, RAM_SEAM - 2, 0xffffffff));
    const flags = fc
      .tuple(fc.nat(7), fc.constantFrom(Flag.Avail, Flag.Avail, Flag.Used, 0, Flag.Avail | Flag.Used))
      .map(([low, high]) => low | high);
    const descriptor = fc.tuple(word, fc.constantFrom(0, 0, 0, 1, 0xffffffff), word, flags, fc.nat(0xffff));
    fc.assert(
      fc.property(
        fc.array(descriptor, { minLength: SIZE, maxLength: SIZE }),
        fc.array(fc.boolean(), { minLength: 3 * SIZE, maxLength: 3 * SIZE }),
        (descriptors, gives) => {
          const w = makeQueue();
          descriptors.forEach(([low, high, length, bits, id], i) => {
            w.put(i, BigInt(low) | (BigInt(high) << 32n), length, bits, id);
          });
          let taken = 0;
          for (let chain = w.queue.pop(); chain !== undefined; chain = w.queue.pop()) {
            taken++;
            let total = 0;
            for (let i = 0; i < chain.segmentCount; i++) {
              const chunk = w.ram.bytes[chain.chunk[i] as number] as Uint8Array;
              expect((chain.offset[i] as number) + (chain.length[i] as number)).toBeLessThanOrEqual(chunk.length);
              total += chain.length[i] as number;
            }
            expect(total).toBe(chain.readableBytes + chain.writableBytes);
            if (gives[taken % gives.length] === true) w.queue.push(chain, 1);
            if (taken % 2 === 0) w.queue.publish();
          }
          // Every place can be available in one round only, unless the device gives it back.
          expect(taken).toBeLessThanOrEqual(2 * SIZE);
          for (const machine of machines.splice(0)) machine.dispose();
        },
      ),
      { numRuns: 500 },
    );
  });
});
