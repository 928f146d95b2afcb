/** Lines of the host's GPIO chips (<linux/gpio.h>, version 2 of its interface: Linux 5.10 and later). */
import { HostError } from '../errors.ts';
import { describeErrno, Errno } from './errno.ts';
import { watchFd } from './fd-watch.ts';
import { closeFd, OpenFlag, openFile, readBytes, setNonBlocking } from './files.ts';
import { ioctlBytes } from './ioctl.ts';

/** ioctls of type 0xB4. */
const Ioctl = {
  ChipInfo: 0x8044b401,
  LineInfo: 0xc100b405,
  RequestLine: 0xc250b407,
  SetConfig: 0xc110b40d,
  GetValues: 0xc010b40e,
  SetValues: 0xc010b40f,
} as const;

/** struct gpiochip_info: name, label, u32 lines. */
const ChipInfo = { lines: 64, size: 68 } as const;
/** struct gpio_v2_line_info: name, consumer, u32 offset, u32 attributes, u64 flags, … */
const LineInfo = { name: 0, consumer: 32, offset: 64, flags: 72, size: 256, textBytes: 32 } as const;
/** struct gpio_v2_line_config: u64 flags, u32 attributes, padding, then attributes of u32 id, u64 value, u64 line mask. */
const LineConfig = { flags: 0, attributes: 8, id: 32, value: 40, mask: 48, size: 272 } as const;
/** struct gpio_v2_line_request: u32 offsets[64], consumer, configuration, u32 lines, u32 event buffer, padding, s32 fd. */
const LineRequest = { offsets: 0, consumer: 256, lines: 560, fd: 588, size: 592 } as const;
/** struct gpio_v2_line_event: u64 time, u32 id, … */
const LineEvent = { id: 8, size: 48 } as const;

/** enum gpio_v2_line_flag. */
const LineFlag = {
  Used: 1 << 0,
  Input: 1 << 2,
  Output: 1 << 3,
  EdgeRising: 1 << 4,
  EdgeFalling: 1 << 5,
  OpenDrain: 1 << 6,
  OpenSource: 1 << 7,
} as const;
const ATTRIBUTE_OUTPUT_VALUES = 2;
/** Who has the line, for `gpioinfo`. */
const CONSUMER = 'acrn_dm';

/** Edges, as bits of a set. Values of enum gpio_v2_line_event_id and of the guests' interrupt types. */
export const Edge = { Rising: 1, Falling: 2 } as const;
/** {@link GpioLine.nextEdge}: the chip is gone. */
export const CHIP_GONE = -1;

export type Drive = 'push-pull' | 'open-drain' | 'open-source';
const driveFlags: Readonly<Record<Drive, number>> = {
  'push-pull': 0,
  'open-drain': LineFlag.OpenDrain,
  'open-source': LineFlag.OpenSource,
};

/** A line that this process has for itself. What the host refuses is no exception: the guest is told. */
export interface GpioLine {
  /** Of the guest's choice, or what the host calls it; may be empty. */
  readonly name: string;
  readonly isOutput: boolean;
  /** @returns the level, undefined when it cannot be had. */
  read(): 0 | 1 | undefined;
  /** Level of an output. @returns whether it was set. */
  write(value: 0 | 1): boolean;
  /** @param edges of {@link Edge}, which are reported from now on. */
  makeInput(edges: number): boolean;
  makeOutput(value: 0 | 1, drive: Drive): boolean;
  /** The oldest edge not taken yet, 0 when there is none, or {@link CHIP_GONE}. */
  nextEdge(): number;
  /** Called when edges are waiting. @returns how to stop. */
  watch(onEdge: () => void): () => void;
  close(): void;
}

function ioctl(fd: number, request: number, argument: ArrayBufferView): boolean {
  return ioctlBytes(fd, request, argument) >= 0;
}

function textAt(bytes: Uint8Array, at: number): string {
  const field = bytes.subarray(at, at + LineInfo.textBytes);
  const end = field.indexOf(0);
  return Buffer.from(end < 0 ? field : field.subarray(0, end)).toString();
}

class LinuxGpioLine implements GpioLine {
  readonly name: string;
  readonly #fd: number;
  #isOutput: boolean;
  #open = true;
  readonly #config = new DataView(new ArrayBuffer(LineConfig.size));
  readonly #event = new DataView(new ArrayBuffer(LineEvent.size));
  /** struct gpio_v2_line_values: u64 values, u64 mask. A request has one line, which is bit 0. */
  readonly #values = Uint32Array.of(0, 0, 1, 0);

  constructor(fd: number, name: string, isOutput: boolean) {
    this.#fd = fd;
    this.name = name;
    this.#isOutput = isOutput;
    setNonBlocking(fd, true, name);
  }

  get isOutput(): boolean {
    return this.#isOutput;
  }

