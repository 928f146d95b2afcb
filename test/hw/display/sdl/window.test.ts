/** The window's front end, with a thread of the test's in place of the one that has SDL. */
import { afterEach, describe, expect, test, vi } from 'vitest';
import { Display } from '../../../../devicemodel/hw/display/display.ts';
import { keyOfUsage } from '../../../../devicemodel/hw/display/sdl/scancodes.ts';
import { SdlFrontEnd } from '../../../../devicemodel/hw/display/sdl/window.ts';
import { WindowClaim } from '../../../../devicemodel/hw/display/sdl/window-claim.ts';
import type { KeyEvent, PointerEvent } from '../../../../devicemodel/hw/input/input-hub.ts';
import { Canvas } from '../../../support/canvas.ts';
import { memoryLog } from '../../../support/memory-log.ts';

const windows: SdlFrontEnd[] = [];
afterEach(async () => {
  for (const window of windows.splice(0)) await window.close();
});

/** @param body what the thread does with `port`; what it posts with `{ note }` is noted here */
async function open(body: string, { openTimeoutMs = 10_000, name = 'vm1', claim = new WindowClaim() } = {}) {
  const display = new Display();
  const sizes: unknown[] = [];
  const plugged = display.plugIn([{ width: 8, height: 4 }], (screen, wanted) => void sizes.push([screen, wanted]));
  const keys: KeyEvent[] = [];
  const pointers: PointerEvent[] = [];
  display.input.addKeySink({ rank: 0, isReady: true, key: (event) => void keys.push(event) });
  display.input.addPointerSink({ rank: 0, isReady: true, pointer: (event) => void pointers.push(event) });
  const log = memoryLog();
  const code = `import { parentPort as port, workerData as setup } from 'node:worker_threads'; ${body}`;
  const workerUrl = new URL(`data:text/javascript,${encodeURIComponent(code)}`);
  const window = new SdlFrontEnd({ display, name, claim, log: log.log, workerUrl, openTimeoutMs });
  windows.push(window);
  await window.start();
  return { display, screen: plugged.screens[0] as (typeof plugged.screens)[0], window, keys, pointers, sizes, log };
}

/** Opens at once, and shows: with each picture a motion whose x counts pictures and whose y is the first pixel's blue. */
const SHOWS = `
  let pixels, count = 0;
  port.on('message', (m) => {
    if (m.kind === 'picture') pixels = new Uint8Array(m.pixels);
    if (m.kind === 'close') port.close();
    if (m.kind !== 'show') return;
    count++;
    port.postMessage({ kind: 'events', events: [{ kind: 'motion', x: count, y: pixels[0] }] });
    port.postMessage({ kind: 'shown' });
  });
  port.postMessage({ kind: 'open' });`;

test('what is drawn is in the memory that is shown, one picture after the other', async () => {
  const { screen, pointers } = await open(SHOWS);
  const canvas = new Canvas({ width: 8, height: 4 });
  canvas.bytes.fill(2);
  screen.show(canvas);
  await vi.waitFor(() => expect(pointers.at(-1)?.yPixels).toBe(2));
  canvas.bytes.fill(3);
  screen.damage({ x: 0, y: 0, width: 1, height: 1 });
  await vi.waitFor(() => expect(pointers.at(-1)?.yPixels).toBe(3));
});

