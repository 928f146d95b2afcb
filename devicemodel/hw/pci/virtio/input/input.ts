/** virtio-input (Virtio 1.2 §5.8): an evdev device of the host, passed on event by event. Modern only, as with C. */
import type { AccessSize } from '../../../../core/address.ts';
import { Evdev, type InputEvent, type InputSource } from '../../../../core/host/evdev.ts';
import type { Log } from '../../../../core/log.ts';
import { DisplaySource } from '../../../input/display-source.ts';
import { InputHub } from '../../../input/input-hub.ts';
import { definePciDriver } from '../../driver.ts';
import type { Chain } from '../ring/chain.ts';
import { type ChainServer, SLICE_BYTES, type SliceBudget } from '../ring/serve-chains.ts';
import type { Virtqueue } from '../ring/virtqueue.ts';
import {
  DeviceType,
  Feature,
  featureMask,
  readBytes,
  serveSlice,
  type VirtioDevice,
  type VirtioTransport,
} from '../transport/device.ts';
import { VirtioPci } from '../transport/transport.ts';
import { displayKindOf, inputInfo } from './options.ts';

const QUEUE_SIZE = 64;
const EVENTS = 0;

/** §5.8.4, struct virtio_input_config. */
const Config = { select: 0, subsel: 1, length: 2, data: 8, size: 136 } as const;
/** §5.8.2, enum virtio_input_config_select. */
const Select = { Name: 0x01, Serial: 0x02, Ids: 0x03, Properties: 0x10, Codes: 0x11, Axis: 0x12 } as const;

/** <linux/input-event-codes.h>: event types and how many codes each has. */
const EventType = { Syn: 0, Msc: 4 } as const;
const SYN_REPORT = 0;
const PROPERTY_BYTES = 4;
const EV_ABS = 3;
const codeBytes: Readonly<Record<number, number>> = {
  1: 0x300 / 8, // EV_KEY
  2: 0x10 / 8, // EV_REL
  3: 0x40 / 8, // EV_ABS
  4: 1, // EV_MSC: 8 codes
  5: 0x11 >>> 3, // EV_SW: 17 codes, of which C passes on 16
  17: 0x10 / 8, // EV_LED
};

/** §5.8.6: u16 type, u16 code, u32 value. */
const EVENT_BYTES = 8;
/** Events up to the next SYN_REPORT; no device sends that many. */
const MAX_PACKET = 512;
/** Status events of the guest, two rings full. */
const BUDGET: SliceBudget = { chains: 2 * QUEUE_SIZE, cost: SLICE_BYTES };
/** Host events taken at once. */
const READ_BUDGET = 1024;

export class VirtioInput implements VirtioDevice, ChainServer {
  readonly name = 'virtio-input';
  readonly features = featureMask(Feature.Version1);
  readonly queueSizes = [QUEUE_SIZE, QUEUE_SIZE];
  readonly configSizeBytes = Config.size;
  readonly #open: () => InputSource;
  readonly #serial: string | undefined;
  readonly #log: Log;
  readonly #config = new DataView(new ArrayBuffer(Config.size));
  readonly #event: InputEvent = { type: 0, code: 0, value: 0 };
  readonly #bytes = new DataView(new ArrayBuffer(EVENT_BYTES));
  readonly #eventBytes = new Uint8Array(this.#bytes.buffer);
  /** Events of the packet that is not complete yet: type, code, value. */
  readonly #packet = new Uint32Array(3 * MAX_PACKET);
  #packetLength = 0;
  readonly #chains: Chain[] = [];
  #select = 0;
  #subsel = 0;
  #isFresh = false;
  #source: InputSource | undefined;
  #unwatch: (() => void) | undefined;
  #transport: VirtioTransport | undefined;

  constructor(open: () => InputSource, serial: string | undefined, log: Log) {
    this.#open = open;
    this.#serial = serial;
    this.#log = log;
  }

  attach(transport: VirtioTransport): void {
    this.#transport = transport;
  }

  /** The guest's driver takes events. */
  get isListening(): boolean {
    return this.#transport?.isDriverOk === true;
  }

  start(): void {
    this.#source = this.#open();
    this.#unwatch = this.#source.watch(() => this.#read());
  }

  stop(): void {
    this.#unwatch?.();
    this.#unwatch = undefined;
    this.#source?.close();
    this.#source = undefined;
  }

  driverLeft(): void {
    this.#packetLength = 0;
  }

  reset(): void {
    this.#select = 0;
    this.#subsel = 0;
    this.#isFresh = false;
    this.#packetLength = 0;
  }

  // Configuration: what `select` and `subsel` ask for.

