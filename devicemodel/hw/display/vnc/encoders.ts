/** How the pixels of a rectangle are sent (RFC 6143 §7.7): as they are, or compressed by zlib in a stream of their own. */
import { constants, createDeflate, type Deflate } from 'node:zlib';
import type { PixelBlock, PixelWriter } from './pixel-format.ts';
import { Encoding } from './protocol.ts';
import { encodeTiles, tilesBound } from './zrle.ts';

/** One stream for the whole connection: later rectangles are compressed with what earlier ones had. */
class ZlibStream {
  readonly #deflate: Deflate;
  #chunks: Buffer[] = [];
  #onError: ((error: Error) => void) | undefined;

  constructor(level: number) {
    this.#deflate = createDeflate({ level });
    this.#deflate.on('data', (chunk: Buffer) => this.#chunks.push(chunk));
    this.#deflate.on('error', (error) => this.#onError?.(error));
  }

  /** One at a time. Compressed on a thread of Node's. */
  compress(data: Uint8Array): Promise<Buffer> {
    return new Promise((resolve, reject) => {
      this.#onError = reject;
      this.#deflate.write(data);
      this.#deflate.flush(constants.Z_SYNC_FLUSH, () => {
        const chunks = this.#chunks;
        this.#chunks = [];
        resolve(Buffer.concat(chunks));
      });
    });
  }

  close(): void {
    this.#onError = undefined;
    this.#deflate.destroy();
  }
}

/** What one client's rectangles go through. */
export class Encoders {
  readonly #streams = new Map<number, ZlibStream>();
  #level: number;

  constructor(level: number) {
    this.#level = level;
  }

  /** For streams that are made from now on. */
  set level(level: number) {
    this.#level = level;
  }

  /** The body of a rectangle. @param encoding one of {@link Encoding.Raw}, Zlib, Zrle */
  async encode(encoding: number, block: PixelBlock, writer: PixelWriter): Promise<Uint8Array> {
    if (encoding === Encoding.Zrle) {
      const tiles = new Uint8Array(tilesBound(block, writer.compactBytes));
      return this.#compressed(encoding, tiles.subarray(0, encodeTiles(block, writer, tiles)));
    }
    const raw = rawPixels(block, writer);
    return encoding === Encoding.Zlib ? this.#compressed(encoding, raw) : raw;
  }

  close(): void {
    for (const stream of this.#streams.values()) stream.close();
    this.#streams.clear();
  }

  async #compressed(encoding: number, data: Uint8Array): Promise<Uint8Array> {
    let stream = this.#streams.get(encoding);
    if (stream === undefined) {
      stream = new ZlibStream(this.#level);
      this.#streams.set(encoding, stream);
    }
    const packed = await stream.compress(data);
    const body = Buffer.alloc(4 + packed.length);
    body.writeUInt32BE(packed.length);
    packed.copy(body, 4);
    return body;
  }
}

export function rawPixels({ pixels }: PixelBlock, writer: PixelWriter): Uint8Array {
  if (writer.isPlain) return new Uint8Array(pixels.buffer, pixels.byteOffset, pixels.byteLength);
  const bytes = new Uint8Array(pixels.length * writer.pixelBytes);
  let at = 0;
  for (const pixel of pixels) at = writer.put(bytes, at, pixel);
  return bytes;
}
