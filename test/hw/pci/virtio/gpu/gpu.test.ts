/** virtio-gpu as its driver sees it, and what a viewer would. */
import { afterEach, describe, expect, test } from 'vitest';
import { ConfigError } from '../../../../../devicemodel/core/errors.ts';
import { type CursorImage, Display } from '../../../../../devicemodel/hw/display/display.ts';
import type { Rect } from '../../../../../devicemodel/hw/display/rect.ts';
import { edidOf } from '../../../../../devicemodel/hw/pci/virtio/gpu/edid.ts';
import { VirtioGpu } from '../../../../../devicemodel/hw/pci/virtio/gpu/gpu.ts';
import { parseGpuText } from '../../../../../devicemodel/hw/pci/virtio/gpu/options.ts';
import { Resources } from '../../../../../devicemodel/hw/pci/virtio/gpu/resources.ts';
import { VirtioPci } from '../../../../../devicemodel/hw/pci/virtio/transport/transport.ts';
import { VirtioDriver, VirtioMachine } from '../../../../support/virtio-driver.ts';

const undo: Array<() => void | Promise<void>> = [];
afterEach(async () => {
  for (const step of undo.splice(0).reverse()) await step();
});

const words = (...values: number[]) => new Uint8Array(Uint32Array.from(values).buffer);
const Answer = {
  Ok: 0x1100,
  DisplayInfo: 0x1101,
  Edid: 0x1104,
  Unspecified: 0x1200,
  OutOfMemory: 0x1201,
  InvalidScanout: 0x1202,
  InvalidResource: 0x1203,
  InvalidParameter: 0x1205,
} as const;

async function makeGpu({ sizes = [{ width: 800, height: 600 }], blobs = false } = {}) {
  const machine = new VirtioMachine({ ram: [[0, 0x40_0000]] });
  undo.push(() => machine.dispose());
  const display = new Display();
  const owners: string[] = [];
  const gpu = new VirtioGpu({ sizes, display, offersBlobs: () => blobs, onOwner: (owner) => owners.push(owner) });
  const fn = new VirtioPci(gpu, machine.env(), {
    mode: 'modern',
    identity: { legacyDeviceId: 0, type: 16, classCode: 0x030000 },
  });
  const driver = new VirtioDriver(machine, fn, 'modern');
  await fn.start();
  undo.push(() => fn.stop());
  driver.init();
  const damage: Rect[] = [];
  const news = { resized: 0, cursors: [] as Array<CursorImage | undefined> };
  display.watch({
    resized: () => news.resized++,
    damaged: (rect) => damage.push(rect),
    cursorChanged: () => news.cursors.push(display.cursor),
  });
  /** One request. @returns type of the answer, and all of it */
  const ask = (type: number, body: Uint8Array = new Uint8Array(0), room = 24, flags = 0, fence = 0) => {
    const request = Buffer.concat([words(type, flags, fence, 0, 0, 0), body]);
    const used = driver.request(0, [{ read: request }, { write: room }]).length;
    const answer = Buffer.from(driver.buffer(1));
    return { type: answer.readUInt32LE(0), answer, used };
  };
  const create = (id: number, width: number, height: number, format = 2) =>
    ask(0x101, words(id, format, width, height)).type;
  const attach = (id: number, ...entries: Array<readonly [number, number]>) =>
    ask(0x106, words(id, entries.length, ...entries.flatMap(([at, length]) => [at, 0, length, 0]))).type;
  const transfer = (id: number, rect: Rect, offset = 0) =>
    ask(0x105, words(rect.x, rect.y, rect.width, rect.height, offset, 0, id, 0)).type;
  const scanout = (id: number, rect: Rect, at = 0) =>
    ask(0x103, words(rect.x, rect.y, rect.width, rect.height, at, id)).type;
  const flush = (id: number, rect: Rect) => ask(0x104, words(rect.x, rect.y, rect.width, rect.height, id, 0)).type;
  const pixel = (x: number, y: number) => {
    const bytes = new Uint8Array(4);
    display.read({ x, y, width: 1, height: 1 }, bytes, 0, 4);
    return [...bytes.subarray(0, 3)];
  };
  return { machine, display, owners, gpu, driver, damage, news, ask, create, attach, transfer, scanout, flush, pixel };
}

