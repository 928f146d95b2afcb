/** What a VGA shows: text with the font in plane 2, sixteen colours in four planes, 256 colours. */
import { PIXEL_BYTES } from '../display.ts';
import type { Size } from '../rect.ts';
import { PLANE_BYTES } from './memory.ts';
import {
  Attribute,
  AttributeBit,
  Crtc,
  CrtcBit,
  Graphics,
  GraphicsBit,
  PALETTE_ENTRIES,
  Sequencer,
  SequencerBit,
  type VgaRegisters,
} from './registers.ts';

/** Bytes of a character in the font, used or not. */
const GLYPH_BYTES = 32;
const FONT_STEP = 0x2000;

/** @returns undefined while the registers are not set up, or say that the screen is off. */
export function vgaSize({ sequencer, crtc }: VgaRegisters): Size | undefined {
  const clocking = sequencer[Sequencer.ClockingMode] as number;
  const isRunning = ((sequencer[Sequencer.Reset] as number) & SequencerBit.Running) === SequencerBit.Running;
  const hasTiming = ((crtc[Crtc.ModeControl] as number) & CrtcBit.TimingEnabled) !== 0;
  if (!isRunning || !hasTiming || (clocking & SequencerBit.ScreenOff) !== 0) return undefined;
  const overflow = crtc[Crtc.Overflow] as number;
  const height =
    (crtc[Crtc.VerticalDisplayEnd] as number) +
    ((overflow & CrtcBit.DisplayEnd8) !== 0 ? 0x100 : 0) +
    ((overflow & CrtcBit.DisplayEnd9) !== 0 ? 0x200 : 0) +
    1;
  return { width: ((crtc[Crtc.HorizontalDisplayEnd] as number) + 1) * dotsOf(clocking), height };
}

function dotsOf(clocking: number): number {
  return (clocking & SequencerBit.EightDots) !== 0 ? 8 : 9;
}

/** Colours as 32-bit pixels: blue, green, red, 0 in memory. */
export function paletteOf({ palette }: VgaRegisters): Uint32Array {
  const colors = new Uint32Array(PALETTE_ENTRIES);
  const wide = (value: number) => (value << 2) | (value >> 4);
  for (let i = 0; i < PALETTE_ENTRIES; i++) {
    const [red, green, blue] = [palette[3 * i], palette[3 * i + 1], palette[3 * i + 2]] as [number, number, number];
    colors[i] = (wide(red) << 16) | (wide(green) << 8) | wide(blue);
  }
  return colors;
}

/** Draw all of it, row by row. @param into has room for `size` */
export function renderVga(registers: VgaRegisters, planes: Uint8Array, size: Size, into: Uint8Array): void {
  const { graphics, attribute } = registers;
  const pixels = new Uint32Array(into.buffer, into.byteOffset, into.byteLength / PIXEL_BYTES);
  const isGraphics =
    ((graphics[Graphics.Miscellaneous] as number) & GraphicsBit.IsGraphics) !== 0 &&
    ((attribute[Attribute.ModeControl] as number) & AttributeBit.IsGraphics) !== 0;
  if (!isGraphics) renderText(registers, planes, size, pixels);
  else if (((graphics[Graphics.Mode] as number) & GraphicsBit.Shift256) !== 0) {
    renderBytes(registers, planes, size, pixels);
  } else renderPlanes(registers, planes, size, pixels);
}

/** Address of the first byte or character shown. */
function startOf(crtc: Uint8Array): number {
  return ((crtc[Crtc.StartHigh] as number) << 8) | (crtc[Crtc.StartLow] as number);
}

/** Which palette entry the attribute controller makes of four bits. */
function attributeColors({ attribute }: VgaRegisters): Uint8Array {
  const select = attribute[Attribute.ColorSelect] as number;
  const isInternal = ((attribute[Attribute.ModeControl] as number) & AttributeBit.InternalPalette) !== 0;
  const high = ((select >> 2) & 3) << 6;
  return Uint8Array.from({ length: 16 }, (_, i) => {
    const entry = attribute[i] as number;
    return high | (isInternal ? ((select & 3) << 4) | (entry & 0xf) : entry & 0x3f);
  });
}

