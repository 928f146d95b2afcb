/** What the monitor says of itself, as the C device model words it. Spec: VESA E-EDID release A, revision 2 (EDID 1.4). */
import type { Size } from '../../../display/rect.ts';

export const EDID_BYTES = 128;
const Monitor = { manufacturer: 'ACR', product: 4321, serial: 12345678, year: 2018 } as const;
const NAME = 'ACRN_Monitor';
const SERIAL_TEXT = 'A0123456789';
const RATE_HZ = 60;

/** §3.7: sRGB, red, green, blue and white as x and y. */
const CHROMATICITY = [0.64, 0.33, 0.3, 0.6, 0.15, 0.06, 0.3127, 0.329] as const;
/** §3.8: byte and bit. 800x600@60, 640x480@60, 1280x1024@75, 1024x768@75, 1024x768@60. */
const ESTABLISHED = [
  [35, 0],
  [35, 5],
  [36, 0],
  [36, 1],
  [36, 3],
] as const;
/** §3.9: width, and the code of the aspect ratio (0 16:10, 1 4:3, 2 5:4, 3 16:9); all at 60 Hz. */
const STANDARD = [
  [1920, 3],
  [1680, 0],
  [1600, 1],
  [1600, 3],
  [1440, 0],
] as const;
const STANDARD_TIMINGS = 8;

/** §3.10.3. */
const Tag = { RangeLimits: 0xfd, Name: 0xfc, Serial: 0xff } as const;
const DESCRIPTOR_BYTES = 18;

/** @param preferred the monitor's own resolution, at most 4095 each way */
export function edidOf(preferred: Size): Uint8Array {
  const edid = new Uint8Array(EDID_BYTES);
  const view = new DataView(edid.buffer);
  edid.fill(0xff, 1, 7);
  const [a, b, c] = [...Monitor.manufacturer].map((letter) => letter.charCodeAt(0) - 0x40) as [number, number, number];
  view.setUint16(8, (a << 10) | (b << 5) | c);
  view.setUint16(10, Monitor.product, true);
  view.setUint32(12, Monitor.serial, true);
  edid[17] = Monitor.year - 1990;
  edid[18] = 1;
  edid[19] = 4;
  // Digital, 8 bits a colour, DisplayPort; centimetres; gamma 2.2; sRGB, the first timing is the preferred one.
  edid[20] = 0xa5;
  edid[21] = Math.min(Math.floor(preferred.width / 10), 0xff);
  edid[22] = Math.min(Math.floor(preferred.height / 10), 0xff);
  edid[23] = 120;
  edid[24] = 0x06;
  setChromaticity(edid.subarray(25, 35));
  for (const [byte, bit] of ESTABLISHED) edid[byte] = (edid[byte] as number) | (1 << bit);
  edid.fill(0x01, 38, 38 + 2 * STANDARD_TIMINGS);
  for (const [i, [width, aspect]] of STANDARD.entries()) edid.set([width / 8 - 31, aspect << 6], 38 + 2 * i);
  setDetailedTiming(edid.subarray(54), preferred);
  // 50 to 125 Hz, 30 to 160 kHz, 2550 MHz, no more timing information.
  setDescriptor(edid.subarray(72), Tag.RangeLimits, [50, 125, 30, 160, 255, 1, 0x0a]);
  setDescriptor(edid.subarray(90), Tag.Name, textOf(NAME));
  setDescriptor(edid.subarray(108), Tag.Serial, textOf(SERIAL_TEXT));
  edid[127] = -edid.reduce((sum, byte) => sum + byte, 0);
  return edid;
}

/** Ten bits each: the low two of them first. */
function setChromaticity(into: Uint8Array): void {
  const tenths = CHROMATICITY.map((value) => Math.floor(value * 1024 + 0.5));
  for (const [i, value] of tenths.entries()) {
    into[i >> 2] = (into[i >> 2] as number) | ((value & 3) << (6 - 2 * (i & 3)));
    into[2 + i] = value >> 2;
  }
}

/** §3.10.2. Blanking is 35 % and 3.5 %. */
function setDetailedTiming(into: Uint8Array, { width, height }: Size): void {
  const percent = (value: number, hundredths: number) => Math.floor((value * hundredths) / 100);
  const horizontal = { blank: percent(width, 35), front: percent(width, 25), sync: percent(width, 3) };
  const vertical = { blank: percent(height, 3.5), front: percent(height, 0.5), sync: percent(height, 0.5) };
  const clock = Math.floor((RATE_HZ * (width + horizontal.blank) * (height + vertical.blank)) / 10_000);
  const high = (value: number, from: number) => (value >> from) & 0xf;
  // The field has 16 bits: above it, the picture comes less often.
  new DataView(into.buffer, into.byteOffset).setUint16(0, Math.min(clock, 0xffff), true);
  into.set(
    [
      width,
      horizontal.blank,
      (high(width, 8) << 4) | high(horizontal.blank, 8),
      height,
      vertical.blank,
      (high(height, 8) << 4) | high(vertical.blank, 8),
      horizontal.front,
      horizontal.sync,
      ((vertical.front & 0xf) << 4) | (vertical.sync & 0xf),
      (((horizontal.front >> 8) & 3) << 6) |
        (((horizontal.sync >> 8) & 3) << 4) |
        (((vertical.front >> 4) & 3) << 2) |
        ((vertical.sync >> 4) & 3),
      // Millimetres: one a pixel.
      width,
      height,
      (high(width, 8) << 4) | high(height, 8),
      0,
      0,
      // Separate digital syncs.
      0x18,
    ],
    2,
  );
}

function setDescriptor(into: Uint8Array, tag: number, data: readonly number[]): void {
  into[3] = tag;
  into.set(data.slice(0, DESCRIPTOR_BYTES - 5), 5);
}

/** §3.10.3.1: ended by a line feed and filled with spaces. */
function textOf(text: string): number[] {
  const bytes = [...text.slice(0, 12)].map((letter) => letter.charCodeAt(0));
  return [...bytes, 0x0a, ...new Array<number>(12 - bytes.length).fill(0x20)];
}
