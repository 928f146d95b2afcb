/**
 * A window by SDL 2, which is loaded when somebody wants one. Spec: SDL 2.0.12 (SDL.h), X11's Xlib.h.
 *
 * Everything here blocks as long as the display server does: it is for a thread that nobody waits for, and all of it for
 * the same one.
 */
import koffi from 'koffi';
import { HostError } from '../errors.ts';
import { Errno } from './errno.ts';
import { viewOf } from './mapping.ts';
import { PollResult, PollSet } from './poll.ts';

const LIBRARY = 'libSDL2-2.0.so.0';
const XLIB = 'libX11.so.6';

const INIT_VIDEO = 0x20;
const WINDOWPOS_UNDEFINED = 0x1fff_0000;
const WINDOW_RESIZABLE = 0x20;
/** SDL_PIXELFORMAT_RGB888: blue, green, red and nothing in memory. */
const FORMAT_BGRX = 0x1616_1804;
/** SDL_Surface: pixel format, size, bytes of a row, pixels. */
const Surface = { format: 8, width: 16, height: 20, pitch: 24, pixels: 32, size: 40 } as const;
const RECT_BYTES = 16;
/** SDL_Event. */
const EVENT_BYTES = 56;
const EventType = {
  Window: 0x200,
  KeyDown: 0x300,
  KeyUp: 0x301,
  Motion: 0x400,
  ButtonDown: 0x401,
  ButtonUp: 0x402,
  Wheel: 0x403,
} as const;
const WindowEvent = { Exposed: 3, Resized: 5, SizeChanged: 6, FocusLost: 13, Close: 14 } as const;
/** One call takes no more of them. */
const MAX_EVENTS = 256;
/** SDL_SysWMinfo: version, subsystem, and for X11 (2) its Display and Window. */
const WmInfo = { subsystem: 4, display: 8, window: 16, size: 80, x11: 2 } as const;
/** XWindowAttributes, of which nothing is looked at. */
const ATTRIBUTES_BYTES = 256;
/** How often it is asked whether the window is there: each time is a round trip to the server. */
const LOOK_MS = 1000;

export type SdlEvent =
  /** @param scancode USB HID usage of the key */
  | { readonly kind: 'key'; readonly scancode: number; readonly isDown: boolean }
  | { readonly kind: 'motion'; readonly x: number; readonly y: number }
  /** @param button 1 left, 2 middle, 3 right, 4 and 5 beside them */
  | {
      readonly kind: 'button';
      readonly button: number;
      readonly isDown: boolean;
      readonly x: number;
      readonly y: number;
    }
  /** @param steps away from the user is positive */
  | { readonly kind: 'wheel'; readonly steps: number }
  /** Its user made it another size. */
  | { readonly kind: 'resized'; readonly width: number; readonly height: number }
  | { readonly kind: 'exposed' | 'focus-lost' | 'close' };

export interface SdlRect {
  readonly x: number;
  readonly y: number;
  readonly width: number;
  readonly height: number;
}

export interface SdlCursor {
  readonly width: number;
  readonly height: number;
  readonly hotX: number;
  readonly hotY: number;
  /** Blue, green, red, alpha. */
  readonly pixels: Uint8Array;
}

interface Cursor {
  readonly handle: bigint;
  readonly surface: bigint;
  /** The surface has them by their address alone. */
  readonly pixels: Uint8Array;
}

type Native = (...args: unknown[]) => number | bigint;

export class SdlWindow {
  readonly #library: ReturnType<typeof koffi.load>;
  readonly #functions = new Map<string, Native>();
  readonly #window: bigint;
  readonly #event = new DataView(new ArrayBuffer(EVENT_BYTES));
  readonly #removeServerHandler: () => void;
  #cursor: Cursor | undefined;
  #loss: 'server' | 'window' | undefined;
  /** To the X server. */
  #connection: PollSet | undefined;
  /** Whether the X server has the window. */
  #isThere: () => boolean = () => true;
  #lookedAtMs = 0;

