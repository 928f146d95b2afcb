/** Streams that a client reads as they come. Nobody waits for one that does not read: it is cut off. */
import type { ServerResponse } from 'node:http';
import type { Duplex } from 'node:stream';
import { type Asked, STREAM_TYPE } from './routes.ts';

/** What a client of a stream has not read; a client that lets more pile up is cut off. */
const MAX_UNREAD_BYTES = 256 * 1024;

/** What goes out to a client of a stream, as long as it reads. */
export function bounded(stream: Duplex | ServerResponse, close: () => void): (data: string | Uint8Array) => void {
  return (data) => {
    if (stream.destroyed) return;
    if (stream.writableLength > MAX_UNREAD_BYTES) close();
    else stream.write(data);
  };
}

/** Begin an answer of server-sent events. @returns how to send one. @throws HttpProblem 503 when there are enough of them. */
export function serveEvents({
  response,
  becomeStream,
}: Pick<Asked, 'response' | 'becomeStream'>): (id: number, data: object) => void {
  becomeStream();
  response.writeHead(200, { 'content-type': STREAM_TYPE, 'cache-control': 'no-store' });
  response.flushHeaders();
  const write = bounded(response, () => response.destroy());
  return (id, data) => write(`id: ${id}\ndata: ${JSON.stringify(data)}\n\n`);
}
