/**
 * 8042 keyboard controller with a PS/2 keyboard and mouse, ports 0x60 and 0x64.
 * Spec: IBM PS/2 Hardware Interface Technical Reference, "Keyboard and Auxiliary Device Controller".
 */
import { allOnes } from '../../core/address.ts';
import type { InterruptLine, IoRegion, PowerControl } from '../../core/device.ts';
import { io, irqNoFlags } from '../../core/firmware/aml-resources.ts';
import { type DeviceAml, isaDevice } from '../../core/firmware/contribution.ts';
import type { IoBus, Registration } from '../../core/io-bus.ts';
import { ByteFifo } from './byte-fifo.ts';
import type { PlatformDevice } from './platform-device.ts';
import { Ps2Keyboard } from './ps2-keyboard.ts';
import { Ps2Mouse } from './ps2-mouse.ts';

const DATA_PORT = 0x60;
const COMMAND_PORT = 0x64;
/** ISA interrupts of keyboard and mouse. */
export const I8042Irq = { keyboard: 1, aux: 12 } as const;

/** Status register, port 0x64. */
const Status = { OutputFull: 1 << 0, System: 1 << 2, Command: 1 << 3, Unlocked: 1 << 4, AuxFull: 1 << 5 } as const;
/** Command byte: RAM byte 0. */
const CommandByte = {
  KeyboardInterrupt: 1 << 0,
  AuxInterrupt: 1 << 1,
  System: 1 << 2,
  KeyboardOff: 1 << 4,
  AuxOff: 1 << 5,
  Translate: 1 << 6,
} as const;
/** Output port: bits that follow the output buffer. */
const OutputPort = { KeyboardFull: 1 << 4, AuxFull: 1 << 5 } as const;

/** Commands written to port 0x64. */
const Command = {
  ReadRam: 0x20,
  LastReadRam: 0x3f,
  WriteRam: 0x60,
  LastWriteRam: 0x7f,
  AuxOff: 0xa7,
  AuxOn: 0xa8,
  TestAux: 0xa9,
  SelfTest: 0xaa,
  TestKeyboard: 0xab,
  KeyboardOff: 0xad,
  KeyboardOn: 0xae,
  ReadInputPort: 0xc0,
  ReadOutputPort: 0xd0,
  WriteOutputPort: 0xd1,
  WriteKeyboardBuffer: 0xd2,
  WriteAuxBuffer: 0xd3,
  WriteAux: 0xd4,
  /** Pulse output port bit 0, the processor's reset. */
  PulseReset: 0xfe,
} as const;
const SELF_TEST_PASSED = 0x55;
const PORT_TEST_PASSED = 0x00;

const RAM_BYTES = 32;
const BUFFER_BYTES = 15;
const NO_ANSWER = -1;

/** Set 2 key released; the make code follows. */
const BREAK_PREFIX = 0xf0;
/** Set 1: the top bit of the code says released. */
const SET1_RELEASED = 0x80;

/**
 * Scan code set 2 to set 1 (Microsoft, "Keyboard Scan Code Specification", appendix A), codes 0x00 to 0x7f; the codes
 * from 0x80 on stay, but for 0x83 (F7) and 0x84 (SysRq).
 */
const SET2_TO_SET1 = Uint8Array.from(
  '\xff\x43\x41\x3f\x3d\x3b\x3c\x58\x64\x44\x42\x40\x3e\x0f\x29\x59' +
    '\x65\x38\x2a\x70\x1d\x10\x02\x5a\x66\x71\x2c\x1f\x1e\x11\x03\x5b' +
    '\x67\x2e\x2d\x20\x12\x05\x04\x5c\x68\x39\x2f\x21\x14\x13\x06\x5d' +
    '\x69\x31\x30\x23\x22\x15\x07\x5e\x6a\x72\x32\x24\x16\x08\x09\x5f' +
    '\x6b\x33\x25\x17\x18\x0b\x0a\x60\x6c\x34\x35\x26\x27\x19\x0c\x61' +
    '\x6d\x73\x28\x74\x1a\x0d\x62\x6e\x3a\x36\x1c\x1b\x75\x2b\x63\x76' +
    '\x55\x56\x77\x78\x79\x7a\x0e\x7b\x7c\x4f\x7d\x4b\x47\x7e\x7f\x6f' +
    '\x52\x53\x50\x4c\x4d\x48\x01\x45\x57\x4e\x51\x4a\x37\x49\x46\x54',
  (c) => c.charCodeAt(0),
);

