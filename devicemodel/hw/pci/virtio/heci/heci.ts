/**
 * virtio-heci, ACRN's own device: a management engine for the guest, whose clients are those of the host's that the kernel
 * shares by tags (drivers/misc/mei). Queue 0 brings messages to the driver, queue 1 takes them; each begins with a header.
 */
import type { AccessSize } from '../../../../core/address.ts';
import type { Clock, Timer } from '../../../../core/clock.ts';
import { leaveThreadBehind } from '../../../../core/host/exit-hooks.ts';
import { MeiNode } from '../../../../core/host/mei.ts';
import type { IoPatience } from '../../../../core/io-patience.ts';
import type { Log } from '../../../../core/log.ts';
import { definePciDriver } from '../../driver.ts';
import type { Chain } from '../ring/chain.ts';
import type { ChainServer, SliceBudget } from '../ring/serve-chains.ts';
import type { Virtqueue } from '../ring/virtqueue.ts';
import { readBytes, serveSlice, type VirtioDevice, type VirtioTransport } from '../transport/device.ts';
import { VirtioPci } from '../transport/transport.ts';
import { Engine, type EngineHost } from './engine.ts';
import { decodeHeader, encodeHeader, MESSAGE_HEADER_BYTES } from './hbm.ts';
import { EngineInterface } from './host.ts';
import { heciInfo } from './options.ts';

const QUEUE_SIZE = 64;
const Queue = { ToDriver: 0, FromDriver: 1 } as const;
/** struct mei_virtio_cfg: what the driver may have under way, in words of 4 bytes; readiness; status of the firmware. */
const Config = { BufferDepth: 0, HwReady: 4, HostReset: 5, FwStatus: 8, sizeBytes: 32 } as const;
const BUFFER_DEPTH = 128;
/** One message, with its header. */
const MESSAGE_BYTES = BUFFER_DEPTH * 4;
const BUDGET: SliceBudget = { chains: QUEUE_SIZE, cost: QUEUE_SIZE * MESSAGE_BYTES };
const BUSY_RETRY_NS = 50_000_000;
/** How often one that was reset is looked at until it is there again. */
const LOOK_EVERY_NS = 1_000_000_000;
/** An engine that is well has closed its connections by then. */
const CLOSE_MS = 2000;

/** The host's interface, as far as this device looks at it. */
export interface HeciHost extends EngineHost {
  readonly isEnabled: boolean;
  firmwareStatus(): readonly number[];
  /** @returns when no connection is being made or closed. */
  idle(): Promise<unknown>;
}

export class VirtioHeci implements VirtioDevice, ChainServer {
  readonly name = 'virtio-heci';
  readonly features = 0n;
  readonly queueSizes = [QUEUE_SIZE, QUEUE_SIZE];
  readonly configSizeBytes = Config.sizeBytes;
  readonly #host: HeciHost;
  readonly #engine: Engine;
  readonly #log: Log;
  readonly #patience: IoPatience;
  readonly #config = new DataView(new ArrayBuffer(Config.sizeBytes));
  readonly #retry: Timer;
  readonly #look: Timer;
  readonly #clock: Clock;
  #transport: VirtioTransport | undefined;
  /** The host's engine was reset, and is not there again. */
  #isLost = false;
  /** The driver wants to start. */
  #isWanted = false;

