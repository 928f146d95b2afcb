/** Split rings and what hostile drivers do to them: anchors §4.3 groups 1 to 3, and the queue CVEs of §4.1 and §4.2. */
import * as fc from 'fast-check';
import { afterEach, describe, expect, test } from 'vitest';
import { GuestRam } from '../../../../../devicemodel/core/guest-buffers.ts';
import type { Chain } from '../../../../../devicemodel/hw/pci/virtio/ring/chain.ts';
import { Virtqueue, type VirtqueueHost } from '../../../../../devicemodel/hw/pci/virtio/ring/virtqueue.ts';
import { HIGH_RAM, RAM_SEAM, VirtioMachine } from '../../../../support/virtio-driver.ts';

const SIZE = 8;
const Flag = { Next: 1, Write: 2, Indirect: 4 } as const;
/** Rings of the test queue. */
const DESC = 0x1000;
const AVAIL = 0x2000;
const USED = 0x3000;

const machines: VirtioMachine[] = [];
afterEach(() => {
  for (const machine of machines.splice(0)) machine.dispose();
});

interface World {
  readonly machine: VirtioMachine;
  readonly queue: Virtqueue;
  readonly interrupts: () => number;
  readonly broken: string[];
  desc(index: number, address: number | bigint, length: number, flags?: number, next?: number, table?: number): void;
  /** Make heads available. */
  offer(...heads: number[]): void;
}

function makeWorld(
  options: { size?: number; indirect?: boolean; eventIdx?: boolean; notifyOnEmpty?: boolean } = {},
): World {
  const machine = new VirtioMachine();
  machines.push(machine);
  const { memory } = machine;
  const broken: string[] = [];
  let interrupts = 0;
  const host: VirtqueueHost = {
    interrupt: () => {
      interrupts++;
    },
    broken: (_queue, reason) => broken.push(reason),
  };
  const queue = new Virtqueue(0, options.size ?? SIZE, new GuestRam(memory.chunks), host);
  queue.setFeatures({
    packed: false,
    indirect: options.indirect ?? true,
    eventIdx: options.eventIdx ?? false,
    notifyOnEmpty: options.notifyOnEmpty ?? false,
  });
  expect(queue.enable(DESC, AVAIL, USED)).toBe(true);
  let availIdx = 0;
  return {
    machine,
    queue,
    interrupts: () => interrupts,
    broken,
    desc: (index, address, length, flags = 0, next = 0, table = DESC) => {
      const at = table + index * 16;
      memory.writeU64(at, BigInt.asUintN(64, BigInt(address)));
      memory.writeU32(at + 8, length);
      memory.writeU16(at + 12, flags);
      memory.writeU16(at + 14, next);
    },
    offer: (...heads) => {
      for (const head of heads) {
        memory.writeU16(AVAIL + 4 + 2 * (availIdx % queue.size), head);
        availIdx = (availIdx + 1) & 0xffff;
      }
      memory.writeU16(AVAIL + 2, availIdx);
    },
  };
}

function segments(chain: Chain): Array<[chunk: number, offset: number, length: number]> {
  return Array.from({ length: chain.segmentCount }, (_, i) => [
    chain.chunk[i] as number,
    chain.offset[i] as number,
    chain.length[i] as number,
  ]);
}