const all = (width: number, height: number): Rect => ({ x: 0, y: 0, width, height });
const BACKING = 0x20_0000;

describe('a picture', () => {
  test('goes from scattered guest memory to the screen', async () => {
    const { machine, owners, damage, create, attach, transfer, scanout, flush, pixel, display } = await makeGpu();
    expect(create(5, 4, 3)).toBe(Answer.Ok);
    // 48 bytes in three pieces, out of order; the second row crosses a seam.
    expect(attach(5, [BACKING + 0x1000, 20], [BACKING, 8], [BACKING + 0x3000, 20])).toBe(Answer.Ok);
    const bytes = Uint8Array.from({ length: 48 }, (_, i) => i + 1);
    machine.memory.write(BACKING + 0x1000, bytes.subarray(0, 20));
    machine.memory.write(BACKING, bytes.subarray(20, 28));
    machine.memory.write(BACKING + 0x3000, bytes.subarray(28));
    expect(transfer(5, all(4, 3))).toBe(Answer.Ok);
    expect(scanout(5, all(4, 3))).toBe(Answer.Ok);
    expect(owners).toContain('driver');
    expect(display.size).toEqual({ width: 4, height: 3 });
    expect([pixel(0, 0), pixel(1, 1), pixel(3, 2)]).toEqual([
      [1, 2, 3],
      [21, 22, 23],
      [45, 46, 47],
    ]);
    damage.length = 0;
    expect(flush(5, { x: 1, y: 1, width: 100, height: 1 })).toBe(Answer.Ok);
    expect(damage).toEqual([{ x: 1, y: 1, width: 3, height: 1 }]);
  });

  test.each([
    [1, [1, 2, 3]],
    [2, [1, 2, 3]],
    [3, [4, 3, 2]],
    [4, [4, 3, 2]],
    [67, [3, 2, 1]],
    [68, [2, 3, 4]],
    [121, [2, 3, 4]],
    [134, [3, 2, 1]],
  ])('of format %i has its colours', async (format, colors) => {
    const { machine, create, attach, transfer, scanout, pixel } = await makeGpu();
    expect(create(1, 1, 1, format)).toBe(Answer.Ok);
    attach(1, [BACKING, 4]);
    machine.memory.write(BACKING, Uint8Array.of(1, 2, 3, 4));
    transfer(1, all(1, 1));
    scanout(1, all(1, 1));
    expect(pixel(0, 0)).toEqual(colors);
  });

  test('is part of a resource, and of it what was transferred', async () => {
    const { machine, create, attach, transfer, scanout, flush, damage, pixel } = await makeGpu();
    create(1, 10, 10);
    attach(1, [BACKING, 400]);
    machine.memory.write(BACKING, new Uint8Array(400).fill(7));
    scanout(1, { x: 5, y: 5, width: 5, height: 5 });
    // The offset is that of the rectangle's first pixel; rows are as far apart as the resource's.
    expect(transfer(1, { x: 6, y: 7, width: 2, height: 1 }, 4 * 76)).toBe(Answer.Ok);
    expect([pixel(0, 0), pixel(1, 2), pixel(2, 2), pixel(3, 2)]).toEqual([
      [0, 0, 0],
      [7, 7, 7],
      [7, 7, 7],
      [0, 0, 0],
    ]);
    damage.length = 0;
    flush(1, { x: 0, y: 0, width: 6, height: 6 });
    flush(1, { x: 0, y: 0, width: 5, height: 5 });
    expect(damage).toEqual([{ x: 0, y: 0, width: 1, height: 1 }]);
  });

  test('whose backing is no RAM, or too short, stays as it was', async () => {
    const { create, attach, transfer, scanout, pixel } = await makeGpu();
    create(1, 2, 2);
    scanout(1, all(2, 2));
    expect(transfer(1, all(2, 2))).toBe(Answer.Ok);
    expect(attach(1, [0xf000_0000, 4], [BACKING, 4])).toBe(Answer.Ok);
    expect(transfer(1, all(2, 2), 0)).toBe(Answer.Ok);
    expect(transfer(1, all(2, 2), 0xffff_fff0)).toBe(Answer.Ok);
    expect(pixel(1, 1)).toEqual([0, 0, 0]);
  });

  test('goes when its resource goes, and when the driver does', async () => {
    const { driver, owners, display, create, scanout, ask } = await makeGpu();
    create(1, 700, 500);
    scanout(1, all(700, 500));
    expect(ask(0x102, words(1, 0)).type).toBe(Answer.Ok);
    expect(display.size).toEqual({ width: 700, height: 500 });
    create(2, 640, 480);
    scanout(2, all(640, 480));
    await driver.reset();
    expect(owners.at(-1)).toBe('vga');
    driver.init();
    expect(create(2, 1, 1)).toBe(Answer.Ok);
  });

  test('of 16 MiB is copied in parts, with other work in between', async () => {
    const { machine, driver, create, attach, scanout, pixel } = await makeGpu();
    create(1, 2048, 2048);
    attach(1, [BACKING, 0x10_0000]);
    machine.memory.write(BACKING, new Uint8Array(0x10_0000).fill(9));
    scanout(1, all(2048, 2048));
    const body = words(0, 0, 2048, 2048, 0, 0, 1, 0);
    driver.add(0, [{ read: Buffer.concat([words(0x105, 0, 0, 0, 0, 0), body]) }, { write: 24 }]);
    driver.kick(0);
    expect(driver.takeUsed(0)).toHaveLength(0);
    for (let i = 0; i < 40; i++) machine.clock.advance(1000);
    expect(driver.takeUsed(0)).toHaveLength(1);
    expect([pixel(0, 0), pixel(0, 127), pixel(0, 128)]).toEqual([
      [9, 9, 9],
      [9, 9, 9],
      [0, 0, 0],
    ]);
  });
});

