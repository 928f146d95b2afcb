/** Resources of a guest's driver (Virtio 1.2 §5.7.6.8): images of the host, and blobs in guest memory. */
import { MiB } from '../../../../core/units.ts';
import { type CursorImage, PIXEL_BYTES, type Picture } from '../../../display/display.ts';
import { copyPixels, type PixelFormat, readPixels } from '../../../display/formats.ts';
import type { Rect, Size } from '../../../display/rect.ts';
import type { Backing } from './backing.ts';
import { formats, MEM_ENTRY_BYTES } from './protocol.ts';

/** All resources together: as much as QEMU allows by default. C has no limit. */
const MAX_TOTAL_BYTES = 256 * MiB;
/** What a resource costs at least, so that there are not millions of them. */
const RESOURCE_COST = 4096;
/** No larger cursor is shown; drivers have 64. */
const MAX_CURSOR = 256;
/** §5.7.6.10: the image of a cursor. A blob of this size at most is one, as with C. */
const CURSOR: Size = { width: 64, height: 64 };
export const CURSOR_BLOB_BYTES = CURSOR.width * CURSOR.height * PIXEL_BYTES;

export interface Resource {
  readonly id: number;
  /** Of host memory, without its backing. */
  readonly costBytes: number;
  backing: Backing | undefined;
  /** Pixels for a cursor. */
  cursor(hotX: number, hotY: number): CursorImage | undefined;
}

/** An image of the host, filled from its backing by transfers. */
export class ImageResource implements Resource {
  readonly id: number;
  readonly size: Size;
  readonly costBytes: number;
  readonly strideBytes: number;
  readonly #format: PixelFormat;
  readonly #pixels: Uint8Array;
  backing: Backing | undefined;

  constructor(id: number, size: Size, format: PixelFormat) {
    this.id = id;
    this.size = size;
    this.#format = format;
    this.strideBytes = size.width * PIXEL_BYTES;
    this.costBytes = RESOURCE_COST + this.strideBytes * size.height;
    this.#pixels = new Uint8Array(this.strideBytes * size.height);
  }

