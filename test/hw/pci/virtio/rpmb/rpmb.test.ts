/** virtio-rpmb as ACRN's driver sees it, and as a hostile one does. */
import { createHmac } from 'node:crypto';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import { afterEach, describe, expect, test, vi } from 'vitest';
import * as exitHooks from '../../../../../devicemodel/core/host/exit-hooks.ts';
import type { RpmbCommand } from '../../../../../devicemodel/core/host/rpmb-mux.ts';
import { silentLog } from '../../../../../devicemodel/core/log.ts';
import { RpmbMuxStore } from '../../../../../devicemodel/hw/pci/virtio/rpmb/mux-store.ts';
import { parseRpmbText } from '../../../../../devicemodel/hw/pci/virtio/rpmb/options.ts';
import { VirtioRpmb, virtioRpmb } from '../../../../../devicemodel/hw/pci/virtio/rpmb/rpmb.ts';
import type { RpmbStore } from '../../../../../devicemodel/hw/pci/virtio/rpmb/store.ts';
import { VirtioPci } from '../../../../../devicemodel/hw/pci/virtio/transport/transport.ts';
import { memoryLog } from '../../../../support/memory-log.ts';
import { VirtioDriver, VirtioMachine } from '../../../../support/virtio-driver.ts';

vi.mock('../../../../../devicemodel/core/host/exit-hooks.ts', { spy: true });

const KEY = Buffer.alloc(32, 0x5c);
const SEQUENCE = 0xc008b552;
const undo: Array<() => unknown> = [];
afterEach(async () => {
  for (const step of undo.splice(0).reverse()) await step();
});

async function makeRpmb(options: { isPhysical?: boolean } = {}) {
  const dir = mkdtempSync(join(tmpdir(), 'rpmb-'));
  undo.push(() => rmSync(dir, { recursive: true, force: true }));
  const machine = new VirtioMachine();
  undo.push(() => machine.dispose());
  const env = { ...machine.env(), rpmbKey: () => KEY };
  const fn = virtioRpmb.create({ isPhysical: options.isPhysical ?? false, path: join(dir, 'file') }, env);
  const driver = new VirtioDriver(machine, fn, 'legacy');
  await driver.fn.start?.();
  undo.push(() => driver.fn.stop?.());
  driver.init();
  return { machine, driver };
}

function frame(
  kind: number,
  fields: { counter?: number; address?: number; count?: number; data?: number } = {},
): Buffer {
  const bytes = Buffer.alloc(512);
  bytes.fill(fields.data ?? 0, 228, 484);
  bytes.writeUInt32BE(fields.counter ?? 0, 500);
  bytes.writeUInt16BE(fields.address ?? 0, 504);
  bytes.writeUInt16BE(fields.count ?? 0, 506);
  bytes.writeUInt16BE(kind, 510);
  createHmac('sha256', KEY).update(bytes.subarray(228)).digest().copy(bytes, 196);
  return bytes;
}

/** Flags and frames of each command; what is to be read is as large as it is filled. */
type Command = readonly [flags: number, frames: Buffer];

/** Buffers of an order, all of them to be written by the device, as ACRN's driver has them. */
function buffersOf(commands: readonly Command[], cmd = SEQUENCE): Buffer[] {
  const head = Buffer.alloc(12);
  head.writeUInt32LE(cmd >>> 0, 0);
  head.writeUInt32LE(0x55, 4);
  const sequence = Buffer.alloc(8 + 16 * commands.length);
  sequence.writeBigUInt64LE(BigInt(commands.length));
  for (const [i, [flags, frames]] of commands.entries()) {
    sequence.writeUInt32LE(flags, 8 + 16 * i);
    sequence.writeUInt32LE(frames.length / 512, 12 + 16 * i);
  }
  return [head, sequence, ...commands.map(([, frames]) => frames)];
}

const AT = 0x20000;