test('an empty rectangle of a resource is taken, as in C', async () => {
  const { ask, create } = await makeGpu();
  expect(create(77, 10, 10)).toBe(Answer.Ok);
  expect(ask(0x103, words(0, 0, 10, 10, 0, 77)).type).toBe(Answer.Ok);
  for (const rect of [
    [10, 0, 0, 10],
    [0, 10, 10, 0],
  ] as const) {
    expect(ask(0x103, words(...rect, 0, 77)).type).toBe(Answer.Ok);
  }
});

describe('what is wrong', () => {
  test.each([
    ['an unknown command', 0x1ff, words(), Answer.Unspecified],
    ['a command for 3D', 0x200, words(0, 0), Answer.Unspecified],
    ['a blob that was not offered', 0x10c, words(1, 1, 2, 0, 0, 0, 4096, 0), Answer.Unspecified],
    ['a request that is too short', 0x101, words(1, 2), Answer.InvalidParameter],
    ['a format that is none', 0x101, words(1, 5, 1, 1), Answer.OutOfMemory],
    ['no width', 0x101, words(1, 2, 0, 1), Answer.OutOfMemory],
    ['more than there is memory for', 0x101, words(1, 2, 0xffff_ffff, 0xffff_ffff), Answer.OutOfMemory],
    ['an id that is taken', 0x101, words(77, 2, 1, 1), Answer.InvalidResource],
    ['no such resource to unref', 0x102, words(3, 0), Answer.InvalidResource],
    ['no such resource to attach to', 0x106, words(3, 1, BACKING, 0, 4, 0), Answer.InvalidResource],
    ['no entry', 0x106, words(77, 0), Answer.InvalidResource],
    ['entries that are not there', 0x106, words(77, 3, BACKING, 0, 4, 0), Answer.InvalidParameter],
    ['a great many entries', 0x106, words(77, 0xffff_ffff, BACKING, 0, 4, 0), Answer.InvalidParameter],
    ['no such scanout', 0x103, words(0, 0, 10, 10, 1, 77), Answer.InvalidScanout],
    ['no such resource to show', 0x103, words(0, 0, 10, 10, 0, 3), Answer.InvalidResource],
    ['a rectangle beyond the resource', 0x103, words(1, 0, 10, 10, 0, 77), Answer.InvalidParameter],
    ['a rectangle that wraps', 0x103, words(0xffff_fffe, 0, 4, 4, 0, 77), Answer.InvalidParameter],
    ['an empty rectangle beyond it', 0x103, words(11, 0, 0, 10, 0, 77), Answer.InvalidParameter],
    ['a transfer beyond the resource', 0x105, words(0, 5, 10, 10, 0, 0, 77, 0), Answer.InvalidParameter],
    ['no such resource to transfer', 0x105, words(0, 0, 1, 1, 0, 0, 3, 0), Answer.InvalidResource],
    ['no such resource to flush', 0x104, words(0, 0, 1, 1, 3, 0), Answer.InvalidResource],
    ['the EDID of no scanout', 0x10a, words(5, 0), Answer.InvalidScanout],
  ])('%s is answered, and changes nothing', async (_name, type, body, answer) => {
    const { ask, create, display } = await makeGpu();
    expect(create(77, 10, 10)).toBe(Answer.Ok);
    expect(ask(type, body).type).toBe(answer);
    expect(display.size).toEqual({ width: 800, height: 600 });
    expect(ask(0x102, words(77, 0)).type).toBe(Answer.Ok);
  });

  test('resources of all kinds have 256 MiB together, and give back what they had', async () => {
    const { create, ask, attach } = await makeGpu();
    // 64 MiB each, and something for the resource itself.
    for (let id = 1; id <= 3; id++) expect(create(id, 4096, 4096)).toBe(Answer.Ok);
    expect(create(4, 4096, 4096)).toBe(Answer.OutOfMemory);
    expect(ask(0x102, words(2, 0)).type).toBe(Answer.Ok);
    expect(create(4, 4096, 4096)).toBe(Answer.Ok);
    expect(attach(1, [BACKING, 4])).toBe(Answer.Ok);
    expect(ask(0x107, words(1, 0)).type).toBe(Answer.Ok);
    expect(ask(0x107, words(99, 0)).type).toBe(Answer.Ok);
  });

  test('resources of one pixel are not without end', () => {
    const resources = new Resources();
    let id = 0;
    while (resources.createImage(++id, { width: 1, height: 1 }, 2) !== undefined && id < 200_000);
    expect(id).toBeGreaterThan(60_000);
    expect(id).toBeLessThan(66_000);
    const one = resources.get(1);
    if (one !== undefined) resources.remove(one);
    expect(resources.createImage(id, { width: 1, height: 1 }, 2)).toBeDefined();
    resources.clear();
    expect(resources.totalBytes).toBe(0);
  });
});