  /**
   * @param onServerGone called in the middle of a call here, the constructor's among them, which does not come back: the
   *   display server is gone, and this thread stays where it is until the process ends
   * @throws HostError with what is missing
   */
  constructor(title: string, width: number, height: number, onServerGone: () => void) {
    this.#library = loadLibrary();
    // Signals are the program's, and the host's screen saver its user's.
    const setHint = this.#native('int SDL_SetHint(const char *, const char *)');
    setHint('SDL_NO_SIGNAL_HANDLERS', '1');
    setHint('SDL_VIDEO_ALLOW_SCREENSAVER', '1');
    // Rows are copied to the window as they are: a renderer of OpenGL would cost more, and ends the process with its server.
    setHint('SDL_FRAMEBUFFER_ACCELERATION', '0');
    surviveErrors();
    this.#removeServerHandler = surviveServer(onServerGone);
    try {
      this.#check('SDL_InitSubSystem', Number(this.#native('int SDL_InitSubSystem(uint32_t)')(INIT_VIDEO)) === 0);
      const create = this.#native('uintptr_t SDL_CreateWindow(const char *, int, int, int, int, uint32_t)');
      const at = WINDOWPOS_UNDEFINED;
      this.#window = BigInt(create(title, at, at, width, height, WINDOW_RESIZABLE));
      this.#check('SDL_CreateWindow', this.#window !== 0n);
      this.#findConnection();
    } catch (error) {
      this.#quit();
      throw error;
    }
  }

  /** Nothing is shown any more: the display server is gone, or a client of it has destroyed the window. */
  get loss(): 'server' | 'window' | undefined {
    return this.#loss;
  }

  setSize(width: number, height: number): void {
    this.#native('void SDL_SetWindowSize(uintptr_t, int, int)')(this.#window, width, height);
  }

  /**
   * Show parts of a picture, at the same place in the window.
   * @param pixels blue, green, red, nothing; rows of `width` without a gap
   */
  show(pixels: Uint8Array, width: number, height: number, rects: readonly SdlRect[]): void {
    const surface = BigInt(this.#native('uintptr_t SDL_GetWindowSurface(uintptr_t)')(this.#window));
    if (surface === 0n) return;
    const view = viewAt(surface, Surface.size);
    const pitch = view.getInt32(Surface.pitch, true);
    const format = viewAt(view.getBigUint64(Surface.format, true), 8);
    const into = view.getBigUint64(Surface.pixels, true);
    const bytesPerPixel = bytesOfPixel(format.getUint32(0, true));
    const right = Math.min(width, view.getInt32(Surface.width, true));
    const bottom = Math.min(height, view.getInt32(Surface.height, true));
    const convert = this.#native('int SDL_ConvertPixels(int, int, uint32_t, void *, int, uint32_t, uintptr_t, int)');
    const shown = rects
      .map(({ x, y, ...size }) => ({
        x,
        y,
        width: Math.min(x + size.width, right) - x,
        height: Math.min(y + size.height, bottom) - y,
      }))
      .filter((rect) => rect.width > 0 && rect.height > 0);
    for (const rect of shown) {
      const from = pixels.subarray(4 * (rect.y * width + rect.x));
      const to = into + BigInt(rect.y * pitch + rect.x * bytesPerPixel);
      convert(rect.width, rect.height, FORMAT_BGRX, from, 4 * width, format.getUint32(0, true), to, pitch);
    }
    if (shown.length === 0) return;
    const list = new Int32Array((RECT_BYTES / 4) * shown.length);
    shown.forEach(({ x, y, width: w, height: h }, i) => {
      list.set([x, y, w, h], 4 * i);
    });
    this.#native('int SDL_UpdateWindowSurfaceRects(uintptr_t, void *, int)')(this.#window, list, shown.length);
  }

  /** The pointer over the window; undefined: that of the host. */
  setCursor(cursor: SdlCursor | undefined): void {
    const before = this.#cursor;
    this.#cursor = cursor === undefined ? undefined : this.#makeCursor(cursor);
    const handle = this.#cursor?.handle ?? BigInt(this.#native('uintptr_t SDL_GetDefaultCursor()')());
    this.#native('void SDL_SetCursor(uintptr_t)')(handle);
    if (before !== undefined) this.#freeCursor(before);
  }

  /** What happened since the last call. */
  takeEvents(): SdlEvent[] {
    const poll = this.#native('int SDL_PollEvent(void *)');
    const bytes = new Uint8Array(this.#event.buffer);
    const events: SdlEvent[] = [];
    this.#look();
    for (let i = 0; i < MAX_EVENTS && this.#loss === undefined && poll(bytes) !== 0; i++) {
      const event = decode(this.#event);
      if (event !== undefined) events.push(event);
    }
    return events;
  }

  /** After the loss of its server SDL keeps the connection, as a call to it would not come back: it can open no other. */
  close(): void {
    if (this.#loss === 'server') {
      this.#removeServerHandler();
      return;
    }
    if (this.#cursor !== undefined) this.#freeCursor(this.#cursor);
    this.#native('void SDL_DestroyWindow(uintptr_t)')(this.#window);
    this.#quit();
  }

  #quit(): void {
    this.#native('void SDL_Quit()')();
    this.#removeServerHandler();
  }

  #makeCursor({ width, height, hotX, hotY, pixels }: SdlCursor): Cursor | undefined {
    const from = this.#native(
      'uintptr_t SDL_CreateRGBSurfaceFrom(void *, int, int, int, int, uint32_t, uint32_t, uint32_t, uint32_t)',
    );
    const masks = [0xff_0000, 0xff00, 0xff, 0xff00_0000];
    const surface = BigInt(from(pixels, width, height, 32, 4 * width, ...masks));
    if (surface === 0n) return undefined;
    const make = this.#native('uintptr_t SDL_CreateColorCursor(uintptr_t, int, int)');
    const handle = BigInt(make(surface, Math.min(hotX, width - 1), Math.min(hotY, height - 1)));
    if (handle !== 0n) return { handle, surface, pixels };
    this.#native('void SDL_FreeSurface(uintptr_t)')(surface);
    return undefined;
  }

  #freeCursor({ handle, surface }: Cursor): void {
    this.#native('void SDL_FreeCursor(uintptr_t)')(handle);
    this.#native('void SDL_FreeSurface(uintptr_t)')(surface);
  }