/** @returns the result, and each buffer as the device left it. */
async function order({ machine, driver }: Awaited<ReturnType<typeof makeRpmb>>, buffers: readonly Buffer[]) {
  let at = AT;
  const places = buffers.map((buffer) => {
    machine.memory.write(at, buffer);
    const place = { write: buffer.length, at };
    at += 0x4000;
    return place;
  });
  driver.add(0, places);
  driver.kick(0);
  const end = Date.now() + 10_000;
  let used = driver.takeUsed(0);
  while (used.length === 0) {
    if (Date.now() > end) throw new Error('no answer');
    await new Promise((resolve) => setTimeout(resolve, 5));
    machine.clock.advance(1_000_000);
    used = driver.takeUsed(0);
  }
  const after = places.map(({ write, at: gpa }) => Buffer.from(machine.memory.read(gpa, write)));
  return { length: used[0]?.length, result: (after[0]?.length ?? 0) < 8 ? undefined : after[0]?.readInt32LE(4), after };
}

const write = (fields: Parameters<typeof frame>[1]): Command[] => [
  [3, frame(3, { count: 1, ...fields })],
  [1, frame(5)],
  [0, Buffer.alloc(512)],
];

test('counter, write, read: signed with the key of the firmware', async () => {
  const made = await makeRpmb();
  const counter = await order(
    made,
    buffersOf([
      [1, frame(2)],
      [0, Buffer.alloc(512)],
    ]),
  );
  expect(counter).toMatchObject({ length: 12, result: 0 });
  expect(counter.after[3]?.equals(frame(0x200))).toBe(true);
  const written = await order(made, buffersOf(write({ address: 200, data: 0xab })));
  expect(written.result).toBe(0);
  expect(written.after[4]?.equals(frame(0x300, { counter: 1, address: 200 }))).toBe(true);
  const read = await order(
    made,
    buffersOf([
      [1, frame(4, { address: 200 })],
      [0, Buffer.alloc(512)],
    ]),
  );
  expect(read.after[3]?.equals(frame(0x400, { address: 200, count: 1, data: 0xab }))).toBe(true);
  const replayed = await order(made, buffersOf(write({ address: 200, data: 0xab })));
  expect(replayed.after[4]?.readUInt16BE(508)).toBe(3);
});

test.each([
  [
    'another ioctl',
    buffersOf(
      [
        [1, frame(2)],
        [0, Buffer.alloc(512)],
      ],
      0x1234,
    ),
  ],
  [
    'flags that are none',
    buffersOf([
      [2, frame(2)],
      [0, Buffer.alloc(512)],
    ]),
  ],
  ['no command', buffersOf([])],
  [
    'four commands',
    buffersOf([
      [1, frame(2)],
      [0, Buffer.alloc(512)],
      [0, Buffer.alloc(512)],
      [0, Buffer.alloc(512)],
    ]),
  ],
  [
    'a key',
    buffersOf([
      [3, frame(1)],
      [1, frame(5)],
      [0, Buffer.alloc(512)],
    ]),
  ],
  [
    'too few frames',
    buffersOf([
      [1, frame(2)],
      [0, Buffer.alloc(512)],
    ]).slice(0, 3),
  ],
])('an order with %s fails, and is given back', async (_, buffers) => {
  const made = await makeRpmb();
  expect((await order(made, buffers)).result).toBe(-1);
  const counter = await order(
    made,
    buffersOf([
      [1, frame(2)],
      [0, Buffer.alloc(512)],
    ]),
  );
  expect(counter.result).toBe(0);
});