test('a fence comes back with the answer', async () => {
  const { ask } = await makeGpu();
  const { answer } = ask(0x101, words(1, 2, 1, 1), 24, 1, 0x1234);
  expect([answer.readUInt32LE(4), answer.readUInt32LE(8)]).toEqual([1, 0x1234]);
  const without = ask(0x102, words(1, 0), 24, 2, 0x1234).answer;
  expect([without.readUInt32LE(4), without.readUInt32LE(8)]).toEqual([0, 0]);
});

describe('monitors', () => {
  test('say how large they are, and what they are', async () => {
    const { ask } = await makeGpu({
      sizes: [
        { width: 800, height: 600 },
        { width: 640, height: 480 },
      ],
    });
    const info = ask(0x100, words(), 408).answer;
    expect(Array.from({ length: 3 }, (_, i) => [8, 12, 16].map((at) => info.readUInt32LE(24 + 24 * i + at)))).toEqual([
      [800, 600, 1],
      [640, 480, 1],
      [0, 0, 0],
    ]);
    const edid = ask(0x10a, words(1, 0), 1056);
    expect([edid.type, edid.answer.readUInt32LE(24), edid.used]).toEqual([Answer.Edid, 128, 1056]);
    expect(edid.answer.subarray(32, 160)).toEqual(Buffer.from(edidOf({ width: 640, height: 480 })));
  });

  test.each([
    [640, 480],
    [800, 600],
    [1920, 1080],
    [3840, 2160],
  ])('an EDID of %ix%i has its sum, its name and its resolution', (width, height) => {
    const edid = edidOf({ width, height });
    expect(edid.reduce((sum, byte) => (sum + byte) & 0xff, 0)).toBe(0);
    expect(Buffer.from(edid.subarray(95, 107)).toString()).toBe('ACRN_Monitor');
    const [, , lowWidth, , highWidth, lowHeight, , highHeight] = edid.subarray(54, 72) as unknown as number[];
    expect((lowWidth as number) | (((highWidth as number) & 0xf0) << 4)).toBe(width);
    expect((lowHeight as number) | (((highHeight as number) & 0xf0) << 4)).toBe(height);
  });

  test('of another size are an event, which the driver acknowledges', async () => {
    const { display, driver, ask } = await makeGpu();
    const generation = driver.in(21, 1);
    expect(display.requestSize(0, { width: 1281, height: 100 })).toBe(true);
    expect([driver.readConfig(0, 4), driver.in(21, 1)]).toEqual([1, generation + 1]);
    expect(driver.isr & 2).toBe(2);
    const info = ask(0x100, words(), 408).answer;
    expect([info.readUInt32LE(32), info.readUInt32LE(36)]).toEqual([1280, 480]);
    driver.writeConfig(4, 4, 1);
    expect(driver.readConfig(0, 4)).toBe(0);
    expect([driver.readConfig(8, 4), driver.readConfig(12, 4)]).toEqual([1, 0]);
    // The same again is no news.
    display.requestSize(0, { width: 1280, height: 480 });
    expect(driver.readConfig(0, 4)).toBe(0);
    expect(display.requestSize(1, { width: 800, height: 600 })).toBe(false);
  });
});