  read(): 0 | 1 | undefined {
    if (!ioctl(this.#fd, Ioctl.GetValues, this.#values)) return undefined;
    return ((this.#values[0] as number) & 1) as 0 | 1;
  }

  write(value: 0 | 1): boolean {
    this.#values[0] = value;
    return ioctl(this.#fd, Ioctl.SetValues, this.#values);
  }

  makeInput(edges: number): boolean {
    const rising = (edges & Edge.Rising) === 0 ? 0 : LineFlag.EdgeRising;
    const falling = (edges & Edge.Falling) === 0 ? 0 : LineFlag.EdgeFalling;
    if (!this.#configure(LineFlag.Input | rising | falling, undefined)) return false;
    this.#isOutput = false;
    return true;
  }

  makeOutput(value: 0 | 1, drive: Drive): boolean {
    if (!this.#configure(LineFlag.Output | driveFlags[drive], value)) return false;
    this.#isOutput = true;
    return true;
  }

  #configure(flags: number, value: 0 | 1 | undefined): boolean {
    const config = this.#config;
    config.setUint32(LineConfig.flags, flags, true);
    config.setUint32(LineConfig.attributes, value === undefined ? 0 : 1, true);
    // Attributes that are not counted have to be zero.
    config.setUint32(LineConfig.id, value === undefined ? 0 : ATTRIBUTE_OUTPUT_VALUES, true);
    config.setUint32(LineConfig.value, value ?? 0, true);
    config.setUint32(LineConfig.mask, value === undefined ? 0 : 1, true);
    return ioctl(this.#fd, Ioctl.SetConfig, config);
  }

  nextEdge(): number {
    const got = readBytes(this.#fd, this.#event, LineEvent.size);
    if (got === LineEvent.size) return this.#event.getUint32(LineEvent.id, true);
    return got === -Errno.EAGAIN ? 0 : CHIP_GONE;
  }

  watch(onEdge: () => void): () => void {
    return watchFd(this.#fd, onEdge);
  }

  close(): void {
    if (this.#open) closeFd(this.#fd);
    this.#open = false;
  }
}

/** An open chip, only needed until its lines are had. */
export class LinuxGpioChip {
  readonly #name: string;
  readonly #fd: number;
  readonly #lineCount: number;

  /** @throws HostError */
  constructor(name: string) {
    const path = `/dev/${name}`;
    this.#name = name;
    this.#fd = openFile(path, OpenFlag.ReadWrite | OpenFlag.CloseOnExec);
    const info = new DataView(new ArrayBuffer(ChipInfo.size));
    const result = ioctlBytes(this.#fd, Ioctl.ChipInfo, info);
    if (result < 0) {
      this.close();
      throw new HostError(`${path}: not a GPIO chip: ${describeErrno(-result)}`, -result);
    }
    this.#lineCount = info.getUint32(ChipInfo.lines, true);
  }

  /** @throws HostError if there is no such line, or somebody else has it. */
  take(wanted: string, alias: string | undefined): GpioLine {
    const where = `/dev/${this.#name}: line ${wanted}`;
    const found = this.#find(wanted);
    if (found === undefined) throw new HostError(`${where}: there is none, the chip has ${this.#lineCount}`, 0);
    const { offset, info } = found;
    const flags = new DataView(info.buffer).getUint32(LineInfo.flags, true);
    if ((flags & LineFlag.Used) !== 0) {
      throw new HostError(`${where}: in use by ${textAt(info, LineInfo.consumer) || 'the kernel'}`, Errno.EBUSY);
    }
    // No flags: direction and level stay as they are until the guest asks for others.
    const request = new DataView(new ArrayBuffer(LineRequest.size));
    request.setUint32(LineRequest.offsets, offset, true);
    request.setUint32(LineRequest.lines, 1, true);
    new Uint8Array(request.buffer).set(Buffer.from(CONSUMER), LineRequest.consumer);
    const result = ioctlBytes(this.#fd, Ioctl.RequestLine, request);
    if (result < 0) throw new HostError(`${where}: ${describeErrno(-result)}`, -result);
    const name = alias ?? textAt(info, LineInfo.name);
    return new LinuxGpioLine(request.getInt32(LineRequest.fd, true), name, (flags & LineFlag.Output) !== 0);
  }

  #find(wanted: string): { readonly offset: number; readonly info: Uint8Array } | undefined {
    const isNumber = /^\d+$/.test(wanted);
    for (let offset = isNumber ? Number(wanted) : 0; offset < this.#lineCount; offset++) {
      const info = new Uint8Array(LineInfo.size);
      new DataView(info.buffer).setUint32(LineInfo.offset, offset, true);
      if (ioctl(this.#fd, Ioctl.LineInfo, info) && (isNumber || textAt(info, LineInfo.name) === wanted)) {
        return { offset, info };
      }
      if (isNumber) return undefined;
    }
    return undefined;
  }

  close(): void {
    closeFd(this.#fd);
  }
}
