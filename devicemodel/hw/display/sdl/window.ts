/**
 * A window on the host's display, seen from the device thread. The window has a thread of its own, so that a display
 * server that stands still stops nobody else; this side owns that thread, and the picture they share. A picture is shown
 * when the one before was, so a slow server costs no memory either.
 */
import type { Worker } from 'node:worker_threads';
import type { Disposable } from '../../../core/disposer.ts';
import { leaveThreadBehind, onProcessEnd } from '../../../core/host/exit-hooks.ts';
import type { SdlEvent } from '../../../core/host/sdl.ts';
import { startWorker } from '../../../core/host/worker.ts';
import type { Log } from '../../../core/log.ts';
import { keysymOfKey } from '../../input/keysyms.ts';
import { DamageMap } from '../damage.ts';
import { type Display, type DisplayWatcher, PIXEL_BYTES } from '../display.ts';
import { pointerAt } from '../pointer.ts';
import type { Rect, Size } from '../rect.ts';
import type { FromWindow, ToWindow, WindowSetup } from './messages.ts';
import { keyOfUsage } from './scancodes.ts';
import type { WindowClaim, WindowHold } from './window-claim.ts';

/** The worker is a file of its own beside the program. */
const workerUrl = new URL('./sdl-window-main.js', import.meta.url);
/** Between two pictures: 60 a second. */
const FRAME_MS = 16;
/** For pictures that change without a word: how often they are looked at. */
const POLL_MS = 33;
/** The VM does not wait any longer for a display server that does not answer. */
const OPEN_TIMEOUT_MS = 3000;
/** Nor does its end. */
const CLOSE_TIMEOUT_MS = 500;
const LAST_BUTTON = 5;
/** Of one picture: two screens of 1920x1080. The rest of a larger one follows, so that nothing else waits for long. */
const PICTURE_PIXELS = 4 * 1024 * 1024;

export interface SdlWindowParts {
  readonly display: Display;
  /** Of the VM: the window's title. */
  readonly name: string;
  /** Of the process. */
  readonly claim: WindowClaim;
  readonly log: Log;
  /** For tests. */
  readonly workerUrl?: URL;
  readonly openTimeoutMs?: number;
}

export class SdlFrontEnd implements DisplayWatcher {
  readonly #parts: SdlWindowParts;
  readonly #down = new Set<number>();
  #worker: Worker | undefined;
  #hold: WindowHold | undefined;
  #exited: Promise<unknown> = Promise.resolve();
  #removeExitHook: () => void = () => {};
  #watching: Disposable | undefined;
  #size: Size = { width: 0, height: 0 };
  #damage = new DamageMap(this.#size);
  #pixels = new Uint8Array(new SharedArrayBuffer(0));
  #isResized = true;
  #isCursorNew = false;
  #isShowing = false;
  #timer: NodeJS.Timeout | undefined;
  #lastMs = 0;
  #pointer = { x: 0, y: 0, buttons: 0 };

  constructor(parts: SdlWindowParts) {
    this.#parts = parts;
  }

  /**
   * Waits until the window is there, or for a while: it may come later. Without one there is a line in the log, and
   * nothing is shown.
   * @throws HostError when another VM of this process has its window
   */
  async start(): Promise<void> {
    const { claim, name } = this.#parts;
    this.#hold = claim.take(name);
    if (this.#hold === undefined) {
      this.#failed('no window: the display server of an earlier one is gone, or stands still', 'a new process has one');
      return;
    }
    try {
      await this.#open();
    } catch (error) {
      this.#hold.giveBack();
      throw error;
    }
  }

