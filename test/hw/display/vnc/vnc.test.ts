/** The VNC server as a viewer sees it, with a display that the test draws on. */
import { existsSync, mkdtempSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import * as fc from 'fast-check';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import type { VncConfig } from '../../../../devicemodel/core/config.ts';
import { ConfigError, HostError } from '../../../../devicemodel/core/errors.ts';
import { Display, type Picture } from '../../../../devicemodel/hw/display/display.ts';
import type { Size } from '../../../../devicemodel/hw/display/rect.ts';
import { vncResponse } from '../../../../devicemodel/hw/display/vnc/password.ts';
import { decodeFormat, encodeFormat, PixelWriter } from '../../../../devicemodel/hw/display/vnc/pixel-format.ts';
import { VncServer } from '../../../../devicemodel/hw/display/vnc/server.ts';
import type { KeyEvent, PointerEvent } from '../../../../devicemodel/hw/input/input-hub.ts';
import { Canvas } from '../../../support/canvas.ts';
import { memoryLog } from '../../../support/memory-log.ts';
import { Rfb, RfbClient } from '../../../support/rfb-client.ts';

let folder = '';
const undo: Array<() => void> = [];
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'acrn-dm-vnc-'));
});
afterEach(() => {
  for (const step of undo.splice(0).reverse()) step();
  rmSync(folder, { recursive: true });
});

async function serve(options: { size?: Size; password?: string; config?: VncConfig } = {}) {
  const { size = { width: 200, height: 150 } } = options;
  const display = new Display();
  const wanted: Array<[number, Size]> = [];
  const plugged = display.plugIn([size], (screen, { width, height }) => wanted.push([screen, { width, height }]));
  const canvas = new Canvas(size);
  plugged.screens[0]?.show(canvas);
  const keys: KeyEvent[] = [];
  const pointers: PointerEvent[] = [];
  display.input.addKeySink({ rank: 1, isReady: true, key: (event) => keys.push(event) });
  display.input.addPointerSink({ rank: 1, isReady: true, pointer: (event) => pointers.push(event) });
  const path = join(folder, 'vnc');
  const { log, lines } = memoryLog();
  let config: VncConfig = options.config ?? { kind: 'vnc', path };
  if (options.password !== undefined) {
    const passwordFile = join(folder, 'password');
    writeFileSync(passwordFile, `${options.password}\n`);
    config = { ...config, passwordFile };
  }
  const server = new VncServer({ config, display, name: 'vm1', socketGroup: undefined, log });
  await server.start();
  undo.push(() => server.close());
  const join_ = async (how?: { password?: string; isShared?: boolean }) => {
    const client = await RfbClient.join({ path }, how);
    undo.push(() => client.close());
    return client;
  };
  return { display, plugged, canvas, keys, pointers, server, path, lines, wanted, join: join_ };
}

/** Whether a viewer shows these beside each other, black where there is none. */
function isDesktop(client: RfbClient, canvases: readonly Canvas[]): boolean {
  const height = Math.max(...canvases.map((canvas) => canvas.height));
  const width = canvases.reduce((sum, canvas) => sum + canvas.width, 0);
  if (client.width !== width || client.height !== height) return false;
  const expected = new Uint8Array(3 * width * height);
  let x = 0;
  for (const canvas of canvases) {
    const { rgb } = canvas;
    for (let y = 0; y < canvas.height; y++) {
      expected.set(rgb.subarray(3 * y * canvas.width, 3 * (y + 1) * canvas.width), 3 * (y * width + x));
    }
    x += canvas.width;
  }
  return Buffer.compare(client.pixels, expected) === 0;
}

/** Flat areas, few colours, and noise: what tiles of each kind are made of. */
function paint(canvas: Canvas, seed: number): void {
  let state = seed;
  const next = () => (state = (Math.imul(state, 1103515245) + 12345) >>> 0) >>> 8;
  const words = new Uint32Array(canvas.bytes.buffer);
  for (let y = 0; y < canvas.height; y++) {
    for (let x = 0; x < canvas.width; x++) {
      const kind = (x >> 6) % 4;
      const noise = next();
      words[y * canvas.width + x] =
        kind === 0 ? seed : kind === 1 ? (noise % 3) * 0x123456 : kind === 2 ? (noise % 14) * 0x10305 : noise * 257;
    }
  }
}