describe('the cursor', () => {
  test('is an image with its hot spot, and may be none', async () => {
    const { machine, driver, news, create, attach, transfer } = await makeGpu();
    create(1, 64, 64, 1);
    attach(1, [BACKING, 64 * 64 * 4]);
    machine.memory.write(BACKING, Uint8Array.of(1, 2, 3, 4));
    transfer(1, all(64, 64));
    const send = (...values: number[]) =>
      driver.request(1, [{ read: Buffer.concat([words(0x300, 0, 0, 0, 0, 0), words(...values)]) }]);
    send(0, 10, 20, 0, 1, 5, 6, 0);
    expect(news.cursors.at(-1)).toMatchObject({ width: 64, height: 64, hotX: 5, hotY: 6 });
    expect([...(news.cursors.at(-1)?.pixels.subarray(0, 4) ?? [])]).toEqual([1, 2, 3, 4]);
    send(0, 10, 20, 0, 99, 0, 0, 0);
    expect(news.cursors).toHaveLength(1);
    send(0, 10, 20, 0, 0, 0, 0, 0);
    expect(news.cursors.at(-1)).toBeUndefined();
  });
});

describe('a blob', () => {
  const blob = (id: number, sizeBytes: number, ...entries: Array<readonly [number, number]>) =>
    words(id, 1, 2, entries.length, 0, 0, sizeBytes, 0, ...entries.flatMap(([at, length]) => [at, 0, length, 0]));
  const show = (id: number, width: number, height: number, format = 2, stride = width * 4, offset = 0) =>
    words(0, 0, width, height, 0, id, width, height, format, 0, stride, 0, 0, 0, offset, 0, 0, 0);

  test('is shown as it is in guest memory', async () => {
    const { machine, ask, pixel, damage, flush, owners } = await makeGpu({ blobs: true });
    expect(ask(0x10c, blob(1, 0x10000, [BACKING, 0x8000], [BACKING + 0x10000, 0x8000])).type).toBe(Answer.Ok);
    expect(ask(0x10d, show(1, 100, 100, 2, 512, 64)).type).toBe(Answer.Ok);
    expect(owners).toContain('driver');
    machine.memory.write(BACKING + 64, Uint8Array.of(1, 2, 3, 0));
    // Row 64 begins at 64 + 64 * 512, in the second piece.
    machine.memory.write(BACKING + 0x10000 + 64, Uint8Array.of(4, 5, 6, 0));
    expect([pixel(0, 0), pixel(0, 64)]).toEqual([
      [1, 2, 3],
      [4, 5, 6],
    ]);
    damage.length = 0;
    flush(1, all(100, 100));
    expect(damage).toEqual([all(100, 100)]);
  });

  test.each([
    ['beyond its end', show(1, 100, 164, 2, 512)],
    ['with rows that overlap', show(1, 100, 10, 2, 100)],
    ['in a format that is none', show(1, 10, 10, 99)],
    ['of more pixels than a viewer has to bear', show(2, 8192, 4321, 2)],
  ])('is not shown %s', async (_name, body) => {
    const { ask } = await makeGpu({ blobs: true });
    ask(0x10c, blob(1, 0x10000, [BACKING, 0x10000]));
    ask(0x10c, blob(2, 0x2000_0000, [BACKING, 0x10000]));
    expect(ask(0x10d, show(2, 8192, 4320)).type).toBe(Answer.Ok);
    expect(ask(0x10d, body).type).toBe(Answer.InvalidParameter);
  });

  test.each([
    ['without an id', words(0, 1, 2, 0, 0, 0, 4096, 0), Answer.InvalidResource],
    ['of host memory', words(1, 2, 2, 0, 0, 0, 4096, 0), Answer.InvalidParameter],
    ['that is to be mapped', words(1, 1, 1, 0, 0, 0, 4096, 0), Answer.InvalidParameter],
    ['with entries that are not there', words(1, 1, 2, 9, 0, 0, 4096, 0), Answer.InvalidParameter],
  ])('%s is refused', async (_name, body, answer) => {
    const { ask } = await makeGpu({ blobs: true });
    expect(ask(0x10c, body).type).toBe(answer);
  });

  test('of 16 KiB is a cursor', async () => {
    const { machine, ask, driver, news } = await makeGpu({ blobs: true });
    ask(0x10c, blob(1, 0x4000, [BACKING, 0x4000]));
    machine.memory.write(BACKING, Uint8Array.of(9, 8, 7, 6));
    driver.request(1, [{ read: Buffer.concat([words(0x300, 0, 0, 0, 0, 0), words(0, 0, 0, 0, 1, 0, 0, 0)]) }]);
    expect([...(news.cursors.at(-1)?.pixels.subarray(0, 4) ?? [])]).toEqual([9, 8, 7, 6]);
  });
});

