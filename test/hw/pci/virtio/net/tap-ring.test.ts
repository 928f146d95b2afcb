/** Frames by the batch, as the driver and the network see them: the same as one by one. */
import { afterEach, describe, expect, test } from 'vitest';
import { closeFd } from '../../../../../devicemodel/core/host/files.ts';
import { native } from '../../../../../devicemodel/core/host/libc.ts';
import {
  type NetFrameState,
  NetFrames,
  RECEIVE,
  TRANSMIT,
} from '../../../../../devicemodel/hw/pci/virtio/net/frames.ts';
import { TapRing } from '../../../../../devicemodel/hw/pci/virtio/net/tap-ring.ts';
import type { Virtqueue } from '../../../../../devicemodel/hw/pci/virtio/ring/virtqueue.ts';
import type { VirtioDevice, VirtioTransport } from '../../../../../devicemodel/hw/pci/virtio/transport/device.ts';
import { VirtioPci } from '../../../../../devicemodel/hw/pci/virtio/transport/transport.ts';
import { socketPair } from '../../../../support/socket-pair.ts';
import { VirtioDriver, VirtioMachine } from '../../../../support/virtio-driver.ts';

const HEADER_BYTES = 12;
const undo: Array<() => void | Promise<void>> = [];
afterEach(async () => {
  for (const step of undo.splice(0).reverse()) await step();
});