  /** @param patience with an engine that hangs */
  constructor(host: HeciHost, clock: Clock, log: Log, patience: IoPatience) {
    this.#patience = patience;
    this.#host = host;
    this.#clock = clock;
    this.#log = log;
    this.#engine = new Engine(host, {
      onIncoming: () => this.#deliver(),
      onLost: () => this.#lost(),
      onBusy: () => this.#retry.arm(clock.nowNs() + BUSY_RETRY_NS),
    });
    this.#retry = clock.createTimer(() => this.#engine.sendOutgoing());
    this.#look = clock.createTimer(() => this.#lookAgain());
    this.#config.setUint32(Config.BufferDepth, BUFFER_DEPTH, true);
  }

  attach(transport: VirtioTransport): void {
    this.#transport = transport;
  }

  /** @throws HostError where the host has no such interface. */
  start(): void {
    this.#engine.scan();
  }

  async stop(): Promise<void> {
    this.#retry.cancel();
    this.#look.cancel();
    this.#engine.disconnectAll();
    if (await this.#patience.within(this.#host.idle(), CLOSE_MS)) return;
    leaveThreadBehind();
    this.#log.warn('the management engine does not answer: its connections are left to the kernel');
  }

  reset(): void {
    this.#isWanted = false;
    this.#setReady(false);
    this.#engine.disconnectAll();
  }

  driverLeft(): void {
    this.reset();
  }

  readConfig(offset: number, size: AccessSize): number {
    if (offset + size > Config.FwStatus) {
      this.#host.firmwareStatus().forEach((word, i) => {
        this.#config.setUint32(Config.FwStatus + 4 * i, word, true);
      });
    }
    return readBytes(this.#config, offset, size);
  }

  /** The driver's reset of the engine: 1 begins it, 0 ends it. */
  writeConfig(offset: number, size: AccessSize, value: number): boolean {
    if (offset !== Config.HostReset || size !== 1) return true;
    this.#isWanted = value === 0;
    if (this.#isWanted) this.#startEngine();
    else {
      this.#engine.disconnectAll();
      this.#setReady(false);
      this.#transport?.configChanged();
    }
    return true;
  }

  #startEngine(): void {
    if (this.#isLost) return;
    this.#engine.start();
    this.#setReady(true);
    this.#transport?.configChanged();
  }

  #setReady(isReady: boolean): void {
    this.#config.setUint8(Config.HwReady, isReady ? 1 : 0);
  }

  #lost(): void {
    if (this.#isLost) return;
    this.#isLost = true;
    this.#log.rationed('warn', () => 'the management engine was reset: the guest connects anew when it is there again');
    this.#engine.disconnectAll();
    this.#setReady(false);
    this.#transport?.configChanged();
    this.#look.arm(this.#clock.nowNs() + LOOK_EVERY_NS);
  }

  #lookAgain(): void {
    try {
      if (this.#host.isEnabled) {
        this.#engine.scan();
        this.#isLost = false;
        if (this.#isWanted) this.#startEngine();
        return;
      }
    } catch (error) {
      // It may come back.
      this.#log.debug((error as Error).message);
    }
    this.#look.arm(this.#clock.nowNs() + LOOK_EVERY_NS);
  }

  notify(queue: Virtqueue): void {
    if (queue.index === Queue.ToDriver) {
      this.#deliver();
      // The driver has room for answers again.
      const transport = this.#transport;
      if (transport !== undefined && !this.#engine.isFull) transport.notifyLater(transport.queue(Queue.FromDriver));
    } else if (!this.#engine.isFull) serveSlice(this.#transport, queue, BUDGET, this);
  }

  serveChain(queue: Virtqueue, chain: Chain): number {
    const { readableBytes } = chain;
    const payload = new Uint8Array(Math.max(0, Math.min(readableBytes, MESSAGE_BYTES) - MESSAGE_HEADER_BYTES));
    const header = decodeHeader(chain.readU32(0));
    chain.copyOut(MESSAGE_HEADER_BYTES, payload, 0, payload.length);
    queue.push(chain, 0);
    const isWhole =
      readableBytes >= MESSAGE_HEADER_BYTES && readableBytes <= MESSAGE_BYTES && header.length === payload.length;
    if (!isWhole || !this.#engine.receive(header, payload)) {
      this.#log.guest(() => `a message of ${readableBytes} bytes to ${header.me}:${header.host} is dropped`);
    }
    // Its answers have nowhere to go: the rest waits for the driver.
    return this.#engine.isFull ? BUDGET.cost : readableBytes + MESSAGE_HEADER_BYTES;
  }

  #deliver(): void {
    const transport = this.#transport;
    if (transport?.isDriverOk !== true) return;
    const queue = transport.queue(Queue.ToDriver);
    // However fast a driver brings buffers without room: other work has its turn.
    for (let i = 0; i < QUEUE_SIZE && this.#engine.hasIncoming; i++) {
      const chain = queue.pop();
      if (chain === undefined) break;
      queue.push(chain, this.#fill(chain));
    }
    queue.publish();
    if (queue.allowNotify() && this.#engine.hasIncoming) transport.notifyLater(queue);
  }

  /** @returns bytes written; a buffer without room for a byte is given back empty. */
  #fill(chain: Chain): number {
    const roomBytes = Math.min(chain.writableBytes, MESSAGE_BYTES) - MESSAGE_HEADER_BYTES;
    const next = roomBytes > 0 ? this.#engine.takeIncoming(roomBytes) : undefined;
    if (next === undefined) return 0;
    const header = Buffer.alloc(MESSAGE_HEADER_BYTES);
    header.writeUInt32LE(encodeHeader(next.header));
    chain.copyIn(0, header, 0, header.length);
    chain.copyIn(header.length, next.bytes, 0, next.bytes.length);
    return header.length + next.bytes.length;
  }
}

export const virtioHeci = definePciDriver({
  ...heciInfo,
  create: ({ address }, env) => {
    const engine = new EngineInterface(env.hostTree?.root ?? '', address);
    // Compat: the VM's number is its tag, as with C.
    const vtag = (env.machine.vmid ?? 0) & 0xff || 1;
    const node = new MeiNode(engine.path, vtag);
    const host: HeciHost = {
      clients: () => {
        const clients = engine.clients();
        if (clients.length === 0) env.log.warn('the management engine shares no client with guests (no vtag)');
        return clients;
      },
      connect: (client, listener) => node.connect(client.uuid, client.maxMessageBytes, listener),
      idle: () => node.idle(),
      firmwareStatus: () => engine.firmwareStatus(),
      get isEnabled() {
        return engine.isEnabled;
      },
    };
    return new VirtioPci(new VirtioHeci(host, env.clock, env.log, env.waits.patience), env, {
      mode: 'legacy',
      identity: { vendorId: 0x8086, legacyDeviceId: 0x8602, type: 0xfffe, classCode: 0x078000 },
    });
  },
});
