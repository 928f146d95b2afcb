/**
 * Resource descriptors: what `_CRS` and `_PRS` buffers hold. Spec: ACPI 6.4 §6.4, figures named per function.
 * Each function gives the bytes of one descriptor; `resourceTemplate` makes the buffer.
 */
import { BugError } from '../errors.ts';
import { type Aml, buffer } from './aml.ts';

function le(value: number | bigint, bytes: number): number[] {
  if (typeof value === 'bigint') {
    if (value >> BigInt(8 * bytes) !== 0n)
      throw new BugError(`aml: ${value} does not fit ${bytes} bytes of a descriptor`);
    return bytes <= 4
      ? le(Number(value), bytes)
      : [...le(Number(value & 0xffff_ffffn), 4), ...le(Number(value >> 32n), bytes - 4)];
  }
  const out: number[] = [];
  let rest = value;
  for (let i = 0; i < bytes; i++) {
    out.push(rest % 256);
    rest = Math.floor(rest / 256);
  }
  if (rest !== 0 || !Number.isSafeInteger(value))
    throw new BugError(`aml: ${value} does not fit ${bytes} bytes of a descriptor`);
  return out;
}

/** A large descriptor: tag, 16-bit length, data (§6.4.3). */
function large(tag: number, data: Aml): Aml {
  return [tag, ...le(data.length, 2), ...data];
}

/** The buffer of a `ResourceTemplate () { ... }`: descriptors and the end tag (§6.4.2.9, checksum 0 = not used). */
export function resourceTemplate(descriptors: readonly Aml[]): Aml {
  return buffer([...([] as number[]).concat(...descriptors), 0x79, 0x00]);
}

/** `IO (Decode16, base, base, 1, length)`: ports at a fixed place (§6.4.2.5). */
export function io(base: number, length: number): Aml {
  return [0x47, 0x01, ...le(base, 2), ...le(base, 2), 0x01, ...le(length, 1)];
}

function bitMask(lines: readonly number[], width: number): number {
  let mask = 0;
  for (const line of lines) {
    if (!Number.isInteger(line) || line < 0 || line >= width) throw new BugError(`aml: line ${line} of ${width}`);
    mask |= 1 << line;
  }
  return mask;
}

/** `IRQNoFlags () {lines}`: edge triggered, active high, exclusive (§6.4.2.1, two-byte form). */
export function irqNoFlags(...lines: readonly number[]): Aml {
  return [0x22, ...le(bitMask(lines, 16), 2)];
}

export interface IrqFlags {
  readonly level?: boolean;
  readonly activeLow?: boolean;
  readonly shared?: boolean;
}

/** `IRQ (trigger, polarity, sharing) {lines}` (§6.4.2.1, three-byte form). No lines: a place holder. */
export function irq(flags: IrqFlags, lines: readonly number[]): Aml {
  const info = (flags.level === true ? 0 : 0x01) | (flags.activeLow === true ? 0x08 : 0) | (flags.shared ? 0x10 : 0);
  return [0x23, ...le(bitMask(lines, 16), 2), info];
}

/** `Memory32Fixed (ReadWrite, base, length)` (§6.4.3.4). */
export function memory32Fixed(base: number, length: number, writable = true): Aml {
  return large(0x86, [writable ? 1 : 0, ...le(base, 4), ...le(length, 4)]);
}

/** Address space resource types (§6.4.3.5). */
const SpaceType = { Memory: 0, Io: 1, Bus: 2 } as const;
/** General flags: minimum and maximum fixed; a bridge that hands the range on is a producer (bit 0 clear). */
const MIN_FIXED_MAX_FIXED = 0x0c;
/** I/O flags: both ISA and non-ISA addresses (EntireRange). */
const IO_ENTIRE_RANGE = 0x03;
/** Memory flags: read-write, not cacheable, plain address range. */
const MEMORY_READ_WRITE = 0x01;

const SpaceTag = { 2: 0x88, 4: 0x87, 8: 0x8a } as const;

/** A range that a bridge decodes: granularity 0, no translation. */
function addressSpace(width: 2 | 4 | 8, type: number, typeFlags: number, base: number, length: number): Aml {
  return large(SpaceTag[width], [
    type,
    MIN_FIXED_MAX_FIXED,
    typeFlags,
    ...le(0, width),
    ...le(base, width),
    ...le(base + length - 1, width),
    ...le(0, width),
    ...le(length, width),
  ]);
}

/** `WordBusNumber (ResourceProducer, MinFixed, MaxFixed, PosDecode, ...)`. */
export function wordBusNumber(firstBus: number, count: number): Aml {
  return addressSpace(2, SpaceType.Bus, 0, firstBus, count);
}

/** `WordIO (ResourceProducer, MinFixed, MaxFixed, PosDecode, EntireRange, ...)`. */
export function wordIo(base: number, length: number): Aml {
  return addressSpace(2, SpaceType.Io, IO_ENTIRE_RANGE, base, length);
}

