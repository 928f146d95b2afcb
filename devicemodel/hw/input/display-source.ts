/** A keyboard or a tablet that is at the VM's display, as an input device of the host looks like (<linux/input.h>). */
import type { Disposable } from '../../core/disposer.ts';
import type { InputEvent, InputSource } from '../../core/host/evdev.ts';
import {
  type InputHub,
  InputRank,
  type KeyEvent,
  type KeySink,
  POINTER_MAX,
  PointerButton,
  type PointerEvent,
  type PointerSink,
} from './input-hub.ts';

export type DisplaySourceKind = 'keyboard' | 'tablet';

/** Event types and codes, of <linux/input-event-codes.h>. */
const Ev = { Syn: 0, Key: 1, Rel: 2, Abs: 3 } as const;
const REL_WHEEL = 8;
const Abs = { X: 0, Y: 1 } as const;
const INPUT_PROP_POINTER = 0;
/** KEY_ESC to KEY_MICMUTE: every key of a keyboard. */
const LAST_KEY = 248;
const Value = { Up: 0, Down: 1, Repeat: 2 } as const;
const buttons = [
  [PointerButton.Left, 0x110],
  [PointerButton.Right, 0x111],
  [PointerButton.Middle, 0x112],
  [PointerButton.Side, 0x113],
  [PointerButton.Extra, 0x114],
] as const;
const BUS_VIRTUAL = 0x06;
const descriptions: Readonly<Record<DisplaySourceKind, { readonly name: string; readonly product: number }>> = {
  keyboard: { name: 'acrn-dm display keyboard', product: 1 },
  tablet: { name: 'acrn-dm display tablet', product: 2 },
};
const VENDOR = 0x1af4;

/** Events that wait for the guest's driver; more are lost, packet by packet. */
const MAX_EVENTS = 512;

export class DisplaySource implements InputSource, KeySink, PointerSink {
  readonly rank = InputRank.Virtio;
  readonly #kind: DisplaySourceKind;
  readonly #isListening: () => boolean;
  readonly #plugged: Disposable;
  readonly #events: Array<readonly [type: number, code: number, value: number]> = [];
  readonly #down = new Set<number>();
  #buttons = 0;
  #onReadable: (() => void) | undefined;

  /** @param isListening whether the guest's driver is there */
  constructor(kind: DisplaySourceKind, hub: InputHub, isListening: () => boolean) {
    this.#kind = kind;
    this.#isListening = isListening;
    this.#plugged = kind === 'keyboard' ? hub.addKeySink(this) : hub.addPointerSink(this);
  }

  get isReady(): boolean {
    return this.#isListening();
  }

  // From the display.

  key({ code, isDown }: KeyEvent): void {
    if (code === 0 || code > LAST_KEY) return;
    const value = !isDown ? Value.Up : this.#down.has(code) ? Value.Repeat : Value.Down;
    if (isDown) this.#down.add(code);
    else this.#down.delete(code);
    this.#send([[Ev.Key, code, value]]);
  }

  pointer({ x, y, buttons: pressed, wheel }: PointerEvent): void {
    const changed = pressed ^ this.#buttons;
    this.#buttons = pressed;
    this.#send([
      [Ev.Abs, Abs.X, x],
      [Ev.Abs, Abs.Y, y],
      ...buttons
        .filter(([bit]) => (changed & bit) !== 0)
        .map(([bit, code]) => [Ev.Key, code, (pressed & bit) !== 0 ? Value.Down : Value.Up] as const),
      ...(wheel === 0 ? [] : [[Ev.Rel, REL_WHEEL, wheel] as const]),
    ]);
  }

  /** A packet: all of it or nothing. */
  #send(packet: ReadonlyArray<readonly [number, number, number]>): void {
    if (this.#events.length + packet.length >= MAX_EVENTS) return;
    this.#events.push(...packet, [Ev.Syn, 0, 0]);
    this.#onReadable?.();
  }

  // As an input device.

  name(): Uint8Array {
    return Buffer.from(descriptions[this.#kind].name);
  }

  ids(): readonly [number, number, number, number] {
    return [BUS_VIRTUAL, VENDOR, descriptions[this.#kind].product, 1];
  }

  properties(sizeBytes: number): Uint8Array {
    return bits(sizeBytes, this.#kind === 'tablet' ? [INPUT_PROP_POINTER] : []);
  }

  codes(type: number, sizeBytes: number): Uint8Array | undefined {
    if (this.#kind === 'keyboard') {
      return type === Ev.Key
        ? bits(
            sizeBytes,
            Array.from({ length: LAST_KEY }, (_, i) => i + 1),
          )
        : undefined;
    }
    if (type === Ev.Key)
      return bits(
        sizeBytes,
        buttons.map(([, code]) => code),
      );
    if (type === Ev.Rel) return bits(sizeBytes, [REL_WHEEL]);
    return type === Ev.Abs ? bits(sizeBytes, [Abs.X, Abs.Y]) : undefined;
  }

  axis(code: number): readonly number[] | undefined {
    return this.#kind === 'tablet' && (code === Abs.X || code === Abs.Y) ? [0, POINTER_MAX, 0, 0, 0] : undefined;
  }

  read(into: InputEvent): boolean {
    const event = this.#events.shift();
    if (event === undefined) return false;
    [into.type, into.code, into.value] = event;
    return true;
  }

  /** LEDs: a viewer has its own. */
  write(): void {}

  watch(onReadable: () => void): () => void {
    this.#onReadable = onReadable;
    return () => {
      this.#onReadable = undefined;
    };
  }

  close(): void {
    this.#plugged.dispose();
  }
}

function bits(sizeBytes: number, set: readonly number[]): Uint8Array {
  const bytes = new Uint8Array(sizeBytes);
  for (const bit of set) if (bit >> 3 < sizeBytes) bytes[bit >> 3] = (bytes[bit >> 3] as number) | (1 << (bit & 7));
  return bytes;
}