describe('pictures', () => {
  test.each([
    ['raw', Rfb.Raw],
    ['zlib', Rfb.Zlib],
    ['zrle', Rfb.Zrle],
  ])('arrive as they are by %s, whole and in parts', async (_name, encoding) => {
    const { canvas, plugged, join } = await serve({ size: { width: 330, height: 150 } });
    paint(canvas, 7);
    const client = await join();
    expect([client.width, client.height, client.name]).toEqual([330, 150, 'vm1']);
    client.setEncodings(encoding);
    await client.refresh();
    expect(Buffer.compare(client.pixels, canvas.rgb)).toBe(0);
    expect(new Set(client.encodings)).toEqual(new Set([encoding]));
    // A change in a corner, and another one in the middle.
    paint(canvas, 99);
    client.request(true);
    plugged.screens[0]?.damage({ x: 0, y: 0, width: 330, height: 150 });
    await client.update();
    expect(Buffer.compare(client.pixels, canvas.rgb)).toBe(0);
    canvas.bytes.fill(0x55, 4 * (100 * 330 + 200), 4 * (100 * 330 + 210));
    client.request(true);
    plugged.screens[0]?.damage({ x: 200, y: 100, width: 10, height: 1 });
    expect(await client.update()).toBe(1);
    expect(Buffer.compare(client.pixels, canvas.rgb)).toBe(0);
  });

  test('of any size, drawn in any way, arrive as they are', async () => {
    const { display, join } = await serve();
    const client = await join();
    await fc.assert(
      fc.asyncProperty(
        fc.integer({ min: 1, max: 200 }),
        fc.integer({ min: 1, max: 140 }),
        fc.integer({ min: 1, max: 0xffffff }),
        fc.constantFrom(Rfb.Raw, Rfb.Zlib, Rfb.Zrle),
        fc.constantFrom(
          { red: 16, green: 8, blue: 0 },
          { red: 0, green: 8, blue: 16 },
          { red: 24, green: 16, blue: 8 },
          { red: 8, green: 24, blue: 16 },
        ),
        async (width, height, seed, encoding, shifts) => {
          const plugged = display.plugIn([{ width, height }], () => {});
          const canvas = new Canvas({ width, height });
          paint(canvas, seed);
          plugged.screens[0]?.show(canvas);
          client.setShifts(shifts);
          client.setEncodings(encoding, Rfb.DesktopSize);
          await client.refresh();
          expect([client.width, client.height]).toEqual([width, height]);
          expect(Buffer.compare(client.pixels, canvas.rgb)).toBe(0);
          plugged.dispose();
        },
      ),
      { numRuns: 40 },
    );
  });

  test('arrive in the end, whatever was drawn, asked and resized in between', { timeout: 60_000 }, async () => {
    const { display, join } = await serve();
    const client = await join();
    client.setEncodings(Rfb.Zrle, Rfb.DesktopSize);
    const size = fc.record({ width: fc.integer({ min: 1, max: 300 }), height: fc.integer({ min: 1, max: 200 }) });
    const step = fc.oneof(
      {
        weight: 6,
        arbitrary: fc.record({
          do: fc.constant('draw' as const),
          x: fc.nat(299),
          y: fc.nat(199),
          size,
          color: fc.nat(),
        }),
      },
      { weight: 3, arbitrary: fc.record({ do: fc.constant('ask' as const), isIncremental: fc.boolean() }) },
      { weight: 2, arbitrary: fc.record({ do: fc.constant('wait' as const) }) },
      { weight: 1, arbitrary: fc.record({ do: fc.constant('resize' as const), screen: fc.nat(1), size }) },
      { weight: 1, arbitrary: fc.record({ do: fc.constant('encode' as const), as: fc.constantFrom(0, 6, 16) }) },
    );
    await fc.assert(
      fc.asyncProperty(fc.tuple(size, size), fc.array(step, { maxLength: 40 }), async (sizes, steps) => {
        const plugged = display.plugIn(sizes, () => {});
        const canvases = sizes.map((each) => new Canvas(each));
        for (const [i, canvas] of canvases.entries()) plugged.screens[i]?.show(canvas);
        let asked: Promise<unknown> | undefined;
        const ask = (isIncremental: boolean) => {
          if (asked !== undefined) return;
          client.request(isIncremental);
          asked = client.update().then(() => {
            asked = undefined;
          });
        };
        for (const now of steps) {
          if (now.do === 'draw') {
            const screen = now.color & 1;
            const canvas = canvases[screen] as Canvas;
            const rect = { x: now.x % canvas.width, y: now.y % canvas.height, ...now.size };
            canvas.fill(rect, now.color);
            plugged.screens[screen]?.damage(rect);
          } else if (now.do === 'ask') ask(now.isIncremental);
          else if (now.do === 'wait') await later(1);
          else if (now.do === 'encode') client.setEncodings(now.as, Rfb.DesktopSize);
          else {
            const canvas = new Canvas(now.size);
            canvases[now.screen] = canvas;
            plugged.screens[now.screen]?.show(canvas);
          }
        }
        while (!isDesktop(client, canvases)) {
          ask(true);
          await asked;
        }
        await asked;
        plugged.dispose();
        client.request(true);
        await client.update();
      }),
      { numRuns: 60 },
    );
  });

  test('are sent only when the viewer asks, and only what changed', async () => {
    const { plugged, canvas, join } = await serve();
    const client = await join();
    await client.refresh();
    client.request(true);
    await expect(Promise.race([client.update(), later(100)])).resolves.toBe('nothing');
    canvas.bytes.fill(0xff);
    plugged.screens[0]?.damage({ x: 0, y: 0, width: 1, height: 1 });
    await expect.poll(() => client.pixel(0, 0)).toEqual([255, 255, 255]);
    expect(client.pixel(100, 100)).toEqual([0, 0, 0]);
  });

  test('that change without a word are looked at while a viewer waits', async () => {
    const { plugged, join } = await serve();
    let looks = 0;
    const canvas = new Canvas({ width: 200, height: 150 });
    const picture: Picture = {
      width: 200,
      height: 150,
      read: (...args) => canvas.read(...args),
      poll: (damaged) => {
        if (++looks === 4) damaged({ x: 3, y: 3, width: 1, height: 1 });
      },
    };
    plugged.screens[0]?.show(picture);
    const client = await join();
    await client.refresh();
    canvas.bytes.fill(0x20);
    client.request(true);
    await client.update();
    expect(client.pixel(3, 3)).toEqual([0x20, 0x20, 0x20]);
    const seen = looks;
    await later(150);
    expect(looks).toBe(seen);
  });
});