  /** Where it is seen that the X server goes away, or the window, before a call is made. */
  #findConnection(): void {
    const info = new Uint8Array(WmInfo.size);
    const view = new DataView(info.buffer);
    info.set([2, 0, 12]);
    if (Number(this.#native('int SDL_GetWindowWMInfo(uintptr_t, void *)')(this.#window, info)) === 0) return;
    if (view.getUint32(WmInfo.subsystem, true) !== WmInfo.x11) return;
    const display = view.getBigUint64(WmInfo.display, true);
    const connectionOf = xlib('int XConnectionNumber(uintptr_t)');
    const attributesOf = xlib('int XGetWindowAttributes(uintptr_t, unsigned long, void *)');
    if (attributesOf !== undefined) {
      const window = view.getBigUint64(WmInfo.window, true);
      const attributes = new Uint8Array(ATTRIBUTES_BYTES);
      this.#isThere = () => Number(attributesOf(display, window, attributes)) !== 0;
    }
    if (connectionOf === undefined) return;
    this.#connection = new PollSet(1);
    this.#connection.watch(0, Number(connectionOf(display)));
  }

  /** Whether the other side of the X server's connection has hung up, and the window is there. */
  #look(): void {
    if (this.#isHungUp()) this.#loss = 'server';
    const nowMs = performance.now();
    if (this.#loss !== undefined || nowMs - this.#lookedAtMs < LOOK_MS) return;
    this.#lookedAtMs = nowMs;
    if (!this.#isThere()) this.#loss = this.#isHungUp() ? 'server' : 'window';
  }

  #isHungUp(): boolean {
    const results = this.#connection?.wait(1, 0) === 1 ? this.#connection.results(0) : 0;
    return (results & (PollResult.Hangup | PollResult.Error)) !== 0;
  }

  #native(prototype: string): Native {
    let fn = this.#functions.get(prototype);
    if (fn === undefined) {
      fn = this.#library.func(prototype) as unknown as Native;
      this.#functions.set(prototype, fn);
    }
    return fn;
  }

  #check(call: string, isGood: boolean): void {
    if (isGood) return;
    const why: unknown = this.#library.func('const char *SDL_GetError()')();
    throw new HostError(`no window: ${call}: ${String(why)}`, Errno.EIO, { hint: 'DISPLAY names the X server' });
  }
}

