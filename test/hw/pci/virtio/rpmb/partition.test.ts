/** Counter, signatures and replay against a model that was written without a look at the device. */
import { createHmac } from 'node:crypto';
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { Frames } from '../../../../../devicemodel/hw/pci/virtio/rpmb/frame.ts';
import { RpmbPartition } from '../../../../../devicemodel/hw/pci/virtio/rpmb/partition.ts';
import type { RpmbStore } from '../../../../../devicemodel/hw/pci/virtio/rpmb/store.ts';

const KEY = Buffer.alloc(32, 0x5c);
const OTHER_KEY = Buffer.alloc(32, 0x5d);
const BLOCKS = 160;
const READ_ONLY = 128;

/** A frame by the tables of the specification, without the device's code. */
interface Plain {
  data?: Buffer;
  nonce?: number;
  counter?: number;
  address?: number;
  count?: number;
  result?: number;
  kind: number;
}
function frame({ data, nonce = 0, counter = 0, address = 0, count = 0, result = 0, kind }: Plain): Buffer {
  const tail = Buffer.alloc(12);
  tail.writeUInt32BE(counter, 0);
  for (const [i, value] of [address, count, result, kind].entries()) tail.writeUInt16BE(value, 4 + 2 * i);
  return Buffer.concat([Buffer.alloc(196 + 32), data ?? Buffer.alloc(256), Buffer.alloc(16, nonce), tail]);
}
function signed(frames: readonly Buffer[], key: Buffer): Buffer {
  const mac = createHmac('sha256', key)
    .update(Buffer.concat(frames.map((f) => f.subarray(228))))
    .digest();
  const all = frames.map((f) => Buffer.from(f));
  mac.copy(all.at(-1) as Buffer, 196);
  return Buffer.concat(all);
}

class MemoryStore implements RpmbStore {
  readonly bytes = Buffer.alloc(BLOCKS * 256);
  readonly counters: number[] = [];
  first = 0;
  async open() {
    return { blockCount: BLOCKS, counter: this.first };
  }
  async read(address: number, count: number) {
    return Buffer.from(this.bytes.subarray(address * 256, (address + count) * 256));
  }
  async write(address: number, blocks: Uint8Array, counter: number) {
    this.bytes.set(blocks, address * 256);
    this.counters.push(counter);
    return 0;
  }
  async close() {}
}

/** What such a memory is, in a few words. */
class Model {
  readonly blocks = new Map<number, Buffer>();
  counter: number;

  constructor(counter: number) {
    this.counter = counter;
  }

  /** Beside every result. */
  get end(): number {
    return this.counter === 0xffff_ffff ? 0x80 : 0;
  }

  write(address: number, datas: readonly Buffer[], counter: number, isSigned: boolean, count: number): number {
    if (this.end !== 0) return 1;
    if (counter !== this.counter) return 3;
    if (address >= BLOCKS) return 4;
    if (address + datas.length > BLOCKS || count !== datas.length) return 1;
    if (address < READ_ONLY) return 5;
    if (!isSigned) return 2;
    datas.forEach((data, i) => {
      this.blocks.set(address + i, data);
    });
    this.counter++;
    return 0;
  }

  read(address: number, count: number): { result: number; datas: Buffer[] } {
    const nothing = Array.from({ length: count }, () => Buffer.alloc(256));
    if (address >= BLOCKS) return { result: 4, datas: nothing };
    if (address + count > BLOCKS) return { result: 1, datas: nothing };
    return { result: 0, datas: nothing.map((zeros, i) => this.blocks.get(address + i) ?? zeros) };
  }
}

const frames = (bytes: Buffer) => new Frames(Buffer.from(bytes));
const answerOf = (count: number) => new Frames(Buffer.alloc(count * 512, 0xee));

async function open(store = new MemoryStore()) {
  const partition = new RpmbPartition(KEY, store);
  await partition.open();
  return { partition, store };
}