describe('chains', () => {
  test('a chain is what the device may read, then what it may write', () => {
    const w = makeWorld();
    w.desc(3, 0x8000, 16, Flag.Next, 5);
    w.desc(5, 0x9000, 512, Flag.Next | Flag.Write, 1);
    w.desc(1, 0xa000, 1, Flag.Write);
    w.offer(3);
    const chain = w.queue.pop() as Chain;
    expect([chain.id, chain.readableBytes, chain.writableBytes]).toEqual([3, 16, 513]);
    expect(segments(chain)).toEqual([
      [0, 0x8000, 16],
      [0, 0x9000, 512],
      [0, 0xa000, 1],
    ]);
    expect(w.queue.pop()).toBeUndefined();
  });

  test('descriptors that touch are one segment, but never over the border between reading and writing', () => {
    const w = makeWorld();
    w.desc(0, 0x8000, 16, Flag.Next, 1);
    w.desc(1, 0x8010, 16, Flag.Next, 2);
    w.desc(2, 0x8020, 16, Flag.Write);
    w.offer(0);
    const chain = w.queue.pop() as Chain;
    expect(segments(chain)).toEqual([
      [0, 0x8000, 32],
      [0, 0x8020, 16],
    ]);
    expect(chain.readableCount).toBe(1);
  });

  test('a buffer over the seam of two chunks is two segments and one buffer', () => {
    const w = makeWorld();
    w.desc(0, RAM_SEAM - 4, 8, 0);
    w.machine.memory.write(RAM_SEAM - 4, Uint8Array.of(1, 2, 3, 4, 5, 6, 7, 8));
    w.offer(0);
    const chain = w.queue.pop() as Chain;
    expect(chain.segmentCount).toBe(2);
    expect(chain.readU32(2)).toBe(0x06050403);
    const out = new Uint8Array(8);
    expect(chain.copyOut(0, out, 0, 100)).toBe(8);
    expect([...out]).toEqual([1, 2, 3, 4, 5, 6, 7, 8]);
  });

  test('a ring over the seam of two chunks works as any other', () => {
    const w = makeWorld();
    // Descriptor 0 below the seam, descriptors 1 and up above it; the used ring's elements likewise.
    expect(w.queue.enable(RAM_SEAM - 16, AVAIL, RAM_SEAM + 0x1000 - 4)).toBe(true);
    expect(w.queue.enable(RAM_SEAM - 16, RAM_SEAM - 0x100, RAM_SEAM - 0x204)).toBe(true);
    const { memory } = w.machine;
    w.desc(0, 0x8000, 4, Flag.Next, 1, RAM_SEAM - 16);
    w.desc(1, 0x8100, 4, Flag.Write, 0, RAM_SEAM - 16);
    memory.writeU16(RAM_SEAM - 0x100 + 4, 0);
    memory.writeU16(RAM_SEAM - 0x100 + 2, 1);
    const chain = w.queue.pop() as Chain;
    expect(chain.writableBytes).toBe(4);
    w.queue.push(chain, 4);
    w.queue.publish();
    expect(memory.readU16(RAM_SEAM - 0x204 + 2)).toBe(1);
  });

  test('indirect tables may be anywhere, above 4 GiB too, and are walked by their own indexes', () => {
    const w = makeWorld();
    w.desc(0, HIGH_RAM + 0x100, 48, Flag.Indirect);
    w.desc(0, 0x8000, 1, Flag.Next, 2, HIGH_RAM + 0x100);
    w.desc(2, 0x8100, 2, Flag.Next, 1, HIGH_RAM + 0x100);
    w.desc(1, 0x8200, 3, Flag.Write, 0, HIGH_RAM + 0x100);
    w.offer(0);
    const chain = w.queue.pop() as Chain;
    expect([chain.readableBytes, chain.writableBytes, chain.descriptorCount]).toEqual([3, 3, 3]);
  });

  test('indexes wrap at 2^16, ring positions at the size', () => {
    const w = makeWorld();
    w.desc(0, 0x8000, 4, Flag.Write);
    for (let i = 0; i < 0x10000 + 3; i++) {
      w.offer(0);
      const chain = w.queue.pop();
      if (chain === undefined) throw new Error(`nothing at ${i}`);
      w.queue.push(chain, 4);
      w.queue.publish();
    }
    expect(w.machine.memory.readU16(USED + 2)).toBe(3);
    expect(w.broken).toEqual([]);
  });

  test('a queue in steady state reuses its chains', () => {
    const w = makeWorld();
    w.desc(0, 0x8000, 4, Flag.Write);
    const seen = new Set<Chain>();
    for (let i = 0; i < 50; i++) {
      w.offer(0);
      const chain = w.queue.pop() as Chain;
      seen.add(chain);
      w.queue.push(chain, 0);
    }
    expect(seen.size).toBe(1);
  });

  test('an engine that translates code hears of what was written, before it is published', () => {
    const writes: Array<[number, number]> = [];
    const bytes = new Uint8Array(0x10000);
    const onHostWrite = (at: number, length: number) => writes.push([at, length]);
    const ram = new GuestRam([{ base: 0x1000, bytes, hostAddress: undefined, onHostWrite }]);
    const queue = new Virtqueue(0, SIZE, ram, { interrupt: () => {}, broken: () => {} });
    expect(queue.enable(0x1000, 0x2000, 0x3000)).toBe(true);
    const view = new DataView(bytes.buffer);
    view.setUint32(0, 0x5000, true);
    view.setUint32(8, 64, true);
    view.setUint16(12, Flag.Write, true);
    view.setUint16(0x1002, 1, true);
    queue.push(queue.pop() as Chain, 1);
    expect(writes).toEqual([[0x5000, 64]]);
  });

  test('a chain taken before a reset does not reach the rings set up after it (CVE-2026-45782)', () => {
    const w = makeWorld();
    w.desc(0, 0x8000, 4, Flag.Write);
    w.offer(0);
    const chain = w.queue.pop() as Chain;
    w.queue.reset();
    w.machine.memory.bytes(USED, 64).fill(0);
    w.queue.enable(DESC, AVAIL, USED);
    w.queue.push(chain, 4);
    w.queue.publish();
    expect(w.machine.memory.readU16(USED + 2)).toBe(0);
  });
});