test.each([
  ['geometry=800x600+10+10', [{ width: 800, height: 600, x: 10, y: 10, isFullscreen: false }]],
  ['geometry=0x600+0+0', [{ width: 1024, height: 768, x: 0, y: 0, isFullscreen: false, asked: '0x600+0+0' }]],
  ['geometry=800x0+0+0', [{ width: 1024, height: 768, x: 0, y: 0, isFullscreen: false, asked: '800x0+0+0' }]],
  ['geometry=100x9999+0+0', [{ width: 640, height: 1080, x: 0, y: 0, isFullscreen: false, asked: '100x9999+0+0' }]],
  ['GEOMETRY=0x0', [{ width: 1024, height: 768, x: 0, y: 0, isFullscreen: false, asked: '0x0' }]],
  ['geometry=fullscreen', [{ width: 1920, height: 1080, x: 0, y: 0, isFullscreen: true }]],
  [',geometry=fullscreen,', [{ width: 1920, height: 1080, x: 0, y: 0, isFullscreen: true }]],
  ['geometry=fullscreen:0', [{ width: 1920, height: 1080, x: 0, y: 0, isFullscreen: true }]],
  // What C understands of it.
  ['geometry=800x600-10-10', [{ width: 800, height: 600, x: 0, y: 0, isFullscreen: false, asked: '800x600-10-10' }]],
  ['geometry=800x600+7+y', [{ width: 800, height: 600, x: 7, y: 0, isFullscreen: false, asked: '800x600+7+y' }]],
  ['geometry=-1x5', [{ width: 640, height: 480, x: 0, y: 0, isFullscreen: false, asked: '-1x5' }]],
  ['geometry=800x-5+3+4', [{ width: 800, height: 480, x: 3, y: 4, isFullscreen: false, asked: '800x-5+3+4' }]],
  ['geometry=800', [{ width: 1024, height: 768, x: 0, y: 0, isFullscreen: false, asked: '800' }]],
  ['geometry=', [{ width: 1024, height: 768, x: 0, y: 0, isFullscreen: false, asked: '' }]],
  ['geometry=fullscreen:x', [{ width: 1920, height: 1080, x: 0, y: 0, isFullscreen: true, asked: 'fullscreen:x' }]],
])('virtio-gpu,%s', (text, screens) => {
  expect(parseGpuText(text)).toEqual({ screens });
});

test.each([
  '',
  ',',
  'geometry=fullscreen:1x',
  'geometry=fullscreen:1',
  'geometry=fullscreen:1000',
  'x=1',
  'geometry=1x1,geometry=1x1,geometry=1x1',
])('virtio-gpu,%s is refused', (text) => {
  expect(() => parseGpuText(text)).toThrow(ConfigError);
});