/** A ring whose reads at some places of a batch find no frame, as when it arrived a moment later. */
class LateRing extends TapRing {
  readonly #emptyFd: number;
  readonly #late: ReadonlySet<number>;
  #place = 0;
  constructor(emptyFd: number, late: readonly number[]) {
    super();
    this.#emptyFd = emptyFd;
    this.#late = new Set(late);
  }
  override add(op: 'read' | 'write', fd: number, pieces: number): void {
    super.add(op, this.#late.has(this.#place++) ? this.#emptyFd : fd, pieces);
  }
  override run(): boolean {
    this.#place = 0;
    return super.run();
  }
}

/** A ring on a descriptor with which the kernel does not do it. */
class RefusedRing extends TapRing {
  readonly #epollFd = native('int epoll_create1(int)')(0);
  override add(op: 'read' | 'write', _fd: number, pieces: number): void {
    super.add(op, this.#epollFd, pieces);
  }
  override dispose(): void {
    super.dispose();
    closeFd(this.#epollFd);
  }
}

function emptyFd(): number {
  const [fd, peer] = socketPair();
  undo.push(() => peer.close());
  return fd;
}

/** A network device reduced to its queues and frames. */
class Frames implements VirtioDevice, NetFrameState {
  readonly name = 'frames';
  readonly features = 1n << 28n; // VIRTIO_F_INDIRECT_DESC
  readonly queueSizes = [64, 64];
  readonly configSizeBytes = 0;
  readonly headerBytes = HEADER_BYTES;
  readonly hasHeader = false;
  readonly isSegmented = false;
  readonly reportsRead = true;
  readonly failures: number[] = [];
  readonly fd: number;
  readonly merges: boolean;
  #transport: VirtioTransport | undefined;
  frames: NetFrames | undefined;

  constructor(fd: number, merges: boolean) {
    this.fd = fd;
    this.merges = merges;
  }
  failed(_what: 'send' | 'receive', errno: number): void {
    this.failures.push(errno);
  }
  attach(transport: VirtioTransport): void {
    this.#transport = transport;
  }
  notify(queue: Virtqueue): void {
    if (queue.index === TRANSMIT) this.frames?.transmit(queue);
  }
  receive(): void {
    this.frames?.receive((this.#transport as VirtioTransport).queue(RECEIVE));
  }
  reset(): void {}
}

async function make(choices: { ring?: () => TapRing; merges?: boolean; ramBytes?: number } = {}) {
  const machine = new VirtioMachine({ ram: [[0, choices.ramBytes ?? 0x200000]] });
  undo.push(() => machine.dispose());
  const [fd, peer] = socketPair();
  undo.push(() => peer.close());
  const device = new Frames(fd, choices.merges ?? false);
  const env = machine.env();
  device.frames = new NetFrames(device, env.log, env.clock, choices.ring?.() ?? new TapRing());
  undo.push(() => device.frames?.dispose());
  const fn = new VirtioPci(device, env, {
    mode: 'legacy',
    identity: { legacyDeviceId: 0x1000, type: 1, classCode: 0x020000 },
  });
  const driver = new VirtioDriver(machine, fn);
  await fn.start();
  undo.push(() => fn.stop());
  driver.init();
  return { driver, peer, device };
}

/** Frame `n` of a test: each byte says which. */
const frame = (n: number, size: number) => new Uint8Array(size).fill(n);

describe('sending', () => {
  test.each([
    ['a batch', undefined],
    ['frame by frame, where the kernel has no batches', () => new RefusedRing()],
  ])('%s: frames go out in order, short ones padded in their place', async (_what, ring) => {
    const { driver, peer, device } = await make(ring === undefined ? {} : { ring });
    const sizes = [100, 200, 30, 1514, 60, 59, 61, 300];
    sizes.forEach((size, n) => {
      driver.add(TRANSMIT, [{ read: new Uint8Array(HEADER_BYTES) }, { read: frame(n, size) }]);
    });
    driver.kick(TRANSMIT);
    sizes.forEach((size, n) => {
      const got = peer.receive() as Uint8Array;
      expect([got.length, got[0], got[size - 1]]).toEqual([Math.max(size, 60), n, n]);
    });
    expect(peer.receive()).toBeUndefined();
    expect(driver.takeUsed(TRANSMIT).map((u) => u.length)).toEqual(sizes.map((size) => size + HEADER_BYTES));
    expect(device.failures).toEqual([]);
  });

  test('frames that cannot be sent are given back, and said', async () => {
    const { driver, peer, device } = await make();
    peer.close();
    for (let n = 0; n < 6; n++) driver.add(TRANSMIT, [{ read: new Uint8Array(HEADER_BYTES) }, { read: frame(n, 100) }]);
    driver.kick(TRANSMIT);
    expect(driver.takeUsed(TRANSMIT)).toHaveLength(6);
    expect(device.failures).toHaveLength(6);
  });
});

describe('receiving', () => {
  const FRAMES = 10;
  const BUFFERS_AT = 0x100000;
  const BUFFER_STRIDE = 0x4000;
  /** Buffers that can be found again: chain `head` has its own place. */
  const give = (driver: VirtioDriver, count: number, size: number) => {
    for (let i = 0; i < count; i++) {
      expect(driver.add(RECEIVE, [{ write: size, at: BUFFERS_AT + i * BUFFER_STRIDE }])).toBe(i);
    }
  };
  /** What the driver got: number and size of each frame, and how many buffers it takes. */
  const take = (driver: VirtioDriver, merges: boolean) => {
    const out: string[] = [];
    const all = driver.takeUsed(RECEIVE);
    for (let i = 0; i < all.length; ) {
      const first = all[i] as (typeof all)[number];
      const bytes = driver.read(BUFFERS_AT + first.head * BUFFER_STRIDE, HEADER_BYTES + 1);
      const count = merges ? Math.max(bytes[10] as number, 1) : 1;
      const total = all.slice(i, i + count).reduce((sum, u) => sum + u.length, 0);
      out.push(`${bytes[HEADER_BYTES]}: ${total - HEADER_BYTES} in ${count}`);
      i += count;
    }
    return out;
  };

  test.each([
    ['all there', []],
    ['one of a batch comes late', [0]],
    ['several come late', [1, 2, 5]],
  ])('each frame once and in order: %s', async (_what, late) => {
    const { driver, peer, device } = await make({ ring: () => new LateRing(emptyFd(), late) });
    give(driver, 40, 1526);
    for (let n = 0; n < FRAMES; n++) peer.send(frame(n, 100 + n));
    for (let i = 0; i < FRAMES; i++) device.receive();
    expect(take(driver, false)).toEqual(Array.from({ length: FRAMES }, (_, n) => `${n}: ${100 + n} in 1`));
    expect(device.failures).toEqual([]);
  });

  test('frames longer than a buffer are spread over several, the others stay whole', async () => {
    const { driver, peer, device } = await make({ merges: true });
    give(driver, 40, 1600);
    const sizes = [100, 200, 300, 4000, 400, 9000, 500, 60];
    sizes.forEach((size, n) => {
      peer.send(frame(n, size));
    });
    for (let i = 0; i < FRAMES; i++) device.receive();
    expect(take(driver, true)).toEqual(sizes.map((size, n) => `${n}: ${size} in ${Math.ceil((size + 12) / 1600)}`));
  });

  test('without merging they are dropped, the others arrive', async () => {
    const { driver, peer, device } = await make();
    give(driver, 40, 1600);
    const sizes = [100, 200, 300, 4000, 400, 9000, 500, 60];
    sizes.forEach((size, n) => {
      peer.send(frame(n, size));
    });
    for (let i = 0; i < FRAMES; i++) device.receive();
    expect(take(driver, false)).toEqual(
      sizes.map((size, n) => `${n}: ${size} in 1`).filter((_, n) => (sizes[n] as number) < 1600),
    );
  });

  test('where the kernel has no batches they come one by one', async () => {
    const { driver, peer, device } = await make({ ring: () => new RefusedRing() });
    give(driver, 40, 1526);
    for (let n = 0; n < FRAMES; n++) peer.send(frame(n, 100));
    for (let i = 0; i < FRAMES; i++) device.receive();
    expect(take(driver, false)).toHaveLength(FRAMES);
  });

  // Mutation: take the smaller of room and SPILL_BYTES out of `#receiveTogether`.
  test.each([true, false])('buffers of nearly 4 GiB, all over the same RAM (merging: %s)', async (merges) => {
    const PIECES = 15;
    const PIECE_BYTES = 256 << 20;
    const { driver, peer, device } = await make({ merges, ramBytes: 320 << 20 });
    const ring = driver.queues[RECEIVE] as { desc: number };
    const table = driver.allocate(PIECES * 16, 16);
    for (let i = 0; i < PIECES; i++) {
      driver.setDescriptor(table, i, 1 << 20, PIECE_BYTES, i + 1 < PIECES ? 3 : 2, i + 1);
    }
    for (let i = 0; i < 40; i++) {
      driver.setDescriptor(ring.desc, i, table, PIECES * 16, 4, 0);
      driver.makeAvailable(RECEIVE, i);
    }
    const sizes = Array.from({ length: FRAMES }, (_, n) => 100 + 1000 * n);
    for (const [n, size] of sizes.entries()) peer.send(frame(n, size));
    for (let i = 0; i < FRAMES; i++) device.receive();
    expect(driver.takeUsed(RECEIVE).map((u) => u.length)).toEqual(sizes.map((size) => size + HEADER_BYTES));
    expect(device.failures).toEqual([]);
  });
});