/** After a while. */
const later = (ms: number) => new Promise<string>((resolve) => setTimeout(() => resolve('nothing'), ms));

describe('sizes', () => {
  test('a new one is told in the form the viewer knows', async () => {
    const { plugged, join } = await serve();
    const [extended, simple, neither] = [await join(), await join(), await join()];
    extended.setEncodings(Rfb.Raw, Rfb.ExtendedDesktopSize, Rfb.DesktopSize);
    simple.setEncodings(Rfb.Raw, Rfb.DesktopSize);
    for (const client of [extended, simple, neither]) await client.refresh();
    expect(extended.layouts).toEqual([{ reason: 0, status: 0, screens: [[0, 0, 0, 200, 150]] }]);
    const canvas = new Canvas({ width: 320, height: 240 });
    canvas.bytes.fill(9);
    plugged.screens[0]?.show(canvas);
    for (const client of [extended, simple, neither]) {
      client.request(true);
      await client.update();
    }
    expect([extended.width, simple.width, neither.width]).toEqual([320, 320, 200]);
    expect(extended.layouts.at(-1)).toEqual({ reason: 0, status: 0, screens: [[0, 0, 0, 320, 240]] });
    for (const client of [extended, simple, neither]) {
      expect(client.pixel(client.width - 1, client.height - 1)).toEqual([9, 9, 9]);
    }
  });

  test('a viewer may ask for one', async () => {
    const { wanted, join } = await serve();
    const client = await join();
    client.setEncodings(Rfb.Raw, Rfb.ExtendedDesktopSize);
    await client.refresh();
    client.setDesktopSize(800, 600, [[0, 0, 0, 800, 600]]);
    client.request(true);
    await client.update();
    expect(wanted).toEqual([[0, { width: 800, height: 600 }]]);
    expect(client.layouts.at(-1)).toMatchObject({ reason: 1, status: 4, screens: [[0, 0, 0, 200, 150]] });
    client.setDesktopSize(0, 0, []);
    client.request(true);
    await client.update();
    expect(client.layouts.at(-1)).toMatchObject({ reason: 1, status: 3 });
  });

  test('two screens stand beside each other', async () => {
    const display = new Display();
    const plugged = display.plugIn(
      [
        { width: 100, height: 50 },
        { width: 60, height: 80 },
      ],
      () => {},
    );
    const server = new VncServer({
      config: { kind: 'vnc', path: join(folder, 'two') },
      display,
      name: 'vm',
      socketGroup: undefined,
      log: memoryLog().log,
    });
    await server.start();
    undo.push(() => server.close());
    const [left, right] = [new Canvas({ width: 100, height: 50 }), new Canvas({ width: 60, height: 80 })];
    left.bytes.fill(1);
    right.bytes.fill(2);
    plugged.screens[0]?.show(left);
    plugged.screens[1]?.show(right);
    const client = await RfbClient.join({ path: join(folder, 'two') });
    undo.push(() => client.close());
    await client.refresh();
    expect([client.width, client.height]).toEqual([160, 80]);
    expect([client.pixel(99, 49), client.pixel(99, 50), client.pixel(100, 79)]).toEqual([
      [1, 1, 1],
      [0, 0, 0],
      [2, 2, 2],
    ]);
  });

  test('the end of the screens leaves a black picture and the viewer', async () => {
    const { plugged, canvas, join } = await serve();
    canvas.bytes.fill(1);
    const client = await join();
    await client.refresh();
    plugged.dispose();
    client.request(true);
    await client.update();
    expect(client.pixel(5, 5)).toEqual([0, 0, 0]);
  });
});

