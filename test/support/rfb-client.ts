/**
 * A viewer: speaks RFB 3.8, keeps the picture it is told, and says what happened. Decodes what the server can send by
 * itself, from RFC 6143 and not from the server's code.
 */
import { createCipheriv } from 'node:crypto';
import { connect, type NetConnectOpts, type Socket } from 'node:net';
import { constants, createInflate, type Inflate } from 'node:zlib';

export const Rfb = {
  Raw: 0,
  Zlib: 6,
  Zrle: 16,
  DesktopSize: -223,
  Cursor: -239,
  QemuKey: -258,
  ExtendedDesktopSize: -308,
} as const;

export interface RfbCursor {
  readonly hotX: number;
  readonly hotY: number;
  readonly width: number;
  readonly height: number;
  readonly pixels: Uint8Array;
  readonly mask: Uint8Array;
}

/** A pixel format of 32 bits with 8 a colour, as shifts. */
export interface Shifts {
  readonly red: number;
  readonly green: number;
  readonly blue: number;
}
const USUAL: Shifts = { red: 16, green: 8, blue: 0 };

/** One zlib stream for all rectangles of an encoding. */
class InflateStream {
  readonly #inflate: Inflate = createInflate({ finishFlush: constants.Z_SYNC_FLUSH });
  #chunks: Buffer[] = [];

  constructor() {
    this.#inflate.on('data', (chunk: Buffer) => this.#chunks.push(chunk));
  }

  inflate(data: Buffer): Promise<Buffer> {
    return new Promise((resolve, reject) => {
      this.#inflate.once('error', reject);
      this.#inflate.write(data);
      this.#inflate.flush(constants.Z_SYNC_FLUSH, () => {
        this.#inflate.off('error', reject);
        const all = Buffer.concat(this.#chunks);
        this.#chunks = [];
        resolve(all);
      });
    });
  }
}

export class RfbClient {
  readonly socket: Socket;
  width = 0;
  height = 0;
  name = '';
  /** Red, green, blue of each pixel. */
  pixels = new Uint8Array(0);
  cursor: RfbCursor | undefined;
  /** Rectangles of an ExtendedDesktopSize: reason, status, screens. */
  readonly layouts: Array<{ reason: number; status: number; screens: number[][] }> = [];
  /** Encodings of the rectangles that came. */
  readonly encodings: number[] = [];
  isQemuKeyOffered = false;
  isClosed = false;
  #buffer = Buffer.alloc(0);
  #onData: (() => void) | undefined;
  #shifts = USUAL;
  readonly #streams = new Map<number, InflateStream>();

  private constructor(socket: Socket) {
    this.socket = socket;
    socket.on('data', (bytes) => {
      this.#buffer = Buffer.concat([this.#buffer, bytes]);
      this.#onData?.();
    });
    socket.on('error', () => {});
    socket.on('close', () => {
      this.isClosed = true;
      this.#onData?.();
    });
  }

  /** Connected, and nothing said yet. */
  static async connect(to: NetConnectOpts): Promise<RfbClient> {
    const socket = connect(to);
    await new Promise<void>((resolve, reject) => {
      socket.once('connect', resolve);
      socket.once('error', reject);
    });
    return new RfbClient(socket);
  }

  /** Up to ServerInit. @throws Error with the server's reason */
  static async join(to: NetConnectOpts, { password = '', isShared = true } = {}): Promise<RfbClient> {
    const client = await RfbClient.connect(to);
    await client.handshake(password, isShared);
    return client;
  }

  async handshake(password: string, isShared: boolean): Promise<void> {
    const version = (await this.read(12)).toString('latin1');
    if (version !== 'RFB 003.008\n') throw new Error(`version ${version}`);
    this.write(Buffer.from(version));
    const count = (await this.read(1))[0] as number;
    const type = (await this.read(count))[0] as number;
    this.write([type]);
    if (type === 2) this.write(vncAnswer(password, await this.read(16)));
    if ((await this.readU32()) !== 0) {
      throw new Error((await this.read(await this.readU32())).toString('latin1'));
    }
    this.write([isShared ? 1 : 0]);
    const init = await this.read(24);
    this.#resize(init.readUInt16BE(0), init.readUInt16BE(2));
    this.name = (await this.read(init.readUInt32BE(20))).toString();
  }

  write(bytes: Uint8Array | readonly number[]): void {
    this.socket.write(Uint8Array.from(bytes));
  }

