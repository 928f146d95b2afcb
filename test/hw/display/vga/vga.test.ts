/** The VGA and the Bochs VBE registers, as firmware uses them. */
import { describe, expect, test } from 'vitest';
import { Display } from '../../../../devicemodel/hw/display/display.ts';
import { VgaAdapter } from '../../../../devicemodel/hw/display/vga/adapter.ts';
import { Random } from '../../../fuzz/random.ts';

const FRAME_BUFFER_BYTES = 4 * 1024 * 1024;

function makeVga() {
  const display = new Display();
  const plugged = display.plugIn([{ width: 800, height: 600 }], () => {});
  const vga = new VgaAdapter({ width: 800, height: 600 }, FRAME_BUFFER_BYTES);
  const frameBuffer = new Uint8Array(FRAME_BUFFER_BYTES);
  vga.plugIn(plugged.screens[0], frameBuffer);
  const out = (port: number, value: number) => vga.ports.write(port - 0x3c0, 1, value);
  const inb = (port: number) => vga.ports.read(port - 0x3c0, 1);
  const indexed = (port: number, index: number, value: number) =>
    vga.ports.write(port - 0x3c0, 2, (value << 8) | index);
  const attribute = (index: number, value: number) => {
    inb(0x3da);
    out(0x3c0, index);
    out(0x3c0, value);
  };
  const store = (at: number, value: number) => vga.window.write(at - 0xa0000, 1, value);
  const vbe = (reg: number, value: number) => vga.vbe.write(2 * reg, 2, value);
  const pixel = (x: number, y: number) => {
    display.poll();
    const bytes = new Uint8Array(4);
    display.read({ x, y, width: 1, height: 1 }, bytes, 0, 4);
    return [bytes[2], bytes[1], bytes[0]];
  };
  return { display, screen: plugged.screens[0], vga, frameBuffer, out, inb, indexed, attribute, store, vbe, pixel };
}

type Vga = ReturnType<typeof makeVga>;

/** Registers of mode 3: 80 by 25 characters of 8 by 16 dots. */
function textMode({ indexed, attribute }: Vga): void {
  for (const [index, value] of [0x03, 0x01, 0x03, 0x00, 0x02].entries()) indexed(0x3c4, index, value);
  for (const [index, value] of [
    [0x01, 79],
    [0x07, 0x1f],
    [0x09, 0x4f],
    [0x0a, 0x0e],
    [0x0b, 0x0f],
    [0x12, 0x8f],
    [0x13, 0x28],
    [0x17, 0xa3],
  ] as const) {
    indexed(0x3d4, index, value);
  }
  for (const [index, value] of [0, 0, 0, 0, 0, 0x10, 0x0e, 0, 0xff].entries()) indexed(0x3ce, index, value);
  for (let i = 0; i < 16; i++) attribute(i, i);
  attribute(0x10, 0x0c);
}

/** A glyph into plane 2, as a BIOS does it. */
function loadGlyph({ indexed, store }: Vga, character: number, rows: readonly number[]): void {
  indexed(0x3c4, 2, 0x04);
  indexed(0x3ce, 5, 0x00);
  indexed(0x3ce, 6, 0x04);
  for (const [i, row] of rows.entries()) store(0xa0000 + 32 * character + i, row);
  indexed(0x3c4, 2, 0x03);
  indexed(0x3ce, 5, 0x10);
  indexed(0x3ce, 6, 0x0e);
}

describe('text', () => {
  test('is drawn with the font in plane 2, in its colours', () => {
    const machine = makeVga();
    textMode(machine);
    loadGlyph(machine, 0x41, [0x80, 0x01]);
    const { store, pixel, display, indexed } = machine;
    indexed(0x3d4, 0x0a, 0x20);
    // Light red on blue, in the second column of the third row.
    store(0xb8000 + 2 * (2 * 80 + 1), 0x41);
    store(0xb8000 + 2 * (2 * 80 + 1) + 1, 0x1c);
    expect(display.size).toEqual({ width: 640, height: 400 });
    const [red, blue] = [
      [0xaa, 0, 0x55],
      [0, 0, 0xaa],
    ];
    expect([pixel(8, 32), pixel(9, 32), pixel(15, 33), pixel(8, 33)]).toEqual([red, blue, red, blue]);
    expect(pixel(7, 32)).toEqual([0, 0, 0]);
  });

  test('has a cursor where it is on', () => {
    const machine = makeVga();
    textMode(machine);
    const { store, indexed, pixel } = machine;
    store(0xb8000 + 2 * 5 + 1, 0x07);
    indexed(0x3d4, 0x0f, 5);
    expect([pixel(40, 13), pixel(40, 14), pixel(47, 15)]).toEqual([
      [0, 0, 0],
      [0xaa, 0xaa, 0xaa],
      [0xaa, 0xaa, 0xaa],
    ]);
    indexed(0x3d4, 0x0a, 0x20);
    expect(pixel(40, 14)).toEqual([0, 0, 0]);
  });

  test('tells which lines changed, and nothing when nothing did', () => {
    const machine = makeVga();
    textMode(machine);
    const { display, store, indexed } = machine;
    indexed(0x3d4, 0x0a, 0x20);
    display.poll();
    const rows: number[] = [];
    display.watch({ resized: () => rows.push(-1), damaged: ({ y }) => rows.push(y), cursorChanged: () => {} });
    display.poll();
    expect(rows).toEqual([]);
    store(0xb8000 + 2 * 80 * 3 + 1, 0x70);
    display.poll();
    expect(rows).toEqual(Array.from({ length: 16 }, (_, i) => 48 + i));
  });
});