test('a cursor is told with its mask, and that there is none any more', async () => {
  const { plugged, join } = await serve();
  const client = await join();
  client.setEncodings(Rfb.Raw, Rfb.Cursor);
  await client.refresh();
  expect(client.cursor).toBeUndefined();
  const pixels = new Uint8Array(4 * 9 * 2);
  pixels.set([1, 2, 3, 255], 0);
  pixels.set([4, 5, 6, 255], 4 * 8);
  plugged.setCursor({ width: 9, height: 2, hotX: 3, hotY: 1, pixels });
  client.request(true);
  await client.update();
  expect(client.cursor).toMatchObject({ hotX: 3, hotY: 1, width: 9, height: 2 });
  expect([...(client.cursor?.mask ?? [])]).toEqual([0x80, 0x80, 0, 0]);
  expect([...(client.cursor?.pixels.subarray(0, 3) ?? [])]).toEqual([1, 2, 3]);
  plugged.setCursor(undefined);
  client.request(true);
  await client.update();
  expect(client.cursor).toMatchObject({ width: 0, height: 0 });
});

describe('input', () => {
  test('keys by what is on them, or by where they are', async () => {
    const { keys, join } = await serve();
    const client = await join();
    client.setEncodings(Rfb.Raw, Rfb.QemuKey);
    await client.refresh();
    expect(client.isQemuKeyOffered).toBe(true);
    client.key(true, 0x41);
    client.key(false, 0x41);
    // The key right of Tab on a French keyboard has an "a" on it and is where a US keyboard has its "q".
    client.qemuKey(true, 0x61, 0x10);
    client.qemuKey(false, 0x61, 0x10);
    client.qemuKey(true, 0xff53, 0xcd);
    client.key(true, 0x20ac);
    await expect.poll(() => keys.length).toBe(6);
    expect(keys.map(({ code, keysym, isDown }) => [code, keysym, isDown])).toEqual([
      [30, 0x61, true],
      [30, 0x61, false],
      [16, 0x71, true],
      [16, 0x71, false],
      [106, 0xff53, true],
      [0, 0x20ac, true],
    ]);
  });

  test('the pointer, its buttons and its wheel', async () => {
    const { pointers, join } = await serve();
    const client = await join();
    client.pointer(0, 0, 0);
    client.pointer(199, 149, 1);
    client.pointer(60_000, 10, 5);
    client.pointer(0, 0, 8);
    client.pointer(0, 0, 0);
    client.pointer(0, 0, 16);
    await expect.poll(() => pointers.length).toBe(6);
    expect(pointers.map(({ x, y, buttons, wheel }) => [x, y, buttons, wheel])).toEqual([
      [0, 0, 0, 0],
      [0x7fff, 0x7fff, 1, 0],
      [0x7fff, Math.round((10 * 0x7fff) / 149), 5, 0],
      [0, 0, 0, 1],
      [0, 0, 0, 0],
      [0, 0, 0, -1],
    ]);
    expect(pointers[1]).toMatchObject({ xPixels: 199, yPixels: 149 });
  });

  test('nothing stays pressed when a viewer is gone', async () => {
    const { keys, pointers, join } = await serve();
    const client = await join();
    client.key(true, 0xffe1);
    client.key(true, 0x20ac);
    client.pointer(5, 5, 1);
    await expect.poll(() => pointers.length).toBe(1);
    client.close();
    await expect.poll(() => keys.filter((key) => !key.isDown).map(({ keysym }) => keysym)).toEqual([0xffe1, 0x20ac]);
    expect(pointers.at(-1)).toMatchObject({ buttons: 0 });
  });
});

