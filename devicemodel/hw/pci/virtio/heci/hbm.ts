/**
 * Host bus messages: how a driver finds the clients of a management engine and connects to them. Names and numbers are
 * those of the kernel's drivers/misc/mei/hw.h; all fields are bytes, or little endian.
 */
import type { EngineClient } from './host.ts';

export const Command = {
  HostStart: 0x01,
  HostStop: 0x02,
  HostEnum: 0x04,
  ClientProperties: 0x05,
  ClientConnect: 0x06,
  ClientDisconnect: 0x07,
  FlowControl: 0x08,
  PgIsolationEntry: 0x0a,
  Notify: 0x10,
} as const;
export const RESPONSE = 0x80;

export const HbmStatus = { Success: 0, NotFound: 1, Exists: 2, Rejected: 3, Invalid: 4 } as const;

/** Of a message's start: addresses, length in 9 bits, and bit 31 when it is complete (struct mei_msg_hdr). */
export const MESSAGE_HEADER_BYTES = 4;
const LENGTH_MASK = 0x1ff;
const COMPLETE = 0x8000_0000;

export interface MessageHeader {
  /** The engine's client. */
  readonly me: number;
  /** The driver's connection to it. */
  readonly host: number;
  readonly length: number;
  readonly isComplete: boolean;
}

export function decodeHeader(word: number): MessageHeader {
  return {
    me: word & 0xff,
    host: (word >>> 8) & 0xff,
    length: (word >>> 16) & LENGTH_MASK,
    isComplete: (word & COMPLETE) !== 0,
  };
}

export function encodeHeader({ me, host, length, isComplete }: MessageHeader): number {
  return (me | (host << 8) | ((length & LENGTH_MASK) << 16) | (isComplete ? COMPLETE : 0)) >>> 0;
}

const VERSIONS: ReadonlyArray<readonly [number, number]> = [
  [2, 0],
  [1, 1],
  [1, 0],
];

/** The newest is offered, whatever was asked for. */
export function startResponse(request: Uint8Array): Uint8Array {
  const isSupported = VERSIONS.some(([major, minor]) => request[3] === major && request[2] === minor);
  return Uint8Array.of(Command.HostStart | RESPONSE, isSupported ? 1 : 0, 0, 2);
}

/** @param addresses of the clients. */
export function enumResponse(addresses: Iterable<number>): Uint8Array {
  const response = new Uint8Array(4 + 32);
  response[0] = Command.HostEnum | RESPONSE;
  for (const address of addresses) {
    response[4 + (address >>> 3)] = (response[4 + (address >>> 3)] as number) | (1 << (address & 7));
  }
  return response;
}

/** @param client undefined: there is none. */
export function propertiesResponse(address: number, client: EngineClient | undefined): Uint8Array {
  const response = Buffer.alloc(4 + 24);
  response[0] = Command.ClientProperties | RESPONSE;
  response[1] = address;
  if (client === undefined) {
    response[2] = HbmStatus.NotFound;
    return response;
  }
  response.set(client.uuid, 4);
  response[20] = client.version;
  response[21] = client.maxConnections;
  response[22] = client.isFixed ? 1 : 0;
  response.writeUInt32LE(client.maxMessageBytes, 24);
  return response;
}

/** Of connections and their end: both have the same shape. */
export function connectionMessage(command: number, me: number, host: number, status: number): Uint8Array {
  return Uint8Array.of(command, me, host, status);
}

export function flowControl(me: number, host: number): Uint8Array {
  return Uint8Array.of(Command.FlowControl, me, host, 0, 0, 0, 0, 0);
}

export function isolationResponse(): Uint8Array {
  return Uint8Array.of(Command.PgIsolationEntry | RESPONSE, 0, 0, 0);
}

/** struct hbm_notification_response: status and start stand behind the addresses. */
export function notifyResponse(me: number, host: number, status: number, start: number): Uint8Array {
  return Uint8Array.of(Command.Notify | RESPONSE, me, host, status, start);
}