describe('planes', () => {
  test.each([
    ['write mode 0, replace', 0x00, 0x00, 0xff, 0x0f, [0x0f, 0x0f, 0x0f, 0x0f]],
    ['rotated by 4', 0x00, 0x04, 0xff, 0x0f, [0xf0, 0xf0, 0xf0, 0xf0]],
    ['and', 0x00, 0x08, 0xff, 0x3c, [0x30, 0x0c, 0x3c, 0x00]],
    ['or', 0x00, 0x10, 0xff, 0x3c, [0xfc, 0x3f, 0xff, 0x3c]],
    ['xor', 0x00, 0x18, 0xff, 0x3c, [0xcc, 0x33, 0xc3, 0x3c]],
    ['some bits', 0x00, 0x00, 0x0f, 0x3c, [0xfc, 0x0c, 0xfc, 0x0c]],
    ['write mode 1', 0x01, 0x00, 0xff, 0x3c, [0xf0, 0x0f, 0xff, 0x00]],
    ['write mode 2', 0x02, 0x00, 0xff, 0x05, [0xff, 0x00, 0xff, 0x00]],
  ])('%s', (_name, mode, rotate, bitMask, value, expected) => {
    const { indexed, store, vga, display } = makeVga();
    expect(display.size.width).toBe(800);
    indexed(0x3ce, 6, 0x05);
    indexed(0x3ce, 8, 0xff);
    const planes = [0xf0, 0x0f, 0xff, 0x00];
    for (const [i, before] of planes.entries()) {
      indexed(0x3c4, 2, 1 << i);
      store(0xa0000, before);
    }
    indexed(0x3c4, 2, 0x0f);
    indexed(0x3ce, 5, mode);
    indexed(0x3ce, 3, rotate);
    indexed(0x3ce, 8, bitMask);
    // Reading fills the latches.
    vga.window.read(0, 1);
    store(0xa0000, value);
    indexed(0x3ce, 5, 0);
    const seen = planes.map((_, i) => {
      indexed(0x3ce, 4, i);
      return vga.window.read(0, 1);
    });
    expect(seen).toEqual(expected);
  });

  test('sixteen colours, and 256', () => {
    const machine = makeVga();
    const { indexed, attribute, store, pixel, out } = machine;
    textMode(machine);
    indexed(0x3d4, 0x09, 0);
    indexed(0x3ce, 6, 0x05);
    indexed(0x3ce, 5, 0x00);
    attribute(0x10, 0x01);
    attribute(0x12, 0x0f);
    indexed(0x3c4, 2, 0x0c);
    store(0xa0000 + 80, 0x80);
    expect([pixel(0, 1), pixel(1, 1)]).toEqual([
      [0xaa, 0, 0x55],
      [0, 0, 0],
    ]);
    // Mode 13h: a byte a pixel by chain 4.
    indexed(0x3ce, 5, 0x40);
    indexed(0x3c4, 4, 0x08);
    indexed(0x3c4, 2, 0x0f);
    indexed(0x3d4, 0x13, 0x28);
    for (const value of [200, 63, 0, 21]) out(value === 200 ? 0x3c8 : 0x3c9, value);
    store(0xa0000 + 320 + 3, 200);
    expect([pixel(5, 1), pixel(6, 1), pixel(7, 1), pixel(8, 1)]).toEqual([
      [0, 0, 0],
      [255, 0, 0x55],
      [255, 0, 0x55],
      [0, 0, 0],
    ]);
  });
});

test('an entry of the attribute palette has six bits, other registers have eight', () => {
  const { attribute, out, inb } = makeVga();
  for (const [index, expected] of [
    [0x0f, 0x3f],
    [0x11, 0xff],
  ] as const) {
    attribute(index, 0xff);
    inb(0x3da);
    out(0x3c0, index);
    expect(inb(0x3c1)).toBe(expected);
  }
});

