/**
 * Registers of a VGA: sequencer, CRT controller, graphics and attribute controller, palette.
 * Spec: IBM PS/2 Hardware Interface Technical Reference, "Video Subsystem"; the names of registers are its names.
 */
import { type AccessSize, allOnes } from '../../../core/address.ts';
import type { IoRegion } from '../../../core/device.ts';

/** First of the ports; {@link VGA_PORTS} of them. */
export const VGA_PORT_BASE = 0x3c0;
export const VGA_PORTS = 0x20;

const Port = {
  AttributeIndex: 0x3c0,
  AttributeData: 0x3c1,
  /** Written; status 0 when read. */
  MiscOutput: 0x3c2,
  SequencerIndex: 0x3c4,
  SequencerData: 0x3c5,
  PaletteReadIndex: 0x3c7,
  PaletteWriteIndex: 0x3c8,
  PaletteData: 0x3c9,
  FeatureControl: 0x3ca,
  MiscOutputRead: 0x3cc,
  GraphicsIndex: 0x3ce,
  GraphicsData: 0x3cf,
  CrtcIndex: 0x3d4,
  CrtcData: 0x3d5,
  /** Reading it makes the next write to the attribute controller an index. */
  InputStatus1: 0x3da,
} as const;

/** Display enable and vertical retrace, of input status 1. */
const STATUS1_BLANKING = 0x09;

export const Sequencer = { Reset: 0, ClockingMode: 1, MapMask: 2, CharacterMap: 3, MemoryMode: 4, count: 5 } as const;
export const SequencerBit = {
  /** Of Reset: both set, or nothing runs. */
  Running: 0x03,
  /** Of ClockingMode. */
  EightDots: 1 << 0,
  ScreenOff: 1 << 5,
  /** Of MemoryMode. */
  ExtendedMemory: 1 << 1,
  ChainFour: 1 << 3,
} as const;

export const Crtc = {
  HorizontalDisplayEnd: 0x01,
  Overflow: 0x07,
  MaxScanLine: 0x09,
  CursorStart: 0x0a,
  CursorEnd: 0x0b,
  StartHigh: 0x0c,
  StartLow: 0x0d,
  CursorHigh: 0x0e,
  CursorLow: 0x0f,
  VerticalDisplayEnd: 0x12,
  Offset: 0x13,
  ModeControl: 0x17,
  count: 25,
} as const;
export const CrtcBit = {
  /** Of Overflow: bits 8 and 9 of the vertical display end. */
  DisplayEnd8: 1 << 1,
  DisplayEnd9: 1 << 6,
  /** Of CursorStart. */
  CursorOff: 1 << 5,
  /** Of ModeControl: timing is enabled. */
  TimingEnabled: 1 << 7,
} as const;

export const Graphics = {
  SetReset: 0,
  EnableSetReset: 1,
  ColorCompare: 2,
  DataRotate: 3,
  ReadMapSelect: 4,
  Mode: 5,
  Miscellaneous: 6,
  ColorDontCare: 7,
  BitMask: 8,
  count: 9,
} as const;
export const GraphicsBit = {
  /** Of Mode. */
  ReadMode1: 1 << 3,
  OddEven: 1 << 4,
  Shift256: 1 << 6,
  /** Of Miscellaneous. */
  IsGraphics: 1 << 0,
} as const;

export const Attribute = { ModeControl: 16, ColorPlaneEnable: 18, ColorSelect: 20, count: 21 } as const;
export const AttributeBit = { IsGraphics: 1 << 0, InternalPalette: 1 << 7 } as const;
/** Bits of the attribute controller's index register; bit 5 gives the palette to the screen. */
const ATTRIBUTE_INDEX_MASK = 0x1f;
const ATTRIBUTE_PALETTE_ENTRIES = 16;

export const PALETTE_ENTRIES = 256;
/** The sixteen colours of text modes, as the palette has them after a reset: 6 bits of red, green and blue. */
const TEXT_COLORS = [
  0x00, 0x00, 0x00, 0x00, 0x00, 0x2a, 0x00, 0x2a, 0x00, 0x00, 0x2a, 0x2a, 0x2a, 0x00, 0x00, 0x2a, 0x00, 0x2a, 0x2a,
  0x2a, 0x00, 0x2a, 0x2a, 0x2a, 0x00, 0x00, 0x15, 0x00, 0x00, 0x3f, 0x00, 0x2a, 0x15, 0x00, 0x2a, 0x3f, 0x2a, 0x00,
  0x15, 0x2a, 0x00, 0x3f, 0x2a, 0x2a, 0x15, 0x2a, 0x2a, 0x3f,
];

export class VgaRegisters implements IoRegion {
  readonly sequencer = new Uint8Array(Sequencer.count);
  readonly crtc = new Uint8Array(Crtc.count);
  readonly graphics = new Uint8Array(Graphics.count);
  readonly attribute = new Uint8Array(Attribute.count);
  /** Red, green, blue of each entry, 6 bits. */
  readonly palette = new Uint8Array(3 * PALETTE_ENTRIES);
  #sequencerIndex = 0;
  #crtcIndex = 0;
  #graphicsIndex = 0;
  #attributeIndex = 0;
  /** The next write to the attribute controller's port is data. */
  #isAttributeData = false;
  #misc = 0;
  #status1 = 0;
  /** Byte of the palette that is read, and written, next. */
  #paletteRead = 0;
  #paletteWrite = 0;
  #isPaletteReading = false;
  readonly #onWritten: () => void;

