/** The GPIO device of Virtio 1.2 (§5.18), which Linux has a driver for since 5.15. */
import type { AccessSize } from '../../../../core/address.ts';
import type { GpioLine } from '../../../../core/host/gpio.ts';
import type { Chain } from '../ring/chain.ts';
import { type ChainServer, SLICE_BYTES, type SliceBudget } from '../ring/serve-chains.ts';
import type { Virtqueue } from '../ring/virtqueue.ts';
import {
  Feature,
  featureMask,
  readBytes,
  serveSlice,
  type VirtioDevice,
  type VirtioTransport,
} from '../transport/device.ts';
import { GpioDevice } from './device.ts';
import { GpioPin, IrqType } from './pin.ts';

/** All lines of the largest device can wait for an interrupt at once, two descriptors each. */
const QUEUE_SIZE = 128;
/** §5.18.2. */
const Queue = { Requests: 0, Events: 1 } as const;
/** VIRTIO_GPIO_F_IRQ (§5.18.3). */
const FEATURE_IRQ = 0;
/** §5.18.4, struct virtio_gpio_config. */
const Config = { lines: 0, namesSize: 4, size: 8 } as const;

/** §5.18.6, struct virtio_gpio_request: u16 type, u16 line, u32 value. Response: u8 status, u8 value. */
const Request = { type: 0, line: 2, value: 4, size: 8 } as const;
const RESPONSE_BYTES = 2;
const Message = { GetNames: 1, GetDirection: 2, SetDirection: 3, GetValue: 4, SetValue: 5, IrqType: 6 } as const;
const RequestStatus = { Ok: 0, Error: 1 } as const;
const Direction = { None: 0, Out: 1, In: 2 } as const;

/** §5.18.7: a buffer waits for an interrupt of its line. u16 line; the answer is u8 status. */
const EVENT_REQUEST_BYTES = 2;
const EventStatus = { Invalid: 0, Valid: 1 } as const;

/** Each chain is a system call. */
const BUDGET: SliceBudget = { chains: QUEUE_SIZE, cost: SLICE_BYTES };

class ModernPin extends GpioPin {
  /** For when the line becomes an output: drivers set the level first. */
  nextOutput: 0 | 1 = 0;
  /** The buffer an interrupt is told of in. */
  waiting: Chain | undefined;
  /** An edge came while there was no buffer. */
  isLatched = false;
}

export class ModernGpio extends GpioDevice<ModernPin> implements VirtioDevice, ChainServer {
  readonly features = featureMask(FEATURE_IRQ, Feature.IndirectDesc, Feature.EventIdx, Feature.Version1);
  readonly queueSizes = [QUEUE_SIZE, QUEUE_SIZE];
  readonly configSizeBytes = Config.size;
  readonly #config = new DataView(new ArrayBuffer(Config.size));
  readonly #response = new Uint8Array(RESPONSE_BYTES);
  #names: Uint8Array = new Uint8Array(0);