test('registers read as they were written, and the retrace comes and goes', () => {
  const { inb, out, indexed, attribute } = makeVga();
  indexed(0x3d4, 0x0f, 0x5a);
  out(0x3d4, 0x0f);
  expect([inb(0x3d4), inb(0x3d5)]).toEqual([0x0f, 0x5a]);
  out(0x3d4, 0x40);
  expect(inb(0x3d5)).toBe(0xff);
  out(0x3c2, 0x67);
  expect(inb(0x3cc)).toBe(0x67);
  attribute(3, 0x2a);
  out(0x3c0, 3);
  expect(inb(0x3c1)).toBe(0x2a);
  out(0x3c7, 1);
  expect([inb(0x3c9), inb(0x3c9), inb(0x3c9)]).toEqual([0, 0, 0x2a]);
  expect(new Set([inb(0x3da), inb(0x3da)])).toEqual(new Set([0, 9]));
});

describe('VBE', () => {
  test('shows the frame buffer of the mode that is set', () => {
    const { vbe, frameBuffer, display, pixel } = makeVga();
    for (const [reg, value] of [
      [4, 0],
      [1, 640],
      [2, 480],
      [3, 32],
      [4, 0x41],
    ] as const) {
      vbe(reg, value);
    }
    expect(display.size).toEqual({ width: 640, height: 480 });
    frameBuffer.set([3, 2, 1, 0], 4 * (640 * 10 + 20));
    expect(pixel(20, 10)).toEqual([1, 2, 3]);
    // A wider line, and a window on it.
    vbe(6, 1000);
    vbe(8, 5);
    vbe(9, 1);
    frameBuffer.set([6, 5, 4, 0], 4 * (1000 * 11 + 25));
    expect(pixel(20, 10)).toEqual([4, 5, 6]);
  });

  test('finds what changed in bands', () => {
    const { vbe, frameBuffer, display } = makeVga();
    vbe(4, 0x41);
    display.poll();
    const seen: Array<[number, number]> = [];
    display.watch({ resized: () => {}, damaged: ({ y, height }) => seen.push([y, height]), cursorChanged: () => {} });
    display.poll();
    expect(seen).toEqual([]);
    frameBuffer[4 * 800 * 599] = 1;
    display.poll();
    expect(seen).toEqual([[592, 8]]);
  });

  test.each([
    [
      'more than there is',
      [
        [1, 2000],
        [2, 2000],
      ],
    ],
    ['nothing', [[1, 0]]],
    ['a depth that there is not', [[3, 4]]],
    [
      'a window beyond the end',
      [
        [4, 0x41],
        [9, 60_000],
      ],
    ],
  ] as ReadonlyArray<[string, ReadonlyArray<[number, number]>]>)('%s is black', (_name, writes) => {
    const { vbe, screen } = makeVga();
    for (const [reg, value] of writes) vbe(reg, value);
    vbe(4, 0x41);
    if (writes[0]?.[0] === 4) for (const [reg, value] of writes) vbe(reg, value);
    expect(screen?.picture).toBeUndefined();
  });

  test.each([
    [8, [9], [4, 8, 255]],
    [15, [0x22, 0x7c], [255, 8, 16]],
    [16, [0x22, 0xf8], [255, 4, 16]],
    [16, [0xff, 0xff], [255, 255, 255]],
    [24, [3, 2, 1], [1, 2, 3]],
    [32, [3, 2, 1, 99], [1, 2, 3]],
  ])('%i bits a pixel: %j', (bits, bytes, expected) => {
    const { vbe, frameBuffer, out, pixel } = makeVga();
    // 6 bits a colour: what a monitor shows has the upper ones below again.
    for (const value of [9, 1, 2, 0x3f]) out(value === 9 ? 0x3c8 : 0x3c9, value);
    vbe(1, 640);
    vbe(2, 480);
    vbe(3, bits);
    vbe(4, 0x41);
    frameBuffer.set(bytes, bytes.length * (640 * 10 + 20));
    expect(pixel(20, 10)).toEqual(expected);
    expect(pixel(21, 10)).toEqual([0, 0, 0]);
  });

  test('another palette is another picture', () => {
    const { vbe, frameBuffer, out, pixel, display } = makeVga();
    vbe(3, 8);
    vbe(4, 0x41);
    frameBuffer[0] = 200;
    expect(pixel(0, 0)).toEqual([0, 0, 0]);
    const seen: number[] = [];
    display.watch({ resized: () => {}, damaged: ({ height }) => seen.push(height), cursorChanged: () => {} });
    out(0x3c8, 200);
    for (const value of [0x3f, 0, 0]) out(0x3c9, value);
    expect(pixel(0, 0)).toEqual([255, 0, 0]);
    expect(seen).toEqual([600]);
  });

  test('a BIOS asks by index what there is, and for the length of a line', () => {
    const { vga } = makeVga();
    const { ports } = vga.vbe;
    const get = (reg: number) => {
      ports.write(0, 2, reg);
      return ports.read(1, 2);
    };
    const set = (reg: number, value: number) => {
      ports.write(0, 2, reg);
      ports.write(1, 2, value);
    };
    expect([get(0), ports.read(0, 2), get(10)]).toEqual([0xb0c0, 0, FRAME_BUFFER_BYTES / 65536]);
    set(0, 0xb0c5);
    expect(get(0)).toBe(0xb0c5);
    set(4, 2);
    expect([get(1), get(2), get(3)]).toEqual([3840, 2160, 32]);
    set(4, 0);
    expect([get(1), get(2), get(3)]).toEqual([800, 600, 32]);
    set(1, 1024);
    set(4, 0x61);
    // The palette has 6 bits a colour.
    expect([get(4), get(6), vga.vbe.read(12, 2)]).toEqual([0x41, 1024, 0]);
    set(6, 2000);
    expect([get(6), vga.vbe.read(12, 2)]).toEqual([2000, 2000]);
    expect([get(99), ports.read(0, 1), ports.read(0, 4)]).toEqual([0xffff, 0xff, 0xffff_ffff]);
    ports.write(0, 1, 5);
    expect(ports.read(0, 2)).toBe(99);
  });

  test('the window shows banks of the frame buffer, and the planes again without VBE', () => {
    const { vbe, vga, store, frameBuffer } = makeVga();
    store(0xa0010, 7);
    vbe(4, 0x41);
    vbe(5, 3);
    vga.window.write(0x10, 4, 0x04030201);
    expect([...frameBuffer.subarray(0x30010, 0x30014)]).toEqual([1, 2, 3, 4]);
    expect([vga.window.read(0x10, 4), vga.window.read(0x1_0000, 1)]).toEqual([0x04030201, 0xff]);
    vbe(5, 0xffff);
    vga.window.write(0, 1, 1);
    expect(vga.window.read(0, 1)).toBe(0xff);
    vbe(4, 0);
    expect(vga.window.read(0x10, 1)).not.toBe(1);
  });

  test('a new mode begins black, unless it is to keep what is there', () => {
    const { vbe, frameBuffer } = makeVga();
    const last = 4 * 800 * 600 - 1;
    frameBuffer.fill(9);
    vbe(4, 0xc1);
    expect(frameBuffer[0]).toBe(9);
    vbe(4, 0x41);
    expect(frameBuffer[0]).toBe(9);
    vbe(4, 0);
    vbe(4, 0x41);
    expect([frameBuffer[0], frameBuffer[last], frameBuffer[last + 1]]).toEqual([0, 0, 9]);
    vbe(4, 0);
    vbe(1, 65_535);
    vbe(2, 65_535);
    vbe(4, 0x41);
    expect(frameBuffer.at(-1)).toBe(0);
  });

  test('gives way to the driver, and comes back when the driver lets go', () => {
    const { vbe, vga, screen } = makeVga();
    vbe(4, 0x41);
    const own = screen?.picture;
    vga.hide();
    const other = { width: 100, height: 100, read: () => {} };
    screen?.show(other);
    vbe(1, 640);
    expect([screen?.picture, vga.isShown]).toEqual([other, false]);
    vga.showAgain();
    expect(screen?.picture?.width).toBe(640);
    expect(own).toBeDefined();
  });
});

test('a hostile guest gets nowhere: 100000 accesses, with a viewer that looks', { timeout: 60_000 }, () => {
  const { vga, display } = makeVga();
  const random = new Random(5);
  const into = new Uint8Array(4 * 64 * 64);
  let looks = 0;
  const sizes = [1, 2, 4] as const;
  for (let i = 0; i < 100_000; i++) {
    const size = random.pick(sizes);
    const value = random.value() % 2 ** (8 * size);
    const region = random.pick([vga.ports, vga.ports, vga.window, vga.vbe, vga.vbe.ports]);
    const limit = region === vga.window ? 0x20000 : region === vga.vbe ? 24 : region === vga.ports ? 0x20 : 5;
    const offset = random.below(limit - size + 1);
    if (random.oneIn(2)) region.write(offset, size, value);
    else {
      const read = region.read(offset, size);
      if (!(read >= 0 && read < 2 ** (8 * size))) throw new Error(`${offset}+${size} reads ${read}`);
    }
    if (!random.oneIn(500)) continue;
    looks++;
    display.poll();
    const { width, height } = display.size;
    display.read({ x: random.below(width), y: random.below(height), width: 64, height: 64 }, into, 0, 256);
  }
  expect(looks).toBeGreaterThan(100);
});
