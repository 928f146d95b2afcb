/**
 * virtio-gpio: lines of the host's GPIO chips. By default with the protocol of ACRN's own guest driver (`gpio-virtio.c`
 * of ACRN's kernel, ids of Intel, legacy transport), which is older than the GPIO device of Virtio 1.2;
 * `transport=modern` offers that one (`modern.ts`).
 */
import type { AccessSize } from '../../../../core/address.ts';
import type { Drive, GpioLine } from '../../../../core/host/gpio.ts';
import { definePciDriver } from '../../driver.ts';
import type { Chain } from '../ring/chain.ts';
import { type ChainServer, SLICE_BYTES, type SliceBudget } from '../ring/serve-chains.ts';
import type { Virtqueue } from '../ring/virtqueue.ts';
import { DeviceType, featureMask, readBytes, serveSlice, type VirtioDevice } from '../transport/device.ts';
import { LEGACY_BAR } from '../transport/layout.ts';
import { LEGACY_HEADER_BYTES } from '../transport/legacy.ts';
import { VirtioPci } from '../transport/transport.ts';
import { gpioAml } from './aml.ts';
import { GpioDevice } from './device.ts';
import { openGpioLines } from './lines.ts';
import { ModernGpio } from './modern.ts';
import { gpioInfo, MAX_LINES, MAX_NAME_BYTES } from './options.ts';
import { GpioPin, IrqType } from './pin.ts';

const INTEL_VENDOR = 0x8086;
const QUEUE_SIZE = 64;
const Queue = { Operations: 0, IrqCommands: 1, IrqEvents: 2 } as const;
/** VIRTIO_GPIO_F_CHIP: there is a chip, always. */
const FEATURE_CHIP = 0;

/** u16 number of the first line, u16 lines; then a register for each of 64 lines, for ACPI methods. */
const Config = { base: 0, lines: 2, registers: 4, registerBytes: 4 } as const;
const CONFIG_BYTES = Config.registers + MAX_LINES * Config.registerBytes;
/** A line's register: bit 0, level; bit 1, input; bit 2, interrupts; bits 23:16, how it was asked for last. */
const Register = { Value: 1 << 0, Input: 1 << 1, Interrupt: 1 << 2, configShift: 16, configMask: 0xff } as const;
/** GPIOHANDLE_REQUEST_… of <linux/gpio.h>, in the register's configuration field; 0: never asked for. */
const Requested = { Input: 1 << 0, Output: 1 << 1, OpenDrain: 1 << 3, OpenSource: 1 << 4 } as const;

/** Request: u8 command, u8 line, u64 data. Response: s8 error, u8 data. */
const Request = { command: 0, line: 1, data: 2, size: 10 } as const;
const RESPONSE_BYTES = 2;
const Command = { SetValue: 0, GetValue: 1, MakeInput: 2, MakeOutput: 3, GetDirection: 4, SetConfig: 5 } as const;
const FAILED = 0xff;
/** Of a direction: 0 is an output. */
const INPUT = 1;
/** Answered to one buffer without a request. */
const NAME_BYTES = MAX_NAME_BYTES + 1;

/** Linux's enum pin_config_param, those that say how an output is driven. */
const drives: ReadonlyMap<number, Drive> = new Map([
  [6, 'open-drain'],
  [7, 'open-source'],
  [8, 'push-pull'],
]);

/** u8 action, u8 line, u8 trigger type. */
const IrqCommand = { action: 0, line: 1, type: 2, size: 3 } as const;
const IrqAction = { Enable: 0, Disable: 1, Acknowledge: 2, Mask: 3, Unmask: 4 } as const;
/** An event: a bit for each line. */
const EVENT_BYTES = MAX_LINES / 8;

/** Each chain is a system call. */
const BUDGET: SliceBudget = { chains: QUEUE_SIZE, cost: SLICE_BYTES };

class AcrnPin extends GpioPin {
  isMasked = false;
}

export class AcrnGpio extends GpioDevice<AcrnPin> implements VirtioDevice, ChainServer {
  readonly features = featureMask(FEATURE_CHIP);
  readonly queueSizes = [QUEUE_SIZE, QUEUE_SIZE, QUEUE_SIZE];
  readonly configSizeBytes = CONFIG_BYTES;
  readonly #config = new DataView(new ArrayBuffer(8));
  readonly #response = new Uint8Array(RESPONSE_BYTES);
  /** Bits of lines: interrupts to tell of, and those told and not acknowledged yet. */
  readonly #pending = new Uint32Array(EVENT_BYTES / 4);
  readonly #inService = new Uint32Array(EVENT_BYTES / 4);
  readonly #event = new Uint8Array(this.#inService.buffer);

