/**
 * virtio-console (Virtio 1.2 §5.3): up to 16 ports, each on a character back end, and the control queue that announces
 * them.
 */
import type { AccessSize } from '../../../../core/address.ts';
import type { CharBackend } from '../../../../core/char-backend.ts';
import type { Log } from '../../../../core/log.ts';
import type { CharBackendSpec } from '../../../uart/backends/spec.ts';
import { definePciDriver } from '../../driver.ts';
import type { Chain } from '../ring/chain.ts';
import type { ChainServer, SliceBudget } from '../ring/serve-chains.ts';
import type { Virtqueue } from '../ring/virtqueue.ts';
import {
  DeviceType,
  featureMask,
  readBytes,
  ringFeatures,
  serveSlice,
  type VirtioDevice,
  type VirtioTransport,
} from '../transport/device.ts';
import type { TransportMode } from '../transport/options.ts';
import { VirtioPci } from '../transport/transport.ts';
import { consoleInfo, MAX_PORTS, type PortOptions } from './options.ts';

const QUEUE_SIZE = 64;

/** §5.3.3. Compat: as in C, EMERG_WRITE is not offered. */
const ConsoleFeature = { Size: 0, MultiPort: 1 } as const;

/** §5.3.4, struct virtio_console_config. */
const Config = { cols: 0, rows: 2, maxPorts: 4, size: 12 } as const;
/** What the C device model reports whatever the terminal is. */
const DEFAULT_SIZE = { cols: 80, rows: 25 } as const;

/** §5.3.6.2, struct virtio_console_control: u32 id, u16 event, u16 value. */
const CONTROL_BYTES = 8;
const ControlEvent = {
  DeviceReady: 0,
  DeviceAdd: 1,
  PortReady: 3,
  ConsolePort: 4,
  Resize: 5,
  PortOpen: 6,
  PortName: 7,
} as const;
/** Control messages that wait for a buffer; a driver that gives none gets no more than these. */
const MAX_PENDING_CONTROL = 128;

/** Two rings full of output or control messages. Output goes byte by byte, which takes about ten times as long as a copy. */
const BUDGET: SliceBudget = { chains: 2 * QUEUE_SIZE, cost: 64 * 1024 };
/** Input copied to the guest in one go, and in one call. */
const INPUT_CHUNK = 4096;
const INPUT_BUDGET = 64 * 1024;

/** §5.3.2: queues of port 0, control, then two for each further port; receive first. */
const CONTROL_RECEIVE = 2;
const CONTROL_TRANSMIT = 3;
const receiveQueueOf = (port: number) => (port === 0 ? 0 : 2 * port + 2);

interface Port {
  readonly index: number;
  readonly options: PortOptions;
  readonly backend: CharBackend;
  /** The driver has shown it knows the receive queue: Linux kicks it once it is filled. */
  isReceiving: boolean;
  /** Whether somebody in the guest has the port open; undefined as long as the driver does not use control messages. */
  isOpenInGuest: boolean | undefined;
  /** A byte that was read and found no buffer; -1: none. */
  peeked: number;
}

/** The terminal's size, where there is one. */
export interface TerminalSize {
  readonly cols: number;
  readonly rows: number;
}

export interface SizeSource {
  /** Undefined: not a terminal. */
  readonly size: TerminalSize | undefined;
  /** @returns how to stop. */
  onResize(changed: () => void): () => void;
}

export class VirtioConsole implements VirtioDevice, ChainServer {
  readonly name = 'virtio-console';
  readonly features: bigint;
  /** Compat: all 34 queues are there whatever the number of ports. */
  readonly queueSizes: readonly number[] = new Array(2 * MAX_PORTS + 2).fill(QUEUE_SIZE);
  readonly configSizeBytes = Config.size;
  readonly #ports: readonly Port[];
  readonly #log: Log;
  readonly #sizes: SizeSource | undefined;
  readonly #config = new DataView(new ArrayBuffer(Config.size));
  readonly #scratch = new Uint8Array(INPUT_CHUNK);
  readonly #controlOut: Uint8Array[] = [];
  #transport: VirtioTransport | undefined;
  #isReady = false;
  #controlReceiving = false;
  #stopResize: (() => void) | undefined;

