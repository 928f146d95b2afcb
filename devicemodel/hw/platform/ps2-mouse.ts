/**
 * PS/2 mouse, three buttons, no wheel.
 * Spec: IBM PS/2 Hardware Interface Technical Reference, "Mouse".
 */
import { ByteFifo } from './byte-fifo.ts';

/** Commands from the system. */
const Command = {
  SetScaling11: 0xe6,
  SetScaling21: 0xe7,
  SetResolution: 0xe8,
  StatusRequest: 0xe9,
  SetStreamMode: 0xea,
  ReadData: 0xeb,
  SetRemoteMode: 0xf0,
  ReadId: 0xf2,
  SetSamplingRate: 0xf3,
  Enable: 0xf4,
  Disable: 0xf5,
  SetDefault: 0xf6,
  Reset: 0xff,
} as const;
const Answer = { SelfTestPassed: 0xaa, Ack: 0xfa } as const;
const MOUSE_ID = 0x00;

/** First byte of a data packet. */
const Packet = { Buttons: 0x07, AlwaysOne: 1 << 3, XSign: 1 << 4, YSign: 1 << 5 } as const;
const PACKET_BYTES = 3;
/** Status byte. Compat: buttons are in bits 2:0 as in the packet; the reference manual has left and right swapped. */
const Status = { Scaling21: 1 << 4, Enabled: 1 << 5, Remote: 1 << 6 } as const;

const Default = { resolution: 4, samplingRate: 100 } as const;
const QUEUE_BYTES = 16;
/** Largest movement one packet can carry. */
const MAX_DELTA = 255;

/** Bits of `buttons` in {@link Ps2Mouse.move} and {@link Ps2Mouse.pointer}. */
export const MouseButton = { Left: 1 << 0, Middle: 1 << 1, Right: 1 << 2 } as const;

export class Ps2Mouse {
  readonly #queue = new ByteFifo(QUEUE_BYTES);
  readonly #onData: () => void;
  /** The controller's auxiliary port is on; without it nothing is reported. */
  #isPortOn = false;
  #command = 0;
  // Compat: reporting is on after a reset, and the resolution is 4, as in the C device model.
  #status: number = Status.Enabled;
  #resolution: number = Default.resolution;
  #samplingRate: number = Default.samplingRate;
  #buttons = 0;
  /** Movement not reported yet; y grows upwards. */
  #deltaX = 0;
  #deltaY = 0;
  /** Where {@link pointer} last was. */
  #x = 0;
  #y = 0;

  /** @param onData a movement put bytes into the queue; answers to commands do not call it. */
  constructor(onData: () => void) {
    this.#onData = onData;
  }

  reset(): void {
    this.#isPortOn = false;
    this.#command = 0;
    this.#buttons = 0;
    this.#setDefaults();
  }

  /** Bytes waiting for the controller. */
  get pending(): number {
    return this.#queue.length;
  }

  /** The mouse moved or a button changed; right and down are positive. */
  move(deltaX: number, deltaY: number, buttons: number): void {
    this.#deltaX += Math.trunc(deltaX);
    this.#deltaY -= Math.trunc(deltaY);
    this.#buttons =
      ((buttons & MouseButton.Left) !== 0 ? 1 : 0) |
      ((buttons & MouseButton.Right) !== 0 ? 2 : 0) |
      ((buttons & MouseButton.Middle) !== 0 ? 4 : 0);
    if (!this.#isPortOn || (this.#status & Status.Enabled) === 0 || (this.#status & Status.Remote) !== 0) return;
    const before = this.#queue.length;
    do {
      if (this.#queue.room < PACKET_BYTES) break;
      this.#queuePacket();
    } while (this.#deltaX !== 0 || this.#deltaY !== 0);
    if (this.#queue.length > before) this.#onData();
  }

  /** The pointer of a remote display is at x, y: reported as the movement since the last call. */
  pointer(x: number, y: number, buttons: number): void {
    const [deltaX, deltaY] = [x - this.#x, y - this.#y];
    this.#x = x;
    this.#y = y;
    this.move(deltaX, deltaY, buttons);
  }

  /** The controller switches its auxiliary port; off forgets what was waiting. */
  setPort(isOn: boolean): void {
    this.#isPortOn = isOn;
    if (!isOn) this.#queue.clear();
  }

  /** A byte as if from the mouse (controller command 0xd3). */
  insert(byte: number): void {
    this.#queue.clear();
    this.#queue.push(byte);
  }

  /** The next byte for the controller, or -1. */
  read(): number {
    return this.#queue.shift();
  }

  /** A byte from the controller. An answer replaces what was waiting. */
  write(byte: number): void {
    this.#queue.clear();
    this.#queue.push(Answer.Ack);
    const command = this.#command;
    if (command !== 0) {
      this.#command = 0;
      if (command === Command.SetSamplingRate) this.#samplingRate = byte;
      else this.#resolution = byte;
      return;
    }
    switch (byte) {
      case Command.Reset:
        this.#setDefaults();
        this.#queue.pushAll([Answer.Ack, Answer.SelfTestPassed, MOUSE_ID]);
        break;
      case Command.SetDefault:
        this.#setDefaults();
        this.#queue.push(Answer.Ack);
        break;
      case Command.Disable:
        this.#status &= ~Status.Enabled;
        break;
      case Command.Enable:
        this.#status |= Status.Enabled;
        break;
      case Command.SetSamplingRate:
      case Command.SetResolution:
        this.#command = byte;
        break;
      case Command.ReadId:
        this.#queue.push(MOUSE_ID);
        break;
      case Command.SetRemoteMode:
        this.#status |= Status.Remote;
        break;
      case Command.SetStreamMode:
        this.#status &= ~Status.Remote;
        break;
      case Command.ReadData:
        this.#queuePacket();
        break;
      case Command.StatusRequest:
        this.#queue.pushAll([this.#status | this.#buttons, this.#resolution, this.#samplingRate]);
        break;
      // Compat: in the C device model the status never tells of scaling.
      case Command.SetScaling11:
        this.#status &= ~Status.Scaling21;
        break;
      case Command.SetScaling21:
        this.#status |= Status.Scaling21;
        break;
      default:
        break;
    }
  }

  #setDefaults(): void {
    this.#queue.clear();
    this.#status = Status.Enabled;
    this.#resolution = Default.resolution;
    this.#samplingRate = Default.samplingRate;
    this.#deltaX = 0;
    this.#deltaY = 0;
    this.#x = 0;
    this.#y = 0;
  }

  /** What does not fit one packet stays for the next. */
  #queuePacket(): void {
    const x = Math.max(-MAX_DELTA, Math.min(MAX_DELTA, this.#deltaX));
    const y = Math.max(-MAX_DELTA, Math.min(MAX_DELTA, this.#deltaY));
    this.#deltaX -= x;
    this.#deltaY -= y;
    const head =
      Packet.AlwaysOne | (this.#buttons & Packet.Buttons) | (x < 0 ? Packet.XSign : 0) | (y < 0 ? Packet.YSign : 0);
    this.#queue.pushAll([head, x & 0xff, y & 0xff]);
  }
}