describe('who may', () => {
  test('the socket is the user\u2019s alone, and gone afterwards', async () => {
    const { path, server } = await serve();
    expect(statSync(path).mode & 0o777).toBe(0o600);
    server.close();
    expect(existsSync(path)).toBe(false);
  });

  test('a password lets in, a wrong one does not', { timeout: 20_000 }, async () => {
    const { join, lines } = await serve({ password: 'secret' });
    const client = await join({ password: 'secret' });
    await client.refresh();
    await expect(join({ password: 'secreT' })).rejects.toThrow('the password is wrong');
    expect(lines.join()).toContain('wrong password');
  });

  test('TCP with a password, on the address that was asked for', async () => {
    const port = await freePort();
    const config: VncConfig = { kind: 'vnc', host: '127.0.0.1', port, passwordFile: '' };
    const { lines, server } = await serve({ password: 'pw', config });
    const client = await RfbClient.join({ host: '127.0.0.1', port }, { password: 'pw' });
    await client.refresh();
    expect(lines.join()).not.toContain('not encrypted');
    const second = new VncServer({
      config: { ...config, passwordFile: join(folder, 'password') } as VncConfig,
      display: new Display(),
      name: 'x',
      socketGroup: undefined,
      log: memoryLog().log,
    });
    await expect(second.start()).rejects.toThrow(HostError);
    server.close();
    client.close();
  });

  test.each([
    ['', /empty/],
    ['too long for it', /8 bytes/],
  ])('a password of "%s" is refused', async (password, message) => {
    await expect(serve({ password })).rejects.toThrow(message);
    await expect(serve({ password })).rejects.toThrow(ConfigError);
  });

  test('a viewer that wants to be alone is', async () => {
    const { join } = await serve();
    const first = await join();
    const second = await join({ isShared: true });
    await later(30);
    expect(first.isClosed).toBe(false);
    await join({ isShared: false });
    await expect.poll(() => first.isClosed && second.isClosed).toBe(true);
  });

  // Mutation: turn the newcomer away.
  test('no more than so many, and those that say nothing keep nobody else out', async () => {
    const { path, join, lines } = await serve();
    const silent = await Promise.all(Array.from({ length: 6 }, () => RfbClient.connect({ path })));
    await join();
    expect(lines.join()).toContain('gave way to another');
    await expect.poll(() => silent.filter(({ isClosed }) => isClosed).length).toBe(3);
  });

  // Mutation: turn the ninth away; or let one that has not said the password send another away.
  test.each<[string, (client: RfbClient) => void]>([
    ['say nothing', () => {}],
    ['wait for a change that never comes', (client) => client.request(true)],
    ['do not read', (client) => client.socket.pause()],
    ['have said half a message', (client) => client.write([3, 1])],
    ['have closed their half', (client) => void client.socket.end()],
  ])('eight viewers that %s keep nobody out, and one that is busy stays', async (_what, attack) => {
    const { path, join } = await serve();
    const busy = await join();
    for (let i = 0; i < 7; i++) attack(await join());
    await busy.refresh();
    const unknown = await RfbClient.connect({ path });
    const ninth = await join();
    await ninth.refresh();
    await busy.refresh();
    expect([busy.isClosed, ninth.isClosed]).toEqual([false, false]);
    unknown.socket.destroy();
  });
});