function toSet1(code: number): number {
  if (code === 0x83) return 0x41;
  if (code === 0x84) return 0x54;
  return code < SET2_TO_SET1.length ? (SET2_TO_SET1[code] as number) : code;
}

export interface I8042Options {
  /** ISA interrupt 1, edge triggered: asserted and deasserted again for each byte. */
  readonly keyboardIrq: InterruptLine;
  /** ISA interrupt 12, edge triggered likewise. */
  readonly auxIrq: InterruptLine;
  readonly power: PowerControl;
}

export class I8042 implements PlatformDevice {
  readonly #keyboardIrq: InterruptLine;
  readonly #auxIrq: InterruptLine;
  readonly #power: PowerControl;
  readonly keyboard: Ps2Keyboard;
  readonly mouse: Ps2Mouse;
  readonly #ram = new Uint8Array(RAM_BYTES);
  /** Bytes from the keyboard, translated. */
  readonly #buffer = new ByteFifo(BUFFER_BYTES);
  #outputPort = 0;
  /** Command whose argument is the next write to port 0x60, 0 for none. */
  #command = 0;
  #isCommandLast = false;
  /** The controller's own answer goes before keyboard and mouse. */
  #answer = NO_ANSWER;
  /** What an empty buffer reads as: the last byte, as on hardware. */
  #lastByte = 0;
  /** Translation has seen the break prefix. */
  #isBreak = false;