  /** @param onWritten something that the picture depends on was written. */
  constructor(onWritten: () => void) {
    this.#onWritten = onWritten;
    this.reset();
  }

  reset(): void {
    for (const file of [this.sequencer, this.crtc, this.graphics, this.attribute, this.palette]) file.fill(0);
    this.palette.set(TEXT_COLORS);
    this.#sequencerIndex = 0;
    this.#crtcIndex = 0;
    this.#graphicsIndex = 0;
    this.#attributeIndex = 0;
    this.#isAttributeData = false;
    this.#misc = 0;
    this.#status1 = 0;
    this.#paletteRead = 0;
    this.#paletteWrite = 0;
    this.#isPaletteReading = false;
  }

  /** @param offset from {@link VGA_PORT_BASE}; two bytes are two ports, as on an 8-bit device. */
  read(offset: number, size: AccessSize): number {
    if (size === 4) return allOnes(4);
    const low = this.#readPort(VGA_PORT_BASE + offset);
    return size === 1 ? low : low | (this.#readPort(VGA_PORT_BASE + offset + 1) << 8);
  }

  write(offset: number, size: AccessSize, value: number): void {
    if (size === 4) return;
    this.#writePort(VGA_PORT_BASE + offset, value & 0xff);
    if (size === 2) this.#writePort(VGA_PORT_BASE + offset + 1, value >>> 8);
    this.#onWritten();
  }

  #readPort(port: number): number {
    switch (port) {
      case Port.AttributeIndex:
        return this.#attributeIndex;
      case Port.AttributeData:
        return this.attribute[this.#attributeIndex & ATTRIBUTE_INDEX_MASK] ?? 0xff;
      case Port.SequencerIndex:
        return this.#sequencerIndex;
      case Port.SequencerData:
        return this.sequencer[this.#sequencerIndex] ?? 0xff;
      case Port.PaletteReadIndex:
        return this.#isPaletteReading ? 3 : 0;
      case Port.PaletteWriteIndex:
        return Math.floor(this.#paletteWrite / 3);
      case Port.PaletteData: {
        const value = this.palette[this.#paletteRead] as number;
        this.#paletteRead = (this.#paletteRead + 1) % this.palette.length;
        return value;
      }
      case Port.MiscOutputRead:
        return this.#misc;
      case Port.GraphicsIndex:
        return this.#graphicsIndex;
      case Port.GraphicsData:
        return this.graphics[this.#graphicsIndex] ?? 0xff;
      case Port.CrtcIndex:
        return this.#crtcIndex;
      case Port.CrtcData:
        return this.crtc[this.#crtcIndex] ?? 0xff;
      case Port.InputStatus1:
        // Compat: always in retrace with C, where a guest that waits for its beginning waits for ever.
        this.#isAttributeData = false;
        this.#status1 ^= STATUS1_BLANKING;
        return this.#status1;
      case Port.MiscOutput:
      case Port.FeatureControl:
      case 0x3c3:
        return 0;
      default:
        return 0xff;
    }
  }

  /** Entries of the palette have six bits. */
  #writeAttribute(index: number, value: number): void {
    setIn(this.attribute, index, index < ATTRIBUTE_PALETTE_ENTRIES ? value & 0x3f : value);
  }

  #writePort(port: number, value: number): void {
    switch (port) {
      case Port.AttributeIndex:
        if (this.#isAttributeData) this.#writeAttribute(this.#attributeIndex & ATTRIBUTE_INDEX_MASK, value);
        else this.#attributeIndex = value & ATTRIBUTE_INDEX_MASK;
        this.#isAttributeData = !this.#isAttributeData;
        break;
      case Port.MiscOutput:
        this.#misc = value;
        break;
      case Port.SequencerIndex:
        this.#sequencerIndex = value & 0x1f;
        break;
      case Port.SequencerData:
        setIn(this.sequencer, this.#sequencerIndex, value);
        break;
      case Port.PaletteReadIndex:
        this.#paletteRead = 3 * value;
        this.#isPaletteReading = true;
        break;
      case Port.PaletteWriteIndex:
        this.#paletteWrite = 3 * value;
        this.#isPaletteReading = false;
        break;
      case Port.PaletteData:
        this.palette[this.#paletteWrite] = value & 0x3f;
        this.#paletteWrite = (this.#paletteWrite + 1) % this.palette.length;
        break;
      case Port.GraphicsIndex:
        this.#graphicsIndex = value;
        break;
      case Port.GraphicsData:
        setIn(this.graphics, this.#graphicsIndex, value);
        break;
      case Port.CrtcIndex:
        this.#crtcIndex = value;
        break;
      case Port.CrtcData:
        setIn(this.crtc, this.#crtcIndex, value);
        break;
      default:
        break;
    }
  }
}

/** Writes beyond the last register of a file go nowhere. */
function setIn(file: Uint8Array, index: number, value: number): void {
  if (index < file.length) file[index] = value;
}