/** @throws HostError with the package that has it, or with the variable */
function loadLibrary(): ReturnType<typeof koffi.load> {
  const { DISPLAY, WAYLAND_DISPLAY, SDL_VIDEODRIVER } = process.env;
  if (!DISPLAY && !WAYLAND_DISPLAY && !SDL_VIDEODRIVER) {
    throw new HostError('no window: neither DISPLAY nor WAYLAND_DISPLAY is set', Errno.ENOENT);
  }
  try {
    return koffi.load(LIBRARY);
  } catch (error) {
    const hint = 'install SDL: apt install libsdl2-2.0-0';
    throw new HostError(`no window: there is no ${LIBRARY}`, Errno.ENOENT, { cause: error, hint });
  }
}

/** undefined: there is no libX11 here, or no such function in it. */
function xlib(prototype: string): Native | undefined {
  try {
    return koffi.load(XLIB).func(prototype) as unknown as Native;
  } catch {
    return undefined;
  }
}

/** Something that returns. */
function doNothing(): bigint {
  return BigInt(koffi.address(koffi.load(null).symbol('getpid', 'void')));
}

/**
 * Xlib ends the process at a request that the X server refuses, and any of its clients may destroy a window of another's.
 * SDL's own handler, which it sets when it begins, hands on to the one from before.
 */
function surviveErrors(): void {
  xlib('uintptr_t XSetErrorHandler(uintptr_t)')?.(doNothing());
}

/**
 * Xlib ends the process when its server goes away, once the handler of that returns. It can be told not to, for one
 * connection: but SDL opens several, each of which may be lost while it is being opened or closed. So the handler does not
 * return, and neither does Xlib to SDL, which would go on with half an answer.
 * @returns to be called when nothing is asked of a connection of SDL's any more, by the same thread
 */
function surviveServer(onServerGone: () => void): () => void {
  const setHandler = xlib('uintptr_t XSetIOErrorHandler(uintptr_t)');
  if (setHandler === undefined) return () => {};
  const stay = () => {
    onServerGone();
    Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0);
    return 0;
  };
  const registered = koffi.register(stay, koffi.pointer(koffi.proto('int(uintptr_t display)')));
  const before = setHandler(BigInt(koffi.address(registered)));
  return () => {
    setHandler(before);
    koffi.unregister(registered);
  };
}

function viewAt(address: bigint, sizeBytes: number): DataView {
  const bytes = viewOf(address, sizeBytes);
  return new DataView(bytes.buffer, bytes.byteOffset, sizeBytes);
}

/** SDL_BYTESPERPIXEL, for formats that are no YUV. */
function bytesOfPixel(format: number): number {
  return format & 0xff;
}

function decode(event: DataView): SdlEvent | undefined {
  const int = (at: number) => event.getInt32(at, true);
  const type = event.getUint32(0, true);
  switch (type) {
    case EventType.KeyDown:
    case EventType.KeyUp:
      return { kind: 'key', scancode: int(16), isDown: type === EventType.KeyDown };
    case EventType.Motion:
      return { kind: 'motion', x: int(20), y: int(24) };
    case EventType.ButtonDown:
    case EventType.ButtonUp:
      return {
        kind: 'button',
        button: event.getUint8(16),
        isDown: type === EventType.ButtonDown,
        x: int(20),
        y: int(24),
      };
    case EventType.Wheel:
      // Direction "flipped": what the user's system turned round.
      return { kind: 'wheel', steps: int(24) === 1 ? -int(20) : int(20) };
    case EventType.Window:
      return decodeWindow(event.getUint8(12), int(16), int(20));
    default:
      return undefined;
  }
}

function decodeWindow(what: number, width: number, height: number): SdlEvent | undefined {
  switch (what) {
    case WindowEvent.Resized:
      return { kind: 'resized', width, height };
    case WindowEvent.Exposed:
    case WindowEvent.SizeChanged:
      return { kind: 'exposed' };
    case WindowEvent.FocusLost:
      return { kind: 'focus-lost' };
    case WindowEvent.Close:
      return { kind: 'close' };
    default:
      return undefined;
  }
}
