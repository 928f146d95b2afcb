import { describe, expect, it } from 'vitest';
import {
  InputHub,
  InputRank,
  type KeyEvent,
  type KeySink,
  type PointerEvent,
  type PointerSink,
} from '../../../devicemodel/hw/input/input-hub.ts';

class Recorder implements KeySink, PointerSink {
  readonly rank: number;
  isReady = true;
  readonly keys: KeyEvent[] = [];
  readonly pointers: PointerEvent[] = [];

  constructor(rank: number) {
    this.rank = rank;
  }

  key(event: KeyEvent): void {
    this.keys.push(event);
  }

  pointer(event: PointerEvent): void {
    this.pointers.push(event);
  }
}

const KEY_A = { keysym: 0x61, code: 30 };
const at = (x: number, buttons = 0): PointerEvent => ({ x, y: 0, xPixels: x, yPixels: 0, buttons, wheel: 0 });

describe('InputHub', () => {
  it('tells the best device that a driver listens to', () => {
    const hub = new InputHub();
    const [ps2, virtio] = [new Recorder(InputRank.Ps2), new Recorder(InputRank.Virtio)];
    for (const sink of [ps2, virtio]) [hub.addKeySink(sink), hub.addPointerSink(sink)];
    virtio.isReady = false;
    hub.key({ ...KEY_A, isDown: true });
    hub.pointer(at(1));
    virtio.isReady = true;
    hub.key({ keysym: 0x62, code: 48, isDown: true });
    hub.pointer(at(2));
    expect([ps2.keys.map((k) => k.code), virtio.keys.map((k) => k.code)]).toEqual([[30], [48]]);
    expect([ps2.pointers.map((p) => p.x), virtio.pointers.map((p) => p.x)]).toEqual([[1], [2]]);
  });

  it('lets a key go up where it went down', () => {
    const hub = new InputHub();
    const [ps2, usb] = [new Recorder(InputRank.Ps2), new Recorder(InputRank.Usb)];
    hub.addKeySink(ps2);
    hub.key({ ...KEY_A, isDown: true });
    hub.addKeySink(usb);
    hub.key({ ...KEY_A, isDown: true });
    hub.key({ ...KEY_A, isDown: false });
    hub.key({ ...KEY_A, isDown: true });
    expect(ps2.keys.map((k) => k.isDown)).toEqual([true, true, false]);
    expect(usb.keys.map((k) => k.isDown)).toEqual([true]);
  });

  it('leaves no button down behind when another device takes over', () => {
    const hub = new InputHub();
    const [ps2, usb] = [new Recorder(InputRank.Ps2), new Recorder(InputRank.Usb)];
    hub.addPointerSink(ps2);
    hub.pointer(at(5, 1));
    const plugged = hub.addPointerSink(usb);
    hub.pointer(at(6, 1));
    expect(ps2.pointers.at(-1)).toEqual(at(5, 0));
    expect(usb.pointers).toEqual([at(6, 1)]);
    plugged.dispose();
    hub.pointer(at(7, 0));
    expect(usb.pointers).toHaveLength(1);
    expect(ps2.pointers.at(-1)).toEqual(at(7, 0));
  });

  it('forgets keys of a device that is gone', () => {
    const hub = new InputHub();
    const usb = new Recorder(InputRank.Usb);
    const plugged = hub.addKeySink(usb);
    hub.key({ ...KEY_A, isDown: true });
    plugged.dispose();
    hub.key({ ...KEY_A, isDown: false });
    expect(usb.keys).toHaveLength(1);
  });
});