  /** §5.7.6.8, "transfer to host": `count` rows of `rect` from row `first`. @param offset of its first pixel */
  transfer(rect: Rect, offset: number, first: number, count: number): void {
    const rowBytes = rect.width * PIXEL_BYTES;
    if (rect.width === this.size.width) {
      const to = (rect.y + first) * this.strideBytes;
      this.backing?.copyOut(offset + first * this.strideBytes, this.#pixels, to, count * rowBytes);
      return;
    }
    for (let row = first; row < first + count; row++) {
      const to = (rect.y + row) * this.strideBytes + rect.x * PIXEL_BYTES;
      this.backing?.copyOut(offset + row * this.strideBytes, this.#pixels, to, rowBytes);
    }
  }

  /** @param rect within the image */
  picture({ x, y, width, height }: Rect): Picture {
    const memory = {
      bytes: this.#pixels,
      offset: y * this.strideBytes + x * PIXEL_BYTES,
      strideBytes: this.strideBytes,
      format: this.#format,
    };
    return { width, height, read: (rect, into, at, strideBytes) => readPixels(memory, rect, into, at, strideBytes) };
  }

  cursor(hotX: number, hotY: number): CursorImage | undefined {
    const { width, height } = this.size;
    if (width > MAX_CURSOR || height > MAX_CURSOR) return undefined;
    const pixels = new Uint8Array(this.#pixels.length);
    copyPixels(this.#pixels, 0, this.#format, pixels, 0, pixels.length, true);
    return { width, height, hotX, hotY, pixels };
  }
}

/** How a scanout looks at a blob. */
export interface BlobView {
  readonly format: PixelFormat;
  readonly strideBytes: number;
  /** Of the first pixel. */
  readonly offset: number;
}

/** Guest memory that is shown as it is. */
export class BlobResource implements Resource {
  readonly id: number;
  readonly sizeBytes: number;
  readonly costBytes = RESOURCE_COST;
  backing: Backing | undefined;

  constructor(id: number, sizeBytes: number, backing: Backing | undefined) {
    this.id = id;
    this.sizeBytes = sizeBytes;
    this.backing = backing;
  }

  /** @returns undefined if the rectangle is not all in the blob */
  picture(rect: Rect, { format, strideBytes, offset }: BlobView): Picture | undefined {
    const start = offset + rect.y * strideBytes + rect.x * PIXEL_BYTES;
    const rowBytes = rect.width * PIXEL_BYTES;
    const end = start + (rect.height - 1) * strideBytes + rowBytes;
    if (end > this.sizeBytes || (rect.x * PIXEL_BYTES + rowBytes > strideBytes && rect.height > 1)) return undefined;
    const row = new Uint8Array(rowBytes);
    return {
      width: rect.width,
      height: rect.height,
      read: (part, into, at, intoStrideBytes) => {
        const partBytes = part.width * PIXEL_BYTES;
        for (let y = 0; y < part.height; y++) {
          this.backing?.copyOut(start + (part.y + y) * strideBytes + part.x * PIXEL_BYTES, row, 0, partBytes);
          copyPixels(row, 0, format, into, at + y * intoStrideBytes, partBytes, false);
        }
      },
    };
  }

  cursor(hotX: number, hotY: number): CursorImage | undefined {
    if (this.sizeBytes > CURSOR_BLOB_BYTES) return undefined;
    const pixels = new Uint8Array(CURSOR_BLOB_BYTES);
    this.backing?.copyOut(0, pixels, 0, pixels.length);
    return { ...CURSOR, hotX, hotY, pixels };
  }
}

/** All resources of a driver. */
export class Resources {
  readonly #byId = new Map<number, Resource>();
  #totalBytes = 0;

  get(id: number): Resource | undefined {
    return this.#byId.get(id);
  }

  /** @returns undefined if the format or size is none, or there is no memory for it. */
  createImage(id: number, size: Size, formatNumber: number): ImageResource | undefined {
    const format = formats[formatNumber];
    const bytes = RESOURCE_COST + size.width * size.height * PIXEL_BYTES;
    if (format === undefined || size.width === 0 || size.height === 0 || !this.#hasRoom(bytes)) return undefined;
    const resource = new ImageResource(id, size, format);
    this.#add(resource);
    return resource;
  }

  /** @returns false if there is no memory for it. */
  createBlob(id: number, sizeBytes: number, backing: Backing | undefined): boolean {
    if (!this.#hasRoom(RESOURCE_COST + backingCost(backing))) return false;
    this.#add(new BlobResource(id, sizeBytes, backing));
    return true;
  }

  /** @returns false if there is no memory to note it. */
  attach(resource: Resource, backing: Backing): boolean {
    const difference = backingCost(backing) - backingCost(resource.backing);
    if (!this.#hasRoom(difference)) return false;
    this.#totalBytes += difference;
    resource.backing = backing;
    return true;
  }

  detach(resource: Resource): void {
    this.#totalBytes -= backingCost(resource.backing);
    resource.backing = undefined;
  }

  remove(resource: Resource): void {
    this.#byId.delete(resource.id);
    this.#totalBytes -= resource.costBytes + backingCost(resource.backing);
  }

  clear(): void {
    this.#byId.clear();
    this.#totalBytes = 0;
  }

  /** Of host memory, everything together. */
  get totalBytes(): number {
    return this.#totalBytes;
  }

  #add(resource: Resource): void {
    this.#byId.set(resource.id, resource);
    this.#totalBytes += resource.costBytes + backingCost(resource.backing);
  }

  #hasRoom(bytes: number): boolean {
    return this.#totalBytes + bytes <= MAX_TOTAL_BYTES;
  }
}

function backingCost(backing: Backing | undefined): number {
  return backing === undefined ? 0 : backing.entryCount * MEM_ENTRY_BYTES;
}