  async read(count: number): Promise<Buffer> {
    while (this.#buffer.length < count) {
      if (this.isClosed) throw new Error('the server closed the connection');
      await new Promise<void>((resolve) => {
        this.#onData = resolve;
      });
    }
    const bytes = this.#buffer.subarray(0, count);
    this.#buffer = this.#buffer.subarray(count);
    return bytes;
  }

  async readU32(): Promise<number> {
    return (await this.read(4)).readUInt32BE(0);
  }

  close(): void {
    this.socket.destroy();
  }

  // Messages.

  setEncodings(...encodings: number[]): void {
    const bytes = Buffer.alloc(4 + 4 * encodings.length);
    bytes[0] = 2;
    bytes.writeUInt16BE(encodings.length, 2);
    for (const [i, encoding] of encodings.entries()) bytes.writeInt32BE(encoding, 4 + 4 * i);
    this.write(bytes);
  }

  setShifts(shifts: Shifts, isBigEndian = false): void {
    this.#shifts = shifts;
    const { red, green, blue } = shifts;
    if (isBigEndian) throw new Error('not this client');
    this.write([0, 0, 0, 0, 32, 24, 0, 1, 0, 255, 0, 255, 0, 255, red, green, blue, 0, 0, 0]);
  }

  request(isIncremental: boolean, x = 0, y = 0, width = this.width, height = this.height): void {
    const bytes = Buffer.alloc(10);
    bytes[0] = 3;
    bytes[1] = isIncremental ? 1 : 0;
    for (const [i, value] of [x, y, width, height].entries()) bytes.writeUInt16BE(value, 2 + 2 * i);
    this.write(bytes);
  }

  key(isDown: boolean, keysym: number): void {
    const bytes = Buffer.from([4, isDown ? 1 : 0, 0, 0, 0, 0, 0, 0]);
    bytes.writeUInt32BE(keysym, 4);
    this.write(bytes);
  }

  qemuKey(isDown: boolean, keysym: number, scanCode: number): void {
    const bytes = Buffer.from([255, 0, 0, isDown ? 1 : 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    bytes.writeUInt32BE(keysym, 4);
    bytes.writeUInt32BE(scanCode, 8);
    this.write(bytes);
  }

  pointer(x: number, y: number, buttons: number): void {
    const bytes = Buffer.from([5, buttons, 0, 0, 0, 0]);
    bytes.writeUInt16BE(x, 2);
    bytes.writeUInt16BE(y, 4);
    this.write(bytes);
  }

  setDesktopSize(width: number, height: number, screens: readonly (readonly number[])[]): void {
    const bytes = Buffer.alloc(8 + 16 * screens.length);
    bytes[0] = 251;
    bytes.writeUInt16BE(width, 2);
    bytes.writeUInt16BE(height, 4);
    bytes[6] = screens.length;
    for (const [i, [id = 0, ...rect]] of screens.entries()) {
      bytes.writeUInt32BE(id, 8 + 16 * i);
      for (const [n, value] of rect.entries()) bytes.writeUInt16BE(value, 12 + 16 * i + 2 * n);
    }
    this.write(bytes);
  }

  /** Ask for all of the picture and take one update. */
  async refresh(): Promise<void> {
    this.request(false);
    await this.update();
  }

  /** Take one update that was asked for. @returns how many rectangles it had */
  async update(): Promise<number> {
    const head = await this.read(4);
    if (head[0] !== 0) throw new Error(`message ${head[0]} from the server`);
    const count = head.readUInt16BE(2);
    for (let i = 0; i < count; i++) await this.#rectangle();
    return count;
  }

  pixel(x: number, y: number): number[] {
    return [...this.pixels.subarray(3 * (y * this.width + x), 3 * (y * this.width + x) + 3)];
  }

  #resize(width: number, height: number): void {
    this.width = width;
    this.height = height;
    this.pixels = new Uint8Array(3 * width * height);
  }

  async #rectangle(): Promise<void> {
    const head = await this.read(12);
    const [x, y, width, height] = [0, 2, 4, 6].map((at) => head.readUInt16BE(at)) as [number, number, number, number];
    const encoding = head.readInt32BE(8);
    this.encodings.push(encoding);
    const rect = { x, y, width, height };
    switch (encoding) {
      case Rfb.Raw:
        this.#raw(rect, await this.read(4 * width * height));
        break;
      case Rfb.Zlib:
        this.#raw(rect, await this.#inflated(encoding));
        break;
      case Rfb.Zrle:
        this.#zrle(rect, await this.#inflated(encoding));
        break;
      case Rfb.Cursor: {
        const pixels = await this.read(4 * width * height);
        const mask = await this.read(((width + 7) >> 3) * height);
        this.cursor = { hotX: x, hotY: y, width, height, pixels, mask };
        break;
      }
      case Rfb.DesktopSize:
        this.#resize(width, height);
        break;
      case Rfb.ExtendedDesktopSize: {
        const screens: number[][] = [];
        const count = (await this.read(4))[0] as number;
        for (let i = 0; i < count; i++) {
          const screen = await this.read(16);
          screens.push([screen.readUInt32BE(0), ...[4, 6, 8, 10].map((at) => screen.readUInt16BE(at))]);
        }
        this.layouts.push({ reason: x, status: y, screens });
        if (width !== this.width || height !== this.height) this.#resize(width, height);
        break;
      }
      case Rfb.QemuKey:
        this.isQemuKeyOffered = true;
        break;
      default:
        throw new Error(`encoding ${encoding}`);
    }
  }