test('orders are served one after the other, however many are queued', async () => {
  const { machine, driver } = await makeRpmb();
  for (let i = 0; i < 8; i++) {
    const buffers = buffersOf(write({ address: 130 + i, counter: i, data: i }));
    const at = AT + i * 0x1000;
    machine.memory.write(at, Buffer.concat(buffers));
    driver.add(0, [{ write: Buffer.concat(buffers).length, at }]);
  }
  driver.kick(0);
  let used = 0;
  const end = Date.now() + 10_000;
  while (used < 8 && Date.now() < end) {
    await new Promise((resolve) => setTimeout(resolve, 5));
    machine.clock.advance(1_000_000);
    used += driver.takeUsed(0).length;
  }
  expect(used).toBe(8);
  for (let i = 0; i < 8; i++) {
    const answer = Buffer.from(machine.memory.read(AT + i * 0x1000, 12 + 56 + 1536)).subarray(-512);
    expect([answer.readUInt32BE(500), answer.readUInt16BE(508)]).toEqual([i + 1, 0]);
  }
});

test('a reset in the middle of a write: its buffers are nobody’s', async () => {
  const { machine, driver } = await makeRpmb();
  const buffers = Buffer.concat(buffersOf(write({ address: 130 })));
  machine.memory.write(AT, buffers);
  driver.add(0, [{ write: buffers.length, at: AT }]);
  driver.kick(0);
  driver.fn.reset();
  machine.memory.write(AT, Buffer.alloc(buffers.length, 0x77));
  await driver.fn.settle?.(true);
  await new Promise((resolve) => setImmediate(resolve));
  expect(Buffer.from(machine.memory.read(AT, buffers.length)).every((byte) => byte === 0x77)).toBe(true);
});

test('an order that comes while one of before a reset is under way is served after it', async () => {
  const made = await makeRpmb();
  const { machine, driver } = made;
  const buffers = Buffer.concat(buffersOf(write({ address: 130 })));
  machine.memory.write(AT, buffers);
  driver.add(0, [{ write: buffers.length, at: AT }]);
  driver.kick(0);
  await driver.reset();
  driver.init();
  const counter = await order(
    made,
    buffersOf([
      [1, frame(2)],
      [0, Buffer.alloc(512)],
    ]),
  );
  expect([counter.result, counter.after[3]?.readUInt32BE(500)]).toEqual([0, 1]);
});

/** A driver of a device with this store, and an order on its way. */
async function withStore(fields: Partial<RpmbStore>) {
  const machine = new VirtioMachine();
  undo.push(() => machine.dispose());
  const env = machine.env();
  env.waits.patience.force();
  const store: RpmbStore = {
    open: async () => ({ blockCount: 256, counter: 0 }),
    read: async () => 0,
    write: async () => 0,
    close: async () => {},
    ...fields,
  };
  const { lines, log } = memoryLog();
  const fn = new VirtioPci(new VirtioRpmb(KEY, store, log), env, {
    mode: 'legacy',
    identity: { legacyDeviceId: 0x8601, type: 0xffff, classCode: 0xff0000 },
  });
  const driver = new VirtioDriver(machine, fn, 'legacy');
  await driver.fn.start?.();
  driver.init();
  const buffers = Buffer.concat(buffersOf(write({ address: 130 })));
  machine.memory.write(AT, buffers);
  driver.add(0, [{ write: buffers.length, at: AT }]);
  driver.kick(0);
  return { driver, lines };
}

test('a store that does not answer is left to itself: neither S3 nor the end of VM or process waits for ever', async () => {
  const leaveThreadBehind = vi.mocked(exitHooks.leaveThreadBehind).mockImplementation(() => {});
  undo.push(() => leaveThreadBehind.mockReset());
  let closes = 0;
  const { driver, lines } = await withStore({
    write: () => new Promise(() => {}),
    close: async () => {
      closes++;
    },
  });
  await driver.fn.settle?.(true);
  expect(leaveThreadBehind).toHaveBeenCalled();
  // Once is enough: what was given up is waited for neither at the next reset nor at the end.
  await driver.fn.settle?.(true);
  await driver.fn.stop?.();
  expect([closes, lines.length]).toEqual([0, 1]);
});

test('a store that cannot be closed is said, and holds nobody up', async () => {
  const { driver, lines } = await withStore({
    close: () => Promise.reject(new Error('EIO')),
  });
  await driver.fn.stop?.();
  expect(lines).toEqual(['warn: replay protected memory cannot be closed: EIO']);
});