/** `DWordMemory (ResourceProducer, PosDecode, MinFixed, MaxFixed, NonCacheable, ReadWrite, ...)`. */
export function dwordMemory(base: number, length: number): Aml {
  return addressSpace(4, SpaceType.Memory, MEMORY_READ_WRITE, base, length);
}

/** As `dwordMemory`, with 64-bit addresses. */
export function qwordMemory(base: number, length: number): Aml {
  return addressSpace(8, SpaceType.Memory, MEMORY_READ_WRITE, base, length);
}

/**
 * `QWordMemory (ResourceConsumer, PosDecode, MinNotFixed, MaxNotFixed, NonCacheable, ReadOnly, ...,
 * AddressRangeACPI, TypeStatic)`: a table in memory, as a resource.
 */
export function qwordMemoryReadOnlyAcpi(base: number, length: number): Aml {
  const consumer = 0x01;
  const addressRangeAcpi = 2 << 3;
  return large(SpaceTag[8], [
    SpaceType.Memory,
    consumer,
    addressRangeAcpi,
    ...le(0, 8),
    ...le(base, 8),
    ...le(base + length - 1, 8),
    ...le(0, 8),
    ...le(length, 8),
  ]);
}

/** `Interrupt (ResourceConsumer, trigger, polarity, sharing) {gsis}` (§6.4.3.6). */
export function interrupt(flags: IrqFlags, gsis: readonly number[]): Aml {
  const info =
    0x01 | (flags.level === true ? 0 : 0x02) | (flags.activeLow === true ? 0x04 : 0) | (flags.shared === true ? 8 : 0);
  return large(0x89, [info, gsis.length, ...gsis.flatMap((gsi) => le(gsi, 4))]);
}

/** Address space ids of generic addresses (§5.2.3.2, table 5.1). */
export const AddressSpace = {
  SystemMemory: 0,
  SystemIo: 1,
  PciConfig: 2,
  EmbeddedControl: 3,
  Smbus: 4,
  PlatformComm: 0x0a,
  FixedHardware: 0x7f,
} as const;

/** A generic address, as `Register` descriptors and fixed tables hold it (§5.2.3.2). */
export interface GenericAddress {
  readonly space: number;
  readonly bitWidth: number;
  readonly bitOffset: number;
  /** 0 undefined, 1 byte, 2 word, 3 dword, 4 qword. */
  readonly accessSize: number;
  readonly address: number | bigint;
}

/** `Register (space, width, offset, address, access)` (§6.4.3.7). */
export function register(at: GenericAddress): Aml {
  return large(0x82, [at.space, at.bitWidth, at.bitOffset, at.accessSize, ...le(at.address, 8)]);
}

export interface GpioIoPins {
  /** Path of the controller. */
  readonly controller: string;
  readonly pins: readonly number[];
}

/** `GpioIo (Exclusive, PullDefault, 0, 0, IoRestrictionInputOnly, controller, 0, ResourceConsumer)` (§6.4.3.8.1). */
export function gpioInput(gpio: GpioIoPins): Aml {
  return gpioConnection(1, 0x0001, gpio);
}

/** `GpioInt (Edge, ActiveBoth, SharedAndWake, PullNone, 0, controller, 0, ResourceConsumer)` (§6.4.3.8.1). */
export function gpioInterruptBothEdges(gpio: GpioIoPins): Aml {
  // Bit 0 edge, bits 2:1 = 2 active both, bits 4:3 = 3 shared and able to wake.
  return gpioConnection(0, 0x001d, gpio, 0x03);
}

function gpioConnection(type: 0 | 1, flags: number, gpio: GpioIoPins, pull = 0): Aml {
  const source = [...gpio.controller].map((c) => c.charCodeAt(0));
  const fixedBytes = 23;
  const sourceAt = fixedBytes + 2 * gpio.pins.length;
  const end = sourceAt + source.length + 1;
  const data = [
    1, // revision
    type,
    ...le(1, 2), // resource consumer
    ...le(flags, 2),
    pull,
    ...le(0, 2), // output drive strength
    ...le(0, 2), // debounce timeout
    ...le(fixedBytes, 2), // pin table
    0, // resource source index
    ...le(sourceAt, 2),
    ...le(end, 2), // vendor data: none
    ...le(0, 2),
    ...gpio.pins.flatMap((pin) => le(pin, 2)),
    ...source,
    0,
  ];
  return large(0x8c, data);
}

/** `I2cSerialBusV2 (address, ControllerInitiated, speed, AddressingMode7Bit, controller, ...)` (§6.4.3.8.2.1). */
export function i2cDevice(controller: string, address: number, speedHz: number): Aml {
  const source = [...controller].map((c) => c.charCodeAt(0));
  const data = [
    2, // revision
    0, // resource source index
    1, // serial bus type: I2C
    0x02, // resource consumer, controller initiated, exclusive
    ...le(0, 2), // 7-bit addressing
    1, // type revision
    ...le(6, 2), // type data length
    ...le(speedHz, 4),
    ...le(address, 2),
    ...source,
    0,
  ];
  return large(0x8e, data);
}