describe('viewers that are none', () => {
  test('garbage at any point ends the connection and nothing else', { timeout: 60_000 }, async () => {
    const { path, join, lines } = await serve();
    await fc.assert(
      fc.asyncProperty(fc.integer({ min: 0, max: 3 }), fc.uint8Array({ maxLength: 200 }), async (steps, bytes) => {
        const client = await RfbClient.connect({ path });
        const greeting = [Buffer.from('RFB 003.008\n'), Buffer.from([1]), Buffer.from([1])];
        for (const part of greeting.slice(0, steps)) client.write(part);
        client.write(bytes);
        client.socket.end();
        await expect.poll(() => client.isClosed, { interval: 1, timeout: 10_000 }).toBe(true);
      }),
      { numRuns: 150 },
    );
    const client = await join();
    await client.refresh();
    expect(lines.length).toBeLessThan(150);
  });

  test.each([
    ['a message that was not offered', [150, 1, 0, 0, 0, 0, 0, 0, 0, 0]],
    ['a colour map', [0, 0, 0, 0, 8, 8, 0, 0, 0, 7, 0, 7, 0, 3, 0, 3, 6, 0, 0, 0]],
    ['a format that is none', [0, 0, 0, 0, 24, 8, 0, 1, 0, 7, 0, 7, 0, 3, 0, 3, 6, 0, 0, 0]],
    ['colours that are not in the pixel', [0, 0, 0, 0, 8, 8, 0, 1, 1, 255, 0, 7, 0, 3, 0, 3, 6, 0, 0, 0]],
    ['more encodings than there are', [2, 0, 0xff, 0xff]],
    ['a desktop of more screens than fit', [251, 0, 1, 0, 1, 0, 200, 0]],
    ['a clipboard of four gigabytes', [6, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]],
    ['QEMU audio', [255, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]],
  ])('%s ends the connection', async (_name, bytes) => {
    const { join, lines } = await serve();
    const client = await join();
    client.write(bytes);
    await expect.poll(() => client.isClosed).toBe(true);
    expect(lines.join()).toContain('cut off');
  });

  test('a flood in the place of an answer is cut off', async () => {
    const { path, lines } = await serve({ password: 'secret' });
    const client = await RfbClient.connect({ path });
    client.write(Buffer.from('RFB 003.008\n'));
    client.write([2]);
    // A wrong answer is thought about for a while.
    for (let i = 0; i < 64; i++) client.write(new Uint8Array(0x10000));
    await expect.poll(() => client.isClosed).toBe(true);
    expect(lines.join()).toContain('at once');
  });

  test('one that takes nothing holds nobody up when it is sent away', async () => {
    const { plugged, canvas, join, server } = await serve({ size: { width: 1600, height: 1200 } });
    const client = await join();
    client.socket.pause();
    client.request(false);
    canvas.bytes.fill(1);
    plugged.screens[0]?.damage({ x: 0, y: 0, width: 1600, height: 1200 });
    await later(100);
    await join({ isShared: false });
    server.close();
    client.socket.resume();
    await expect.poll(() => client.isClosed, { timeout: 10_000 }).toBe(true);
  }, 20_000);

  test('a clipboard is passed over, in pieces too', async () => {
    const { join } = await serve();
    const client = await join();
    client.write([6, 0, 0, 0, 0, 1, 0, 0]);
    for (let i = 0; i < 16; i++) client.write(new Uint8Array(0x1000).fill(255));
    await client.refresh();
    expect(client.isClosed).toBe(false);
  });

  // Mutation: a list that grows with each message; the count of rectangles has 16 bits.
  test('a viewer that says much and asks for nothing is told the last of it', async () => {
    const { join } = await serve({});
    const client = await join();
    for (let i = 0; i < 3000; i++) {
      client.setEncodings(Rfb.Raw, Rfb.QemuKey, Rfb.ExtendedDesktopSize);
      client.setDesktopSize(0, 0, []);
    }
    client.request(true);
    await client.update();
    // One for the key event, one for the screens as they are, one for the size that was refused.
    expect(client.encodings.filter((encoding) => encoding !== Rfb.Raw)).toHaveLength(3);
    expect(client.layouts.map(({ reason, status }) => [reason, status])).toEqual([
      [0, 0],
      [1, 3],
    ]);
  });

  test('keys that go down and never up are not remembered without end', async () => {
    const { join, keys } = await serve({});
    const client = await join();
    for (let keysym = 1; keysym <= 3000; keysym++) client.key(true, 0x100_0000 + keysym);
    await client.refresh();
    expect(keys.length).toBeGreaterThanOrEqual(100);
    expect(keys.length).toBeLessThanOrEqual(256);
    client.key(false, 0x100_0001);
    client.key(true, 0x61);
    await client.refresh();
    expect(keys.at(-1)).toEqual({ code: 30, keysym: 0x61, isDown: true });
  });

  test('a viewer that takes nothing costs one rectangle, whatever the guest draws', async () => {
    const { plugged, canvas, join, display } = await serve({ size: { width: 1600, height: 1200 } });
    const client = await join();
    client.socket.pause();
    for (let i = 0; i < 50; i++) {
      client.request(false);
      paintAll(canvas, i);
      plugged.screens[0]?.damage({ x: 0, y: 0, width: 1600, height: 1200 });
      await later(5);
    }
    // 50 frames of 7.7 MB: what was buffered here would show.
    expect(process.memoryUsage().arrayBuffers).toBeLessThan(150 * 1024 * 1024);
    client.socket.resume();
    await client.update();
    expect(display.size.width).toBe(1600);
  });
});

