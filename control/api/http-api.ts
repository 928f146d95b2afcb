/**
 * The HTTP server behind a VM's API socket. It runs on the thread that serves the guest: requests, bodies, connections and
 * what a client does not read are bounded, and nothing here waits. Loaded at the first connection, as a bundle of its own.
 */
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import type { Socket } from 'node:net';
import type { Duplex } from 'node:stream';
import { cloudHypervisorRoutes } from './cloud-hypervisor.ts';
import { openApiDocument } from './open-api.ts';
import { PacedSocket } from './paced-socket.ts';
import { HttpProblem, problemAnswer, problemOf } from './problem.ts';
import { attachConsole, isForConsole, ownRoutes } from './resources.ts';
import { type Answer, matchRoute, type Route, targetOf } from './routes.ts';
import { ThreadLag } from './thread-lag.ts';
import type { Vmm } from './vmm.ts';

const Limits = {
  connections: 64,
  /** Of those, event streams and attached consoles, which never end by themselves. */
  streams: 48,
  /** Of one connection, with the one that is served; at least two. */
  requestsInOrder: 16,
  bodyBytes: 256 * 1024,
  headerBytes: 16 * 1024,
  /** All header lines. */
  headersTimeoutMs: 10_000,
  /** The whole request. */
  requestTimeoutMs: 30_000,
  keepAliveTimeoutMs: 120_000,
} as const;

export interface ApiOptions {
  readonly vmm: Vmm;
  readonly log: { rationed(level: 'info' | 'debug', text: () => string): void };
  /** Shorter, for tests. */
  readonly limits?: Partial<Record<keyof typeof Limits, number>>;
}

export interface HttpApi {
  accept(socket: Socket): void;
  /** Streams end, answers under way are given. */
  close(): Promise<void>;
}

export function createApi({ vmm, log, limits: changed = {} }: ApiOptions): HttpApi {
  const limits = { ...Limits, ...changed };
  const lag = new ThreadLag();
  const own = ownRoutes(vmm, lag, () => openApiDocument(routes));
  const routes: readonly Route[] = [...cloudHypervisorRoutes(vmm), ...own];
  const server = createServer(
    {
      maxHeaderSize: limits.headerBytes,
      headersTimeout: limits.headersTimeoutMs,
      requestTimeout: limits.requestTimeoutMs,
      keepAliveTimeout: limits.keepAliveTimeoutMs,
      connectionsCheckingInterval: Math.min(limits.headersTimeoutMs, 5000),
    },
    (request, response) => inOrder(request, response),
  );
  const connections = new Connections(server, limits.connections, limits.streams);
  // It is given its connections, and would only watch over their time limits once it listened itself.
  server.emit('listening');

  async function serve(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const method = request.method ?? 'GET';
    const url = request.url ?? '/';
    try {
      const { pathname, searchParams } = targetOf(url);
      const { route, parameters } = matchRoute(routes, method, pathname);
      const body = await readJson(request, limits.bodyBytes);
      connections.begin(request.socket, response);
      const becomeStream = () => connections.markStream(request.socket);
      const answer = await route.run({ parameters, query: searchParams, body, request, response, becomeStream });
      if (answer !== 'streams') send(response, answer);
    } catch (error) {
      // In Cloud Hypervisor's document a VM that is not booted is a 405, and so is a method there is none of.
      const problem = problemOf(error, url.startsWith('/api/v1/') ? 405 : 409);
      const isOurs = problem.status >= 500 && problem.status !== 501 && problem.status !== 503;
      // Who breaks off a body has nobody to blame.
      if (isOurs && !request.destroyed) log.rationed('info', () => `${method} ${url}: ${problem.detail}`);
      const headers = error instanceof HttpProblem ? error.headers : {};
      send(response, { status: problem.status, body: problem, type: 'application/problem+json', headers });
    }
    log.rationed('debug', () => `${method} ${url}: ${response.statusCode}`);
  }

  /** By connection: what the next of its requests waits for, and how many there are with it. */
  const queues = new WeakMap<Duplex, { last: Promise<void>; requests: number }>();

  /** RFC 9112 9.3.2: vm.create and vm.boot in one packet are served one after the other. */
  function inOrder(request: IncomingMessage, response: ServerResponse): void {
    const { socket } = request;
    const queue = queues.get(socket) ?? { last: Promise.resolve(), requests: 0 };
    const isFirst = queue.requests++ === 0;
    queues.set(socket, queue);
    // Nothing more is read meanwhile. The body of the last one may be among that: it is the only one left by the time it is served.
    connections.hold(socket, queue.requests >= limits.requestsInOrder);
    queue.last = isFirst ? serve(request, response) : queue.last.then(() => serve(request, response));
    void queue.last.then(() => {
      queue.requests--;
      connections.hold(socket, queue.requests >= limits.requestsInOrder);
      if (queue.requests === 0) queues.delete(socket);
    });
  }

  server.on('checkContinue', (request, response) => {
    // A body that is refused anyhow is not asked for.
    if (!(Number(request.headers['content-length'] ?? 0) > limits.bodyBytes)) response.writeContinue();
    inOrder(request, response);
  });
  server.on('upgrade', (request, socket: Duplex, head: Buffer) => {
    if (isForConsole(request)) {
      attachConsole(vmm, { request, socket, head, becomeStream: () => connections.markStream(socket) });
      return;
    }
    // RFC 9110 7.8: an Upgrade that is not wanted is ignored. Node has taken its parser away: the request comes anew.
    socket.unshift(Buffer.concat([headWithoutUpgrade(request), head]));
    server.emit('connection', socket);
  });
  server.on('clientError', (error: NodeJS.ErrnoException, socket) => {
    // Into an answer that is under way nothing can be said.
    if (!socket.writable || connections.isBusy(socket)) socket.destroy();
    else socket.end(problemAnswer(problemOf(refusalOf(error, limits.headerBytes))));
  });
  return {
    accept: (socket) => connections.accept(socket),
    close: () => {
      lag.close();
      return connections.close();
    },
  };
}