test('anything for an order is given back', async () => {
  const made = await makeRpmb();
  await fc.assert(
    fc.asyncProperty(
      fc.array(fc.uint8Array({ minLength: 1, maxLength: 1100 }), { minLength: 1, maxLength: 5 }),
      fc.boolean(),
      async (parts, isNamed) => {
        const buffers = parts.map((part) => Buffer.from(part));
        const [head] = buffers as [Buffer];
        if (isNamed && head.length >= 4) head.writeUInt32LE(SEQUENCE, 0);
        expect((await order(made, buffers)).length).toBeLessThanOrEqual(12);
      },
    ),
    { numRuns: 60 },
  );
});

test('a host without /dev/rpmbmux: a memory without blocks', async () => {
  const made = await makeRpmb({ isPhysical: true });
  const read = await order(
    made,
    buffersOf([
      [1, frame(4, { address: 0 })],
      [0, Buffer.alloc(512)],
    ]),
  );
  expect(read.result).toBe(0);
  expect(read.after[3]?.equals(frameWithResult(0x400, 4))).toBe(true);
  expect(made.machine.lines.join()).toMatch('/dev/rpmbmux: open: ENOENT');
});

function frameWithResult(kind: number, result: number): Buffer {
  const bytes = frame(kind, { count: 1 });
  bytes.writeUInt16BE(result, 508);
  createHmac('sha256', KEY).update(bytes.subarray(228)).digest().copy(bytes, 196);
  return bytes;
}

describe('the memory of the host', () => {
  /** One with 300 blocks, whose counter somebody else moves, too. */
  class Host {
    readonly blocks = new Map<number, Buffer>();
    counter = 7;
    writes = 0;
    readonly sequence = async (commands: readonly RpmbCommand[]) => {
      const [first, , third] = commands.map(({ frames }) =>
        Buffer.from(frames.buffer, frames.byteOffset, frames.length),
      );
      const answer = (
        commands.length === 3 ? third : Buffer.from((commands[1] as RpmbCommand).frames.buffer)
      ) as Buffer;
      const kind = (first as Buffer).readUInt16BE(510);
      const address = (first as Buffer).readUInt16BE(504);
      answer.fill(0);
      if (kind === 2) answer.writeUInt32BE(this.counter, 500);
      else if (address >= 300) answer.writeUInt16BE(4, 508);
      else if (kind === 4) answer.set(this.blocks.get(address) ?? [], 228);
      else if ((first as Buffer).readUInt32BE(500) !== this.counter) answer.writeUInt16BE(3, 508);
      else {
        this.writes++;
        this.counter++;
        this.blocks.set(address, Buffer.from((first as Buffer).subarray(228, 484)));
      }
    };
  }

  test('has its size found, and its counter read anew when somebody else has written', async () => {
    const host = new Host();
    const store = new RpmbMuxStore(silentLog, host.sequence);
    expect(await store.open()).toEqual({ blockCount: 300, counter: 0 });
    expect(await store.write(200, Buffer.alloc(256, 1))).toBe(0);
    host.counter += 3;
    expect(await store.write(201, Buffer.alloc(256, 2))).toBe(0);
    expect(host.writes).toBe(2);
    expect(await store.read(201, 1)).toEqual(Buffer.alloc(256, 2));
    expect(await store.read(300, 1)).toBe(4);
  });
});

test.each([
  ['', {}],
  ['physical_rpmb', { isPhysical: true }],
  ['path=/var/lib/vm1.rpmb', { path: '/var/lib/vm1.rpmb' }],
])('options "%s"', (text, options) => expect(parseRpmbText(text)).toEqual(options));
test.each(['physical', 'path=', 'physical_rpmb,path=/x', 'x=y'])('options "%s" are refused', (text) => {
  expect(() => parseRpmbText(text)).toThrow(/virtio-rpmb/);
});
