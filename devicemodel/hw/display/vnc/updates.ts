/**
 * Framebuffer updates of one client (RFC 6143 §7.6.1). A client asks for each; until it does, and until it took the last
 * one, what changes is only noted. So a slow client costs as much memory as a fast one.
 */
import { DamageMap } from '../damage.ts';
import { type CursorImage, type Display, PIXEL_BYTES } from '../display.ts';
import type { Rect, Size } from '../rect.ts';
import { Encoders } from './encoders.ts';
import { type PixelBlock, PixelWriter, SERVER_FORMAT } from './pixel-format.ts';
import { Encoding, FRAMEBUFFER_UPDATE, ResizeReason } from './protocol.ts';

/** Between two updates of one client: 60 a second. */
const FRAME_MS = 16;
/** For pictures that change without a word: how often they are looked at while a client waits. */
const POLL_MS = 33;
/** Rows of tiles are cut so that a rectangle has no more pixels. */
const MAX_RECT_PIXELS = 64 * 2048;
const DEFAULT_LEVEL = 1;

export interface UpdateParts {
  readonly display: Display;
  /** Resolves when the client took it, or is gone. */
  send(bytes: Uint8Array): Promise<void> | undefined;
  /** Something went wrong that is nobody's fault here: the connection cannot go on. */
  onError(error: Error): void;
}

/** A rectangle without pixels: what happened. */
interface Notice {
  readonly rect: Rect;
  readonly encoding: number;
  readonly body: Uint8Array;
}

export class Updates {
  readonly #parts: UpdateParts;
  readonly #encoders = new Encoders(DEFAULT_LEVEL);
  #writer = new PixelWriter(SERVER_FORMAT);
  #encodings: ReadonlySet<number> = new Set();
  #pixelEncoding: number = Encoding.Raw;
  /** Of the desktop as the client knows it. */
  #size: Size;
  #damage: DamageMap;
  #isRequested = false;
  #isSending = false;
  #isClosed = false;
  /** The desktop is another one now. */
  #isResized = false;
  #isCursorNew = false;
  /** The last one of each kind: a client may say much before it asks. */
  readonly #notices = new Map<string, Notice>();
  #timer: NodeJS.Timeout | undefined;
  #lastMs = 0;

  constructor(parts: UpdateParts) {
    this.#parts = parts;
    this.#size = parts.display.size;
    this.#damage = new DamageMap(this.#size);
  }

  get size(): Size {
    return this.#size;
  }