/** What Node's parser, or its clock, refused. */
function refusalOf({ code, message }: NodeJS.ErrnoException, headerBytes: number): HttpProblem {
  switch (code) {
    case 'HPE_HEADER_OVERFLOW':
      return new HttpProblem(431, 'header-too-large', `the head of a request has at most ${headerBytes} bytes`);
    case 'ERR_HTTP_REQUEST_TIMEOUT':
      return new HttpProblem(408, 'too-slow', 'the request did not come to its end in time');
    default:
      return new HttpProblem(400, 'not-http', message);
  }
}

/** The last of its connection, which has Node's marks of this one on it. */
function headWithoutUpgrade({ method, url, httpVersion, rawHeaders }: IncomingMessage): Buffer {
  const lines = [`${method} ${url} HTTP/${httpVersion}`];
  for (let i = 0; i < rawHeaders.length; i += 2) {
    const [name, value] = rawHeaders.slice(i, i + 2) as [string, string];
    if (!/^(upgrade|connection|http2-settings)$/i.test(name)) lines.push(`${name}: ${value}`);
  }
  return Buffer.from(`${lines.join('\r\n')}\r\nConnection: close\r\n\r\n`, 'latin1');
}

/** How long a client may take its last answer. */
const LINGER_MS = 300;

/**
 * At most so many connections; one that is idle gives way to a new one, and so does one whose request has not come to its
 * end, or that does not take its answer. Those that never end by themselves leave places for the others.
 */
class Connections {
  readonly #server: Server;
  readonly #maximum: number;
  readonly #maximumStreams: number;
  /** How many requests of a connection are being served; the one that came first is first. */
  readonly #busy = new Map<PacedSocket, number>();
  readonly #streams = new Set<PacedSocket>();
  #isClosing = false;

  constructor(server: Server, maximum: number, maximumStreams: number) {
    this.#server = server;
    this.#maximum = maximum;
    this.#maximumStreams = maximumStreams;
  }