const address = fc.oneof(
  { weight: 4, arbitrary: fc.integer({ min: READ_ONLY, max: BLOCKS - 2 }) },
  { weight: 1, arbitrary: fc.integer({ min: READ_ONLY - 3, max: BLOCKS + 3 }) },
  { weight: 1, arbitrary: fc.nat(0xffff) },
);
const step = fc.oneof(
  fc.record({ do: fc.constant('counter' as const), nonce: fc.nat(255) }),
  fc.record({
    do: fc.constant('read' as const),
    nonce: fc.nat(255),
    address,
    count: fc.integer({ min: 1, max: 4 }),
  }),
  fc.record({
    do: fc.constant('write' as const),
    address,
    fill: fc.array(fc.nat(255), { minLength: 1, maxLength: 2 }),
    /** How far from the right counter. */
    off: fc.oneof({ weight: 8, arbitrary: fc.constant(0) }, fc.integer({ min: -1, max: 1 })),
    countOff: fc.oneof({ weight: 6, arbitrary: fc.constant(0) }, fc.constant(1)),
    key: fc.oneof({ weight: 8, arbitrary: fc.constant('right') }, fc.constantFrom('other', 'none', 'changed')),
  }),
  fc.record({ do: fc.constant('replay' as const), which: fc.nat(20) }),
  fc.record({
    do: fc.constant('nonsense' as const),
    kind: fc.oneof(fc.nat(8), fc.nat(0xffff)),
    isWrite: fc.boolean(),
    result: fc.oneof(fc.nat(8), fc.nat(0xffff)),
  }),
);
/** At its beginning, or so that it comes to its end on the way. */
const first = fc.oneof(fc.constant(0), fc.nat(0xffff_fff0), fc.integer({ min: 0xffff_fff0, max: 0xffff_ffff }));

test('any orders: the same answers as the model, signed, and the same blocks', async () => {
  let writes = 0;
  await fc.assert(
    fc.asyncProperty(first, fc.array(step, { minLength: 10, maxLength: 40 }), async (counterBefore, steps) => {
      const opened = new MemoryStore();
      opened.first = counterBefore;
      const { partition, store } = await open(opened);
      const model = new Model(counterBefore);
      const accepted: Array<{ bytes: Buffer; address: number; datas: Buffer[]; counter: number }> = [];
      const send = async (bytes: Buffer) => {
        const read = answerOf(1);
        const order = { reliableWrite: frames(bytes), write: frames(frame({ kind: 5 })), read };
        expect(await partition.handle(order)).toBe(true);
        return read.bytes;
      };
      for (const now of steps) {
        if (now.do === 'counter') {
          const read = answerOf(1);
          await partition.handle({ write: frames(frame({ kind: 2, nonce: now.nonce })), read });
          const expected = frame({ kind: 0x200, nonce: now.nonce, counter: model.counter, result: model.end });
          expect(read.bytes.equals(signed([expected], KEY))).toBe(true);
        } else if (now.do === 'read') {
          const { address, count, nonce } = now;
          const read = answerOf(count);
          await partition.handle({ write: frames(frame({ kind: 4, nonce, address })), read });
          const { result: plain, datas } = model.read(address, count);
          const result = plain | model.end;
          const expected = datas.map((data) => frame({ kind: 0x400, nonce, address, count, result, data }));
          expect(read.bytes.equals(signed(expected, KEY))).toBe(true);
        } else if (now.do === 'write') {
          const datas = now.fill.map((byte) => Buffer.alloc(256, byte));
          const counter = (model.counter + now.off) >>> 0;
          const count = datas.length + now.countOff;
          const parts = datas.map((data) => frame({ kind: 3, counter, address: now.address, count, data }));
          const bytes =
            now.key === 'none' ? Buffer.concat(parts) : signed(parts, now.key === 'other' ? OTHER_KEY : KEY);
          if (now.key === 'changed') bytes[300] = (bytes[300] as number) ^ 1;
          const before = model.counter;
          const result = model.write(now.address, datas, counter, now.key === 'right', count);
          if (result === 0) accepted.push({ bytes: Buffer.from(bytes), address: now.address, datas, counter: before });
          if (result === 0) writes++;
          const answer = await send(bytes);
          expect(answer.readUInt16BE(508)).toBe(result | model.end);
          expect(answer.readUInt16BE(510)).toBe(0x300);
          expect(answer.readUInt32BE(500)).toBe(model.counter);
          expect(answer.equals(signed([answer], KEY))).toBe(true);
        } else if (now.do === 'nonsense') {
          const { kind, isWrite, result } = now;
          const isOne = isWrite ? kind === 3 && result === 5 : kind === 2 || kind === 4;
          if (isOne) continue;
          const read = answerOf(1);
          const bytes = frames(signed([frame({ kind, counter: model.counter, address: READ_ONLY, count: 1 })], KEY));
          const order = isWrite
            ? { reliableWrite: bytes, write: frames(frame({ kind: result })), read }
            : { write: bytes, read };
          expect(await partition.handle(order)).toBe(false);
          expect(read.bytes.every((byte) => byte === 0xee)).toBe(true);
        } else {
          const old = accepted[now.which % Math.max(accepted.length, 1)];
          if (old === undefined) continue;
          // Word for word what was accepted once: the counter has moved on.
          expect((await send(old.bytes)).readUInt16BE(508)).toBe(model.end === 0 ? 3 : 0x81);
        }
        for (const [address, data] of model.blocks) {
          expect(store.bytes.subarray(address * 256, (address + 1) * 256).equals(data)).toBe(true);
        }
      }
      expect(store.counters).toEqual(store.counters.map((_, i) => counterBefore + i + 1));
    }),
    { numRuns: 300 },
  );
  expect(writes).toBeGreaterThan(300);
});