describe('notifications', () => {
  test('what is pushed is seen only after publish, and the interrupt comes once for all of it', () => {
    const w = makeWorld();
    w.desc(0, 0x8000, 4, Flag.Write);
    w.desc(1, 0x8000, 4, Flag.Write);
    w.offer(0, 1);
    w.queue.push(w.queue.pop() as Chain, 1);
    w.queue.push(w.queue.pop() as Chain, 2);
    expect(w.machine.memory.readU16(USED + 2)).toBe(0);
    w.queue.publish();
    expect(w.machine.memory.readU16(USED + 2)).toBe(2);
    expect(w.interrupts()).toBe(1);
    w.queue.publish();
    expect(w.interrupts()).toBe(1);
  });

  test('NO_INTERRUPT keeps the device quiet, NOTIFY_ON_EMPTY overrules it on an empty ring', () => {
    for (const notifyOnEmpty of [false, true]) {
      const w = makeWorld({ notifyOnEmpty });
      w.desc(0, 0x8000, 4, Flag.Write);
      w.machine.memory.writeU16(AVAIL, 1);
      w.offer(0);
      w.queue.push(w.queue.pop() as Chain, 0);
      w.queue.publish();
      expect(w.interrupts()).toBe(notifyOnEmpty ? 1 : 0);
    }
  });

  test("with the event index an interrupt comes when the driver's index is passed", () => {
    const w = makeWorld({ eventIdx: true });
    const usedEvent = AVAIL + 4 + 2 * SIZE;
    w.desc(0, 0x8000, 4, Flag.Write);
    w.machine.memory.writeU16(usedEvent, 2);
    const counts: number[] = [];
    for (let i = 0; i < 4; i++) {
      w.offer(0);
      w.queue.push(w.queue.pop() as Chain, 0);
      w.queue.publish();
      counts.push(w.interrupts());
    }
    // The third element is number 2.
    expect(counts).toEqual([0, 0, 1, 1]);
  });

  test('allowNotify asks for a kick at the next chain and says when one slipped in', () => {
    const w = makeWorld({ eventIdx: true });
    w.desc(0, 0x8000, 4, Flag.Write);
    w.offer(0);
    w.queue.push(w.queue.pop() as Chain, 0);
    expect(w.queue.allowNotify()).toBe(false);
    expect(w.machine.memory.readU16(USED + 4 + 8 * SIZE)).toBe(1);
    w.offer(0);
    expect(w.queue.allowNotify()).toBe(true);
  });

  test('without the event index the flag is set while the device looks, and cleared after', () => {
    const w = makeWorld();
    w.queue.suppressNotify();
    expect(w.machine.memory.readU16(USED)).toBe(1);
    expect(w.queue.allowNotify()).toBe(false);
    expect(w.machine.memory.readU16(USED)).toBe(0);
  });
});

