/**
 * What a person does at a display, on its way to the guest: a front end (VNC, a window) tells the hub, and the hub tells
 * the best device that the guest listens to. Devices register themselves for as long as they are plugged in: the PS/2
 * keyboard and mouse, which every PC has, a USB tablet, virtio-input with a display as its source.
 */
import type { Disposable } from '../../core/disposer.ts';

/** A key went down, was repeated, or went up. */
export interface KeyEvent {
  /** X11 keysym: what is on the key, as in RFB. 0 where it is not known. */
  readonly keysym: number;
  /** KEY_* of <linux/input-event-codes.h>: which key it is. 0 where it is not known. */
  readonly code: number;
  readonly isDown: boolean;
}

/** Bits of {@link PointerEvent.buttons}. */
export const PointerButton = { Left: 1 << 0, Middle: 1 << 1, Right: 1 << 2, Side: 1 << 3, Extra: 1 << 4 } as const;

/** Largest {@link PointerEvent.x} and y: the right and lower edge of the screen. */
export const POINTER_MAX = 0x7fff;

/** Where the pointer is, whole: also for a change of one button. */
export interface PointerEvent {
  /** From the left, 0 to {@link POINTER_MAX}. */
  readonly x: number;
  /** From above, 0 to {@link POINTER_MAX}. */
  readonly y: number;
  /** The same in pixels of the screen, for devices that tell movements. */
  readonly xPixels: number;
  readonly yPixels: number;
  /** Bits of {@link PointerButton} of the buttons that are down. */
  readonly buttons: number;
  /** Steps of the wheel since the last event; away from the user is positive. */
  readonly wheel: number;
}

/** Who is asked first. */
export const InputRank = {
  /** What every PC has: taken when there is nothing else. */
  Ps2: 0,
  Usb: 1,
  Virtio: 2,
} as const;

/** A device of the guest. Never throws: what it has no room for is lost. */
interface Sink {
  readonly rank: number;
  /** A driver of the guest listens. Asked at each event. */
  readonly isReady: boolean;
}
export interface KeySink extends Sink {
  key(event: KeyEvent): void;
}
export interface PointerSink extends Sink {
  pointer(event: PointerEvent): void;
}

/** What a front end has of the hub. */
export interface InputSink {
  key(event: KeyEvent): void;
  pointer(event: PointerEvent): void;
}

export class InputHub implements InputSink {
  #keySinks: readonly KeySink[] = [];
  #pointerSinks: readonly PointerSink[] = [];
  /** Keys that are down, and the sink that knows: the same one has to hear that they go up. */
  readonly #down = new Map<number, KeySink>();
  #lastPointerSink: PointerSink | undefined;
  #lastPointer: PointerEvent = { x: 0, y: 0, xPixels: 0, yPixels: 0, buttons: 0, wheel: 0 };

  /** From now on, until it is disposed of. */
  addKeySink(sink: KeySink): Disposable {
    this.#keySinks = ranked([...this.#keySinks, sink]);
    return {
      dispose: () => {
        this.#keySinks = this.#keySinks.filter((other) => other !== sink);
        for (const [key, holder] of this.#down) if (holder === sink) this.#down.delete(key);
      },
    };
  }

  /** From now on, until it is disposed of. */
  addPointerSink(sink: PointerSink): Disposable {
    this.#pointerSinks = ranked([...this.#pointerSinks, sink]);
    return {
      dispose: () => {
        this.#pointerSinks = this.#pointerSinks.filter((other) => other !== sink);
        if (this.#lastPointerSink === sink) this.#lastPointerSink = undefined;
      },
    };
  }

  key(event: KeyEvent): void {
    const id = event.code === 0 ? -event.keysym : event.code;
    const sink = this.#down.get(id) ?? this.#keySinks.find((s) => s.isReady);
    if (event.isDown && sink !== undefined) this.#down.set(id, sink);
    else this.#down.delete(id);
    sink?.key(event);
  }

  /** A device that takes over from another starts with no button down there. */
  pointer(event: PointerEvent): void {
    const sink = this.#pointerSinks.find((s) => s.isReady);
    const last = this.#lastPointerSink;
    if (last !== undefined && last !== sink && this.#lastPointer.buttons !== 0) {
      last.pointer({ ...this.#lastPointer, buttons: 0, wheel: 0 });
    }
    this.#lastPointerSink = sink;
    this.#lastPointer = event;
    sink?.pointer(event);
  }
}

/** Best first; of the same rank the one that came first. */
function ranked<T extends Sink>(sinks: readonly T[]): readonly T[] {
  return sinks.toSorted((a, b) => b.rank - a.rank);
}