describe('an order that is none', () => {
  const write = (kind: number) => frames(signed([frame({ kind, count: 1, address: 128 })], KEY));
  const read = () => answerOf(1);
  test.each([
    ['a key to be programmed', { reliableWrite: write(1), write: frames(frame({ kind: 5 })), read: read() }],
    ['a write whose result nobody reads', { reliableWrite: write(3), write: frames(frame({ kind: 5 })) }],
    ['a write without a request for its result', { reliableWrite: write(3), read: read() }],
    ['a request of another kind', { write: frames(frame({ kind: 9 })), read: read() }],
    ['a read into nothing', { write: frames(frame({ kind: 4, address: 128 })) }],
    ['nothing', {}],
  ])('%s has no answer and changes nothing', async (_, order) => {
    const { partition, store } = await open();
    expect(await partition.handle(order)).toBe(false);
    expect(store.counters).toEqual([]);
    if ('read' in order) expect(order.read?.bytes.every((byte) => byte === 0xee)).toBe(true);
  });
});

test('the write that brings the counter to its end says so, as does every answer from then on', async () => {
  const store = new MemoryStore();
  store.first = 0xffff_fffe;
  const { partition } = await open(store);
  const write = async (counter: number) => {
    const read = answerOf(1);
    const bytes = signed([frame({ kind: 3, counter, address: 128, count: 1 })], KEY);
    await partition.handle({ reliableWrite: frames(bytes), write: frames(frame({ kind: 5 })), read });
    return [read.result, read.counter, read.bytes.equals(signed([read.bytes], KEY))];
  };
  const ask = async (request: Plain) => {
    const read = answerOf(1);
    await partition.handle({ write: frames(frame(request)), read });
    return read.result;
  };
  expect(await ask({ kind: 2 })).toBe(0);
  expect(await write(0xffff_fffe)).toEqual([0x80, 0xffff_ffff, true]);
  expect(await write(0xffff_ffff)).toEqual([0x81, 0xffff_ffff, true]);
  expect(await ask({ kind: 2 })).toBe(0x80);
  expect(await ask({ kind: 4, address: 128 })).toBe(0x80);
  expect(await ask({ kind: 4, address: BLOCKS })).toBe(0x84);
  expect(store.counters).toEqual([0xffff_ffff]);
});

test('a counter at its end takes no more writes', async () => {
  const store = new MemoryStore();
  store.first = 0xffff_ffff;
  const { partition } = await open(store);
  const read = answerOf(1);
  const bytes = signed([frame({ kind: 3, counter: 0xffff_ffff, address: 128, count: 1 })], KEY);
  await partition.handle({ reliableWrite: frames(bytes), write: frames(frame({ kind: 5 })), read });
  expect(read.result).toBe(0x81);
  expect(store.counters).toEqual([]);
});