  async #inflated(encoding: number): Promise<Buffer> {
    let stream = this.#streams.get(encoding);
    if (stream === undefined) this.#streams.set(encoding, (stream = new InflateStream()));
    return stream.inflate(await this.read(await this.readU32()));
  }

  #set(x: number, y: number, value: number): void {
    const { red, green, blue } = this.#shifts;
    this.pixels.set(
      [(value >>> red) & 0xff, (value >>> green) & 0xff, (value >>> blue) & 0xff],
      3 * (y * this.width + x),
    );
  }

  #raw(rect: { x: number; y: number; width: number; height: number }, bytes: Buffer): void {
    if (bytes.length !== 4 * rect.width * rect.height) throw new Error(`${bytes.length} bytes of pixels`);
    for (let i = 0; i < rect.width * rect.height; i++) {
      this.#set(rect.x + (i % rect.width), rect.y + Math.floor(i / rect.width), bytes.readUInt32LE(4 * i));
    }
  }

  #zrle(rect: { x: number; y: number; width: number; height: number }, bytes: Buffer): void {
    const isHigh = Math.min(this.#shifts.red, this.#shifts.green, this.#shifts.blue) >= 8;
    let at = 0;
    const byte = () => bytes.readUInt8(at++);
    const color = () => {
      const value = bytes.readUIntLE(at, 3);
      at += 3;
      return isHigh ? value * 256 : value;
    };
    for (let tileY = 0; tileY < rect.height; tileY += 64) {
      for (let tileX = 0; tileX < rect.width; tileX += 64) {
        const width = Math.min(64, rect.width - tileX);
        const height = Math.min(64, rect.height - tileY);
        const put = (i: number, value: number) =>
          this.#set(rect.x + tileX + (i % width), rect.y + tileY + Math.floor(i / width), value);
        const runLength = () => {
          let length = 1;
          for (let more = byte(); ; more = byte()) {
            length += more;
            if (more !== 255) return length;
          }
        };
        const kind = byte();
        if (kind === 0) for (let i = 0; i < width * height; i++) put(i, color());
        else if (kind === 1) {
          const value = color();
          for (let i = 0; i < width * height; i++) put(i, value);
        } else if (kind <= 16) {
          const palette = Array.from({ length: kind }, color);
          const bits = kind === 2 ? 1 : kind <= 4 ? 2 : 4;
          for (let y = 0; y < height; y++) {
            for (let x = 0, free = 0, current = 0; x < width; x++) {
              if (free === 0) [current, free] = [byte(), 8];
              free -= bits;
              put(y * width + x, palette[(current >> free) & ((1 << bits) - 1)] as number);
            }
          }
        } else if (kind === 128) {
          for (let i = 0; i < width * height; ) {
            const value = color();
            for (let length = runLength(); length > 0; length--) put(i++, value);
          }
        } else throw new Error(`tile of kind ${kind}`);
      }
    }
    if (at !== bytes.length) throw new Error(`${bytes.length - at} bytes are left over`);
  }
}

/** With OpenSSL's triple DES, three times the same key: that is DES. */
function vncAnswer(password: string, challenge: Uint8Array): Uint8Array {
  const key = new Uint8Array(8);
  for (const [i, byte] of [...Buffer.from(password).subarray(0, 8)].entries()) {
    key[i] = Number.parseInt([...byte.toString(2).padStart(8, '0')].reverse().join(''), 2);
  }
  const cipher = createCipheriv('des-ede3-ecb', Buffer.concat([key, key, key]), null).setAutoPadding(false);
  return Buffer.concat([cipher.update(challenge), cipher.final()]);
}