function paintAll(canvas: Canvas, value: number): void {
  canvas.bytes.fill(value);
}

function freePort(): Promise<number> {
  return new Promise((resolve) => {
    const server = createServer().listen(0, '127.0.0.1', () => {
      const { port } = server.address() as { port: number };
      server.close(() => resolve(port));
    });
  });
}

test('a password makes of a challenge what DES makes of it', () => {
  // The example that DES is usually explained by, key 133457799bbcdff1, without its parity bits and mirrored.
  const password = 'H,j\x1eY={\x0f';
  const block = Buffer.from('0123456789abcdef', 'hex');
  const response = Buffer.from(vncResponse(password, Buffer.concat([block, block])));
  expect(response.toString('hex')).toBe('85e813540f0ab405'.repeat(2));
  expect(Buffer.from(vncResponse(`${password}more`, block))).toEqual(response.subarray(0, 8));
});

test('pixel formats survive their own form, and colours keep their share', () => {
  const format = {
    bitsPerPixel: 16,
    depth: 16,
    isBigEndian: true,
    max: { red: 31, green: 63, blue: 31 },
    shift: { red: 11, green: 5, blue: 0 },
  } as const;
  expect(decodeFormat(encodeFormat(format))).toEqual(format);
  const writer = new PixelWriter(format);
  const out = new Uint8Array(2);
  expect(writer.put(out, 0, 0xff_8000)).toBe(2);
  expect((((out[0] as number) << 8) | (out[1] as number)).toString(16)).toBe(((31 << 11) | (32 << 5)).toString(16));
  expect([writer.pixelBytes, writer.compactBytes]).toEqual([2, 2]);
});
