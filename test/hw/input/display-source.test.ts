/** The keyboard and the tablet at a display, as virtio-input reads them. */
import { expect, test } from 'vitest';
import type { InputEvent } from '../../../devicemodel/core/host/evdev.ts';
import { DisplaySource } from '../../../devicemodel/hw/input/display-source.ts';
import { InputHub, type KeyEvent, type PointerEvent } from '../../../devicemodel/hw/input/input-hub.ts';

function makeSource(kind: 'keyboard' | 'tablet') {
  const hub = new InputHub();
  const listening = { isListening: true };
  const ps2: unknown[] = [];
  hub.addKeySink({ rank: 0, isReady: true, key: (event) => ps2.push(event) });
  hub.addPointerSink({ rank: 0, isReady: true, pointer: (event) => ps2.push(event) });
  const source = new DisplaySource(kind, hub, () => listening.isListening);
  const take = () => {
    const events: number[][] = [];
    const into: InputEvent = { type: 0, code: 0, value: 0 };
    while (source.read(into)) events.push([into.type, into.code, into.value]);
    return events;
  };
  return { hub, source, take, ps2, listening };
}

const key = (code: number, isDown: boolean): KeyEvent => ({ code, keysym: 0, isDown });
const pointer = (x: number, y: number, buttons = 0, wheel = 0): PointerEvent => {
  return { x, y, xPixels: 0, yPixels: 0, buttons, wheel };
};

test('a key goes down, repeats, and goes up, each a packet', () => {
  const { hub, source, take } = makeSource('keyboard');
  let readable = 0;
  source.watch(() => readable++);
  hub.key(key(30, true));
  hub.key(key(30, true));
  hub.key(key(30, false));
  hub.key(key(0, true));
  expect(take()).toEqual([
    [1, 30, 1],
    [0, 0, 0],
    [1, 30, 2],
    [0, 0, 0],
    [1, 30, 0],
    [0, 0, 0],
  ]);
  expect(readable).toBe(3);
  expect([source.codes(1, 96)?.[0], source.codes(3, 8)]).toEqual([0xfe, undefined]);
});

test('a tablet tells where it is, and buttons that changed', () => {
  const { hub, source, take } = makeSource('tablet');
  hub.pointer(pointer(1, 2, 1));
  hub.pointer(pointer(3, 4, 4, -1));
  expect(take()).toEqual([
    [3, 0, 1],
    [3, 1, 2],
    [1, 0x110, 1],
    [0, 0, 0],
    [3, 0, 3],
    [3, 1, 4],
    [1, 0x110, 0],
    [1, 0x111, 1],
    [2, 8, -1],
    [0, 0, 0],
  ]);
  expect(source.axis(0)).toEqual([0, 0x7fff, 0, 0, 0]);
  expect(source.axis(2)).toBeUndefined();
});

test('a guest without a driver for it gets PS/2, and so it does when it is unplugged', () => {
  const { hub, source, take, ps2, listening } = makeSource('keyboard');
  listening.isListening = false;
  hub.key(key(30, true));
  listening.isListening = true;
  hub.key(key(31, true));
  source.close();
  hub.key(key(32, true));
  expect([take().length, ps2.length]).toEqual([2, 2]);
});

test('a driver that takes nothing costs so many events and no more, in whole packets', () => {
  const { hub, take } = makeSource('tablet');
  for (let i = 0; i < 10_000; i++) hub.pointer(pointer(i & 0x7fff, 0, i & 7, 1));
  const events = take();
  expect(events.length).toBeLessThanOrEqual(512);
  expect(events.at(-1)).toEqual([0, 0, 0]);
});