function renderText(registers: VgaRegisters, planes: Uint8Array, size: Size, pixels: Uint32Array): void {
  const { sequencer, crtc } = registers;
  const dots = dotsOf(sequencer[Sequencer.ClockingMode] as number);
  const lines = ((crtc[Crtc.MaxScanLine] as number) & 0x1f) + 1;
  const columns = Math.floor(size.width / dots);
  const pitch = 2 * (crtc[Crtc.Offset] as number) || columns;
  const entries = attributeColors(registers);
  const palette = paletteOf(registers);
  const fonts = fontsOf(sequencer);
  const cursor = cursorOf(crtc);
  for (let y = 0; y < size.height; y++) {
    const line = y % lines;
    const rowStart = startOf(crtc) + Math.floor(y / lines) * pitch;
    for (let column = 0; column < columns; column++) {
      const at = rowStart + column;
      const cell = (2 * at) % PLANE_BYTES;
      const attributes = planes[PLANE_BYTES + cell] as number;
      const font = (attributes & 8) !== 0 ? fonts.bright : fonts.dark;
      const glyph = 2 * PLANE_BYTES + ((font + (planes[cell] as number) * GLYPH_BYTES + line) % PLANE_BYTES);
      const isCursor = at === cursor.at && line >= cursor.first && line <= cursor.last;
      const bits = isCursor ? 0xff : (planes[glyph] as number);
      const ink = palette[entries[attributes & 0xf & fonts.inkMask] as number] as number;
      const paper = palette[entries[attributes >> 4] as number] as number;
      const to = y * size.width + column * dots;
      // The ninth dot is that of the eighth.
      for (let dot = 0; dot < dots; dot++) pixels[to + dot] = ((bits << Math.min(dot, 7)) & 0x80) !== 0 ? ink : paper;
    }
  }
}

/** With two fonts, bit 3 of a character's attributes says which one, and is no colour. */
function fontsOf(sequencer: Uint8Array): { bright: number; dark: number; inkMask: number } {
  const select = sequencer[Sequencer.CharacterMap] as number;
  const hasMany = ((sequencer[Sequencer.MemoryMode] as number) & SequencerBit.ExtendedMemory) !== 0;
  const bright = (((select >> 2) & 3) * 2 + ((select >> 5) & 1)) * FONT_STEP;
  const dark = ((select & 3) * 2 + ((select >> 4) & 1)) * FONT_STEP;
  return hasMany && bright !== dark ? { bright, dark, inkMask: 0x7 } : { bright: dark, dark, inkMask: 0xf };
}

function cursorOf(crtc: Uint8Array): { at: number; first: number; last: number } {
  const start = crtc[Crtc.CursorStart] as number;
  const isOn = (start & CrtcBit.CursorOff) === 0;
  return {
    at: isOn ? ((crtc[Crtc.CursorHigh] as number) << 8) | (crtc[Crtc.CursorLow] as number) : -1,
    first: start & 0x1f,
    last: (crtc[Crtc.CursorEnd] as number) & 0x1f,
  };
}

/** Scan lines that show the same row of memory: double scan, and the row counter. */
function linesPerRow(crtc: Uint8Array): number {
  const maxScan = crtc[Crtc.MaxScanLine] as number;
  return ((maxScan & 0x1f) + 1) * ((maxScan & 0x80) !== 0 ? 2 : 1);
}

function renderPlanes(registers: VgaRegisters, planes: Uint8Array, size: Size, pixels: Uint32Array): void {
  const { crtc, attribute } = registers;
  const entries = attributeColors(registers);
  const palette = paletteOf(registers);
  const enabled = attribute[Attribute.ColorPlaneEnable] as number;
  const pitch = 2 * (crtc[Crtc.Offset] as number) || size.width >> 3;
  const lines = linesPerRow(crtc);
  for (let y = 0; y < size.height; y++) {
    const row = startOf(crtc) + Math.floor(y / lines) * pitch;
    for (let x = 0; x < size.width; x++) {
      const at = (row + (x >> 3)) % PLANE_BYTES;
      const shift = 7 - (x & 7);
      let color = 0;
      for (let plane = 0; plane < 4; plane++) {
        color |= (((planes[plane * PLANE_BYTES + at] as number) >> shift) & 1) << plane;
      }
      pixels[y * size.width + x] = palette[entries[color & enabled & 0xf] as number] as number;
    }
  }
}

/** 256 colours: a byte a pixel, the planes in turn, each pixel twice as wide as a dot. */
function renderBytes(registers: VgaRegisters, planes: Uint8Array, size: Size, pixels: Uint32Array): void {
  const { crtc } = registers;
  const palette = paletteOf(registers);
  const pitch = 8 * (crtc[Crtc.Offset] as number) || size.width >> 1;
  const lines = linesPerRow(crtc);
  for (let y = 0; y < size.height; y++) {
    const row = 4 * startOf(crtc) + Math.floor(y / lines) * pitch;
    for (let x = 0; x < size.width; x++) {
      const at = row + (x >> 1);
      const byte = planes[(at & 3) * PLANE_BYTES + ((at & ~3) % PLANE_BYTES)] as number;
      pixels[y * size.width + x] = palette[byte] as number;
    }
  }
}