  close(): void {
    this.#isClosed = true;
    clearTimeout(this.#timer);
    this.#encoders.close();
  }

  // What the client says.

  set format(writer: PixelWriter) {
    this.#writer = writer;
    this.#damage.markAll();
    this.#isCursorNew = this.#parts.display.cursor !== undefined;
  }

  set encodings(encodings: readonly number[]) {
    this.#encodings = new Set(encodings);
    const known: readonly number[] = [Encoding.Raw, Encoding.Zlib, Encoding.Zrle];
    this.#pixelEncoding = encodings.find((encoding) => known.includes(encoding)) ?? Encoding.Raw;
    const level = encodings.find((e) => e >= Encoding.CompressLevel0 && e <= Encoding.CompressLevel9);
    if (level !== undefined) this.#encoders.level = level - Encoding.CompressLevel0;
    // Whoever knows these is told that they are known here, too.
    if (this.#encodings.has(Encoding.QemuKey)) this.#notify({ x: 0, y: 0, width: 0, height: 0 }, Encoding.QemuKey);
    if (this.#encodings.has(Encoding.ExtendedDesktopSize)) this.notifyLayout(ResizeReason.Server, 0);
    this.#isCursorNew = this.#parts.display.cursor !== undefined;
    if (this.#isResized) this.#schedule();
  }

  request(isIncremental: boolean, rect: Rect): void {
    if (!isIncremental) this.#damage.mark(rect);
    this.#isRequested = true;
    this.#schedule();
  }

  /** Tell the screens, and why. @param status what became of a request */
  notifyLayout(reason: number, status: number): void {
    if (!this.#encodings.has(Encoding.ExtendedDesktopSize)) return;
    this.#notify({ x: reason, y: status, ...this.#size }, Encoding.ExtendedDesktopSize, this.#layout());
    this.#schedule();
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

  cursorChanged(): void {
    this.#isCursorNew = true;
    this.#schedule();
  }

  // Sending.

  #notify(rect: Rect, encoding: number, body: Uint8Array = new Uint8Array(0)): void {
    // The x of a layout is whose doing it was; a client waits for the answer to its own.
    const kind = encoding === Encoding.ExtendedDesktopSize ? `${encoding} ${rect.x}` : `${encoding}`;
    this.#notices.delete(kind);
    this.#notices.set(kind, { rect, encoding, body });
  }

  /** Soon, if the client waits and there is nothing under way. */
  #schedule(): void {
    if (!this.#isRequested || this.#isSending || this.#isClosed || this.#timer !== undefined) return;
    const waitMs = this.#hasNews ? FRAME_MS - (performance.now() - this.#lastMs) : POLL_MS;
    if (!this.#hasNews && !this.#parts.display.isPolled) return;
    this.#timer = setTimeout(() => this.#begin(), Math.max(0, waitMs));
  }

  get #hasNews(): boolean {
    return this.#notices.size > 0 || this.#isResized || this.#isCursorNew || !this.#damage.isEmpty;
  }

  #begin(): void {
    // What the poll finds is for this update: it does not ask for another one.
    this.#parts.display.poll();
    this.#timer = undefined;
    if (!this.#hasNews) {
      this.#schedule();
      return;
    }
    this.#isSending = true;
    this.#isRequested = false;
    this.#lastMs = performance.now();
    this.#update().then(
      () => {
        this.#isSending = false;
        this.#schedule();
      },
      (error: Error) => this.#parts.onError(error),
    );
  }

  async #update(): Promise<void> {
    // A client may change both at any time, and does so at the sight of an update's head: one update is of one kind.
    const [writer, encoding] = [this.#writer, this.#pixelEncoding];
    this.#adoptSize();
    if (this.#isCursorNew && this.#encodings.has(Encoding.Cursor)) this.#notifyCursor(this.#parts.display.cursor);
    this.#isCursorNew = false;
    const notices = [...this.#notices.values()];
    this.#notices.clear();
    const rects = this.#damage.take().flatMap(cut);
    const head = Buffer.alloc(4);
    head[0] = FRAMEBUFFER_UPDATE;
    head.writeUInt16BE(notices.length + rects.length, 2);
    const begin = [head, ...notices.flatMap(({ rect, encoding, body }) => [rectHead(rect, encoding), body])];
    await this.#parts.send(Buffer.concat(begin));
    for (const rect of rects) {
      if (this.#isClosed) return;
      const body = await this.#encoders.encode(encoding, this.#read(rect), writer);
      await this.#parts.send(Buffer.concat([rectHead(rect, encoding), body]));
    }
  }

  /** What is outside of the desktop by now is black. */
  #read({ x, y, width, height }: Rect): PixelBlock {
    const pixels = new Uint32Array(width * height);
    const bytes = new Uint8Array(pixels.buffer);
    this.#parts.display.read({ x, y, width, height }, bytes, 0, width * PIXEL_BYTES);
    for (let i = 0; i < pixels.length; i++) pixels[i] = (pixels[i] as number) & 0xff_ffff;
    return { width, height, pixels };
  }

  /** A client that knows neither form of news about the size keeps the one it has. */
  #adoptSize(): void {
    if (!this.#isResized) return;
    this.#isResized = false;
    const { size } = this.#parts.display;
    const isExtended = this.#encodings.has(Encoding.ExtendedDesktopSize);
    if (isExtended || this.#encodings.has(Encoding.DesktopSize)) {
      const isSame = size.width === this.#size.width && size.height === this.#size.height;
      this.#size = size;
      if (isExtended)
        this.#notify({ x: ResizeReason.Server, y: 0, ...size }, Encoding.ExtendedDesktopSize, this.#layout());
      else if (!isSame) this.#notify({ x: 0, y: 0, ...size }, Encoding.DesktopSize);
    }
    this.#damage = new DamageMap(this.#size);
    this.#damage.markAll();
  }

  #layout(): Uint8Array {
    const { places } = this.#parts.display;
    const body = Buffer.alloc(4 + 16 * places.length);
    body[0] = places.length;
    for (const [i, { id, x, y, width, height }] of places.entries()) {
      body.writeUInt32BE(id, 4 + 16 * i);
      for (const [n, value] of [x, y, width, height].entries()) body.writeUInt16BE(value, 8 + 16 * i + 2 * n);
    }
    return body;
  }

  /** §7.8.1: pixels, and a bit for each of them that is to be seen. */
  #notifyCursor(cursor: CursorImage | undefined): void {
    if (cursor === undefined) {
      this.#notify({ x: 0, y: 0, width: 0, height: 0 }, Encoding.Cursor);
      return;
    }
    const { width, height, hotX, hotY, pixels } = cursor;
    const rowBytes = (width + 7) >> 3;
    const pixelsBytes = width * height * this.#writer.pixelBytes;
    const body = new Uint8Array(pixelsBytes + rowBytes * height);
    let at = 0;
    for (let i = 0; i < width * height; i++) {
      const [blue, green, red, alpha] = pixels.subarray(4 * i, 4 * i + 4) as unknown as [
        number,
        number,
        number,
        number,
      ];
      at = this.#writer.put(body, at, (red << 16) | (green << 8) | blue);
      const bit = pixelsBytes + Math.floor(i / width) * rowBytes + ((i % width) >> 3);
      if (alpha >= 0x80) body[bit] = (body[bit] as number) | (0x80 >> ((i % width) & 7));
    }
    const hot = { x: Math.min(hotX, width - 1), y: Math.min(hotY, height - 1) };
    this.#notify({ ...hot, width, height }, Encoding.Cursor, body);
  }
}

function rectHead({ x, y, width, height }: Rect, encoding: number): Buffer {
  const head = Buffer.alloc(12);
  for (const [i, value] of [x, y, width, height].entries()) head.writeUInt16BE(value, 2 * i);
  head.writeInt32BE(encoding, 8);
  return head;
}

/** Into pieces that are encoded in a moment each. */
function cut(rect: Rect): Rect[] {
  const width = Math.max(1, Math.floor(MAX_RECT_PIXELS / rect.height));
  const pieces: Rect[] = [];
  for (let x = 0; x < rect.width; x += width) {
    pieces.push({ ...rect, x: rect.x + x, width: Math.min(width, rect.width - x) });
  }
  return pieces;
}