  accept(socket: Socket): void {
    socket.on('error', () => {});
    if (this.#busy.size >= this.#maximum) {
      const others = [...this.#busy].filter(([other]) => !this.#streams.has(other));
      const [idle] = others.find(([, requests]) => requests === 0) ?? others.find(([other]) => other.isOwed) ?? [];
      if (idle === undefined) {
        socket.end('HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nContent-Length: 0\r\n\r\n');
        return;
      }
      this.#busy.delete(idle);
      idle.destroy();
    }
    const paced = new PacedSocket(socket);
    this.#busy.set(paced, 0);
    paced.once('close', () => {
      this.#busy.delete(paced);
      this.#streams.delete(paced);
    });
    this.#server.emit('connection', paced);
  }

  /** A request of which everything is here is served until its answer is out. */
  begin(socket: Duplex, response: ServerResponse): void {
    this.#change(socket, 1);
    response.once('close', () => this.#change(socket, -1));
  }

  hold(socket: Duplex, isHeld: boolean): void {
    if (socket instanceof PacedSocket) socket.hold(isHeld);
  }

  /** Whether an answer is under way. */
  isBusy(socket: Duplex): boolean {
    return socket instanceof PacedSocket && (this.#busy.get(socket) ?? 0) > 0;
  }

  /** Has no end of its own. @throws HttpProblem 503 when there are enough of them. */
  markStream(socket: Duplex): void {
    if (!(socket instanceof PacedSocket) || socket.destroyed) return;
    if (this.#streams.size >= this.#maximumStreams) {
      throw new HttpProblem(503, 'busy', `at most ${this.#maximumStreams} streams and consoles at a time`);
    }
    this.#streams.add(socket);
  }

  /** Requests under way are answered, for a moment; then all are gone. */
  async close(): Promise<void> {
    const sockets = [...this.#busy];
    const gone = sockets.map(([socket]) => new Promise<void>((resolve) => socket.once('close', resolve)));
    this.#isClosing = true;
    for (const [socket, requests] of sockets) if (requests === 0 || this.#streams.has(socket)) socket.destroySoon();
    const timer = setTimeout(() => {
      for (const [socket] of sockets) socket.destroy();
    }, LINGER_MS);
    await Promise.all(gone);
    clearTimeout(timer);
    this.#server.close();
  }

  #change(socket: Duplex, by: number): void {
    if (!(socket instanceof PacedSocket)) return;
    const now = this.#busy.get(socket);
    if (now === undefined) return;
    this.#busy.set(socket, now + by);
    if (this.#isClosing && now + by === 0) socket.destroySoon();
  }
}

/**
 * Levels of a body. What is nested a hundred thousand times takes the parser so long that the guest, whose thread this is,
 * would notice.
 */
const MAX_DEPTH = 64;

/** @param json whatever it is: what is no JSON is refused by the parser. */
function isDeeper(json: string, limit: number): boolean {
  let depth = 0;
  let isInText = false;
  for (let i = 0; i < json.length; i++) {
    const char = json[i];
    if (isInText) {
      if (char === '\\') i++;
      else if (char === '"') isInText = false;
    } else if (char === '"') isInText = true;
    else if (char === '[' || char === '{') {
      if (++depth > limit) return true;
    } else if (char === ']' || char === '}') depth--;
  }
  return false;
}

/** @returns undefined without a body. @throws HttpProblem */
async function readJson(request: IncomingMessage, maximumBytes: number): Promise<unknown> {
  const tooLarge = new HttpProblem(413, 'too-large', `a request has at most ${maximumBytes} bytes`, {
    headers: { connection: 'close' },
  });
  if (Number(request.headers['content-length'] ?? 0) > maximumBytes) throw tooLarge;
  const chunks: Buffer[] = [];
  let sizeBytes = 0;
  for await (const chunk of request as AsyncIterable<Buffer>) {
    sizeBytes += chunk.length;
    if (sizeBytes > maximumBytes) throw tooLarge;
    chunks.push(chunk);
  }
  if (sizeBytes === 0) return undefined;
  const text = Buffer.concat(chunks).toString('utf8');
  if (isDeeper(text, MAX_DEPTH)) {
    throw new HttpProblem(400, 'not-json', `the body has more than ${MAX_DEPTH} levels`);
  }
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new HttpProblem(400, 'not-json', `the body is no JSON: ${(error as Error).message}`);
  }
}

function send(response: ServerResponse, { status, body, type, headers = {} }: Answer): void {
  if (response.headersSent || response.destroyed) return;
  if (body === undefined) {
    response.writeHead(status, headers).end();
    return;
  }
  const text = typeof body === 'string' ? body : `${JSON.stringify(body)}\n`;
  const contentType = type ?? (typeof body === 'string' ? 'text/plain; charset=utf-8' : 'application/json');
  response
    .writeHead(status, { 'content-type': contentType, 'content-length': Buffer.byteLength(text), ...headers })
    .end(text);
}