  protected makePin(line: GpioLine, index: number): AcrnPin {
    return new AcrnPin(line, () => this.#interrupt(index), this.log);
  }

  /** @throws HostError */
  override start(): void {
    super.start();
    this.#config.setUint16(Config.lines, this.pins.length, true);
  }

  reset(): void {
    for (const pin of this.pins) {
      pin.disableInterrupt();
      pin.isMasked = false;
    }
    this.#pending.fill(0);
    this.#inService.fill(0);
  }

  driverOk(): void {
    this.#deliver();
  }

  // Configuration and the registers for ACPI.

  readConfig(offset: number, size: AccessSize): number {
    if (offset < Config.registers) return readBytes(this.#config, offset, size);
    const pin = this.pins[(offset - Config.registers) >>> 2];
    // As C, the register's low bytes whatever the byte that is asked for.
    const value = pin === undefined ? 0xffff_ffff : registerOf(pin);
    return size === 4 ? value : value & (size === 2 ? 0xffff : 0xff);
  }

  writeConfig(offset: number, _size: AccessSize, value: number): boolean {
    if (offset < Config.registers) return false;
    const pin = this.pins[(offset - Config.registers) >>> 2];
    if (pin !== undefined && (value & Register.Interrupt) === 0) this.#writeRegister(pin, value);
    else this.log.guest(() => `register of line ${(offset - Config.registers) >>> 2}: 0x${value.toString(16)}`);
    return true;
  }

  #writeRegister(pin: GpioPin, value: number): void {
    const before = registerOf(pin);
    const config = (value >>> Register.configShift) & Register.configMask;
    // What is read back is not what is written here; a driver that only changes the low bits leaves it.
    if (config !== before >>> Register.configShift) this.#setDrive(pin, config);
    const changed = (value ^ before) & (Register.Value | Register.Input);
    if ((value & Register.Input) !== 0) {
      if ((changed & Register.Input) !== 0) pin.makeInput();
    } else if (changed !== 0) {
      pin.makeOutput((value & Register.Value) as 0 | 1);
    }
  }

  // Queues.

  notify(queue: Virtqueue): void {
    if (queue.index === Queue.IrqEvents) {
      this.#deliver();
      return;
    }
    serveSlice(this.transport, queue, BUDGET, this);
  }

  serveChain(queue: Virtqueue, chain: Chain): number {
    queue.push(chain, queue.index === Queue.Operations ? this.#operation(chain) : this.#irqCommand(chain));
    return 0;
  }

  /** @returns the length the driver expects. */
  #operation(chain: Chain): number {
    if (chain.readableBytes === 0 && chain.writableBytes === this.pins.length * NAME_BYTES) {
      for (const [i, { line }] of this.pins.entries()) {
        const name = Buffer.alloc(NAME_BYTES);
        name.write(line.name, 0, MAX_NAME_BYTES);
        chain.copyIn(i * NAME_BYTES, name, 0, NAME_BYTES);
      }
      // Compat: as in C the number of names and not of bytes; its driver wants to see that.
      return this.pins.length;
    }
    if (chain.readableBytes !== Request.size || chain.writableBytes !== RESPONSE_BYTES) {
      this.log.guest(() => `request of ${chain.readableBytes} bytes with room for ${chain.writableBytes}`);
      return 0;
    }
    const pin = this.pins[chain.readU8(Request.line)];
    const result =
      pin === undefined ? undefined : this.#perform(pin, chain.readU8(Request.command), chain.readU8(Request.data));
    this.#response[0] = result === undefined ? FAILED : 0;
    this.#response[1] = result ?? 0;
    chain.copyIn(0, this.#response, 0, RESPONSE_BYTES);
    return RESPONSE_BYTES;
  }

  /** @param data as in C only the low byte counts. @returns data of the response, undefined if it cannot be done. */
  #perform(pin: GpioPin, command: number, data: number): number | undefined {
    const level = data === 0 ? 0 : 1;
    const done = (isDone: boolean) => (isDone ? 0 : undefined);
    switch (command) {
      case Command.SetValue:
        return done(pin.write(level));
      case Command.GetValue:
        return pin.line.read();
      case Command.MakeInput:
        return done(pin.makeInput());
      case Command.MakeOutput:
        return done(pin.makeOutput(level));
      case Command.GetDirection:
        return pin.line.isOutput ? 0 : INPUT;
      case Command.SetConfig:
        return done(this.#setDrive(pin, data));
      default:
        return undefined;
    }
  }

  /**
   * Compat: C asks the kernel for an open output that is no output, which is refused, and has lost the line then. Here
   * the line is driven that way when it is an output. As in C other settings are accepted without effect.
   */
  #setDrive(pin: GpioPin, parameter: number): boolean {
    const drive = drives.get(parameter);
    return drive === undefined || pin.setDrive(drive);
  }

  // Interrupts.

  /** @returns bytes written: none. */
  #irqCommand(chain: Chain): 0 {
    const index = chain.readU8(IrqCommand.line);
    const action = chain.readU8(IrqCommand.action);
    const pin = this.pins[index];
    if (chain.readableBytes !== IrqCommand.size || pin === undefined || action > IrqAction.Unmask) {
      this.log.guest(() => `interrupt command ${action} for line ${index}, ${chain.readableBytes} bytes`);
      return 0;
    }
    switch (action) {
      case IrqAction.Enable:
        if (!pin.enableInterrupt(chain.readU8(IrqCommand.type))) {
          this.log.guest(() => `line ${index} cannot interrupt by type ${chain.readU8(IrqCommand.type)}`);
        }
        break;
      case IrqAction.Disable:
        pin.disableInterrupt();
        pin.isMasked = false;
        clearBit(this.#pending, index);
        clearBit(this.#inService, index);
        break;
      case IrqAction.Acknowledge:
        clearBit(this.#inService, index);
        break;
      case IrqAction.Mask:
        pin.isMasked = true;
        break;
      case IrqAction.Unmask:
        pin.isMasked = false;
        break;
    }
    const mayGoOn = action === IrqAction.Acknowledge || action === IrqAction.Unmask;
    if (mayGoOn && pin.isLevelActive) this.#interrupt(index);
    // Compat: C tells of what came in between only together with the next interrupt.
    else this.#deliver();
    return 0;
  }

  #interrupt(index: number): void {
    if (this.pins[index]?.isMasked !== false) return;
    setBit(this.#pending, index);
    this.#deliver();
  }

  /** One message at a time: the next goes out when the driver has acknowledged every line of the last. */
  #deliver(): void {
    const transport = this.transport;
    if (transport?.isDriverOk !== true || isEmpty(this.#pending) || !isEmpty(this.#inService)) return;
    const queue = transport.queue(Queue.IrqEvents);
    const chain = queue.pop();
    // Compat: what C cannot tell now it never tells, and nothing after it. The driver kicks other queues often enough.
    if (chain === undefined) return;
    if (chain.writableBytes === EVENT_BYTES) {
      this.#inService.set(this.#pending);
      this.#pending.fill(0);
      queue.push(chain, chain.copyIn(0, this.#event, 0, EVENT_BYTES));
    } else {
      this.log.guest(() => `buffer of ${chain.writableBytes} bytes for an interrupt`);
      queue.push(chain, 0);
    }
    queue.publish();
  }
}

const drivenBits: Readonly<Record<Drive, number>> = {
  'push-pull': 0,
  'open-drain': Requested.OpenDrain,
  'open-source': Requested.OpenSource,
};

/** Compat: the level is the one the line has; C shows what the guest wrote last. */
function registerOf({ line, drive, irqType, isConfigured }: GpioPin): number {
  const requested = line.isOutput ? Requested.Output | drivenBits[drive] : Requested.Input;
  return (
    (line.read() ?? 0) |
    (line.isOutput ? 0 : Register.Input) |
    (irqType === IrqType.None ? 0 : Register.Interrupt) |
    (isConfigured ? requested << Register.configShift : 0)
  );
}

// Sets of lines, 32 in a word.

function setBit(words: Uint32Array, index: number): void {
  words[index >>> 5] = (words[index >>> 5] as number) | (1 << (index & 31));
}
function clearBit(words: Uint32Array, index: number): void {
  words[index >>> 5] = (words[index >>> 5] as number) & ~(1 << (index & 31));
}
function isEmpty(words: Uint32Array): boolean {
  return words[0] === 0 && words[1] === 0;
}

/** Where the registers of the lines are, for ACPI methods. */
const REGISTERS_OFFSET = LEGACY_HEADER_BYTES.withMsix + Config.registers;

export const virtioGpio = definePciDriver({
  ...gpioInfo,
  create: (options, env) => {
    const open = () => openGpioLines(options.chips, env.log);
    if (options.transport === 'modern') {
      return new VirtioPci(new ModernGpio(open, env.log), env, {
        mode: 'modern',
        identity: { legacyDeviceId: 0, type: DeviceType.Gpio, classCode: 0x080000 },
      });
    }
    return new VirtioPci(new AcrnGpio(open, env.log), env, {
      mode: 'legacy',
      identity: {
        vendorId: INTEL_VENDOR,
        legacyDeviceId: 0x8609,
        type: DeviceType.Gpio,
        classCode: 0x080000,
        subsystemId: 0xfff7,
      },
      aml: (at) => gpioAml(at.bdf, at.barAddress(LEGACY_BAR) + REGISTERS_OFFSET),
    });
  },
});
