/** What a client sends once it is in (RFC 6143 §7.5), as it comes in: in pieces, or many at once. */
import type { Rect, Size } from '../rect.ts';
import { type ClientPixelFormat, decodeFormat, PIXEL_FORMAT_BYTES } from './pixel-format.ts';
import { ClientMessage, QEMU_KEY } from './protocol.ts';

/** A client with more encodings is none. */
const MAX_ENCODINGS = 1024;
const MAX_SCREENS = 16;
/** Longer texts from a clipboard are not even passed over. */
const MAX_CUT_TEXT = 16 * 1024 * 1024;

/** Who acts on messages. */
export interface ClientMessages {
  setPixelFormat(format: ClientPixelFormat): void;
  setEncodings(encodings: readonly number[]): void;
  updateRequested(isIncremental: boolean, rect: Rect): void;
  /** @param scanCode of set 1 with 0x80 for the prefix e0; undefined if the client did not say */
  key(isDown: boolean, keysym: number, scanCode: number | undefined): void;
  pointer(x: number, y: number, buttons: number): void;
  sizeWanted(size: Size, screens: readonly Rect[]): void;
}

/** The client broke the protocol; what is said is for the log. */
export class ProtocolError extends Error {
  override readonly name = 'ProtocolError';
}

/** Bytes of each message, as far as its length is not in it. */
const fixedBytes: Readonly<Record<number, number>> = {
  [ClientMessage.SetPixelFormat]: 4 + PIXEL_FORMAT_BYTES,
  [ClientMessage.SetEncodings]: 4,
  [ClientMessage.UpdateRequest]: 10,
  [ClientMessage.Key]: 8,
  [ClientMessage.Pointer]: 6,
  [ClientMessage.CutText]: 8,
  [ClientMessage.SetDesktopSize]: 8,
  [ClientMessage.Qemu]: 12,
};

/**
 * Take one message from the front of `bytes`.
 * @returns how long it was, which may be more than there is for what is passed over; 0: it is not whole yet.
 * @throws ProtocolError
 */
export function takeMessage(bytes: Buffer, to: ClientMessages): number {
  const type = bytes[0];
  if (type === undefined) return 0;
  const fixed = fixedBytes[type];
  if (fixed === undefined) throw new ProtocolError(`message of type ${type}, which was not offered`);
  if (bytes.length < fixed) return 0;
  switch (type) {
    case ClientMessage.SetPixelFormat: {
      const format = decodeFormat(bytes.subarray(4, 4 + PIXEL_FORMAT_BYTES));
      if (format === undefined) throw new ProtocolError('a pixel format that is none, or has a colour map');
      to.setPixelFormat(format);
      return fixed;
    }
    case ClientMessage.SetEncodings:
      return takeEncodings(bytes, to);
    case ClientMessage.UpdateRequest:
      to.updateRequested(bytes[1] !== 0, rectAt(bytes, 2));
      return fixed;
    case ClientMessage.Key:
      to.key(bytes[1] !== 0, bytes.readUInt32BE(4), undefined);
      return fixed;
    case ClientMessage.Pointer:
      to.pointer(bytes.readUInt16BE(2), bytes.readUInt16BE(4), bytes[1] as number);
      return fixed;
    case ClientMessage.CutText: {
      const length = bytes.readUInt32BE(4);
      if (length > MAX_CUT_TEXT) throw new ProtocolError(`a clipboard of ${length} bytes`);
      return fixed + length;
    }
    case ClientMessage.SetDesktopSize:
      return takeDesktopSize(bytes, to);
    default:
      if (bytes[1] !== QEMU_KEY) throw new ProtocolError(`QEMU message ${bytes[1]}, which was not offered`);
      to.key(bytes.readUInt16BE(2) !== 0, bytes.readUInt32BE(4), bytes.readUInt32BE(8));
      return fixed;
  }
}

function takeEncodings(bytes: Buffer, to: ClientMessages): number {
  const count = bytes.readUInt16BE(2);
  if (count > MAX_ENCODINGS) throw new ProtocolError(`${count} encodings`);
  const length = 4 + 4 * count;
  if (bytes.length < length) return 0;
  to.setEncodings(Array.from({ length: count }, (_, i) => bytes.readInt32BE(4 + 4 * i)));
  return length;
}

function takeDesktopSize(bytes: Buffer, to: ClientMessages): number {
  const count = bytes[6] as number;
  if (count > MAX_SCREENS) throw new ProtocolError(`a desktop of ${count} screens`);
  const length = 8 + 16 * count;
  if (bytes.length < length) return 0;
  const screens = Array.from({ length: count }, (_, i) => rectAt(bytes, 8 + 16 * i + 4));
  to.sizeWanted({ width: bytes.readUInt16BE(2), height: bytes.readUInt16BE(4) }, screens);
  return length;
}

function rectAt(bytes: Buffer, at: number): Rect {
  return {
    x: bytes.readUInt16BE(at),
    y: bytes.readUInt16BE(at + 2),
    width: bytes.readUInt16BE(at + 4),
    height: bytes.readUInt16BE(at + 6),
  };
}
