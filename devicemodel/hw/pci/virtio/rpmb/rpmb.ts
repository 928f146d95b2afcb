/**
 * virtio-rpmb, ACRN's own device: orders of <linux/rpmb.h> as its driver in the guest gets them. A chain is, from its
 * start, `struct { u32 cmd; s32 result; u8 target; u8 pad[3] }`, `struct { u64 count; struct rpmb_ioc_cmd[] }`, and, up to
 * its end, the frames of each command. All of it may be in buffers that the device may write, as with ACRN's driver.
 */
import { randomBytes } from 'node:crypto';
import { leaveThreadBehind } from '../../../../core/host/exit-hooks.ts';
import type { Log } from '../../../../core/log.ts';
import { definePciDriver } from '../../driver.ts';
import type { Chain } from '../ring/chain.ts';
import type { Virtqueue } from '../ring/virtqueue.ts';
import type { VirtioDevice, VirtioTransport } from '../transport/device.ts';
import { VirtioPci } from '../transport/transport.ts';
import { RpmbFileStore } from './file-store.ts';
import { FRAME_BYTES, Frames, KEY_BYTES } from './frame.ts';
import { RpmbMuxStore } from './mux-store.ts';
import { rpmbInfo } from './options.ts';
import { type RpmbOrder, RpmbPartition } from './partition.ts';
import type { RpmbStore } from './store.ts';

const QUEUE_SIZE = 64;
/** _IOWR(0xB5, 82, u64). */
const SEQUENCE = 0xc008b552;
const Header = { Command: 0, Result: 4, sizeBytes: 12 } as const;
const COUNT_BYTES = 8;
/** struct rpmb_ioc_cmd: u32 flags, u32 number of frames, u64 that means nothing here. */
const COMMAND_BYTES = 16;
const MAX_COMMANDS = 3;
/** Of one command. */
const MAX_FRAMES = 1024;
const FLAGS: Readonly<Record<number, keyof RpmbOrder>> = { 0: 'read', 1: 'write', 3: 'reliableWrite' };
/** What the driver is told of an order that is none. */
const FAILED = 0xffff_ffff;

/** An order, and where in the chain the frames are that the guest reads. */
interface Parsed {
  readonly order: RpmbOrder;
  readonly answerAt: number;
}

export class VirtioRpmb implements VirtioDevice {
  readonly name = 'virtio-rpmb';
  readonly features = 0n;
  readonly queueSizes = [QUEUE_SIZE];
  readonly configSizeBytes = 0;
  readonly #store: RpmbStore;
  readonly #partition: RpmbPartition;
  readonly #log: Log;
  #transport: VirtioTransport | undefined;
  /** The order that the store has, over resets. Never rejected. */
  #underWay: Promise<void> | undefined;
  /** The one that nobody waits for any more. */
  #givenUp: Promise<void> | undefined;

  constructor(key: Uint8Array, store: RpmbStore, log: Log) {
    this.#store = store;
    this.#partition = new RpmbPartition(key, store);
    this.#log = log;
  }

  attach(transport: VirtioTransport): void {
    this.#transport = transport;
  }

  start(): Promise<void> {
    return this.#partition.open();
  }

  /** A store that hangs is left to itself: it has nothing of the guest's. */
  async stop(): Promise<void> {
    const closed = (this.#underWay ?? Promise.resolve()).then(() => this.#close());
    if (!this.#isGivenUp) await this.#within(closed);
  }

  async #close(): Promise<void> {
    try {
      await this.#store.close();
    } catch (error) {
      this.#log.warn(`replay protected memory cannot be closed: ${(error as Error).message}`);
    }
  }

  reset(): void {}

  /** What was acknowledged is on the medium already. */
  flush(): Promise<void> | undefined {
    return this.#underWay === undefined || this.#isGivenUp ? undefined : this.#within(this.#underWay);
  }

  /** Of the order that is under way. */
  get #isGivenUp(): boolean {
    return this.#underWay !== undefined && this.#underWay === this.#givenUp;
  }

  async #within(work: Promise<void>): Promise<void> {
    if (await (this.#transport as VirtioTransport).patience.within(work)) return;
    this.#givenUp = this.#underWay;
    // The call that hangs has one of Node's threads.
    leaveThreadBehind();
    this.#log.rationed('warn', () => 'replay protected memory does not answer: nobody waits for it any more');
  }

  /** One order at a time: each may depend on the counter that the one before has left. */
  notify(queue: Virtqueue): void {
    const transport = this.#transport;
    if (transport === undefined || this.#underWay !== undefined) return;
    const chain = queue.pop();
    if (chain === undefined) {
      if (queue.allowNotify()) transport.notifyLater(queue);
      return;
    }
    const parsed = parse(chain);
    if (parsed === undefined) {
      this.#finish(queue, chain, false, undefined);
      transport.notifyLater(queue);
      return;
    }
    this.#underWay = this.#handle(parsed.order).then((isAnswered) => {
      this.#underWay = undefined;
      // Of before a reset its memory may be in other use, or gone; the next driver may have kicked meanwhile.
      if (chain.generation === queue.generation) this.#finish(queue, chain, isAnswered, parsed);
      transport.notifyLater(queue);
    });
  }