  readConfig(offset: number, size: AccessSize): number {
    if (!this.#isFresh) {
      this.#fillConfig();
      this.#isFresh = true;
    }
    return readBytes(this.#config, offset, size);
  }

  writeConfig(offset: number, _size: AccessSize, value: number): boolean {
    if (offset === Config.select) this.#select = value & 0xff;
    else if (offset === Config.subsel) this.#subsel = value & 0xff;
    this.#isFresh = false;
    return true;
  }

  #fillConfig(): void {
    const bytes = new Uint8Array(this.#config.buffer);
    bytes.fill(0);
    const data = this.#describe();
    // §5.8.5.2: size 0 says that there is nothing of the kind.
    if (data === undefined || data.length === 0) return;
    const length = Math.min(data.length, Config.size - Config.data);
    bytes[Config.select] = this.#select;
    bytes[Config.subsel] = this.#subsel;
    bytes[Config.length] = length;
    bytes.set(data.subarray(0, length), Config.data);
  }

  #describe(): Uint8Array | undefined {
    const source = this.#source;
    if (source === undefined) return undefined;
    switch (this.#select) {
      case Select.Name:
        return source.name();
      case Select.Serial:
        return this.#serial === undefined ? undefined : Buffer.from(this.#serial);
      case Select.Ids: {
        const ids = source.ids();
        return ids === undefined ? undefined : new Uint8Array(Uint16Array.from(ids).buffer);
      }
      case Select.Properties:
        return trimmed(source.properties(PROPERTY_BYTES));
      case Select.Codes:
        return this.#codes(this.#subsel);
      case Select.Axis: {
        if (this.#codes(EV_ABS) === undefined || this.#subsel >= 0x40) return undefined;
        const axis = source.axis(this.#subsel);
        return axis === undefined ? undefined : new Uint8Array(Uint32Array.from(axis).buffer);
      }
      default:
        return undefined;
    }
  }

  #codes(type: number): Uint8Array | undefined {
    const sizeBytes = codeBytes[type];
    return sizeBytes === undefined ? undefined : trimmed(this.#source?.codes(type, sizeBytes));
  }

  // Host to guest.

  #read(): void {
    const source = this.#source;
    if (source === undefined) return;
    try {
      for (let budget = READ_BUDGET; budget > 0 && source.read(this.#event); budget--) this.#queue(this.#event);
    } catch (error) {
      // Unplugged: the guest keeps a device that is silent.
      this.#log.warn((error as Error).message);
      this.#unwatch?.();
      this.#unwatch = undefined;
    }
  }

  #queue(event: InputEvent): void {
    if (this.#transport?.isDriverOk !== true) {
      this.#packetLength = 0;
      return;
    }
    const isEnd = event.type === EventType.Syn && event.code === SYN_REPORT;
    // A packet that is too long loses its middle, never its end.
    if (this.#packetLength === MAX_PACKET) {
      if (!isEnd) return;
      this.#packetLength--;
    }
    const at = 3 * this.#packetLength++;
    this.#packet[at] = event.type;
    this.#packet[at + 1] = event.code;
    this.#packet[at + 2] = event.value;
    if (isEnd) this.#send();
  }

  /** All of a packet or nothing: half a packet is a wrong position. */
  #send(): void {
    const queue = (this.#transport as VirtioTransport).queue(EVENTS);
    const chains = this.#chains;
    const count = this.#packetLength;
    this.#packetLength = 0;
    while (chains.length < count) {
      const chain = queue.pop();
      if (chain === undefined) break;
      chains.push(chain);
    }
    if (chains.length < count) {
      for (let chain = chains.pop(); chain !== undefined; chain = chains.pop()) queue.unpop(chain);
      this.#log.guest(() => `${count} events are lost: the driver gives too few buffers`);
      return;
    }
    for (let i = 0; i < count; i++) {
      const chain = chains[i] as Chain;
      this.#bytes.setUint16(0, this.#packet[3 * i] as number, true);
      this.#bytes.setUint16(2, this.#packet[3 * i + 1] as number, true);
      this.#bytes.setUint32(4, this.#packet[3 * i + 2] as number, true);
      queue.push(chain, chain.copyIn(0, this.#eventBytes, 0, EVENT_BYTES));
    }
    chains.length = 0;
    queue.publish();
  }

  // Guest to host.

  notify(queue: Virtqueue): void {
    if (queue.index !== EVENTS) serveSlice(this.#transport, queue, BUDGET, this);
  }

  serveChain(queue: Virtqueue, chain: Chain): number {
    if (chain.readableBytes >= EVENT_BYTES) {
      const type = chain.readU16(0);
      // Compat: EV_MSC comes back from the host to every reader, and so to us: it would never end.
      if (type !== EventType.Msc) this.#source?.write(type, chain.readU16(2), chain.readU32(4));
    }
    queue.push(chain, 0);
    return 0;
  }
}

/** Without the zero bytes at the end; nothing left: undefined. */
function trimmed(bytes: Uint8Array | undefined): Uint8Array | undefined {
  if (bytes === undefined) return undefined;
  let length = bytes.length;
  while (length > 0 && bytes[length - 1] === 0) length--;
  return length === 0 ? undefined : bytes.subarray(0, length);
}

export const virtioInput = definePciDriver({
  ...inputInfo,
  create: (options, env) => {
    const kind = displayKindOf(options.path);
    const open = () =>
      kind === undefined
        ? new Evdev(options.path)
        : new DisplaySource(kind, env.input ?? new InputHub(), () => device.isListening);
    const device = new VirtioInput(open, options.serial, env.log);
    return new VirtioPci(device, env, {
      mode: 'modern',
      identity: {
        legacyDeviceId: 0,
        type: DeviceType.Input,
        classCode: 0x098000,
        subsystemId: 0x1100,
        hasWindowsId: true,
      },
    });
  },
});
