/**
 * The display of a VM: the screens that a device of the guest shows pictures on, and the front ends that watch them. It
 * outlives a life of the VM, as a front end's connections do.
 *
 * Nothing is copied until somebody looks: a device tells which picture a screen shows and what of it changed, and a front
 * end reads the pixels when its client can take them. Without a front end a display costs nothing.
 */
import type { Disposable } from '../../core/disposer.ts';
import { InputHub } from '../input/input-hub.ts';
import { intersection, type Rect, type Size } from './rect.ts';

/** Bytes of a pixel as front ends read it: blue, green, red, and one that means nothing. */
export const PIXEL_BYTES = 4;

/** Pixels somewhere, of any form. */
export interface Picture extends Size {
  /**
   * Copy the pixels of `rect`, which is within the picture, as {@link PIXEL_BYTES} each.
   * @param at where in `into` the first one goes. @param strideBytes from one row to the next
   */
  read(rect: Rect, into: Uint8Array, at: number, strideBytes: number): void;
  /** For pictures that the guest changes without a word: find out what changed since the last call, and tell. */
  poll?(damaged: (rect: Rect) => void): void;
}

/** The pointer's shape. */
export interface CursorImage extends Size {
  readonly hotX: number;
  readonly hotY: number;
  /** Blue, green, red, alpha of each pixel, row by row. */
  readonly pixels: Uint8Array;
}

/** A front end. Called from the device thread; must not throw. */
export interface DisplayWatcher {
  /** Another size or another arrangement; all of it is damaged. */
  resized(): void;
  /** @param rect of the desktop */
  damaged(rect: Rect): void;
  cursorChanged(): void;
}

/** One screen, at its place on the desktop. */
export interface ScreenPlace extends Rect {
  readonly id: number;
}

/** One screen of the guest. */
export class Screen {
  readonly #onChange: (screen: Screen, rect: Rect | undefined) => void;
  #picture: Picture | undefined;
  #blank: Size;

  /** @param blank its size while it shows nothing. */
  constructor(blank: Size, onChange: (screen: Screen, rect: Rect | undefined) => void) {
    this.#blank = blank;
    this.#onChange = onChange;
  }

  get size(): Size {
    return this.#picture ?? this.#blank;
  }

  get picture(): Picture | undefined {
    return this.#picture;
  }

  /** Another picture, or none: then the screen is black, of the size of the last one. */
  show(picture: Picture | undefined): void {
    if (picture === this.#picture) return;
    const before = this.size;
    this.#blank = { width: before.width, height: before.height };
    this.#picture = picture;
    const after = this.size;
    const isSame = after.width === before.width && after.height === before.height;
    this.#onChange(this, isSame ? { x: 0, y: 0, ...after } : undefined);
  }

  /** @param rect of the picture, may be larger. */
  damage(rect: Rect): void {
    const visible = intersection(rect, { x: 0, y: 0, width: this.size.width, height: this.size.height });
    if (visible !== undefined) this.#onChange(this, visible);
  }
}

/** What a device gets for plugging its screens in. */
export interface PluggedScreens extends Disposable {
  readonly screens: readonly Screen[];
  /** The same cursor on all of them. Undefined: none is shown. */
  setCursor(cursor: CursorImage | undefined): void;
}

/** With no screen, so that a client sees something. */
const NO_SCREEN: Size = { width: 640, height: 480 };

export class Display {
  readonly input = new InputHub();
  readonly #watchers = new Set<DisplayWatcher>();
  #screens: readonly Screen[] = [];
  #blank: Size = NO_SCREEN;
  #cursor: CursorImage | undefined;
  #onSizeWanted: ((screen: number, size: Size) => void) | undefined;

  /**
   * A device plugs in its screens, of these sizes; once at a time.
   * @param onSizeWanted a front end would like a screen of another size
   */
  plugIn(sizes: readonly Size[], onSizeWanted: (screen: number, size: Size) => void): PluggedScreens {
    const screens = sizes.map((size) => new Screen(size, (screen, rect) => this.#changed(screen, rect)));
    this.#screens = screens;
    this.#onSizeWanted = onSizeWanted;
    this.#resized();
    return {
      screens,
      setCursor: (cursor) => {
        if (this.#screens !== screens || cursor === this.#cursor) return;
        this.#cursor = cursor;
        for (const watcher of this.#watchers) watcher.cursorChanged();
      },
      dispose: () => {
        if (this.#screens !== screens) return;
        this.#blank = this.size;
        this.#screens = [];
        this.#onSizeWanted = undefined;
        this.#cursor = undefined;
        this.#resized();
        for (const watcher of this.#watchers) watcher.cursorChanged();
      },
    };
  }

  /** Watch until it is disposed of. */
  watch(watcher: DisplayWatcher): Disposable {
    this.#watchers.add(watcher);
    return { dispose: () => void this.#watchers.delete(watcher) };
  }

  get cursor(): CursorImage | undefined {
    return this.#cursor;
  }

  /** The screens beside each other, from left to right. */
  get places(): readonly ScreenPlace[] {
    let x = 0;
    const places = this.#screens.map(({ size: { width, height } }, id) => {
      const place = { id, x, y: 0, width, height };
      x += width;
      return place;
    });
    return places.length > 0 ? places : [{ id: 0, x: 0, y: 0, ...this.#blank }];
  }

  /** Of the desktop: all screens together. */
  get size(): Size {
    const { places } = this;
    return {
      width: places.reduce((sum, { width }) => sum + width, 0),
      height: Math.max(...places.map(({ height }) => height)),
    };
  }

  /** Ask the device for a screen of another size; the guest may take it or not. @returns whether anyone was asked. */
  requestSize(screen: number, size: Size): boolean {
    if (this.#onSizeWanted === undefined || screen >= this.#screens.length) return false;
    this.#onSizeWanted(screen, size);
    return true;
  }

  /** Whether a picture is shown that has to be looked at to know of its changes. */
  get isPolled(): boolean {
    return this.#screens.some((screen) => screen.picture?.poll !== undefined);
  }

  /** Find out what changed without a word; the watchers hear of it. */
  poll(): void {
    for (const screen of this.#screens) screen.picture?.poll?.((rect) => screen.damage(rect));
  }

  /** Copy pixels of the desktop; where there is no picture they are black. As {@link Picture.read}. */
  read(rect: Rect, into: Uint8Array, at: number, strideBytes: number): void {
    const rowBytes = rect.width * PIXEL_BYTES;
    for (let row = 0; row < rect.height; row++) into.fill(0, at + row * strideBytes, at + row * strideBytes + rowBytes);
    for (const place of this.places) {
      const picture = this.#screens[place.id]?.picture;
      const part = intersection(rect, place);
      if (picture === undefined || part === undefined) continue;
      const start = at + (part.y - rect.y) * strideBytes + (part.x - rect.x) * PIXEL_BYTES;
      picture.read({ ...part, x: part.x - place.x }, into, start, strideBytes);
    }
  }

  #changed(screen: Screen, rect: Rect | undefined): void {
    if (rect === undefined) {
      this.#resized();
      return;
    }
    const place = this.places[this.#screens.indexOf(screen)];
    if (place === undefined) return;
    for (const watcher of this.#watchers) watcher.damaged({ ...rect, x: rect.x + place.x });
  }

  #resized(): void {
    for (const watcher of this.#watchers) watcher.resized();
  }
}