  async #handle(order: RpmbOrder): Promise<boolean> {
    try {
      return await this.#partition.handle(order);
    } catch (error) {
      this.#log.rationed('warn', () => (error as Error).message);
      return false;
    }
  }

  #finish(queue: Virtqueue, chain: Chain, isAnswered: boolean, parsed: Parsed | undefined): void {
    const answer = parsed?.order.read?.bytes;
    if (parsed !== undefined && answer !== undefined) writeAt(chain, parsed.answerAt, answer);
    const result = Buffer.alloc(4);
    result.writeUInt32LE(isAnswered ? 0 : FAILED);
    writeAt(chain, Header.Result, result);
    // Compat: as with C, the length of the header, whatever else was written.
    queue.push(chain, Math.min(Header.sizeBytes, chain.writableBytes));
    queue.publish();
  }
}

/** @returns undefined for what is no order. */
function parse(chain: Chain): Parsed | undefined {
  const sizeBytes = chain.readableBytes + chain.writableBytes;
  const head = Buffer.alloc(Header.sizeBytes + COUNT_BYTES);
  if (readAt(chain, 0, head) < head.length || head.readUInt32LE(Header.Command) !== SEQUENCE) return undefined;
  const count = head.readBigUInt64LE(Header.sizeBytes);
  if (count < 1n || count > BigInt(MAX_COMMANDS)) return undefined;
  const commands = Buffer.alloc(Number(count) * COMMAND_BYTES);
  const framesFrom = head.length + commands.length;
  if (readAt(chain, head.length, commands) < commands.length) return undefined;
  const frameCounts: number[] = [];
  for (let at = 0; at < commands.length; at += COMMAND_BYTES) frameCounts.push(commands.readUInt32LE(at + 4));
  if (frameCounts.some((frames) => frames > MAX_FRAMES)) return undefined;
  // Compat: none is one that is not used.
  const roomBytes = frameCounts.reduce((sum, frames) => sum + Math.max(frames, 1) * FRAME_BYTES, 0);
  if (framesFrom + roomBytes > sizeBytes) return undefined;
  const order: { -readonly [K in keyof RpmbOrder]: RpmbOrder[K] } = {};
  let answerAt = 0;
  let at = sizeBytes - roomBytes;
  for (const [i, frames] of frameCounts.entries()) {
    const kind = FLAGS[commands.readUInt32LE(i * COMMAND_BYTES)];
    if (kind === undefined) return undefined;
    if (frames > 0) {
      const bytes = Buffer.alloc(frames * FRAME_BYTES);
      readAt(chain, at, bytes);
      order[kind] = new Frames(bytes);
      if (kind === 'read') answerAt = at;
    }
    at += Math.max(frames, 1) * FRAME_BYTES;
  }
  return { order, answerAt };
}

/** Bytes of the chain as one row, whoever may write them. @returns how many there are. */
function readAt(chain: Chain, at: number, target: Uint8Array): number {
  const readable = chain.copyOut(at, target, 0, target.length);
  const from = Math.max(0, at + readable - chain.readableBytes);
  if (at + readable < chain.readableBytes) return readable;
  return readable + chain.copyBack(from, target, readable, target.length - readable);
}

/** What is the driver's alone stays as it is. */
function writeAt(chain: Chain, at: number, bytes: Uint8Array): void {
  const skipped = Math.max(0, chain.readableBytes - at);
  if (skipped >= bytes.length) return;
  chain.copyIn(at + skipped - chain.readableBytes, bytes, skipped, bytes.length - skipped);
}

export const virtioRpmb = definePciDriver({
  ...rpmbInfo,
  create: ({ isPhysical, path }, env) => {
    const store = isPhysical ? new RpmbMuxStore(env.log) : new RpmbFileStore(path);
    const key = env.rpmbKey?.() ?? randomBytes(KEY_BYTES);
    return new VirtioPci(new VirtioRpmb(key, store, env.log), env, {
      mode: 'legacy',
      identity: { vendorId: 0x8086, legacyDeviceId: 0x8601, type: 0xffff, classCode: 0xff0000 },
    });
  },
});