describe('hostile rings stop the queue, once, and nothing else', () => {
  const cases: ReadonlyArray<[string, (w: World) => void]> = [
    ['head beyond the table', (w) => w.offer(SIZE)],
    [
      'next beyond the table (bhyve CVE-2021-29631)',
      (w) => {
        w.desc(0, 0x8000, 4, Flag.Next, SIZE);
        w.offer(0);
      },
    ],
    [
      'a chain that loops',
      (w) => {
        w.desc(0, 0x8000, 4, Flag.Next, 1);
        w.desc(1, 0x8000, 4, Flag.Next, 0);
        w.offer(0);
      },
    ],
    [
      'a descriptor that is its own next',
      (w) => {
        w.desc(0, 0x8000, 4, Flag.Next, 0);
        w.offer(0);
      },
    ],
    [
      'an indirect table that loops',
      (w) => {
        w.desc(0, 0x8000, 32, Flag.Indirect);
        w.desc(0, 0x9000, 4, Flag.Next, 1, 0x8000);
        w.desc(1, 0x9000, 4, Flag.Next, 0, 0x8000);
        w.offer(0);
      },
    ],
    [
      'NEXT together with INDIRECT',
      (w) => {
        w.desc(0, 0x8000, 16, Flag.Indirect | Flag.Next, 1);
        w.offer(0);
      },
    ],
    [
      'an indirect descriptor in an indirect table',
      (w) => {
        w.desc(0, 0x8000, 16, Flag.Indirect);
        w.desc(0, 0x9000, 16, Flag.Indirect, 0, 0x8000);
        w.offer(0);
      },
    ],
    [
      'an indirect table of a length that is not whole descriptors',
      (w) => {
        w.desc(0, 0x8000, 24, Flag.Indirect);
        w.offer(0);
      },
    ],
    [
      'an empty indirect table',
      (w) => {
        w.desc(0, 0x8000, 0, Flag.Indirect);
        w.offer(0);
      },
    ],
    [
      'an indirect table outside of RAM',
      (w) => {
        w.desc(0, 0x8000_0000, 16, Flag.Indirect);
        w.offer(0);
      },
    ],
    [
      'an indirect table of 4 GiB',
      (w) => {
        w.desc(0, 0, 0xfffffff0, Flag.Indirect);
        w.offer(0);
      },
    ],
    [
      'a readable descriptor after a writable one',
      (w) => {
        w.desc(0, 0x8000, 4, Flag.Next | Flag.Write, 1);
        w.desc(1, 0x9000, 4, 0);
        w.offer(0);
      },
    ],
    [
      'a buffer in the PCI hole (ACRN CVE-2020-28346, QEMU CVE-2021-3748)',
      (w) => {
        w.desc(0, 0xc000_0000, 64, Flag.Write);
        w.offer(0);
      },
    ],
    [
      'a buffer that runs over the end of RAM (Firecracker CVE-2019-18960)',
      (w) => {
        w.desc(0, HIGH_RAM + 0x20000 - 1, 2, Flag.Write);
        w.offer(0);
      },
    ],
    [
      'a buffer at 2^64 - 1',
      (w) => {
        w.desc(0, 0xffff_ffff_ffff_ffffn, 1, Flag.Write);
        w.offer(0);
      },
    ],
    [
      'a buffer of 4 GiB',
      (w) => {
        w.desc(0, 0, 0xffffffff, Flag.Write);
        w.offer(0);
      },
    ],
    [
      'an available index more than the size ahead (Firecracker #3149)',
      (w) => {
        w.machine.memory.writeU16(AVAIL + 2, SIZE + 1);
      },
    ],
    [
      'an available index that went back',
      (w) => {
        w.machine.memory.writeU16(AVAIL + 2, 0xffff);
      },
    ],
  ];
  test.each(cases)('%s', (_name, arrange) => {
    const w = makeWorld();
    arrange(w);
    expect(w.queue.pop()).toBeUndefined();
    expect(w.broken).toHaveLength(1);
    expect(w.queue.pop()).toBeUndefined();
    expect(w.queue.hasAvailable()).toBe(false);
    expect(w.broken).toHaveLength(1);
    expect(w.machine.memory.readU16(USED + 2)).toBe(0);
  });

  test('an indirect descriptor that was not negotiated', () => {
    const w = makeWorld({ indirect: false });
    w.desc(0, 0x8000, 16, Flag.Indirect);
    w.offer(0);
    expect(w.queue.pop()).toBeUndefined();
    expect(w.broken).toHaveLength(1);
  });

  test('more requests in flight than the queue has entries', () => {
    const w = makeWorld();
    w.desc(0, 0x8000, 4, Flag.Write);
    for (let i = 0; i < SIZE; i++) {
      w.offer(0);
      expect(w.queue.pop()).toBeDefined();
    }
    w.offer(0);
    expect(w.queue.pop()).toBeUndefined();
    expect(w.broken).toHaveLength(1);
  });

  test('an empty descriptor may point anywhere', () => {
    const w = makeWorld();
    w.desc(0, 0xffff_ffff_ffff_ffffn, 0, Flag.Write);
    w.offer(0);
    expect(w.queue.pop()?.writableBytes).toBe(0);
    expect(w.broken).toEqual([]);
  });

  test.each([
    ['descriptors unaligned', DESC + 8, AVAIL, USED],
    ['available ring unaligned', DESC, AVAIL + 1, USED],
    ['used ring unaligned', DESC, AVAIL, USED + 2],
    ['in the PCI hole', 0xc000_0000, AVAIL, USED],
    ['used ring over the end of RAM', DESC, AVAIL, HIGH_RAM + 0x20000 - 4],
    ['far beyond', 2 ** 64, AVAIL, USED],
  ])('rings %s are not taken', (_name, desc, avail, used) => {
    const w = makeWorld();
    expect(w.queue.enable(desc, avail, used)).toBe(false);
    expect(w.queue.isReady).toBe(false);
    expect(w.queue.pop()).toBeUndefined();
    w.queue.publish();
    w.queue.suppressNotify();
    expect(w.queue.allowNotify()).toBe(false);
  });

  test('before set-up nothing is touched (ACRN CVE-2021-36143, CVE-2021-36147)', () => {
    const machine = new VirtioMachine();
    machines.push(machine);
    const queue = new Virtqueue(0, SIZE, new GuestRam(machine.memory.chunks), {
      interrupt: () => expect.unreachable(),
      broken: () => expect.unreachable(),
    });
    expect(queue.pop()).toBeUndefined();
    queue.suppressNotify();
    queue.publish();
    expect(queue.allowNotify()).toBe(false);
    for (const chunk of machine.memory.chunks) expect(chunk.bytes.every((b) => b === 0)).toBe(true);
  });

  test('whatever is in memory: no throw, chains inside RAM, no more chains than the ring has entries', () => {
    const word = fc.oneof(fc.nat(0xffffffff), fc.nat(16), fc.constantFrom(0x8000, RAM_SEAM - 2, 0xffffffff));
    const descriptor = fc.tuple(word, fc.constantFrom(0, 0, 0, 1, 0xffffffff), word, fc.nat(7), fc.nat(SIZE + 1));
    fc.assert(
      fc.property(
        fc.array(descriptor, { minLength: SIZE, maxLength: SIZE }),
        fc.array(fc.nat(SIZE), { minLength: 1, maxLength: SIZE }),
        (descriptors, heads) => {
          const w = makeWorld();
          descriptors.forEach(([low, high, length, flags, next], i) => {
            w.desc(i, BigInt(low) | (BigInt(high) << 32n), length, flags, next);
          });
          w.offer(...heads);
          const ram = new GuestRam(w.machine.memory.chunks);
          let taken = 0;
          for (let chain = w.queue.pop(); chain !== undefined; chain = w.queue.pop()) {
            taken++;
            let total = 0;
            for (const [chunk, offset, length] of segments(chain)) {
              expect(offset + length).toBeLessThanOrEqual((ram.bytes[chunk] as Uint8Array).length);
              total += length;
            }
            expect(total).toBe(chain.readableBytes + chain.writableBytes);
            w.queue.push(chain, 0);
          }
          expect(taken).toBeLessThanOrEqual(heads.length);
          for (const machine of machines.splice(0)) machine.dispose();
        },
      ),
      { numRuns: 500 },
    );
  });
});