  constructor(options: I8042Options) {
    this.#keyboardIrq = options.keyboardIrq;
    this.#auxIrq = options.auxIrq;
    this.#power = options.power;
    this.keyboard = new Ps2Keyboard(() => {
      if ((this.#commandByte() & CommandByte.KeyboardOff) === 0) this.#pollKeyboard();
    });
    this.mouse = new Ps2Mouse(() => this.#pollAux());
  }

  aml(): DeviceAml[] {
    const ports = [io(DATA_PORT, 1), io(COMMAND_PORT, 1)];
    return [
      isaDevice('KBD', 'PNP0303', [...ports, irqNoFlags(I8042Irq.keyboard)]),
      isaDevice('MOU', 'PNP0F13', [...ports, irqNoFlags(I8042Irq.aux)]),
    ];
  }

  attach(pio: IoBus): Registration[] {
    const data: IoRegion = {
      read: (_offset, size) => (size === 1 ? this.#readData() : allOnes(size)),
      write: (_offset, size, value) => {
        if (size === 1) this.#writeData(value);
      },
    };
    const command: IoRegion = {
      read: (_offset, size) => (size === 1 ? this.#status() : allOnes(size)),
      write: (_offset, size, value) => {
        if (size === 1) this.#writeCommand(value);
      },
    };
    return [
      pio.register({ base: DATA_PORT, size: 1, name: 'i8042 data' }, data),
      pio.register({ base: COMMAND_PORT, size: 1, name: 'i8042 command' }, command),
    ];
  }

  reset(): void {
    this.keyboard.reset();
    this.mouse.reset();
    this.#ram.fill(0);
    this.#buffer.clear();
    this.#outputPort = 0;
    this.#command = 0;
    this.#isCommandLast = false;
    this.#answer = NO_ANSWER;
    this.#lastByte = 0;
    this.#isBreak = false;
  }

  stop(): void {}

  #commandByte(): number {
    return this.#ram[0] as number;
  }

  /**
   * Compat: the C device model leaves OBF set after its own answers were read, so that a driver reads one byte too
   * many; here OBF means a byte is waiting. It leaves bit 4 clear, which means that the keyboard lock is on: guests say
   * so at every boot.
   */
  #status(): number {
    const hasAnswer = this.#answer !== NO_ANSWER;
    const hasAux = this.mouse.pending > 0;
    return (
      Status.Unlocked |
      (hasAnswer || hasAux || this.#buffer.length > 0 ? Status.OutputFull : 0) |
      (hasAux && !hasAnswer ? Status.AuxFull : 0) |
      ((this.#commandByte() & CommandByte.System) !== 0 ? Status.System : 0) |
      (this.#isCommandLast ? Status.Command : 0)
    );
  }

  #readData(): number {
    this.#command = 0;
    this.#isCommandLast = false;
    if (this.#answer !== NO_ANSWER) {
      this.#lastByte = this.#answer;
      this.#answer = NO_ANSWER;
      return this.#lastByte;
    }
    let byte = this.mouse.read();
    if (byte < 0) byte = this.#buffer.shift();
    if (byte < 0) return this.#lastByte;
    this.#lastByte = byte;
    this.#poll();
    return byte;
  }

  #writeData(value: number): void {
    const command = this.#command;
    this.#command = 0;
    this.#isCommandLast = false;
    // Compat: after a command without argument the C device model swallows this byte; it is the keyboard's.
    if (command === 0) {
      this.keyboard.write(value);
      this.#poll();
      return;
    }
    switch (command) {
      case Command.WriteOutputPort:
        this.#outputPort = value;
        break;
      case Command.WriteAux:
        this.mouse.write(value);
        this.#poll();
        break;
      case Command.WriteKeyboardBuffer:
        this.#buffer.push(value);
        this.#keyboardInterrupt();
        break;
      case Command.WriteAuxBuffer:
        this.mouse.insert(value);
        this.#pollAux();
        break;
      default:
        if (command >= Command.WriteRam && command <= Command.LastWriteRam) this.#ram[command & 0x1f] = value;
    }
  }

  #writeCommand(command: number): void {
    this.#command = 0;
    this.#isCommandLast = true;
    this.#answer = NO_ANSWER;
    switch (command) {
      case Command.SelfTest:
        this.#answer = SELF_TEST_PASSED;
        break;
      case Command.TestAux:
      case Command.TestKeyboard:
        this.#answer = PORT_TEST_PASSED;
        break;
      case Command.ReadInputPort:
        this.#answer = 0;
        break;
      case Command.ReadOutputPort:
        this.#answer =
          this.#outputPort |
          (this.#buffer.length > 0 ? OutputPort.KeyboardFull : 0) |
          (this.mouse.pending > 0 ? OutputPort.AuxFull : 0);
        break;
      case Command.WriteOutputPort:
      case Command.WriteKeyboardBuffer:
      case Command.WriteAuxBuffer:
      case Command.WriteAux:
        this.#command = command;
        break;
      case Command.KeyboardOff:
        this.#ram[0] = this.#commandByte() | CommandByte.KeyboardOff;
        break;
      case Command.KeyboardOn:
        this.#ram[0] = this.#commandByte() & ~CommandByte.KeyboardOff;
        this.#poll();
        break;
      case Command.AuxOff:
        this.#ram[0] = this.#commandByte() | CommandByte.AuxOff;
        this.mouse.setPort(false);
        break;
      case Command.AuxOn:
        this.#ram[0] = this.#commandByte() & ~CommandByte.AuxOff;
        this.mouse.setPort(true);
        break;
      case Command.PulseReset:
        this.#power.request({ kind: 'full-reset', reason: 'keyboard controller reset' });
        break;
      default:
        if (command >= Command.ReadRam && command <= Command.LastReadRam) {
          this.#answer = this.#ram[command & 0x1f] as number;
        } else if (command >= Command.WriteRam && command <= Command.LastWriteRam) {
          this.#command = command;
        }
    }
    // Every command announces again what is waiting.
    if (this.#answer !== NO_ANSWER) this.#keyboardInterrupt();
    else if (this.mouse.pending > 0 && (this.#commandByte() & CommandByte.AuxOff) === 0) this.#auxInterrupt();
    else if (this.#buffer.length > 0 && (this.#commandByte() & CommandByte.KeyboardOff) === 0)
      this.#keyboardInterrupt();
  }

  #poll(): void {
    this.#pollAux();
    this.#pollKeyboard();
  }

  #pollAux(): void {
    if (this.mouse.pending > 0) this.#auxInterrupt();
  }

  /** Take what the keyboard has, and announce it unless the mouse goes first. */
  #pollKeyboard(): void {
    const translate = (this.#commandByte() & CommandByte.Translate) !== 0;
    while (this.#buffer.room > 0) {
      const byte = this.keyboard.read();
      if (byte < 0) break;
      if (!translate) {
        this.#buffer.push(byte);
      } else if (byte === BREAK_PREFIX) {
        this.#isBreak = true;
      } else {
        this.#buffer.push(toSet1(byte) | (this.#isBreak ? SET1_RELEASED : 0));
        this.#isBreak = false;
      }
    }
    const auxFirst = this.mouse.pending > 0 && (this.#commandByte() & CommandByte.AuxOff) === 0;
    if (this.#buffer.length > 0 && !auxFirst) this.#keyboardInterrupt();
  }

  #keyboardInterrupt(): void {
    if ((this.#commandByte() & CommandByte.KeyboardInterrupt) === 0) return;
    this.#keyboardIrq.set(true);
    this.#keyboardIrq.set(false);
  }

  #auxInterrupt(): void {
    if ((this.#commandByte() & CommandByte.AuxInterrupt) === 0) return;
    this.#auxIrq.set(true);
    this.#auxIrq.set(false);
  }
}