test('while a picture is under way no other is sent, whatever the guest draws', async () => {
  const { screen, keys } = await open(`
    let shows = 0;
    port.on('message', (m) => {
      if (m.kind === 'close') port.close();
      if (m.kind === 'show' && ++shows > 1) port.postMessage({ kind: 'events', events: [{ kind: 'key', scancode: 4, isDown: true }] });
    });
    port.postMessage({ kind: 'open' });`);
  const canvas = new Canvas({ width: 8, height: 4 });
  screen.show(canvas);
  for (let i = 0; i < 10; i++) {
    screen.damage({ x: 0, y: 0, width: 8, height: 4 });
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
  expect(keys).toEqual([]);
});

test('a guest that changes the pointer all the time does not fill the memory: the window has one at a time', async () => {
  const { window, display, sizes, screen } = await open(`
    let cursors = 0;
    port.on('message', (m) => {
      if (m.kind === 'close') port.close();
      if (m.kind === 'cursor') cursors++;
      if (m.kind !== 'show') return;
      port.postMessage({ kind: 'events', events: [{ kind: 'resized', width: cursors, height: m.rects.length }] });
      if (cursors === 1) setTimeout(() => port.postMessage({ kind: 'shown' }), 300);
      else port.postMessage({ kind: 'shown' });
    });
    port.postMessage({ kind: 'open' });`);
  const plugged = display.plugIn([{ width: 8, height: 4 }], (_screen, wanted) => void sizes.push([0, wanted]));
  expect(screen).not.toBe(plugged.screens[0]);
  for (let i = 0; i < 1000; i++) {
    plugged.setCursor({ width: 1, height: 1, hotX: 0, hotY: 0, pixels: Uint8Array.of(i, 0, 0, 255) });
    if (i % 100 === 0) await new Promise((resolve) => setTimeout(resolve, 20));
  }
  await vi.waitFor(() => expect(sizes.length).toBeGreaterThan(1), 10_000);
  await new Promise((resolve) => setTimeout(resolve, 100));
  const counts = (sizes as Array<[number, { width: number }]>).map(([, { width }]) => width);
  expect(Math.max(...counts)).toBeLessThan(30);
  // The last one is there, too.
  expect(counts.at(-1)).toBeGreaterThan(1);
  await window.close();
});

test('a picture as large as a guest can make it is shown in parts, in one piece of memory', async () => {
  // With each part: its pixels as a width, and how many sizes of memory there were as a height.
  const { screen, sizes } = await open(`
    const seen = new Set();
    port.on('message', (m) => {
      if (m.kind === 'close') port.close();
      if (m.kind === 'picture') seen.add(m.pixels.byteLength);
      if (m.kind !== 'show') return;
      const width = m.rects.reduce((sum, r) => sum + r.width * r.height, 0);
      port.postMessage({ kind: 'events', events: [{ kind: 'resized', width, height: seen.size }] });
      port.postMessage({ kind: 'shown' });
    });
    port.postMessage({ kind: 'open' });`);
  const parts = () => (sizes as Array<[number, { width: number; height: number }]>).map(([, part]) => part);
  const pixelsShown = () => parts().reduce((sum, { width }) => sum + width, 0);
  let expected = 0;
  for (const [width, height] of [
    [8192, 4320],
    [640, 480],
    [8191, 4320],
    [8192, 4319],
  ] as const) {
    screen.show({ width, height, read: () => {} });
    expected += width * height;
    await vi.waitFor(() => expect(pixelsShown()).toBeGreaterThanOrEqual(expected), 30_000);
  }
  expect(Math.max(...parts().map(({ width }) => width))).toBeLessThanOrEqual(4 * 1024 * 1024 + 8192 * 64);
  // The one of before the first picture, and this.
  expect(Math.max(...parts().map(({ height }) => height))).toBeLessThanOrEqual(2);
});

const SENDS = (...events: readonly object[]) => `
  port.on('message', (m) => {
    if (m.kind === 'close') port.close();
    if (m.kind === 'show') port.postMessage({ kind: 'events', events: ${JSON.stringify(events)} });
  });
  port.postMessage({ kind: 'open' });`;

test('keys and buttons reach the guest, and are let go when the window loses the focus', async () => {
  const { keys, pointers } = await open(
    SENDS(
      { kind: 'key', scancode: 4, isDown: true },
      { kind: 'button', button: 3, isDown: true, x: 7, y: 3 },
      { kind: 'wheel', steps: -4 },
      { kind: 'focus-lost' },
      { kind: 'key', scancode: 4, isDown: false },
      { kind: 'key', scancode: 0x7777, isDown: true },
    ),
  );
  await vi.waitFor(() => expect(keys).toHaveLength(2));
  expect(keys).toEqual([
    { code: 30, keysym: 0x61, isDown: true },
    { code: 30, keysym: 0x61, isDown: false },
  ]);
  expect(pointers.map(({ x, y, buttons, wheel }) => [x, y, buttons, wheel])).toEqual([
    [0x7fff, 0x7fff, 4, 0],
    [0x7fff, 0x7fff, 4, -1],
    [0x7fff, 0x7fff, 0, 0],
  ]);
});

test('a pointer beside the window is at its edge', async () => {
  const { pointers } = await open(
    SENDS({ kind: 'motion', x: -5, y: 100 }, { kind: 'button', button: 9, isDown: true, x: 0, y: 0 }),
  );
  await vi.waitFor(() => expect(pointers).toHaveLength(2));
  expect(pointers.map(({ x, y, buttons }) => [x, y, buttons])).toEqual([
    [0, 0x7fff, 0],
    [0, 0, 0],
  ]);
});

test('the size that its user gives the window is asked for', async () => {
  const { sizes } = await open(SENDS({ kind: 'resized', width: 640, height: 480 }));
  await vi.waitFor(() => expect(sizes).toEqual([[0, { width: 640, height: 480 }]]));
});

test.each([
  [
    'no window',
    `port.postMessage({ kind: 'failed', message: 'no window: x', hint: 'set Y' });`,
    /no window: x \(set Y\)/,
  ],
  ['a thread that fails', `throw new Error('boom');`, /boom/],
])('%s: one line, and the VM goes on', async (_, body, line) => {
  const { log, screen } = await open(body);
  const lines = () => log.lines.filter((text) => text.includes('display:'));
  await vi.waitFor(() => expect(lines()).toHaveLength(1));
  expect(lines()[0]).toMatch(line);
  expect(lines()[0]).toContain('the VM goes on, its screens are not shown');
  screen.damage({ x: 0, y: 0, width: 1, height: 1 });
});

test('a window that its user closes is closed, and the VM goes on', async () => {
  const { log } = await open(SENDS({ kind: 'close' }));
  await vi.waitFor(() => expect(log.lines.join('\n')).toContain('the window is closed, the VM goes on'));
});

test('a display server that does not answer: the VM waits neither for its window nor at its end', async () => {
  // A thread in a call that does not come back.
  const { log, window } = await open(`Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 5000);`, {
    openTimeoutMs: 50,
  });
  expect(log.lines).toEqual([
    expect.stringMatching(/display: the display server does not answer; the VM does not wait/),
  ]);
  const beforeMs = performance.now();
  await window.close();
  expect(performance.now() - beforeMs).toBeLessThan(4000);
});

describe('one window in a process', () => {
  /** Its thread leaves nothing behind, as the one of SDL. */
  const CLOSES = `
    port.on('message', (m) => {
      if (m.kind === 'close') { port.postMessage({ kind: 'closed' }); port.close(); }
    });
    port.postMessage({ kind: 'open' });`;
  const REFUSED = 'no window: this process shows the screens of vm1 in one already';
  const UNSEEN = /no window: the display server of an earlier one is gone, or stands still .*; the VM goes on/;

  test('another VM is refused, until the window of the first is gone', async () => {
    const claim = new WindowClaim();
    const first = await open(CLOSES, { claim });
    await expect(open(CLOSES, { claim, name: 'vm2' })).rejects.toThrow(REFUSED);
    // That the refused one is closed changes nothing for the first.
    await windows.at(-1)?.close();
    await expect(open(CLOSES, { claim, name: 'vm2' })).rejects.toThrow(REFUSED);
    await first.window.close();
    const second = await open(CLOSES, { claim, name: 'vm2' });
    expect(second.log.lines).toEqual([expect.stringContaining('display: a window')]);
    // Nor does another end of the first for the second.
    await first.window.close();
    await expect(open(CLOSES, { claim, name: 'vm3' })).rejects.toThrow('of vm2 in one already');
  });

  test('a window that its user closes makes room for that of another VM', async () => {
    const claim = new WindowClaim();
    await open(`${CLOSES} port.postMessage({ kind: 'events', events: [{ kind: 'close' }] });`, { claim });
    await vi.waitFor(() => expect(claim.take('vm2')).toBeDefined());
  });

  test('where it could not be opened the next VM tries anew', async () => {
    const claim = new WindowClaim();
    const fails = `port.postMessage({ kind: 'failed', message: 'no window: x' }); port.postMessage({ kind: 'closed' });`;
    const { log } = await open(fails, { claim });
    await vi.waitFor(() => expect(claim.take('vm2')).toBeDefined());
    expect(log.lines).toHaveLength(1);
  });

  test.each([
    ['is lost with its display server', `port.postMessage({ kind: 'failed', message: 'gone' }); port.close();`],
    ['has a thread that fails', `throw new Error('boom');`],
  ])('one that %s is the last: a later VM goes on without, with one line', async (_, body) => {
    const claim = new WindowClaim();
    await open(body, { claim });
    const { log, window } = await open(CLOSES, { claim, name: 'vm2' });
    expect(log.lines).toEqual([expect.stringMatching(UNSEEN)]);
    await window.close();
  });

  test('a display server that stands still at the end of a VM has the window until it goes on', async () => {
    const claim = new WindowClaim();
    const stands = `
      const server = new BroadcastChannel('display-server');
      server.onmessage = () => { port.postMessage({ kind: 'closed' }); port.close(); server.close(); };
      port.on('message', () => {});
      port.postMessage({ kind: 'open' });`;
    const { window } = await open(stands, { claim });
    await window.close();
    const { log } = await open(CLOSES, { claim, name: 'vm2' });
    expect(log.lines).toEqual([expect.stringMatching(UNSEEN)]);
    const server = new BroadcastChannel('display-server');
    server.postMessage('goes on');
    await vi.waitFor(() => expect(claim.take('vm3')).toBeDefined(), 10_000);
    server.close();
  });
});

test('keys by their usage', () => {
  // HID Usage Tables: A, Z, 1, 0, Enter, F1, F12, Up, keypad 1, keypad ., left Control, right Super, and none.
  const usages = [0x04, 0x1d, 0x1e, 0x27, 0x28, 0x3a, 0x45, 0x52, 0x59, 0x63, 0xe0, 0xe7, 0, 3, 0xe8];
  expect(usages.map(keyOfUsage)).toEqual([30, 44, 2, 11, 28, 59, 88, 103, 79, 83, 29, 126, 0, 0, 0]);
});