  constructor(
    ports: readonly PortOptions[],
    mode: TransportMode,
    openBackend: (spec: CharBackendSpec, index: number) => CharBackend,
    log: Log,
    sizes?: SizeSource,
  ) {
    this.#log = log;
    this.#sizes = sizes;
    this.features = featureMask(ConsoleFeature.Size, ConsoleFeature.MultiPort) | ringFeatures(mode);
    this.#ports = ports.map((options, index) => ({
      index,
      options,
      backend: openBackend(options.backend, index),
      isReceiving: false,
      isOpenInGuest: undefined,
      peeked: -1,
    }));
    this.#config.setUint16(Config.cols, DEFAULT_SIZE.cols, true);
    this.#config.setUint16(Config.rows, DEFAULT_SIZE.rows, true);
    this.#config.setUint32(Config.maxPorts, MAX_PORTS, true);
  }

  attach(transport: VirtioTransport): void {
    this.#transport = transport;
  }

  async start(): Promise<void> {
    for (const port of this.#ports) {
      port.backend.onReadable = () => this.#receive(port);
      await port.backend.start();
      if (port.options.backend.kind === 'pty') this.#log.notice(`port ${port.options.name} is ${port.backend.name}`);
    }
    this.#takeSize(false);
    this.#stopResize = this.#sizes?.onResize(() => this.#takeSize(true));
  }

  async stop(): Promise<void> {
    this.#stopResize?.();
    this.#stopResize = undefined;
    for (const port of this.#ports) {
      port.backend.onReadable = undefined;
      await port.backend.stop();
    }
  }

  driverLeft(): void {
    this.reset();
  }

  reset(): void {
    this.#isReady = false;
    this.#controlReceiving = false;
    this.#controlOut.length = 0;
    for (const port of this.#ports) {
      port.isReceiving = false;
      port.isOpenInGuest = undefined;
    }
  }

  readConfig(offset: number, size: AccessSize): number {
    return readBytes(this.#config, offset, size);
  }

  get #isMultiPort(): boolean {
    return this.#transport?.hasFeature(ConsoleFeature.MultiPort) === true;
  }

  // Queues.

  notify(queue: Virtqueue): void {
    if (queue.index === CONTROL_RECEIVE) {
      this.#startReceiving(queue, this.#controlReceiving);
      this.#controlReceiving = true;
      this.#sendPendingControl();
    } else if ((queue.index & 1) === 1) {
      serveSlice(this.#transport, queue, BUDGET, this);
      if (queue.index !== CONTROL_TRANSMIT) this.#portOf(queue)?.backend.flush();
    } else {
      const port = this.#portOf(queue);
      if (port !== undefined) {
        this.#startReceiving(queue, port.isReceiving);
        port.isReceiving = true;
        this.#receive(port);
      }
    }
  }

  /** As C does at the first notification: further ones are not needed until buffers run out. */
  #startReceiving(queue: Virtqueue, wasReceiving: boolean): void {
    if (!wasReceiving && queue.hasAvailable()) queue.suppressNotify();
  }

  /** The port of a receive or transmit queue. */
  #portOf(queue: Virtqueue): Port | undefined {
    return this.#ports[queue.index < 2 ? 0 : (queue.index >>> 1) - 1];
  }

  serveChain(queue: Virtqueue, chain: Chain): number {
    if (queue.index === CONTROL_TRANSMIT) return this.#control(queue, chain);
    const port = this.#portOf(queue);
    // Output of a port that does not exist is lost.
    const count = port === undefined ? 0 : this.#output(chain, port.backend);
    if (port !== undefined && chain.progress < chain.readableBytes) queue.park(chain);
    else queue.push(chain, 0);
    return count;
  }

  /** Write as much of the chain as fits a slice. @returns how much. */
  #output(chain: Chain, backend: CharBackend): number {
    const end = Math.min(chain.readableBytes, chain.progress + BUDGET.cost);
    let at = chain.progress;
    while (at < end && chain.seek(at, false)) {
      const i = chain.segment;
      const bytes = chain.ram.bytes[chain.chunk[i] as number] as Uint8Array;
      const from = (chain.offset[i] as number) + chain.within;
      const count = Math.min(end - at, (chain.length[i] as number) - chain.within);
      for (let n = from; n < from + count; n++) backend.write(bytes[n] as number);
      at += count;
    }
    const written = at - chain.progress;
    chain.progress = at;
    return written;
  }

  /**
   * Host input into the guest's buffers. What does not fit stays with the back end.
   * Compat: the C device model throws input away that comes before the guest has given buffers.
   */
  #receive(port: Port): void {
    const transport = this.#transport;
    if (transport === undefined || !transport.isDriverOk || !port.isReceiving || port.isOpenInGuest === false) return;
    const queue = transport.queue(receiveQueueOf(port.index));
    let chains = queue.size;
    let budget = INPUT_BUDGET;
    for (let byte = this.#next(port); byte >= 0; ) {
      const isSpent = chains-- === 0 || budget <= 0;
      const chain = isSpent ? undefined : this.#popReceive(queue);
      if (chain === undefined) {
        port.peeked = byte;
        if (isSpent) this.#transport?.notifyLater(queue);
        break;
      }
      let written = 0;
      const room = Math.min(chain.writableBytes, INPUT_BUDGET);
      while (byte >= 0 && written < room) {
        let n = 0;
        while (byte >= 0 && n < this.#scratch.length && written + n < room) {
          this.#scratch[n++] = byte;
          byte = this.#next(port);
        }
        chain.copyIn(written, this.#scratch, 0, n);
        written += n;
      }
      budget -= written;
      queue.push(chain, written);
    }
    queue.publish();
  }

  /** Next buffer, or a request to be told when there is one. */
  #popReceive(queue: Virtqueue): Chain | undefined {
    const chain = queue.pop();
    if (chain !== undefined || !queue.isReady) return chain;
    return queue.allowNotify() ? queue.pop() : undefined;
  }

  #next(port: Port): number {
    const { peeked } = port;
    if (peeked < 0) return port.backend.read();
    port.peeked = -1;
    return peeked;
  }

  // Control (§5.3.6.2).

  #control(queue: Virtqueue, chain: Chain): number {
    if (chain.readableBytes >= CONTROL_BYTES) {
      this.#controlEvent(chain.readU32(0), chain.readU16(4), chain.readU16(6));
    }
    queue.push(chain, 0);
    return 0;
  }

  #controlEvent(id: number, event: number, value: number): void {
    const port = this.#ports[id];
    switch (event) {
      case ControlEvent.DeviceReady:
        this.#isReady = true;
        for (const each of this.#ports) {
          // Compat: C sends input at once, which Linux drops unless a process or a getty has opened the port.
          each.isOpenInGuest ??= false;
          this.#send(each.index, ControlEvent.DeviceAdd, 1);
          this.#send(each.index, ControlEvent.PortName, 1, Buffer.from(each.options.name));
          this.#send(each.index, ControlEvent.PortOpen, 1);
        }
        break;
      case ControlEvent.PortReady:
        if (port?.options.isConsole === true) this.#send(id, ControlEvent.ConsolePort, 1);
        break;
      case ControlEvent.PortOpen:
        if (port !== undefined) {
          port.isOpenInGuest = value !== 0;
          this.#receive(port);
        }
        break;
      default:
        break;
    }
  }

  #send(id: number, event: number, value: number, payload: Uint8Array = new Uint8Array(0)): void {
    if (this.#controlOut.length >= MAX_PENDING_CONTROL) {
      this.#log.guest(() => 'control messages are lost: the driver gives no buffers');
      return;
    }
    const message = new Uint8Array(CONTROL_BYTES + payload.length);
    const view = new DataView(message.buffer);
    view.setUint32(0, id, true);
    view.setUint16(4, event, true);
    view.setUint16(6, value, true);
    message.set(payload, CONTROL_BYTES);
    this.#controlOut.push(message);
    this.#sendPendingControl();
  }

  #sendPendingControl(): void {
    const queue = this.#transport?.queue(CONTROL_RECEIVE);
    while (queue !== undefined && this.#controlOut.length > 0) {
      const chain = this.#popReceive(queue);
      if (chain === undefined) return;
      const message = this.#controlOut.shift() as Uint8Array;
      queue.push(chain, chain.copyIn(0, message, 0, message.length));
      // One interrupt a message, as from C: they are rare, and some drivers handle one at a time.
      queue.publish();
    }
  }

  // Size (§5.3.4).

  #takeSize(tell: boolean): void {
    const size = this.#sizes?.size;
    if (size === undefined) return;
    const { cols, rows } = size;
    if (this.#config.getUint16(Config.cols, true) === cols && this.#config.getUint16(Config.rows, true) === rows)
      return;
    this.#config.setUint16(Config.cols, cols, true);
    this.#config.setUint16(Config.rows, rows, true);
    if (!tell) return;
    if (!this.#isMultiPort) {
      this.#transport?.configChanged();
      return;
    }
    const port = this.#ports.find((p) => p.options.backend.kind === 'stdio');
    if (port === undefined || !this.#isReady) return;
    const payload = new DataView(new ArrayBuffer(4));
    // Rows first: §5.3.6.2 says columns first, but every driver there is reads it this way, and the QEMU project follows.
    payload.setUint16(0, rows, true);
    payload.setUint16(2, cols, true);
    this.#send(port.index, ControlEvent.Resize, 0, new Uint8Array(payload.buffer));
  }
}

/** The terminal this process runs in. */
const processTerminal: SizeSource = {
  get size() {
    const { isTTY, columns, rows } = process.stdout;
    return isTTY && columns > 0 && rows > 0 ? { cols: columns, rows } : undefined;
  },
  onResize(changed) {
    if (!process.stdout.isTTY) return () => {};
    process.stdout.on('resize', changed);
    return () => process.stdout.off('resize', changed);
  },
};

export const virtioConsole = definePciDriver({
  ...consoleInfo,
  create: (options, env) => {
    const usesStdio = options.ports.some((p) => p.backend.kind === 'stdio');
    const device = new VirtioConsole(
      options.ports,
      options.transport,
      (spec, index) => env.charBackend(spec, `port ${index}`),
      env.log,
      usesStdio ? processTerminal : undefined,
    );
    return new VirtioPci(device, env, {
      mode: options.transport,
      identity: { legacyDeviceId: 0x1003, type: DeviceType.Console, classCode: 0x078000 },
    });
  },
});