  /** @throws HostError when there is no thread for it */
  #open(): Promise<void> {
    const { display, name } = this.#parts;
    const setup: WindowSetup = { title: name, ...display.size };
    const worker = startWorker(this.#parts.workerUrl ?? workerUrl, { workerData: setup, stdin: false }, 'window');
    this.#worker = worker;
    this.#exited = new Promise((resolve) => worker.once('exit', resolve));
    // Node would wait for a thread that waits for the display server, or stays in a call to one that is gone.
    this.#removeExitHook = onProcessEnd(leaveThreadBehind);
    worker.unref();
    return new Promise((answered) => {
      const late = setTimeout(() => {
        this.#parts.log.warn('display: the display server does not answer; the VM does not wait for it');
        answered();
      }, this.#parts.openTimeoutMs ?? OPEN_TIMEOUT_MS);
      const resolve = () => {
        clearTimeout(late);
        answered();
      };
      worker.on('message', (message: FromWindow) => {
        if (message.kind === 'closed') {
          this.#hold?.giveBack();
          return;
        }
        this.#hear(message);
        resolve();
      });
      worker.on('error', ({ message }: Error) => {
        this.#failed(message, undefined);
        resolve();
      });
      void this.#exited.then(() => {
        this.#removeExitHook();
        this.#forget();
        resolve();
      });
    });
  }

  /** The window is gone afterwards, unless its display server does not answer. Safe twice. */
  async close(): Promise<void> {
    if (this.#worker === undefined) return;
    this.#tell({ kind: 'close' });
    this.#forget();
    let timer: NodeJS.Timeout | undefined;
    const late = new Promise<'late'>((resolve) => {
      timer = setTimeout(() => resolve('late'), CLOSE_TIMEOUT_MS);
    });
    const outcome = await Promise.race([this.#exited, late]);
    clearTimeout(timer);
    if (outcome === 'late') leaveThreadBehind();
  }

  /** Nothing is sent any more. */
  #forget(): void {
    this.#worker = undefined;
    this.#watching?.dispose();
    clearTimeout(this.#timer);
    this.#release();
    this.#hold?.leave();
  }

  #failed(message: string, hint: string | undefined): void {
    const advice = hint === undefined ? '' : ` (${hint})`;
    this.#parts.log.warn(`display: ${message}${advice}; the VM goes on, its screens are not shown`);
    this.#forget();
  }

  #tell(message: ToWindow): void {
    this.#worker?.postMessage(message);
  }

  // What the display says.

  resized(): void {
    this.#isResized = true;
    this.#schedule();
  }

  damaged(rect: Rect): void {
    this.#damage.mark(rect);
    this.#schedule();
  }

  /** Told with the next picture: a guest may change it faster than the window takes it. */
  cursorChanged(): void {
    this.#isCursorNew = true;
    this.#schedule();
  }

  // What the window says.

  #hear(message: FromWindow): void {
    if (this.#worker === undefined) return;
    switch (message.kind) {
      case 'open':
        this.#parts.log.info('display: a window');
        this.#watching = this.#parts.display.watch(this);
        this.cursorChanged();
        this.#schedule();
        break;
      case 'failed':
        this.#failed(message.message, message.hint);
        break;
      case 'shown':
        this.#isShowing = false;
        this.#schedule();
        break;
      case 'events':
        for (const event of message.events) this.#take(event);
        break;
    }
  }

  #take(event: SdlEvent): void {
    switch (event.kind) {
      case 'key':
        this.#key(keyOfUsage(event.scancode), event.isDown);
        break;
      case 'motion':
        this.#point(event.x, event.y, this.#pointer.buttons, 0);
        break;
      case 'button': {
        const { buttons } = this.#pointer;
        const bit = event.button >= 1 && event.button <= LAST_BUTTON ? 1 << (event.button - 1) : 0;
        this.#point(event.x, event.y, event.isDown ? buttons | bit : buttons & ~bit, 0);
        break;
      }
      case 'wheel':
        this.#point(this.#pointer.x, this.#pointer.y, this.#pointer.buttons, Math.sign(event.steps));
        break;
      case 'resized':
        this.#sizeWanted({ width: event.width, height: event.height });
        break;
      case 'focus-lost':
        this.#release();
        break;
      case 'close':
        this.#parts.log.info('display: the window is closed, the VM goes on');
        void this.close();
        break;
    }
  }

  #key(code: number, isDown: boolean): void {
    if (code === 0 || (!isDown && !this.#down.has(code))) return;
    if (isDown) this.#down.add(code);
    else this.#down.delete(code);
    this.#parts.display.input.key({ code, keysym: keysymOfKey(code), isDown });
  }

  #point(x: number, y: number, buttons: number, wheel: number): void {
    const { width, height } = this.#size;
    const inside = (value: number, end: number) => Math.max(0, Math.min(value, end - 1));
    this.#pointer = { x: inside(x, width), y: inside(y, height), buttons };
    this.#parts.display.input.pointer(pointerAt(this.#pointer.x, this.#pointer.y, this.#size, buttons, wheel));
  }

  /** Nobody hears any more that they go up. */
  #release(): void {
    for (const code of [...this.#down]) this.#key(code, false);
    if (this.#pointer.buttons !== 0) this.#point(this.#pointer.x, this.#pointer.y, 0, 0);
  }

  /** With several screens the window keeps the size that they have together. */
  #sizeWanted(size: Size): void {
    const { display } = this.#parts;
    const [place, second] = display.places;
    if (place !== undefined && second === undefined) display.requestSize(place.id, size);
  }

  // Showing.

  /** Soon, if there is something new and the last picture is shown. */
  #schedule(): void {
    if (this.#watching === undefined || this.#worker === undefined || this.#isShowing || this.#timer !== undefined) {
      return;
    }
    const hasNews = this.#isResized || this.#isCursorNew || !this.#damage.isEmpty;
    if (!hasNews && !this.#parts.display.isPolled) return;
    const waitMs = hasNews ? FRAME_MS - (performance.now() - this.#lastMs) : POLL_MS;
    this.#timer = setTimeout(() => this.#show(), Math.max(0, waitMs));
    this.#timer.unref();
  }

  #show(): void {
    const { display } = this.#parts;
    // What the poll finds is for this picture.
    display.poll();
    this.#timer = undefined;
    if (this.#isResized) this.#adoptSize();
    const rects = this.#damage.take(PICTURE_PIXELS);
    if (rects.length > 0 || this.#isCursorNew) {
      this.#isShowing = true;
      this.#lastMs = performance.now();
      const strideBytes = this.#size.width * PIXEL_BYTES;
      for (const rect of rects) {
        display.read(rect, this.#pixels, rect.y * strideBytes + rect.x * PIXEL_BYTES, strideBytes);
      }
      if (this.#isCursorNew) this.#tell({ kind: 'cursor', cursor: display.cursor });
      this.#isCursorNew = false;
      this.#tell({ kind: 'show', rects });
    }
    this.#schedule();
  }

  #adoptSize(): void {
    this.#isResized = false;
    const { width, height } = this.#parts.display.size;
    if (width !== this.#size.width || height !== this.#size.height) {
      this.#size = { width, height };
      const bytes = width * height * PIXEL_BYTES;
      // A guest may change modes as fast as it likes: only what is larger than all before needs more memory.
      if (this.#pixels.length < bytes) this.#pixels = new Uint8Array(new SharedArrayBuffer(bytes));
      this.#tell({ kind: 'picture', pixels: this.#pixels.buffer as SharedArrayBuffer, width, height });
    }
    this.#damage = new DamageMap(this.#size);
    this.#damage.markAll();
  }
}