  protected makePin(line: GpioLine, index: number): ModernPin {
    return new ModernPin(line, () => this.#interrupt(index), this.log);
  }

  /** @throws HostError */
  override start(): void {
    super.start();
    const hasNames = this.pins.some(({ line }) => line.name !== '');
    this.#names = hasNames ? Buffer.from(this.pins.map(({ line }) => `${line.name}\0`).join('')) : new Uint8Array(0);
    this.#config.setUint16(Config.lines, this.pins.length, true);
    this.#config.setUint32(Config.namesSize, this.#names.length, true);
  }

  reset(): void {
    for (const pin of this.pins) {
      pin.disableInterrupt();
      pin.waiting = undefined;
      pin.isLatched = false;
    }
  }

  readConfig(offset: number, size: AccessSize): number {
    return readBytes(this.#config, offset, size);
  }

  notify(queue: Virtqueue): void {
    serveSlice(this.transport, queue, BUDGET, this);
  }

  serveChain(queue: Virtqueue, chain: Chain): number {
    if (queue.index === Queue.Requests) queue.push(chain, this.#request(chain));
    else this.#await(queue, chain);
    return 0;
  }

  /** @returns bytes written. */
  #request(chain: Chain): number {
    if (chain.readableBytes < Request.size || chain.writableBytes < RESPONSE_BYTES) {
      this.log.guest(() => `request of ${chain.readableBytes} bytes with room for ${chain.writableBytes}`);
      return 0;
    }
    const type = chain.readU16(Request.type);
    if (type === Message.GetNames) return this.#getNames(chain);
    const pin = this.pins[chain.readU16(Request.line)];
    const result = pin === undefined ? undefined : this.#perform(pin, type, chain.readU32(Request.value));
    this.#response[0] = result === undefined ? RequestStatus.Error : RequestStatus.Ok;
    this.#response[1] = result ?? 0;
    return chain.copyIn(0, this.#response, 0, RESPONSE_BYTES);
  }

  #getNames(chain: Chain): number {
    const isOk = chain.writableBytes > this.#names.length;
    chain.writeU8(0, isOk ? RequestStatus.Ok : RequestStatus.Error);
    return isOk ? 1 + chain.copyIn(1, this.#names, 0, this.#names.length) : 1;
  }

  /** @returns value of the response, undefined if it cannot be done. */
  #perform(pin: ModernPin, type: number, value: number): number | undefined {
    switch (type) {
      case Message.GetDirection:
        return pin.line.isOutput ? Direction.Out : Direction.In;
      case Message.SetDirection:
        return this.#setDirection(pin, value);
      case Message.GetValue:
        return pin.line.read();
      case Message.SetValue:
        if (value > 1) return undefined;
        pin.nextOutput = value as 0 | 1;
        return !pin.line.isOutput || pin.write(pin.nextOutput) ? 0 : undefined;
      case Message.IrqType:
        return this.#setIrqType(pin, value);
      default:
        return undefined;
    }
  }

  #setDirection(pin: ModernPin, direction: number): number | undefined {
    switch (direction) {
      case Direction.None:
        // The driver is done with the line, which stays as it is.
        this.#disableInterrupt(pin);
        return 0;
      case Direction.Out:
        return pin.makeOutput(pin.nextOutput) ? 0 : undefined;
      case Direction.In:
        return pin.makeInput() ? 0 : undefined;
      default:
        return undefined;
    }
  }

  // Interrupts.

  #setIrqType(pin: ModernPin, type: number): number | undefined {
    if (!this.transport?.hasFeature(FEATURE_IRQ)) return undefined;
    if (type === IrqType.None) {
      this.#disableInterrupt(pin);
      return 0;
    }
    return !pin.line.isOutput && pin.enableInterrupt(type) ? 0 : undefined;
  }

  #disableInterrupt(pin: ModernPin): void {
    pin.disableInterrupt();
    pin.isLatched = false;
    this.#answer(pin, EventStatus.Invalid);
  }

  /** §5.18.7: the buffer comes back with the line's next interrupt, at once if that is due. */
  #await(queue: Virtqueue, chain: Chain): void {
    const pin = chain.readableBytes >= EVENT_REQUEST_BYTES ? this.pins[chain.readU16(0)] : undefined;
    if (pin === undefined || chain.writableBytes === 0 || pin.waiting !== undefined) {
      this.log.guest(() => `event buffer of ${chain.readableBytes} bytes for line ${chain.readU16(0)}`);
      chain.writeU8(0, EventStatus.Invalid);
      queue.push(chain, Math.min(chain.writableBytes, 1));
      return;
    }
    pin.waiting = chain;
    if (pin.irqType === IrqType.None) this.#answer(pin, EventStatus.Invalid);
    else if (pin.isLatched || pin.isLevelActive) this.#answer(pin, EventStatus.Valid);
  }

  #interrupt(index: number): void {
    const pin = this.pins[index];
    if (pin === undefined) return;
    // An edge is not lost while the driver handles the last one; a level is looked at when the buffer comes.
    if (pin.waiting === undefined) pin.isLatched = pin.isEdge;
    else this.#answer(pin, EventStatus.Valid);
  }

  #answer(pin: ModernPin, status: number): void {
    const chain = pin.waiting;
    if (chain === undefined) return;
    pin.waiting = undefined;
    pin.isLatched = false;
    const queue = (this.transport as VirtioTransport).queue(Queue.Events);
    chain.writeU8(0, status);
    queue.push(chain, 1);
    queue.publish();
  }
}
